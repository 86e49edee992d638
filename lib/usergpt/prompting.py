"""The annotator's prompt and its strict reading: three numbered steps, demonstrations, then new requests to label.

The wording is ours; the layout of numbered inputs and outputs with three bracketed fields is the paper's.
"""

import re
from collections.abc import Sequence

from lib.usergpt.annotation import Annotation
from lib.usergpt.demonstrations import Demonstration

STEPS = """You label what people asked an AI assistant. Do three things for each input:
1. Name the domain of the request in one to three words.
2. Say in one short sentence what the person wants.
3. Name the types of task, from coarse to fine, with commas between them. There may be several.
Keep exactly the format of the outputs shown, and label each input once."""
TRIGGER = "Now label the following inputs in the same format."
FIELDS = ("domain", "summary", "task type")
BLOCK = re.compile(r"^\W*output\s+(\d+)\W*$", re.IGNORECASE | re.MULTILINE)


def build_prompt(requests: Sequence[str], demonstrations: Sequence[Demonstration]) -> str:
    """Prompt that asks for the labels of some requests after k demonstrations."""
    shown = [f"** Input {i} **\n{d.request}" for i, d in enumerate(demonstrations, 1)]
    answers = [f"** Output {i} **\n{_fields(d)}" for i, d in enumerate(demonstrations, 1)]
    asked = [f"** Input {i} **\n{request}" for i, request in enumerate(requests, 1)]
    return "\n\n".join([STEPS, *shown, *answers, TRIGGER, *asked])


def _fields(demonstration: Demonstration) -> str:
    values = (demonstration.domain, demonstration.summary, ", ".join(demonstration.tasks))
    return "\n".join(f"[{field}] {value}" for field, value in zip(FIELDS, values, strict=True))


def parse_reply(reply: str, identities: Sequence[str]) -> list[Annotation]:
    """One annotation for each identity: what the reply says of it, or why it says nothing that can be used.

    Every output block is read by its own number; a broken one costs its own conversation, never its neighbours.
    """
    parts = BLOCK.split(reply)
    numbers, bodies = parts[1::2], parts[2::2]
    if not numbers and len(identities) == 1:
        numbers, bodies = ["1"], [reply]  # a single request needs no header
    found = []
    for place, identity in enumerate(identities, 1):
        own = [body for number, body in zip(numbers, bodies, strict=True) if int(number) == place]
        found.append(_read(own, identity))
    return found


def _read(bodies: Sequence[str], identity: str) -> Annotation:
    if len(bodies) != 1:
        return Annotation(identity, fault="no output" if not bodies else "more than one output")
    values = {}
    for field in FIELDS:
        lines = re.findall(rf"^\s*\[{field}\][ \t]*(.*)$", bodies[0], re.IGNORECASE | re.MULTILINE)
        if len(lines) != 1 or not lines[0].strip():
            return Annotation(
                identity, fault=f"{'no' if not lines or not lines[0].strip() else 'more than one'} [{field}]"
            )
        values[field] = lines[0].strip()
    tasks = tuple(dict.fromkeys(filter(None, (normal(t) for t in re.split(r"[,;/]", values["task type"])))))
    if not tasks:
        return Annotation(identity, fault="no [task type]")
    return Annotation(identity, normal(values["domain"]), tasks, values["summary"])


def normal(phrase: str) -> str:
    """A label in lower case, without brackets, quotes, a full stop or doubled spaces."""
    return " ".join(re.sub(r"[\[\]\"'*.]", " ", phrase.lower()).split())
