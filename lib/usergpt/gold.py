"""Labels by people: ids and codes only, no text; and how well an annotator agrees with them.

`gold.csv`: a random draw of conversations (`draw(…, salt="gold")`) labelled by one maintainer from masked excerpts with
the guidelines of `taxonomy.toml`: one domain, one to three task types, the main one first. `gold_second.csv`: a part of
them labelled once more by the same person within hours. That is an upper bound of how well two people would agree.
"""

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lib import TenfoldError
from lib.usergpt.annotation import Annotation
from lib.usergpt.taxonomy import OTHER, Taxonomy

SALT = "gold"


@dataclass(frozen=True)
class GoldLabel:
    """What a person says of one conversation."""

    id: str
    domain: str
    tasks: tuple[str, ...]


def load_gold(taxonomy: Taxonomy, path: Path | None = None, *, second: bool = False) -> dict[str, GoldLabel]:
    """Labels by id; raises TenfoldError where a code is not in the taxonomy or an id comes twice."""
    path = path or Path(__file__).with_name("gold_second.csv" if second else "gold.csv")
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
    """An annotation as a label: abstentions and faults are the code for none."""
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


def agreement(gold: Mapping[str, GoldLabel], other: Mapping[str, GoldLabel], kind: str) -> Agreement:
    """Agreement on the ids that both have; `any_of`: the other's main label is among the gold's labels.

    Raises TenfoldError where they share fewer than two ids.
    """
    ids = sorted(gold.keys() & other.keys())
    if len(ids) < 2:
        raise TenfoldError("two labellings agree or not on shared conversations: these share fewer than two ids.")
    pairs = [(labels_of(gold[i], kind), labels_of(other[i], kind)) for i in ids]
    first, second = [a[0] for a, _ in pairs], [b[0] for _, b in pairs]
    return Agreement(
        accuracy=float(np.mean([a == b for a, b in zip(first, second, strict=True)])),
        kappa=cohen_kappa(first, second),
        any_of=float(np.mean([b[0] in a for a, b in pairs])),
        jaccard=float(np.mean([len({*a} & {*b}) / len({*a} | {*b}) for a, b in pairs])),
        abstained=float(np.mean([b == OTHER for b in second])),
        n=len(ids),
    )


def labels_of(label: GoldLabel, kind: str) -> tuple[str, ...]:
    """Task types, or the domain as a tuple."""
    return label.tasks if kind == "tasks" else (label.domain,)


def cohen_kappa(first: Sequence[str], second: Sequence[str]) -> float:
    """Cohen's κ: agreement beyond what the two labellers' own frequencies would give; 1 where both use one label."""
    codes = sorted({*first, *second})
    place = {code: i for i, code in enumerate(codes)}
    table = np.zeros((len(codes), len(codes)))
    for a, b in zip(first, second, strict=True):
        table[place[a], place[b]] += 1
    table /= table.sum()
    expected = float(table.sum(0) @ table.sum(1))
    return 1.0 if expected == 1 else float((np.trace(table) - expected) / (1 - expected))


def confusion(
    gold: Mapping[str, GoldLabel], other: Mapping[str, GoldLabel], kind: str, codes: Sequence[str]
) -> np.ndarray:
    """Counts [gold's main label, other's main label] over `codes`, on the ids that both have."""
    place = {code: i for i, code in enumerate(codes)}
    table = np.zeros((len(codes), len(codes)), dtype=int)
    for i in gold.keys() & other.keys():
        table[place[labels_of(gold[i], kind)[0]], place[labels_of(other[i], kind)[0]]] += 1
    return table
