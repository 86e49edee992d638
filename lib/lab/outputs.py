"""What a cell printed, as a reader should see it: finished progress bars, no control codes, no noise, no machine paths.

A kernel sends what is written to its streams in many small pieces, with the codes by which a terminal redraws its
lines. The pieces of a cell are joined, redrawn as a terminal would, and each progress bar keeps its last state.
"""

import os
import re
from collections.abc import Sequence

from nbformat import NotebookNode

from lib import root

PIECE = re.compile(
    r"\x1b\[(?P<count>\d*)[\d;?]*(?P<code>[@-~])|\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)|\x1b."
    r"|(?P<control>[\x00-\x08\n-\x1f\x7f])|(?P<text>[^\x00-\x08\n-\x1f\x7f]+)"
)
CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f]")
BAR = re.compile(
    r"(?P<label>.*?):?\s*\d+%\|[^|]*\| *\S+/(?P<total>\S+) \[[^]]*\]"  # with a total, and without:
    r"|(?P<name>.*?):?\s*\d+\w+ \[\d[^]]*(?:/s|s/)[^]]*\]"
)
# Notices of installed packages about themselves. Warnings about numbers (RuntimeWarning, ConvergenceWarning) stay.
NOTICE = re.compile(r".*(?:site|dist)-packages/.*\.py:\d+: (?:User|Future|(?:Pending)?Deprecation|Tqdm)Warning: ")


def clean(outputs: Sequence[NotebookNode]) -> list[NotebookNode]:
    """Outputs of one cell: joined streams as a terminal would show them, nothing empty, tracebacks without paths.

    What goes to stderr becomes one block where its first piece stood; stdout is joined up to the next figure or table.
    """
    kept: list[NotebookNode] = []
    joined: dict[str, NotebookNode] = {}
    for output in outputs:
        if output.output_type != "stream":
            joined.pop("stdout", None)
            kept.append(output)
        elif output.name in joined:
            joined[output.name].text += output.text
        else:
            joined[output.name] = output
            kept.append(output)
    for output in kept:
        if output.output_type == "stream":
            output.text = without_paths(as_read(output.text))
        if output.output_type == "error":
            output.traceback = [without_paths(line) for line in output.traceback]
    return [output for output in kept if output.output_type != "stream" or output.text.strip()]


def as_read(text: str) -> str:
    """Text as a reader should find it; one without control codes, bars and notices comes back as it is."""
    lines = without_notices(_bars_apart(on_screen(text)))
    bars = [_bar_of(line) for line in lines]
    if not CONTROL.search(text) and not any(bars) and len(lines) == len(text.split("\n")):
        return text
    last = {bar: number for number, bar in enumerate(bars)}
    shown = [line for number, line in enumerate(lines) if line and (not bars[number] or last[bars[number]] == number)]
    return "\n".join(shown) + ("\n" if shown else "")


def on_screen(text: str) -> list[str]:
    r"""Lines that a terminal of any width would show after this text.

    Knows `\n`, `\r`, backspace, cursor up and down, and erase; every other code is dropped. A line that is written
    anew from its start is replaced whole, so that a short line leaves nothing of a longer one.
    """
    lines, row, anew = [""], 0, False
    for piece in PIECE.finditer(text):
        code, control, count = piece["code"], piece["control"], int(piece["count"] or 1)
        if piece["text"]:
            lines[row] = piece["text"] if anew else lines[row] + piece["text"]
            anew = False
        elif control == "\n" or code == "B":
            row += 1 if control else count
            lines += [""] * (row + 1 - len(lines))
            anew = bool(control)
        elif control == "\r":
            anew = True
        elif control == "\b":
            lines[row] = lines[row][:-1]
        elif code == "A":
            row, anew = max(0, row - count), False
        elif code == "K" and (anew or piece["count"]):
            lines[row] = ""
    return [line.rstrip() for line in lines]


def without_notices(lines: Sequence[str]) -> list[str]:
    """Lines without the warnings of installed packages about their own ways, and the line of code below each."""
    kept, below = [], False
    for line in lines:
        notice = bool(NOTICE.match(line))
        if not notice and not (below and line.startswith("  ")):
            kept.append(line)
        below = notice
    return kept


def _bars_apart(lines: Sequence[str]) -> list[str]:
    """Lines in which a bar stands alone: what was written behind it without a new line gets a line of its own."""
    found = []
    for line in lines:
        while (bar := BAR.match(line)) and bar.end() < len(line):
            found.append(bar[0])
            line = line[bar.end() :].lstrip()
        found.append(line)
    return found


def _bar_of(line: str) -> tuple[str | None, ...]:
    """What tells a progress bar from others, its label and total; empty for a line that is none."""
    bar = BAR.fullmatch(line)
    return bar.group("label", "total", "name") if bar else ()


def without_paths(text: str) -> str:
    """Text with this machine's folders replaced by what a reader elsewhere can use."""
    text, home = text.replace(str(root()), "."), os.path.expanduser("~")  # a user in a container may have none, or "/"
    return text if home == "/" else text.replace(home, "~")
