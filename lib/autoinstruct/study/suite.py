"""The suite: tasks chosen by their rows alone, whether a model is above chance on them, and splits by family.

Above chance is judged without generation: the input must tell the model something about the answer. With
L[j, i] = log p(answer i | input j, human instruction), the information of row i is L[i, i] minus the mean of L[j, i]
over inputs j with another answer: a model that ignores the input has 0 on average, whatever answers it prefers.
"""

import json
import math
import re
import zipfile
from collections.abc import Collection, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from lib.autoinstruct.labelling import Pair, label
from lib.autoinstruct.tasks import Rule, Task
from lib.zoo.assets import require
from lib.zoo.datasets import stream_dataset

# The suite is every task of `evals` that keeps this rule: rows decide, and no model.
RULE = Rule(longest_input=400, longest_answer=60, longest_instruction=1000, demonstrations=3, screening=4, examples=6)
LIKE = 0.5  # tasks whose instructions share this much of their words (Jaccard) are one family
BBH = "SaylorTwift/bbh"  # on the hub: one configuration a task, columns input and target
TEST_CATEGORIES = (  # of Super-NaturalInstructions: the paper's 91 test tasks are in these, its 574 others in none
    "Information Extraction", "Commonsense Classification", "Answerability Classification", "Dialogue Generation",
    "Word Analogy", "Data to Text", "Coherence Classification", "Code to Text",
)  # fmt: skip


def suite_rows(dataset: str = "evals", split: str = "all") -> list[dict[str, Any]]:
    """Read rows for `make_tasks`.

    `dataset` is `evals`, `bbh` (the 27 tasks of BIG-bench Hard), a folder of Super-NaturalInstructions' tasks
    (`task*.json`), or any data set of the hub with such columns.
    """
    if dataset == "bbh":
        return _bbh_rows(split)
    if Path(dataset).is_dir():
        return _natural_instructions(Path(dataset))
    return [dict(row) for row in stream_dataset(dataset, split)]


def _bbh_rows(split: str) -> list[dict[str, Any]]:
    """BIG-bench Hard from the hub, with the one-line descriptions that lm-eval's templates carry as instructions."""
    rows = []
    with zipfile.ZipFile(require("lm-eval")) as wheel:
        for member in sorted(wheel.namelist()):
            if re.fullmatch(r"lm_eval/tasks/bbh/zeroshot/[^_]\w+\.yaml", member):
                fields = dict(re.findall(r'^"(dataset_name|description)": (".*")$', wheel.read(member).decode(), re.M))
                name, instruction = (json.loads(fields[column]).strip() for column in ("dataset_name", "description"))
                own = {"task": name, "instruction": instruction}
                rows += [
                    own | {"input": r["input"], "answers": r["target"]} for r in stream_dataset(f"{BBH}:{name}", split)
                ]
    return rows


def _natural_instructions(folder: Path) -> list[dict[str, Any]]:
    """Rows of the English tasks in a checkout's `tasks` folder, as its maintainers publish them."""
    rows = []
    for path in sorted(folder.glob("task*.json")):
        task = json.loads(path.read_text(encoding="utf8"))
        if task["Input_language"] == task["Output_language"] == ["English"]:
            own = {"task": path.stem, "instruction": " ".join(task["Definition"]), "category": task["Categories"][0]}
            rows += [own | {"input": row["input"], "answers": row["output"]} for row in task["Instances"]]
    return rows


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


def above_chance(screened: pd.DataFrame, *, errors: float | int = 1.0) -> list[str]:
    """Name the tasks above chance by more than `errors` standard errors: those whose generated answers are scored."""
    return list(screened.loc[screened["information"] > errors * screened["error"], "task"])


def tasks_needed(deviation: float, effect: float) -> int:
    """Give the number of tasks that finds a mean gain with power .8, where gains have a standard deviation over tasks.

    Two-sided at 5 %: n = ((1.96 + 0.84) deviation / effect)^2.
    """
    return math.ceil((2.8016 * deviation / effect) ** 2)


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


def held_out(tasks: Sequence[Task], test: Collection[str]) -> list[list[str]]:
    """Name the test tasks, as the one fold of a fixed split: by name, or by category.

    Raises ValueError where one side of the split is empty.
    """
    names = [task.name for task in tasks if task.name in test or task.category in test]
    if not 0 < len(names) < len(tasks):
        raise ValueError(f"{len(names)} of {len(tasks)} tasks are held out: name some of them, and not all")
    return [names]


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
