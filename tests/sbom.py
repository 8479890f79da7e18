"""Validates a bill of materials by CycloneDX's own schema (strict), and that it is about the release binary.

    sbom.py FILE
"""

import json
import re
import sys

from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator

# What the binary stands on, of Rust and of C, and what only tests use.
WITHIN = ("hyper", "tokio", "rdkafka-sys", "openssl-src", "lapin", "async-nats")
WITHOUT = ("proptest", "criterion", "plextrac-bridge-bench")


def main():
    with open(sys.argv[1], encoding="utf-8") as file:
        text = file.read()
    bill = json.loads(text)
    components = bill.get("components", [])
    names = {component["name"] for component in components}
    wrong = [str(error) for error in JsonStrictValidator(SchemaVersion.V1_5).validate_str(text, all_errors=True) or []]
    wrong += [f"{name} is missing" for name in WITHIN if name not in names]
    wrong += [f"{name} is for tests only" for name in WITHOUT if name in names]
    wrong += [f"{component['name']} has no licence" for component in components if not component.get("licenses")]
    if re.search(r"file:///(?!plextrac-bridge#)", text):
        wrong.append("it names a place of this machine")
    print("\n".join(wrong) or f"{sys.argv[1]}: CycloneDX {bill['specVersion']}, {len(components)} components")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
