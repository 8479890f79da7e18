"""Compares what a load was answered with what the file broker holds: every accepted event is there, and none twice.

    judge.py LOAD DIRECTORY [--none-refused]
"""

import collections
import json
import pathlib
import re
import sys

# Fewer would show nothing.
LEAST = 50


def main():
    load = json.loads(pathlib.Path(sys.argv[1]).read_text(encoding="utf-8"))
    stored = collections.Counter()
    for file in pathlib.Path(sys.argv[2]).glob("*.ndjson"):
        for line in file.read_text(encoding="utf-8").splitlines():
            body = json.loads(line)["body"]
            # Other tests publish what is no JSON.
            if name := re.search(r'"cuid": *"(\w+)"', body if isinstance(body, str) else json.dumps(body)):
                stored[name[1]] += 1
    accepted = load["accepted"]
    lost = [name for name in accepted if not stored[name]]
    twice = [name for name in accepted if stored[name] > 1]
    print(f"{len(accepted)} accepted, {len(load['other'])} not, slowest {load['slowest']} s, {len(lost)} lost")
    wrong = []
    if len(accepted) < LEAST:
        wrong.append(f"only {len(accepted)} were accepted")
    if lost:
        wrong.append(f"lost: {lost[:3]}")
    if twice:
        wrong.append(f"stored twice: {twice[:3]}")
    if "--none-refused" in sys.argv and load["other"]:
        wrong.append(f"not accepted: {collections.Counter(map(str, load['other']))}")
    print("\n".join(wrong))
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
