"""What the documents in docs/schema/ say: `schema.py ORDER`, the order as JSON; one JSON value a line.

`{"bodies": [..], "schema": "payload"}`: for each of these texts whether that schema takes it, and then for each of the
schema's own examples.
`{"headers": "kafka"}`: the names of the headers that a message of this broker has, and whether it always has them.
"""

import json
import pathlib
import sys

import jsonschema
import yaml

HERE = pathlib.Path(__file__).resolve().parents[3] / "docs/schema"
order = json.loads(sys.argv[1])
if "bodies" in order:
    schema = json.loads((HERE / f"{order['schema']}.schema.json").read_text())
    checks = jsonschema.Draft202012Validator(schema)
    for body in order["bodies"] + [json.dumps(example) for example in schema["examples"]]:
        print(json.dumps(checks.is_valid(json.loads(body))))
else:
    document = yaml.safe_load((HERE / "asyncapi.yaml").read_text())
    headers = document["components"]["messages"][order["headers"]]["headers"]
    for name in headers["properties"]:
        print(json.dumps([name, name in headers["required"]]))
