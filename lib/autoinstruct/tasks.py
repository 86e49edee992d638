"""Tasks: one human-written instruction, demonstrations, and examples kept apart from those used to select the task.

Rows come from `evals`, from Super-NaturalInstructions by its hub name, or from a user's own JSON lines.
"""

import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lib import TenfoldError

COLUMNS = {
    "task": ("task", "task_name"),
    "instruction": ("instruction", "definition"),
    "input": ("input", "inputs"),
    "answers": ("ideals", "answers", "targets", "output", "answer"),
}
LANGUAGES = (
    "afrikaans albanian arabic belarusian brazilian bulgarian chinese croatian dutch esperanto finnish french german "
    "greek gujarati hebrew hindi hungarian icelandic indonesian irish italian japanese kanji korean latin lithuanian "
    "macedonian mongolian nepali norwegian persian polish portuguese romanian russian serbian sindarin spanish swedish "
    "turkish ukrainian urdu vietnamese"
)
OTHER_LANGUAGES = re.compile(rf"(?<![a-z])({LANGUAGES.replace(' ', '|')})(?![a-z])", re.IGNORECASE)


@dataclass(frozen=True)
class Demonstration:
    """A worked example of a task."""

    input: str
    output: str


@dataclass(frozen=True)
class Example:
    """An input with its accepted answers, the first of which is the gold one."""

    input: str
    answers: tuple[str, ...]


@dataclass(frozen=True)
class Task:
    """A task; its demonstrations, screening rows and examples have no input in common.

    `labels` are all its answers where these are few (a classification), and empty otherwise.
    """

    name: str
    instruction: str
    demonstrations: tuple[Demonstration, ...]
    screening: tuple[Example, ...]
    examples: tuple[Example, ...]
    labels: tuple[str, ...] = ()
    category: str = ""

    def others(self, example: Example, *, most: int = 4) -> tuple[str, ...]:
        """Wrong answers to choose among beside the gold one: the task's labels, or answers to its other rows."""
        rows = (*self.examples, *self.screening)
        known = self.labels or (*(row.answers[0] for row in rows), *(d.output for d in self.demonstrations))
        start = known.index(example.answers[0]) + 1 if example.answers[0] in known else 0
        turned = dict.fromkeys((*known[start:], *known[:start]))  # so that not all examples get the same ones
        return tuple(answer for answer in turned if answer not in example.answers)[:most]


@dataclass(frozen=True)
class Rule:
    """Which tasks are taken: English, short single-line answers, short inputs, an instruction of the task's own.

    Lengths are in characters. A task needs `demonstrations + screening + examples` rows that pass. Where these have no
    more than `most_labels` different answers, the task is a classification. Of a `curated` data set, whose tasks are
    known to be English, neither the language is looked at nor whether two tasks share an instruction.
    """

    longest_input: int = 160
    longest_answer: int = 40
    longest_instruction: int = 420
    demonstrations: int = 5
    screening: int = 6
    examples: int = 6
    most_labels: int = 6
    curated: bool = False

    @property
    def rows(self) -> int:
        """Rows a task needs."""
        return self.demonstrations + self.screening + self.examples


