"""The stated taxonomy, the labels that people gave by it, and how well an annotator agrees with them.

The taxonomy is built from the domains and task groups of arXiv:2310.12418 (`taxonomy.toml`): names, guidelines,
examples, and the paper's share where it has one, and invented requests with their labels for a chat model to be shown;
load your own with the same fields. Gold labels are ids and codes,
no text, of masked excerpts by these guidelines: one domain, one to three task types, the main one first. `gold`: the
first 300 of a random draw of conversations (`draw(…, salt="gold")`) by one labeller; `gold_second`: a part of them once
more by the same one within hours, an upper bound of how well two would agree; `gold_fresh`: the 300 that come next in
the draw, labelled by a language model that read the guide, not by people, before any annotator here saw them;
`benchmark_gold`: families of benchmarks by their names and prompts (all of `lm-eval`, a random third of `evals`).
"""

import csv
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from lib import TenfoldError
from lib.usergpt.conversations import Annotation

Kind = Literal["tasks", "domains"]
Which = Literal["gold", "gold_second", "gold_fresh", "benchmark_gold"]
Wording = Literal["examples", "definitions"]
SALT = "gold"  # of the draw that people have labelled
OTHER = "OTH"  # none of the labels: unclear, a mere "continue", text without a request


@dataclass(frozen=True)
class Label:
    """One label: its code, name, the group it belongs to, and what it means."""

    code: str
    name: str
    group: str
    definition: str
    examples: tuple[str, ...]
    overlooked: bool = False
    paper: float | None = None


@dataclass(frozen=True)
class Shown:
    """A request with the codes of its task type and its domain, as a chat model is shown it."""

    request: str
    task: str
    domain: str


@dataclass(frozen=True)
class Taxonomy:
    """Task types and domains that annotators choose from, and labelled requests that show how."""

    tasks: tuple[Label, ...]
    domains: tuple[Label, ...]
    shown: tuple[Shown, ...] = ()

    def labels(self, kind: Kind) -> tuple[Label, ...]:
        """Labels of one kind."""
        return self.tasks if kind == "tasks" else self.domains

    def codes(self, kind: Kind) -> tuple[str, ...]:
        """Codes of one kind, in the file's order."""
        return tuple(label.code for label in self.labels(kind))

    def names(self, kind: Kind) -> dict[str, str]:
        """Name of each code, and of the code for none of them."""
        return {label.code: label.name for label in self.labels(kind)} | {OTHER: "other or unclear"}

    def groups(self) -> dict[str, str]:
        """Task group of each task code (writing assistance, coding assistance, …)."""
        return {label.code: label.group for label in self.tasks} | {OTHER: "other or unclear"}

    def overlooked(self) -> tuple[str, ...]:
        """Codes of the task types that the paper finds overlooked by benchmarks."""
        return tuple(label.code for label in self.tasks if label.overlooked)

    def paper_shares(self, kind: Kind) -> dict[str, float]:
        """Share of user requests that the paper gives, for the labels where it gives one."""
        return {label.code: label.paper for label in self.labels(kind) if label.paper is not None}

    def texts(self, kind: Kind, wording: Wording = "examples") -> dict[str, tuple[str, ...]]:
        """Texts that stand for each label: its examples, or its name with its definition (a second wording)."""
        if wording == "examples":
            return {label.code: label.examples for label in self.labels(kind)}
        return {label.code: (f"{label.name}: {label.definition}",) for label in self.labels(kind)}


