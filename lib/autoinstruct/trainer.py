"""Train a ranker on labels, score candidates with it, and choose: for one example, or one for all of a task.

Training rows hold few candidates an example, drawn against popularity, and no ties.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int

from lib.autoinstruct.candidates import Candidate
from lib.autoinstruct.modeling import Prepared, Scorer
from lib.autoinstruct.objectives import OBJECTIVES
from lib.core.training import train


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

    @classmethod
    def without_labels(cls, task: str, inputs: Sequence[str], candidates: Sequence[Candidate]) -> "LabelTable":
        """Make a table to predict for: nothing was tried, and no answer is known."""
        return cls(task, tuple(inputs), tuple(candidates), np.zeros((len(inputs), len(candidates))))


@dataclass(frozen=True)
class Row:
    """One training row: an input, some of its candidates' texts and their metric."""

    task: str
    input: str
    instructions: tuple[str, ...]
    metric: tuple[float, ...]


def popularity(metric: Float[np.ndarray, "examples candidates"]) -> Int[np.ndarray, " candidates"]:
    """Count on how many examples each candidate is best, ties counted for all of them."""
    return (metric == metric.max(-1, keepdims=True)).sum(0)


def popularity_weights(counts: Int[np.ndarray, " candidates"]) -> Float[np.ndarray, " candidates"]:
    """Give sampling weights softmax(MinMax(1 / popularity)), 0 for 1/0: what is rarely best is drawn most often."""
    inverse = np.divide(1.0, counts, out=np.zeros(len(counts)), where=counts > 0)
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
    """Draw rows of a task: one an example with `candidates` of its instructions, at most `limit`.

    Left out are rows whose metric ties or ranges over less than `lowest_range` (in the metric's unit). Where there are
    more than `limit`, popularity is counted anew on them, and a row weighs by the sum over its candidates.
    """
    weights = popularity_weights(popularity(table.metric))
    size = min(candidates, len(table.candidates))
    kept = []
    for e, metric in enumerate(table.metric):
        drawn = rng.choice(len(weights), size=size, replace=False, p=weights)
        span = metric[drawn].max() - metric[drawn].min()
        if span > 0 and span >= lowest_range:
            kept.append((e, drawn))
    if len(kept) > limit:
        counts = np.zeros(len(weights), dtype=int)
        for e, drawn in kept:
            counts[drawn] += table.metric[e, drawn] == table.metric[e, drawn].max()
        sums = np.array([counts[drawn].sum() for _, drawn in kept])
        chosen = rng.choice(len(kept), size=limit, replace=False, p=popularity_weights(sums))
        kept = [kept[i] for i in sorted(chosen)]
    texts = [candidate.text for candidate in table.candidates]
    return [
        Row(table.task, table.inputs[e], tuple(texts[c] for c in drawn), tuple(map(float, table.metric[e, drawn])))
        for e, drawn in kept
    ]


def pairs_of(tables: Sequence[LabelTable]) -> list[tuple[str, str]]:
    """List every (input, instruction) pair of some tables, each once."""
    return list(dict.fromkeys((text, c.text) for t in tables for text in t.inputs for c in t.candidates))