def read_jsonl(path: Path | str) -> list[dict[str, Any]]:
    """Read rows of a user's own tasks, one JSON object a line; raises TenfoldError for a line that is none."""
    rows, path = [], Path(path)
    for number, line in enumerate(path.read_text(encoding="utf8").split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError:
            row = None
        if not isinstance(row, dict):
            raise TenfoldError(f"{path.name}, line {number} is no JSON object: write one row a line.")
        rows.append(row)
    return rows


def make_tasks(rows: Iterable[Mapping[str, Any]], rule: Rule | None = None) -> tuple[list[Task], dict[str, int]]:
    """Make the tasks that keep the rule, by name, and how many tasks were left out for each reason.

    Rows have a task, an instruction, an input and answers (a text, a number or a list of them), under any of the names
    in `COLUMNS`.
    A `category` is kept where rows have one. Raises TenfoldError for a row without one of the columns, or a task with
    several instructions.
    """
    rule = rule or Rule()
    categories: dict[str, str] = {}
    texts: dict[str, str] = {}
    members: dict[str, list[Example]] = {}
    for row in rows:
        name, instruction, text = (str(_column(row, column)) for column in ("task", "instruction", "input"))
        answers = _column(row, "answers")
        if texts.setdefault(name, instruction) != instruction:
            raise TenfoldError(f"task {name!r} has several instructions: give each instruction a task of its own.")
        answers = tuple(answers) if isinstance(answers, Iterable) and not isinstance(answers, str) else (answers,)
        categories.setdefault(name, str(row.get("category", "")))
        members.setdefault(name, []).append(Example(text, tuple(str(a).strip() for a in answers if str(a).strip())))
    owners = Counter(" ".join(text.split()).rstrip(".").lower() for text in texts.values())
    tasks, left_out = [], Counter()
    for name in sorted(members):
        own = rule.curated or owners[" ".join(texts[name].split()).rstrip(".").lower()] == 1
        kept = [example for example in members[name] if _fits(example, rule)]
        reason = _reason(name, texts[name], own, kept, rule)
        if reason:
            left_out[reason] += 1
        else:
            tasks.append(_task(name, texts[name].strip(), kept, rule, categories[name]))
    return tasks, dict(left_out)


def _column(row: Mapping[str, Any], column: str) -> Any:
    for name in COLUMNS[column]:
        if row.get(name) is not None:
            return row[name]
    raise TenfoldError(f"a row has {', '.join(row)} but no {column}: call it one of {', '.join(COLUMNS[column])}.")


def _fits(example: Example, rule: Rule) -> bool:
    texts = (example.input, *example.answers)
    return (
        bool(example.answers)
        and all(text.isascii() for text in texts)
        and 0 < len(example.input.strip()) <= rule.longest_input
        and all(len(answer) <= rule.longest_answer and "\n" not in answer for answer in example.answers)
    )


def _reason(name: str, instruction: str, own: bool, kept: Sequence[Example], rule: Rule) -> str:
    """Why a task is left out; empty where it is not."""
    english = instruction.isascii() and not OTHER_LANGUAGES.search(f"{name} {instruction}")
    if not (english or rule.curated):
        return "not English"
    if not own:
        return "instruction shared with another task"
    if len(instruction) > rule.longest_instruction:
        return "instruction too long"
    if len({example.input for example in kept}) < rule.rows:
        return "too few short rows"
    if len({example.answers[0] for example in kept}) < 2:
        return "one answer to everything"
    return ""


def _task(name: str, instruction: str, kept: Sequence[Example], rule: Rule, category: str) -> Task:
    """Rows in an order that no seed moves; demonstrations and screening rows cover the answers, examples do not."""
    distinct = list({example.input: example for example in kept}.values())
    distinct.sort(key=lambda example: hashlib.sha256(f"{name}\n{example.input}".encode()).hexdigest())
    shown = _covering(distinct, rule.demonstrations)
    screening = _covering([example for example in distinct if example not in shown], rule.screening)
    rest = [example for example in distinct if example not in shown and example not in screening]
    demonstrations = tuple(Demonstration(example.input, example.answers[0]) for example in shown)
    answers = sorted({example.answers[0] for example in distinct})
    labels = tuple(answers) if len(answers) <= rule.most_labels else ()
    return Task(name, instruction, demonstrations, tuple(screening), tuple(rest[: rule.examples]), labels, category)


def _covering(rows: Sequence[Example], count: int) -> list[Example]:
    """The first rows that show as many different answers as they can, each as evenly as they can."""
    taken: list[Example] = []
    for allowed in range(count):  # answers taken `allowed` times so far
        for row in rows:
            times = sum(row.answers[0] == other.answers[0] for other in taken)
            if len(taken) < count and times == allowed and row not in taken:
                taken.append(row)
    return taken
