"""Every alert of the files that these tests name says how bad it is and what to do, its tests have it firing once and quiet
once, and the guide has a section of its name that says the same of how bad it is.

    alert_cases.py GUIDE TESTS...

PyYAML comes with yamllint.
"""

import pathlib
import re
import sys

import yaml


def load(name):
    with open(name, encoding="utf-8") as file:
        return yaml.safe_load(file)


def main():
    guide, *names = sys.argv[1:]
    files = {pathlib.Path(name): load(name) for name in names}
    rules = [load(name.parent / each) for name, tests in files.items() for each in tests["rule_files"]]
    with open(guide, encoding="utf-8") as file:
        sections = dict(re.findall(r"^### (PlexTracBridge\w*)\n\*(\w+)\.\*", file.read(), re.MULTILINE))
    alerts = {rule["alert"]: rule for file in rules for group in file["groups"] for rule in group["rules"]}
    cases = [case for tests in files.values() for test in tests["tests"] for case in test.get("alert_rule_test", [])]
    firing = {case["alertname"] for case in cases if case.get("exp_alerts")}
    quiet = {case["alertname"] for case in cases if not case.get("exp_alerts")}
    wrong = [] if alerts else ["no alerts at all"]
    for name, alert in alerts.items():
        severity = alert.get("labels", {}).get("severity")
        if severity not in ("critical", "warning"):
            wrong.append(f"{name}: its severity is neither critical nor warning")
        if sections.pop(name, None) != severity:
            wrong.append(f"{name}: {guide} has no section `### {name}` that begins with *{severity}.*")
        texts = alert.get("annotations", {})
        wrong += [f"{name}: no {text}" for text in ("summary", "description") if not texts.get(text)]
        if name not in firing:
            wrong.append(f"{name}: no test has it firing")
        if name not in quiet:
            wrong.append(f"{name}: no test has it quiet")
    wrong += [f"{name}: {guide} has a section, but there is no such alert" for name in sections]
    # promtool takes a name that no rule has for an alert that is quiet.
    wrong += [f"{name}: tested, but no such alert" for name in sorted((firing | quiet) - set(alerts))]
    print("\n".join(wrong) or f"{len(alerts)} alerts, {len(cases)} cases")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
