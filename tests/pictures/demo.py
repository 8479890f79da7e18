#!/usr/bin/env python3
"""Records `demo` on a terminal and draws it as an animated SVG: each line appears when the program wrote it.

    demo.py BINARY FILE.svg
"""

import html
import os
import pty
import re
import select
import signal
import sys
import textwrap
import time

COLUMNS, SECONDS, REST, PROMPT = 112, 11, 6, "$ "
CHARACTER, LINE, EDGE, BAR = 7.6, 17, 16, 34


def record(binary):
    """Returns the lines of a real run with their times, and when Ctrl-C ended it."""
    process, terminal = pty.fork()
    if process == 0:
        os.environ["TMPDIR"] = "/tmp"
        os.execv(binary, ["plextrac-bridge", "demo"])
    began, text, lines, stopped = time.monotonic(), "", [], None
    while True:
        now = time.monotonic() - began
        if now > SECONDS and stopped is None:
            stopped = now
            os.kill(process, signal.SIGINT)
        if not select.select([terminal], [], [], 0.02)[0]:
            continue
        try:
            text += os.read(terminal, 65536).decode()
        except OSError:  # the other end of the terminal is closed
            break
        *whole, text = text.split("\n")
        lines += [(time.monotonic() - began, line.rstrip("\r")) for line in whole]
    if os.waitpid(process, 0)[1] != 0:
        sys.exit("the demo failed:\n" + "\n".join(line for _, line in lines))
    return lines, stopped


def wrapped(lines):
    """As a terminal of this width shows them; a secret and a signature of one run are shortened."""
    for at, line in lines:
        line = re.sub(r"(demo-[0-9a-f]{6})[0-9a-f]+", r"\1…", line)
        line = re.sub(r"(HMAC-256: [0-9a-f]{8})[0-9a-f]+", r"\1…", line)
        for part in textwrap.wrap(line, COLUMNS, subsequent_indent="    ", break_on_hyphens=False) or [""]:
            yield at, part


def draw(lines, length):
    """The picture: a window, its lines, and for each moment at which some appear one animation."""
    width = round(COLUMNS * CHARACTER + 2 * EDGE)
    height = BAR + len(lines) * LINE + 2 * EDGE
    moments = sorted({round(at, 1) for at, _ in lines} - {0.0})
    styles = [
        f"@keyframes k{number}{{0%{{visibility:hidden}}{100 * at / length:.2f}%,100%{{visibility:visible}}}}"
        f".k{number}{{animation:k{number} {length}s step-end infinite}}"
        for number, at in enumerate(moments)
    ]
    texts = []
    for row, (at, line) in enumerate(lines):
        kind = "prompt " if line.startswith(PROMPT) else "arrived " if line.startswith("arrived") else ""
        moment = f"k{moments.index(round(at, 1))}" if round(at, 1) else ""
        if line:
            y = BAR + EDGE + (row + 1) * LINE - 5
            texts.append(f'<text class="{(kind + moment).strip()}" x="{EDGE}" y="{y}">{html.escape(line)}</text>')
    dots = "".join(f'<circle cx="{20 + 18 * at}" cy="17" r="5.5" class="dot"/>' for at in range(3))
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img">\n'
        "<title>plextrac-bridge demo: sample events are sent, signed, and arrive</title>\n<style>"
        "text{font:12.6px ui-monospace,SFMono-Regular,Menlo,Consolas,'DejaVu Sans Mono',monospace;fill:#d5dbe3;white-space:pre}"
        ".window{fill:#10161e;stroke:#3a4553}.dot{fill:#3a4553}.prompt{fill:#fff;font-weight:700}.arrived{fill:#7fd18c}"
        f"{''.join(styles)}@media(prefers-reduced-motion:reduce){{text{{animation:none!important}}}}</style>\n"
        f'<rect class="window" x=".5" y=".5" width="{width - 1}" height="{height - 1}" rx="8"/>{dots}\n'
        + "\n".join(texts)
        + "\n</svg>\n"
    )


def main():
    """Records, then writes the file."""
    binary, target = sys.argv[1:]
    lines, stopped = record(os.path.abspath(binary))
    # The command stands there for a second before it answers.
    shown = [(0.0, PROMPT + "plextrac-bridge demo"), (0.0, "")]
    shown += [(at + 1, line) for at, line in wrapped(lines) if at < stopped]
    shown += [(stopped + 1, "^C")] + [(at + 1, line) for at, line in wrapped(lines) if at >= stopped and line]
    with open(target, "w", encoding="utf-8") as file:
        file.write(draw(shown, SECONDS + 1 + REST))


main()
