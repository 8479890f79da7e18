"""Every alert of a file of rules says how bad it is and what to do, and its tests have it firing once and quiet once.

    alert_cases.py RULES TESTS

PyYAML comes with yamllint.
"""

import sys

import yaml


def load(name):
    with open(name, encoding="utf-8") as file:
        return yaml.safe_load(file)


def main():
    rules, tests = map(load, sys.argv[1:])
    alerts = {rule["alert"]: rule for group in rules["groups"] for rule in group["rules"] if "alert" in rule}
    cases = [case for test in tests["tests"] for case in test.get("alert_rule_test", [])]
    firing = {case["alertname"] for case in cases if case.get("exp_alerts")}
    quiet = {case["alertname"] for case in cases if not case.get("exp_alerts")}
    wrong = [] if alerts else ["no alerts at all"]
    for name, alert in alerts.items():
        if alert.get("labels", {}).get("severity") not in ("critical", "warning"):
            wrong.append(f"{name}: its severity is neither critical nor warning")
        texts = alert.get("annotations", {})
        wrong += [f"{name}: no {text}" for text in ("summary", "description") if not texts.get(text)]
        if name not in firing:
            wrong.append(f"{name}: no test has it firing")
        if name not in quiet:
            wrong.append(f"{name}: no test has it quiet")
    # promtool takes a name that no rule has for an alert that is quiet.
    wrong += [f"{name}: tested, but no such alert" for name in sorted((firing | quiet) - set(alerts))]
    print("\n".join(wrong) or f"{len(alerts)} alerts, {len(cases)} cases")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
