"""Training rows out of labels: few candidates an example, drawn against popularity; no ties."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from lib.autoinstruct.generation.candidates import Candidate


@dataclass(frozen=True)
class LabelTable:
    """Labels of one task: `metric[e, c]` of candidate c on the example with input e (higher is better)."""

    task: str
    inputs: tuple[str, ...]
    candidates: tuple[Candidate, ...]
    metric: np.ndarray

    def __post_init__(self) -> None:
        shape = (len(self.inputs), len(self.candidates))
        if self.metric.shape != shape:
            raise ValueError(f"task {self.task!r}: the metric has shape {self.metric.shape}, expected {shape}")


@dataclass(frozen=True)
class Row:
    """One training row: an input, some of its candidates' texts and their metric."""

    task: str
    input: str
    instructions: tuple[str, ...]
    metric: tuple[float, ...]


def popularity(metric: Float[np.ndarray, "examples candidates"]) -> Int[np.ndarray, " candidates"]:
    """On how many examples each candidate is best, ties counted for all of them."""
    return (metric == metric.max(-1, keepdims=True)).sum(0)


def popularity_weights(counts: Int[np.ndarray, " candidates"]) -> Float[np.ndarray, " candidates"]:
    """Sampling weights softmax(MinMax(1 / popularity)): the rarely best are drawn more often.

    A candidate that is never best counts like one that is best once (the paper leaves 1/0 open).
    """
    inverse = 1.0 / np.maximum(counts, 1)
    span = inverse.max() - inverse.min()
    scaled = (inverse - inverse.min()) / span if span > 0 else np.zeros_like(inverse)
    weights = np.exp(scaled)
    return weights / weights.sum()


def draw_rows(
    table: LabelTable,
    rng: np.random.Generator,
    *,
    candidates: int = 8,
    lowest_range: float = 0.1,
    limit: int = 400,
) -> list[Row]:
    """Rows of a task: one an example with `candidates` of its instructions, at most `limit`.

    Left out are rows whose metric ties or ranges over less than `lowest_range` (in the metric's unit). Where there are
    more than `limit`, rows whose best candidate is popular are kept less often.
    """
    counts = popularity(table.metric)
    weights = popularity_weights(counts)
    size = min(candidates, len(table.candidates))
    rows, best = [], []
    for text, metric in zip(table.inputs, table.metric, strict=True):
        drawn = rng.choice(len(weights), size=size, replace=False, p=weights)
        span = metric[drawn].max() - metric[drawn].min()
        if span <= 0 or span < lowest_range:
            continue
        texts = tuple(table.candidates[c].text for c in drawn)
        rows.append(Row(table.task, text, texts, tuple(map(float, metric[drawn]))))
        best.append(counts[drawn[metric[drawn].argmax()]])
    if len(rows) <= limit:
        return rows
    kept = rng.choice(len(rows), size=limit, replace=False, p=popularity_weights(np.array(best)))
    return [rows[i] for i in sorted(kept)]


def pairs_of(tables: Sequence[LabelTable]) -> list[tuple[str, str]]:
    """Every (input, instruction) pair of some tables, each once."""
    return list(dict.fromkeys((text, c.text) for t in tables for text in t.inputs for c in t.candidates))