def fit(
    scorer: Scorer,
    tables: Sequence[LabelTable],
    *,
    objective: str = "listwise",
    epochs: int = 3,
    batch_rows: int = 8,
    candidates: int = 8,
    lowest_range: float = 0.1,
    lr: float = 2e-4,
    weight_decay: float = 0.01,
    seed: int = 0,
    prepared: Prepared | None = None,
    progress: bool = True,
) -> list[float]:
    """Train in place with AdamW at a linearly falling rate; rows are drawn anew each epoch. Gives each step's loss.

    A row holds `candidates` of its task's candidates, or all where these are fewer; a batch holds rows of one width.
    Raises ValueError for a task with fewer than two candidates, and where no row is left to learn from.
    """
    if objective not in OBJECTIVES:
        raise ValueError(f"there is no objective {objective!r}: use one of {', '.join(OBJECTIVES)}")
    if not tables:
        raise ValueError("there is no table to learn from: label the candidates of a task first")
    for table in tables:
        if len(table.candidates) < 2:
            raise ValueError(f"task {table.task!r} has fewer than two candidates: a ranker has nothing to rank there")
    loss_of, rng = OBJECTIVES[objective], np.random.default_rng(seed)
    prepared = prepared or Prepared(scorer, pairs_of(tables), progress=progress)
    options = {"candidates": candidates, "lowest_range": lowest_range}
    drawn = [[row for table in tables for row in draw_rows(table, rng, **options)] for _ in range(epochs)]
    if not all(drawn):
        raise ValueError(f"no row's metric ranges over {lowest_range} or more: lower lowest_range, or label more")
    widths = [Counter(len(row.metric) for row in rows) for rows in drawn]
    return train(
        scorer, _batches(drawn, rng, batch_rows), lambda rows: loss_of(*_scored(scorer, rows, prepared)),
        steps=sum(-(-count // batch_rows) for counts in widths for count in counts.values()), learning_rate=lr,
        weight_decay=weight_decay, label=f"ranker ({objective})", progress=progress,
    )  # fmt: skip


def _batches(drawn: Sequence[Sequence[Row]], rng: np.random.Generator, size: int) -> Iterator[list[Row]]:
    """Batches of rows of one width, in an order of chance."""
    for rows in drawn:
        begun: dict[int, list[Row]] = {}
        for i in rng.permutation(len(rows)):
            width = len(rows[i].metric)
            begun.setdefault(width, []).append(rows[i])
            if len(begun[width]) == size:
                yield begun.pop(width)
        yield from begun.values()


def _scored(scorer: Scorer, rows: Sequence[Row], prepared: Prepared) -> tuple[torch.Tensor, torch.Tensor]:
    pairs = [(row.input, text) for row in rows for text in row.instructions]
    scores = scorer(*prepared.take(pairs)).float()
    metric = torch.tensor([row.metric for row in rows], dtype=torch.float32, device=scores.device)
    return scores.view(metric.shape), metric


@torch.inference_mode()
def predict(
    scorer: Scorer, tables: Sequence[LabelTable], *, prepared: Prepared | None = None, batch_size: int = 256
) -> list[np.ndarray]:
    """Score all candidates on all examples of each table [examples, candidates], without looking at its metric."""
    scorer.eval()
    pairs = pairs_of(tables)
    prepared = prepared or Prepared(scorer, pairs)
    scores: dict[tuple[str, str], float] = {}
    for start in range(0, len(pairs), batch_size):
        batch = pairs[start : start + batch_size]
        scores |= dict(zip(batch, scorer(*prepared.take(batch)).float().tolist(), strict=True))
    return [np.array([[scores[text, c.text] for c in t.candidates] for text in t.inputs]) for t in tables]


def choose(scorer: Scorer, inputs: str | Sequence[str], candidates: Sequence[Candidate]) -> Candidate:
    """Choose the best-scored candidate for one input, or by the mean score over several inputs of a task.

    No answer is needed. Raises ValueError without a candidate or an input.
    """
    texts = (inputs,) if isinstance(inputs, str) else tuple(inputs)
    if not texts or not candidates:
        raise ValueError("choosing needs at least one input and one candidate")
    table = LabelTable.without_labels("", texts, candidates)
    return candidates[int(predict(scorer, [table])[0].mean(0).argmax())]


def per_example(scores: Float[np.ndarray, "examples candidates"]) -> Int[np.ndarray, " examples"]:
    """Choose a candidate for each example (the paper's way)."""
    return scores.argmax(-1)


def per_task(scores: Float[np.ndarray, "examples candidates"]) -> Int[np.ndarray, " examples"]:
    """Choose one candidate for all examples: the one with the highest mean score."""
    return np.full(len(scores), int(scores.mean(0).argmax()))
