"""Prints what a page tells an operator to type, one a line and each once: the lines of its blocks of shell, and what is
in backticks with a blank in it or is the name of a command of the program alone. Texts and settings with blanks are among
them; runbook.sh says of each what it is.

    runbook.py PAGE
"""

import pathlib
import re
import sys

ALONE = {"check", "explain", "healthcheck", "send"}
# A link is no text to type.
LINK = re.compile(r"\]\([^)]*\)")


def typed(page):
    for number, part in enumerate(re.split(r"^```(.*)$", page, flags=re.MULTILINE)):
        # Text, language, block, nothing; and so on.
        if number % 4 == 2:
            if language == "sh":
                yield from (line.split(" #")[0].strip() for line in part.splitlines())
        elif number % 2 == 1:
            language = part
        else:
            for span in re.findall(r"`([^`]+)`", LINK.sub("]", part)):
                span = " ".join(span.split())
                if " " in span or span in ALONE:
                    yield span


def main():
    page = pathlib.Path(sys.argv[1]).read_text(encoding="utf-8")
    print("\n".join(dict.fromkeys(filter(None, typed(page)))))


if __name__ == "__main__":
    main()
