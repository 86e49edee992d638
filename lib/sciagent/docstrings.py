"""Summary, parameters, results and units out of a docstring, and what it says of a function in few words.

NumPy's style is read; Google's and reStructuredText's are first rewritten in it."""

import re
from dataclasses import dataclass

HEADINGS = (
    "parameters", "returns", "return", "examples", "notes", "references", "see also", "raises", "other parameters",
)  # fmt: skip
GOOGLE_HEADING = re.compile(r"\s{0,4}(Args|Arguments|Returns|Raises|Examples?|Notes?|Yields):\s*$", re.I)
GOOGLE_ENTRY = re.compile(r"\s{2,8}(\*{0,2}[\w.\[\], |]+?)\s*(?:\(([^)]*)\))?:\s+(.*)$")
REST_FIELD = re.compile(r"^[ \t]*:(\w+)[ \t]*([^:\n]*):[ \t]*((?:.*)(?:\n(?![ \t]*:|\s*\n|[ \t]*>>>).+)*)", re.M)
UNIT = re.compile(r"\[([^\[\]]{0,30})\]")
CITED = re.compile(
    r"(?:,?\s*\b(?:as|is|shown|in|according|to|given|presented|described|developed|originally|from|by|and|of|per|also|"
    r"recommended|listed|published|reviewed|cited|proposed|explained|provided|found|see|for details|based on)\b)*"
    r"\s*(?:,?\s*(?:and\s+)?\[\w+\]_)+", re.I,
)  # fmt: skip
MARKUP = re.compile(r":[a-z:]+:`~?([^`]*)`")
LEADING = re.compile(
    r"^(this (function|class|method) )?(calculates?|computes?|returns?|evaluates?|determines?|gives?|finds?|estimates?|"
    r"implements?|solves?( for)?|handles?|checks?( if| whether)?|predicts?|interpolates?|retrieves?)\b(?: or \w+)?"
    r"( the| a| an)?\s+", re.I,
)  # fmt: skip
NO_UNIT = {"", "-", "--", "unitless", "dimensionless", "none", "1"}


@dataclass(frozen=True)
class Described:
    """One parameter or result as documented: name, type, text without its unit, and the unit ("" where none)."""

    name: str
    kind: str
    text: str
    unit: str


@dataclass(frozen=True)
class Docstring:
    """What a docstring says."""

    summary: str
    parameters: tuple[Described, ...]
    returns: tuple[Described, ...]


def parse(text: str) -> Docstring:
    """Read a docstring in NumPy's, Google's or reStructuredText's style; missing sections are empty."""
    head, sections = _sections(_from_rest(_from_google(text)))
    returns = sections.get("returns") or sections.get("return") or ""
    return Docstring(_summary(head), _described(sections.get("parameters", "")), _described(returns))


def _from_google(text: str) -> str:
    """Rewrite `Args:` with `name (type): text` below it, and so on, as underlined headings."""
    lines, heading = [], ""
    for line in text.splitlines():
        title = GOOGLE_HEADING.match(line)
        if title:
            heading = {"args": "Parameters", "arguments": "Parameters"}.get(title[1].lower(), title[1])
            lines += ["", heading, "-" * len(heading)]
            continue
        heading = heading if not line or line[0].isspace() else ""
        entry = GOOGLE_ENTRY.match(line) if heading in ("Parameters", "Returns") else None
        if entry:
            lines += [f"{entry[1]} : {entry[2] or ''}" if heading == "Parameters" else f"result : {entry[1]}"]
            lines.append(f"    {entry[3]}")
        elif heading == "Returns" and line.strip():
            lines += ["result :", f"    {line.strip()}"]
        else:
            lines.append(line if not heading else f"    {line.strip()}" if heading == "Parameters" else line[4:])
    return "\n".join(lines)


def _from_rest(text: str) -> str:
    """Rewrite the fields `:param float x: text` and `:returns: text` as underlined sections."""
    fields = REST_FIELD.findall(text)
    if not fields:
        return text
    kinds = {name: body for field, name, body in fields if field == "type"}
    body = REST_FIELD.sub("", text).rstrip() + "\n\nParameters\n----------\n"
    for field, name, said in fields:
        if field in ("param", "parameter", "arg"):
            kind, _, name = name.rpartition(" ")
            body += f"{name} : {kinds.get(name, kind)}\n    {' '.join(said.split())}\n"
    returned = [" ".join(said.split()) for field, _, said in fields if field in ("return", "returns")]
    return body + (f"\nReturns\n-------\nresult :\n    {returned[0]}\n" if returned else "")


