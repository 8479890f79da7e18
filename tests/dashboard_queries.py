"""Prints the queries of a Grafana dashboard as recording rules, for `promtool check rules` and `promtool test rules`.

    dashboard_queries.py DASHBOARD

Each is `panel_<id>_<refId>`. Grafana's variables get a value each, so that what is left is PromQL: all jobs, instances and
sources, a time range of an hour, rates over 5 minutes.
"""

import json
import re
import sys


VALUES = {"job": ".*", "instance": ".*", "source": ".*", "__range": "1h", "__rate_interval": "5m"}


def queries(dashboard):
    for panel in dashboard["panels"]:
        for target in panel.get("targets", []):
            query = re.sub(r"\$(\w+)", lambda variable: VALUES[variable[1]], target["expr"])
            yield {"record": f"panel_{panel['id']}_{target['refId']}", "expr": query}


def main():
    with open(sys.argv[1], encoding="utf-8") as file:
        rules = list(queries(json.load(file)))
    # JSON is YAML too.
    json.dump({"groups": [{"name": "dashboards", "rules": rules}]}, sys.stdout, indent=1)
    return 0 if rules else "no queries found"


if __name__ == "__main__":
    sys.exit(main())