def load_taxonomy(path: Path | None = None) -> Taxonomy:
    """Read a taxonomy (ours where None); raises TenfoldError where a label lacks a field or a code comes twice."""
    path = path or Path(__file__).with_name("taxonomy.toml")
    try:
        record = tomllib.loads(path.read_text(encoding="utf8"))
        kinds = {
            kind: tuple(
                Label(**{"group": row["name"]} | row | {"examples": tuple(row["examples"])}) for row in record[kind]
            )
            for kind in ("tasks", "domains")
        }
        shown = tuple(Shown(**row) for row in record.get("shown", ()))
    except (OSError, tomllib.TOMLDecodeError, KeyError, TypeError) as error:
        raise TenfoldError(
            f"{path.name} is no taxonomy ({error}): it needs [[tasks]] and [[domains]] with code, name, definition "
            "and examples, and each of [[shown]] a request, task and domain."
        ) from None
    known = {kind: {OTHER, *(label.code for label in labels)} for kind, labels in kinds.items()}
    for kind, labels in kinds.items():
        if len(known[kind]) <= len(labels) or not all(label.examples for label in labels):
            raise TenfoldError(f"{path.name}: each of [[{kind}]] needs examples and a code of its own, not {OTHER}.")
    for row in shown:
        if row.task not in known["tasks"] or row.domain not in known["domains"]:
            lacking = f"{row.task}, {row.domain}"
            raise TenfoldError(f"{path.name}: a [[shown]] request has a code that no label has: {lacking}.")
    return Taxonomy(kinds["tasks"], kinds["domains"], shown)


@dataclass(frozen=True)
class GoldLabel:
    """What a person says of one conversation."""

    id: str
    domain: str
    tasks: tuple[str, ...]


def load_gold(taxonomy: Taxonomy, which: Which | Path = "gold") -> dict[str, GoldLabel]:
    """Read labels by id; raises TenfoldError where a code is not in the taxonomy or an id comes twice."""
    path = which if isinstance(which, Path) else Path(__file__).with_name(f"{which}.csv")
    with path.open(encoding="utf8", newline="") as file:
        rows = [GoldLabel(row["id"], row["domain"], tuple(row["tasks"].split())) for row in csv.DictReader(file)]
    known = {kind: {*taxonomy.codes(kind), OTHER} for kind in ("tasks", "domains")}
    for row in rows:
        if row.domain not in known["domains"] or not row.tasks or not known["tasks"].issuperset(row.tasks):
            raise TenfoldError(f"{path.name}: {row.id} has a code that the taxonomy lacks: {row.domain}, {row.tasks}.")
    if len({row.id for row in rows}) < len(rows):
        raise TenfoldError(f"{path.name}: an id comes twice: keep one label for each conversation.")
    return {row.id: row for row in rows}


def as_gold(annotation: Annotation) -> GoldLabel:
    """Take an annotation as a label: abstentions and faults are the code for none."""
    return GoldLabel(annotation.id, annotation.domain or OTHER, annotation.tasks or (OTHER,))


@dataclass(frozen=True)
class Agreement:
    """How two labellings agree: share of equal main labels, Cohen's κ, overlap of label sets, share abstained."""

    accuracy: float
    kappa: float
    any_of: float
    jaccard: float
    abstained: float
    n: int


def agreement(gold: Mapping[str, GoldLabel], other: Mapping[str, GoldLabel], kind: Kind) -> Agreement:
    """Measure the agreement on the ids that both have; `any_of`: the other's main label is among the gold's labels.

    Raises TenfoldError where they share fewer than two ids.
    """
    from sklearn.metrics import cohen_kappa_score

    ids = sorted(gold.keys() & other.keys())
    if len(ids) < 2:
        raise TenfoldError("two labellings agree or not on shared conversations: these share fewer than two ids.")
    pairs = [(labels_of(gold[i], kind), labels_of(other[i], kind)) for i in ids]
    first, second = [a[0] for a, _ in pairs], [b[0] for _, b in pairs]
    return Agreement(
        accuracy=float(np.mean([a == b for a, b in zip(first, second, strict=True)])),
        kappa=1.0 if len({*first, *second}) == 1 else float(cohen_kappa_score(first, second)),
        any_of=float(np.mean([b[0] in a for a, b in pairs])),
        jaccard=float(np.mean([len({*a} & {*b}) / len({*a} | {*b}) for a, b in pairs])),
        abstained=float(np.mean([b == OTHER for b in second])),
        n=len(ids),
    )


def labels_of(label: GoldLabel, kind: Kind) -> tuple[str, ...]:
    """Give the task types, or the domain as a tuple."""
    return label.tasks if kind == "tasks" else (label.domain,)
