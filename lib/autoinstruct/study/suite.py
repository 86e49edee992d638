"""The suite: tasks on which the model is above chance and not saturated, and splits that no family of tasks straddles.

Above chance is judged without generation: the input must tell the model something about the answer. With
L[j, i] = log p(answer i | input j, human instruction), the information of row i is L[i, i] minus the mean of L[j, i]
over inputs j with another answer: a model that ignores the input has 0 on average, whatever answers it prefers.
"""

import re
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from lib.autoinstruct.labelling import Pair, label
from lib.autoinstruct.tasks import Rule, Task
from lib.zoo.datasets import stream_dataset

# The suite is every task of `evals` that keeps this rule: rows decide, and no model.
RULE = Rule(longest_input=400, longest_answer=60, longest_instruction=1000, demonstrations=3, screening=4, examples=6)
SATURATED = -0.1  # mean log-probability of the gold reply above which there is nothing left to win, nats per token
LIKE = 0.5  # tasks whose instructions share this much of their words (Jaccard) are one family


def suite_rows() -> list[dict[str, Any]]:
    """Read the rows of the suite's tasks."""
    return [dict(row) for row in stream_dataset("evals", "all")]


def screen(
    model: Any, tokenizer: Any, tasks: Sequence[Task], *, store: Path | None = None, progress: bool = True
) -> pd.DataFrame:
    """Score each task under its human instruction on its screening rows.

    One row a task: `information` with its standard error, and `log_prob`, both in nats per token of the gold reply.
    """
    answers = {task.name: list(dict.fromkeys(row.answers[0] for row in task.screening)) for task in tasks}
    pairs = []
    for task in tasks:
        for row in task.screening:
            others = tuple(answer for answer in answers[task.name] if answer != row.answers[0])
            pairs.append(Pair(task.instruction, row.input, row.answers, others=others))
    labels = label(model, tokenizer, pairs, max_new_tokens=0, store=store, progress=progress)
    labelled = iter(zip(pairs, labels, strict=True))
    rows = []
    for task in tasks:
        golds = [row.answers[0] for row in task.screening]
        known = [
            dict(zip((pair.answers[0], *pair.others), (one.log_prob, *one.other_log_probs), strict=True))
            for pair, one in islice(labelled, len(golds))
        ]
        table = np.array([[row[gold] for gold in golds] for row in known])  # [inputs, answers]
        values = information(table, golds)
        rows.append(
            {
                "task": task.name,
                "information": float(np.mean(values)) if len(values) else 0.0,
                "error": float(np.std(values, ddof=1) / np.sqrt(len(values))) if len(values) > 1 else float("inf"),
                "log_prob": float(np.mean(np.diag(table))),
            }
        )
    return pd.DataFrame(rows)


def information(table: np.ndarray, answers: Sequence[str]) -> np.ndarray:
    """Give the information of each row with another answer elsewhere; `table[j, i]` is log p(answer i | input j)."""
    gold = np.array(answers)
    different = gold[:, None] != gold[None]  # [j, i]
    rows = np.flatnonzero(different.any(0))
    return np.array([table[i, i] - table[different[:, i], i].mean() for i in rows])


def select(screened: pd.DataFrame, *, limit: int | None = None, errors: float = 1.0) -> list[str]:
    """Name the tasks above chance by more than `errors` standard errors and not saturated; the surest first."""
    above = screened["information"] > errors * screened["error"]
    kept = screened[above & (screened["log_prob"] < SATURATED)]
    kept = kept.assign(ratio=kept["information"] / kept["error"]).sort_values(
        ["ratio", "task"], ascending=[False, True]
    )
    return list(kept["task"])[:limit]


def families(tasks: Sequence[Task], *, like: float = LIKE) -> list[int]:
    """Number each task's family: tasks whose instructions share at least `like` of their words, directly or not."""
    words = [set(re.findall(r"[a-z]+", task.instruction.lower())) for task in tasks]
    parent = list(range(len(tasks)))

    def top(i: int) -> int:
        while parent[i] != i:
            i = parent[i]
        return i

    for i in range(len(tasks)):
        for j in range(i):
            union = len(words[i] | words[j])
            if union and len(words[i] & words[j]) / union >= like:
                parent[top(i)] = top(j)
    return [top(i) for i in range(len(tasks))]


def unrelated(tasks: Sequence[Task], suite: Sequence[Task]) -> list[Task]:
    """Leave out the tasks that are in one family with a task of the suite."""
    numbers = families([*suite, *tasks])
    own = set(numbers[: len(suite)])
    return [task for task, number in zip(tasks, numbers[len(suite) :], strict=True) if number not in own]


def folds(tasks: Sequence[Task], count: int, *, seed: int = 0) -> list[list[str]]:
    """Name the test tasks of each fold: every task is tested once, and no family is in two folds.

    Raises ValueError for fewer families than folds.
    """
    family = families(tasks)
    groups = [[tasks[i].name for i in range(len(tasks)) if family[i] == number] for number in sorted(set(family))]
    if len(groups) < count:
        raise ValueError(f"{len(groups)} families of tasks cannot make {count} folds: take more tasks or fewer folds")
    order = np.random.default_rng(seed).permutation(len(groups))
    parts: list[list[str]] = [[] for _ in range(count)]
    for index in order:
        min(parts, key=len).extend(groups[index])
    return parts
