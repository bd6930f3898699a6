"""docs/terminal.svg: what the loop prints, in twenty seconds.

    python docs/terminal.py            # runs run_rlhf.py in a terminal and draws what it printed
    python docs/terminal.py --quick    # flags are run_rlhf.py's

A picture that moves without a script: all lines stand below each other and scroll behind a window,
as do, in the window's last row, the states of the bar that counts. Every stage takes equally long.
"""

import fcntl
import os
import pty
import struct
import sys
import tempfile
import termios
import time
from html import escape
from pathlib import Path

DOCS = Path(__file__).resolve().parent
COLUMNS, ROWS = 100, 26
WIDTH, HEIGHT, MARGIN = 8.0, 17, 14  # of a character, of a line, around the text; pixels
SECONDS, HOLD = 15.0, 5.0  # of the stages, of the last picture
BARS = 24  # states of the bar in a stage

Event = tuple[float, str]  # seconds, what was written
Frame = tuple[float, int, str]  # seconds, how many lines stand, the line below them

STYLE = """
text { font: 13px ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; white-space: pre }
text { fill: #c9d1d9 } .stage { fill: #7ee0b8; font-weight: bold } .command { fill: #8b98a9 }
.bar { fill: #79b8ff } .names { fill: #8b98a9 } .end { fill: #fff; font-weight: bold }
"""


def record(command: list[str]) -> list[Event]:
    """Run a command in a terminal of its own."""
    process, terminal = pty.fork()
    if process == 0:
        size = struct.pack("HHHH", ROWS, COLUMNS, 0, 0)
        fcntl.ioctl(1, termios.TIOCSWINSZ, size)
        os.execv(command[0], command)
    began = time.monotonic()
    events = []
    while True:
        try:
            written = os.read(terminal, 65536)
        except OSError:  # it has ended
            break
        events.append((time.monotonic() - began, written.decode(errors="replace")))
        sys.stdout.buffer.write(written)
        sys.stdout.flush()
    if os.waitpid(process, 0)[1]:
        sys.exit("the command failed")
    return events


def screens(events: list[Event]):
    """The terminal's rows after every event; the caller must not keep them."""
    rows, row, column = [""], 0, 0
    for seconds, written in events:
        for character in written.replace("\x1b[A", "\x00"):
            if character == "\r":
                column = 0
            elif character == "\x00":
                row -= 1
            elif character == "\n":
                row += 1
            else:
                if column == COLUMNS:
                    row, column = row + 1, 0
                rows += [""] * (row + 1 - len(rows))
                rows[row] = rows[row][:column].ljust(column) + character + rows[row][column + 1 :]
                column += 1
            rows += [""] * (row + 1 - len(rows))
        yield seconds, rows


def frames(events: list[Event]) -> tuple[list[str], list[Frame]]:
    """The lines that stay, and when they stand."""
    *_, (_, rows) = screens(events)  # all share one list: it is the last state
    lines = [row.rstrip() for row in rows]
    standing = 0
    found = []
    for seconds, rows in screens(events):
        while standing < len(rows) - 1 and rows[standing].rstrip() == lines[standing]:
            standing += 1
        below = rows[standing].rstrip() if standing < len(rows) else ""
        found.append((seconds, standing, below))
    return lines, found


def twenty_seconds(lines: list[str], found: list[Frame]) -> list[Frame]:
    """Every stage as long, with some of the bar's states."""
    starts = [number for number, line in enumerate(lines) if line.startswith("== ")]
    begins = [next(t for t, standing, _ in found if standing > start) for start in starts]
    ends = [*begins[1:], found[-1][0]]
    kept = []
    each = SECONDS / len(starts)
    for stage, (begin, end) in enumerate(zip(begins, ends)):
        for seconds, standing, below in found:
            if not begin <= seconds <= end:
                continue
            at = each * (stage + (seconds - begin) / (end - begin))
            if kept and standing == kept[-1][1] and at < kept[-1][0] + each / BARS:
                continue
            kept.append((at, standing, below))
    kept.append((SECONDS, len(lines), ""))
    return kept


def keyframes(name: str, offsets: list[tuple[float, int]]) -> str:
    """CSS that jumps from offset to offset (lines); the last one is also what stands still."""
    parts = []
    for at, offset in offsets:
        parts.append(f"{100 * at / (SECONDS + HOLD):.3f}%{{transform:translateY({offset}px)}}")
    last = f"transform:translateY({offsets[-1][1]}px)"
    return (
        f"@keyframes {name}{{{''.join(parts)}100%{{{last}}}}}"
        f"#{name}{{{last};animation:{name} {SECONDS + HOLD:g}s step-end infinite}}"
    )


def styles_of(lines: list[str]) -> list[str]:
    starts = {"== ": "stage", "$ ": "command", "After ": "end", "next:": "stage"}
    styles = []
    for number, line in enumerate(lines):
        style = next((style for start, style in starts.items() if line.startswith(start)), "")
        if line.split()[:1] in (["step"], ["score"], ["policy"]):
            style = "names"
        before = lines[number - 1] if number else ""
        if len(before) == COLUMNS or (styles[-1:] == ["end"] and not before.endswith(".")):
            style = styles[-1]  # it goes on in this row
        styles.append(style)
    return styles


def text(line: str, number: int, style: str) -> str:
    if not line:
        return ""
    width = f'textLength="{WIDTH * len(line):g}"'  # whatever the font
    return f'<text y="{HEIGHT * number}" class="{style}" {width}>{escape(line)}</text>'


def draw(events: list[Event], title: str) -> str:
    lines, found = frames(events)
    kept = twenty_seconds(lines, found)
    bars = list(dict.fromkeys(below for _, _, below in kept))
    log = map(text, lines, range(len(lines)), styles_of(lines))
    states = [text(below, number, "bar") for number, below in enumerate(bars)]
    scroll = [(at, HEIGHT * (ROWS - 1 - standing)) for at, standing, _ in kept]
    count = [(at, -HEIGHT * bars.index(below)) for at, _, below in kept]
    width, height = WIDTH * COLUMNS + 2 * MARGIN, HEIGHT * (ROWS + 1) + 2 * MARGIN
    window = '<clipPath id="{}"><rect y="-13" width="2000" height="{}"/></clipPath>'
    windows = window.format("a", HEIGHT * (ROWS - 1)) + window.format("b", HEIGHT)
    top = HEIGHT + MARGIN + 14
    return f"""<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:g} {height}" \
role="img" aria-label="{escape(title)}">
<style>{STYLE}{keyframes("log", scroll)}{keyframes("bar", count)}
@media (prefers-reduced-motion) {{ g {{ animation: none !important }} }}</style>
{windows}
<rect width="100%" height="100%" rx="8" fill="#10151c"/>
<text x="{MARGIN}" y="{MARGIN + 8}" class="command">{escape(title)}</text>
<g transform="translate({MARGIN} {top})" clip-path="url(#a)"><g id="log">{"".join(log)}</g></g>
<g transform="translate({MARGIN} {top + HEIGHT * (ROWS - 1)})" clip-path="url(#b)"><g id="bar">\
{"".join(states)}</g></g>
</svg>
"""


def main(flags: list[str]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        events = record([sys.executable, str(DOCS.parent / "run_rlhf.py"), *flags])
    took = f"{events[-1][0] / 60:.0f} minutes in {SECONDS:.0f} seconds"
    title = f"$ {' '.join(['python', 'run_rlhf.py', *flags])}    ({took})"
    (DOCS / "terminal.svg").write_text(draw(events, title), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
