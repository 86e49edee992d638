"""A task with its candidates tried on its examples, and what a way of choosing among them is worth."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float, Int

from lib.autoinstruct.generation.candidates import Candidate
from lib.autoinstruct.labelling import Pair, label
from lib.autoinstruct.prompts import Demonstration
from lib.autoinstruct.ranker.rows import LabelTable
from lib.autoinstruct.tasks import Task

METRICS = ("rouge_l", "exact_match", "log_prob")


def label_task(
    model: Any,
    tokenizer: Any,
    task: Task,
    candidates: Sequence[Candidate],
    *,
    demonstrations: Sequence[Demonstration] = (),
    max_new_tokens: int = 16,
    batch_rows: int = 64,
    store: Path | None = None,
    progress: bool = True,
) -> pd.DataFrame:
    """Every candidate on every example: one row a pair with `candidate`, `example` (indices), `output` and scores."""
    pairs = [
        Pair(candidate.text, example.input, example.answers, tuple(demonstrations))
        for candidate in candidates
        for example in task.examples
    ]
    options = {"max_new_tokens": max_new_tokens, "batch_rows": batch_rows, "store": store, "progress": progress}
    labels = label(model, tokenizer, pairs, **options)
    width = len(task.examples)
    return pd.DataFrame(
        {
            "candidate": np.arange(len(pairs)) // width,
            "example": np.arange(len(pairs)) % width,
            "output": [one.output or "" for one in labels],
            **{name: [float(getattr(one, name)) for one in labels] for name in METRICS},
        }
    )


@dataclass(frozen=True)
class LabelledTask:
    """Labels of a task's candidates; `frame` is what `label_task` gave, whose last rows may be of `controls`.

    Controls are instructions that nothing chooses among: empty, irrelevant.
    """

    task: Task
    candidates: tuple[Candidate, ...]
    frame: pd.DataFrame
    controls: tuple[str, ...] = ()

    def metric(self, name: str) -> Float[np.ndarray, "examples candidates"]:
        """A metric of every candidate on every example."""
        return self._array(name)[:, : len(self.candidates)]

    def control(self, control: str, name: str) -> Float[np.ndarray, " examples"]:
        """A metric under a control instruction."""
        return self._array(name)[:, len(self.candidates) + self.controls.index(control)]

    def _array(self, name: str) -> np.ndarray:
        return self.frame.pivot(index="example", columns="candidate", values=name).to_numpy()

    def table(self, name: str) -> LabelTable:
        """Labels as rankers learn from them."""
        inputs = tuple(example.input for example in self.task.examples)
        return LabelTable(self.task.name, inputs, self.candidates, self.metric(name))

    def value(self, picks: Int[np.ndarray, " examples"], name: str) -> float:
        """Mean metric over the examples of the candidates picked."""
        return float(np.take_along_axis(self.metric(name), picks[:, None], 1).mean())

    @property
    def human(self) -> int:
        """Index of the human instruction."""
        return [candidate.origin for candidate in self.candidates].index("human")


def transferred_best(metric: Float[np.ndarray, "examples candidates"], reference: int) -> float:
    """What the best candidate of one half of the examples gains over a reference one on the other half, both ways.

    Unlike the oracle's, this gain can be zero or negative: where instructions do not matter it is noise around 0.
    Raises ValueError for fewer than two examples.
    """
    if len(metric) < 2:
        raise ValueError("two halves need at least two examples")
    halves = metric[::2].mean(0), metric[1::2].mean(0)
    gains = [other[own.argmax()] - other[reference] for own, other in (halves, halves[::-1])]
    return float(np.mean(gains))


def wins_of_style(gains: dict[str, list[float]], style: str, tasks: int) -> np.ndarray:
    """For each task whether a style that every task has is (tied-)best there, among the styles every task has."""
    common = np.array([values for values in gains.values() if len(values) == tasks])
    return (np.array(gains[style]) >= common.max(0)).astype(float)


def expected_best_of(
    scores: Float[np.ndarray, "examples candidates"],
    metric: Float[np.ndarray, "examples candidates"],
    *,
    count: int,
    rng: np.random.Generator,
    draws: int = 500,
) -> float:
    """Mean metric of the best-scored of `count` candidates, over random subsets and examples."""
    found = []
    for _ in range(draws):
        drawn = rng.choice(metric.shape[1], size=count, replace=False)
        picked = scores[:, drawn].argmax(-1)
        found.append(np.take_along_axis(metric[:, drawn], picked[:, None], 1).mean())
    return float(np.mean(found))
