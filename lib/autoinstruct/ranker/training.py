"""Train a ranker on label tables, and score every candidate of every example with it."""

from collections.abc import Iterator, Sequence

import numpy as np
import torch

from lib.autoinstruct.descent import descend
from lib.autoinstruct.ranker.objectives import chosen_objective
from lib.autoinstruct.ranker.rows import LabelTable, Row, draw_rows, pairs_of
from lib.autoinstruct.ranker.scorer import Prepared, Scorer


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

    Raises ValueError where no row is left to learn from.
    """
    loss_of, rng = chosen_objective(objective), np.random.default_rng(seed)
    prepared = prepared or Prepared(scorer, pairs_of(tables), progress=progress)
    options = {"candidates": min(candidates, *(len(t.candidates) for t in tables)), "lowest_range": lowest_range}
    drawn = [[row for table in tables for row in draw_rows(table, rng, **options)] for _ in range(epochs)]
    if not all(drawn):
        raise ValueError(f"no row's metric ranges over {lowest_range} or more: lower lowest_range, or label more")
    return descend(
        scorer, _batches(drawn, rng, batch_rows), lambda rows: loss_of(*_scored(scorer, rows, prepared)),
        steps=sum(-(-len(rows) // batch_rows) for rows in drawn), lr=lr, weight_decay=weight_decay,
        label=f"ranker ({objective})", progress=progress,
    )  # fmt: skip


def _batches(drawn: Sequence[Sequence[Row]], rng: np.random.Generator, size: int) -> Iterator[list[Row]]:
    for rows in drawn:
        order = rng.permutation(len(rows))
        for start in range(0, len(rows), size):
            yield [rows[i] for i in order[start : start + size]]


def _scored(scorer: Scorer, rows: Sequence[Row], prepared: Prepared) -> tuple[torch.Tensor, torch.Tensor]:
    pairs = [(row.input, text) for row in rows for text in row.instructions]
    scores = scorer(*prepared.take(pairs)).float()
    metric = torch.tensor([row.metric for row in rows], dtype=torch.float32, device=scores.device)
    return scores.view(metric.shape), metric


@torch.inference_mode()
def predict(
    scorer: Scorer, tables: Sequence[LabelTable], *, prepared: Prepared | None = None, batch_size: int = 256
) -> list[np.ndarray]:
    """Scores [examples, candidates] of each table; the tables' metrics are not looked at."""
    scorer.eval()
    pairs = pairs_of(tables)
    prepared = prepared or Prepared(scorer, pairs)
    found: dict[tuple[str, str], float] = {}
    for start in range(0, len(pairs), batch_size):
        batch = pairs[start : start + batch_size]
        found |= dict(zip(batch, scorer(*prepared.take(batch)).float().tolist(), strict=True))
    return [np.array([[found[text, c.text] for c in t.candidates] for text in t.inputs]) for t in tables]