def _sections(text: str) -> tuple[str, dict[str, str]]:
    """Text before the first heading, and the body under each heading that is underlined or ends the line with `:`."""
    lines = text.splitlines()
    starts = [
        i for i in range(len(lines) - 1)
        if lines[i].strip().lower() in HEADINGS and set(lines[i + 1].strip()) in ({"-"}, {"="})
    ]  # fmt: skip
    bodies = {}
    for i, end in zip(starts, [*starts, len(lines)][1:], strict=True):
        bodies.setdefault(lines[i].strip().lower(), "\n".join(lines[i + 2 : end]))
    return "\n".join(lines[: starts[0]] if starts else lines), bodies


def _summary(head: str) -> str:
    """First sentence of the first paragraph that is prose, without markup; a signature line is passed over."""
    for paragraph in re.split(r"\n\s*\n", head.strip()):
        line = " ".join(paragraph.split())
        if not line or line.startswith((".. ", ">>>", "=")) or re.fullmatch(r"\w+\(.*\)", line):
            continue
        sentence = re.match(r"(.+?[.!?])(\s+[A-Z`(]|$)", line)
        return plain_text(sentence[1] if sentence else line)[:300]
    return ""


def _described(body: str) -> tuple[Described, ...]:
    entries, lines = [], body.splitlines()
    margin = min((len(line) - len(line.lstrip()) for line in lines if line.strip()), default=0)
    entry: list[str] = []
    for line in [*lines, " " * margin + "end"]:
        if line.strip() and len(line) - len(line.lstrip()) == margin:
            if entry:
                entries += _entry(entry)
            entry = [line.strip()]
        elif entry:
            entry.append(line.strip())
    return tuple(entries)


def _entry(lines: list[str]) -> list[Described]:
    names, _, kind = lines[0].partition(":")
    text = plain_text(" ".join(line for line in lines[1:] if line))
    units = [u for u in UNIT.findall(text) if not u.strip().isdigit()]
    unit = units[0].strip() if units else ""
    text = re.sub(r"\s*,?\s*" + UNIT.pattern, "", text).strip(" ,;")
    unit = "" if unit.lower() in NO_UNIT else unit
    return [Described(name.strip(), kind.strip(), text[:300], unit) for name in names.split(",") if name.strip()]


def plain_text(text: str) -> str:
    """Take reStructuredText off prose: roles, double backquotes, citation marks."""
    text = MARKUP.sub(r"\1", text)
    text = re.sub(r"``|`|\*\*", "", CITED.sub("", text))
    return " ".join(text.split())


def goal_of(returned: str, summary: str) -> str:
    """Return what a function gives: its documented result, or the summary without its verb; "" where neither serves."""
    text = returned if 3 < len(returned) and returned not in ("float", "result", "scalar") else LEADING.sub("", summary)
    return first_clause(text, 60)


def context_of(summary: str, goal: str) -> str:
    """Return what tells one method from another: the summary without its verb, where it says more than the goal."""
    text = first_clause(LEADING.sub("", summary), 90)
    return text if len(text) > len(goal) + 8 else ""


def first_clause(text: str, most: int) -> str:
    """Cut a text at its first sentence end, parenthesis or semicolon, at most `most` characters, lower-case start."""
    text = re.split(r"[;(]|\.(?:\s|$)", text.strip())[0].strip(" ,:")
    if len(text) > most:
        text = text[:most].rsplit(" ", 1)[0]
    text = re.sub(r"\s+(as|in|of|by|and|the|a|an|or|with|from|to|for|using|is|originally)$", "", text)
    text = re.sub(
        r"\s+(as |using |with )?(shown|presented|given|described|as described|developed)?\s*(in|by)$", "", text
    )
    return text[:1].lower() + text[1:] if text[1:2].islower() or text[1:2] == " " else text
