"""Prints the queries of Grafana dashboards as recording rules, for `promtool check rules`.

    dashboard_queries.py DASHBOARD...

Grafana's variables get a value each, so that what is left is PromQL.
"""

import json
import re
import sys


def queries(dashboard):
    for panel in dashboard["panels"]:
        for target in panel.get("targets", []):
            yield re.sub(r"\$\w+", "5m", target["expr"])


def main():
    rules = []
    for name in sys.argv[1:]:
        with open(name, encoding="utf-8") as file:
            found = queries(json.load(file))
        rules += [{"record": f"query_{number}", "expr": query} for number, query in enumerate(found, len(rules) + 1)]
    # JSON is YAML too.
    json.dump({"groups": [{"name": "dashboards", "rules": rules}]}, sys.stdout, indent=1)
    return 0 if rules else "no queries found"


if __name__ == "__main__":
    sys.exit(main())
