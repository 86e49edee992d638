"""Labels read out of what a chat model wrote: the form it was shown, the shapes that models make of it, or JSON.

What says nothing that can be used is a fault, with its reason; nothing is guessed.
"""

import json
import re
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from lib.usergpt.conversations import Annotation, batched

FIELDS = ("domain", "summary", "task type")
BLOCK = re.compile(r"^[\W_]*(in|out)put[\s#]*(\d+)[\W_]*$", re.IGNORECASE | re.MULTILINE)
# "[domain] x", "**[domain]** x", "- [Domain]: x", "Domain: x", "2) **Task types:** x", "`task_type` = x"
LINE = re.compile(
    r"^[\s>#*_`\"•–-]*(?:\d+[.)][\s*_`]*)?(\[?)[*_`\"\s]*(domain|summary|tasks?(?:[ _-]types?)?)[*_`\"\s]*(\]?)"
    r"[*_`\"\s]*([:=–-]?)[*_`\s]*(.*)$",
    re.IGNORECASE,
)
DOMAIN = re.compile(
    r"^[\s>#*_`\"•–-]*(?:\d+[.)][\s*_`]*)?(?:\[[*_`\"\s]*domain|domain[*_`\"\s]*[:=])", re.I | re.MULTILINE
)
EMPTY = re.compile(r"[\s.…_*<>\[\]()-]*")


def read_outputs(text: str, identities: Sequence[str], *, cut_off: bool = False) -> list[Annotation]:
    """Read one annotation for each identity; every output is read by its own number, `cut_off` spoils the last one.

    Outputs without any number are read in order where they are as many as the identities, as a list of JSON is. Inputs
    that a reply repeats are passed over; one that follows the last output is a dialogue that the model makes up.
    """
    text = re.sub(r"<think>.*?</think>", "", text, flags=re.DOTALL)
    data = _json(text)
    if data is not None:
        return _from_json(data, identities)
    blocks = [(side.lower() == "out", int(number), body) for side, number, body in batched(BLOCK.split(text)[1:], 3)]
    for place, (one, after) in enumerate(pairwise(blocks), 1):
        if one[:2] == (True, len(identities)) and not after[0]:
            blocks, cut_off = blocks[:place], False
            break
    numbers, bodies = [number for out, number, _ in blocks if out], [body for out, _, body in blocks if out]
    if not numbers:
        starts = [at.start() for at in DOMAIN.finditer(text)]
        if len(starts) == len(identities):
            numbers, bodies = [*range(1, len(starts) + 1)], [text[a:b] for a, b in pairwise([*starts, len(text)])]
        elif len(identities) == 1:
            numbers, bodies = [1], [text]
    found = [_read([b for n, b in zip(numbers, bodies, strict=True) if n == place], identity)
             for place, identity in enumerate(identities, 1)]  # fmt: skip
    if cut_off and numbers and 0 < numbers[-1] <= len(found):
        found[numbers[-1] - 1] = Annotation(identities[numbers[-1] - 1], fault="cut off")
    return found


def _read(bodies: Sequence[str], identity: str) -> Annotation:
    if len(bodies) != 1:
        return Annotation(identity, fault="no output" if not bodies else "more than one output")
    values: dict[str, list[str]] = {}
    current = None
    for line in bodies[0].splitlines():
        match = LINE.match(line)
        if match and (match[1] and match[3] or match[4] in ("=", ":") and match[4]):
            current = next(field for field in FIELDS if match[2].lower()[:4] == field[:4])
            if current in values:
                return Annotation(identity, fault=f"more than one [{current}]")
            values[current] = [match[5]]
        elif current and line.strip(" \t*_`>#-") and not (values[current][0] and current != "task type"):
            values[current].append(line)  # a value on the lines below its name, or a list of tasks
    return _annotation(identity, {field: ", ".join(filter(None, own)) if field == "task type" else " ".join(own)
                                  for field, own in values.items()})  # fmt: skip


def _annotation(identity: str, values: Mapping[str, str]) -> Annotation:
    for field in FIELDS:
        if EMPTY.fullmatch(values.get(field, "")):
            return Annotation(identity, fault=f"no [{field}]")
    tasks = tuple(dict.fromkeys(filter(None, map(_bare, re.split(r"[,;/|>→]|->", values["task type"])))))
    domain = _bare(values["domain"])
    if not tasks or not domain:
        return Annotation(identity, fault="no [task type]" if domain else "no [domain]")
    return Annotation(identity, domain, tasks, " ".join(values["summary"].strip(' *_`"').split()))


def _bare(phrase: str) -> str:
    """A label in lower case, without brackets, quotes, bullets, a full stop or doubled spaces."""
    phrase = re.sub(r"^\s*(?:[-•*–]|\d+[.)])\s+", "", phrase)
    return " ".join(re.sub(r"[\[\]\"'`*.:“”]", " ", phrase.lower()).split()).strip(" -–")


def _json(text: str) -> Any:
    """The first JSON object or list in a text, None where there is none."""
    for start in re.finditer(r"[{\[]", text):
        try:
            data, _ = json.JSONDecoder().raw_decode(text, start.start())
        except ValueError:
            continue
        if isinstance(data, dict) or data and isinstance(data, list) and all(isinstance(row, dict) for row in data):
            return data
    return None


def _from_json(data: Any, identities: Sequence[str]) -> list[Annotation]:
    if isinstance(data, dict):
        lists = [value for value in data.values() if isinstance(value, list) and value and isinstance(value[0], dict)]
        data = lists[0] if len(lists) == 1 else [data]
    if len(data) != len(identities):
        return [Annotation(i, fault=f"{len(data)} outputs for {len(identities)} inputs") for i in identities]
    return [_annotation(identity, _named(row)) for identity, row in zip(identities, data, strict=True)]


def _named(row: Mapping[str, Any]) -> dict[str, str]:
    values = {}
    for key, value in row.items():
        field = next((field for field in FIELDS if key.lower().strip("[] ")[:4] == field[:4]), None)
        if field and value:
            values[field] = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
    return values


def read_choices(text: str, *names: Mapping[str, str]) -> list[str] | None:
    """Read a code of each kind (tasks, domains) that a reply chooses: their names, a comma between them, or JSON.

    None where it does anything else. Only the first line counts: a small model may go on.
    """
    data = _json(text)
    if isinstance(data, dict):
        said = [str(value) for value in data.values()][: len(names)]
    else:
        said = (text.strip().splitlines() or [""])[0].split(",")
    if len(said) != len(names):
        return None
    chosen = [_by_name(value, called) for value, called in zip(said, names, strict=True)]
    return [code for code in chosen if code] if all(chosen) else None


def _by_name(text: str, names: Mapping[str, str]) -> str | None:
    """The code whose name a text is, whatever stands about it as in "**Task**: debugging."; None where it is more."""
    said = re.sub(r"^\W*(?:(?:type of )?task(?: type)?|domain)\W*:", "", text.lower()).strip(" \t\n*_`'\"#.:[]()-")
    return next((code for code, name in names.items() if name.lower() == said), None)
