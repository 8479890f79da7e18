"""What the schema of AsyncAPI cannot say of docs/schema/asyncapi.yaml: its references lead somewhere, the payloads are those
of payload.schema.json and documented-payload.schema.json, every channel has an operation, and docs/consumers.md names every
header and every deviation.
"""

import json
import pathlib
import sys

import yaml

schema = pathlib.Path(__file__).resolve().parents[2] / "docs/schema"
document = yaml.safe_load((schema / "asyncapi.yaml").read_text())
problems = []


def references(node):
    if isinstance(node, dict):
        if isinstance(node.get("$ref"), str):
            yield node["$ref"]
        node = list(node.values())
    if isinstance(node, list):
        for below in node:
            yield from references(below)


for reference in references(document):
    found = document
    for part in reference.removeprefix("#/").split("/"):
        found = found.get(part) if isinstance(found, dict) else None
    if not reference.startswith("#/") or found is None:
        problems.append(f"{reference} leads nowhere")

for name, file in [("payload", "payload.schema.json"), ("documentedPayload", "documented-payload.schema.json")]:
    payload = json.loads((schema / file).read_text())
    del payload["$schema"]
    if document["components"]["schemas"][name] != payload:
        problems.append(f"components.schemas.{name} is not what {file} says")

channels = {f"#/channels/{name}" for name in document["channels"]}
if channels != {operation["channel"]["$ref"] for operation in document["operations"].values()}:
    problems.append("not every channel has its operation")

prose = (schema.parent / "consumers.md").read_text()
for message in document["components"]["messages"].values():
    for name in message["headers"]["properties"]:
        if f"`{name}`" not in prose:
            problems.append(f"docs/consumers.md does not name {name}")
for name in ["missing", "null", "type", "empty", "duplicate", "both_targets", "surrogate"]:
    for where, text in [("docs/consumers.md", prose), ("the header", document["components"]["schemas"]["deviations"]["description"])]:
        if f"`{name}`" not in text:
            problems.append(f"{where} does not name the deviation {name}")

sys.exit("\n".join(problems) or None)
