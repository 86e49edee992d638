"""What came of other authors' science tasks, as the notebook tabulates it."""

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from lib.sciagent.study.science_tasks import solved


def science(tasks: Sequence[dict[str, Any]], outcomes: Mapping[str, Sequence[Mapping[str, Any]]]) -> pd.DataFrame:
    """Return a row for each task and condition (which functions were shown).

    Columns are `task`, `functions`, `right` (as exactly as the task states), `hit` (its function was shown) and
    `program`; outcomes have a value, the functions shown, and the program.
    """
    rows = [
        {
            "task": task["task"], "functions": condition, "right": solved(task, got["value"]),
            "hit": task["function"] in got["functions"], "program": got["program"],
        }
        for condition, all_got in outcomes.items()
        for task, got in zip(tasks, all_got, strict=True)
    ]  # fmt: skip
    return pd.DataFrame(rows)


def science_table(transfer: pd.DataFrame) -> pd.DataFrame:
    """Return the share of right answers by task and condition, and how often a task's function was retrieved."""
    shares = transfer.pivot_table(index="task", columns="functions", values="right", sort=False)
    hit = transfer[transfer["functions"] == "retrieved"].groupby("task")["hit"].mean()
    return shares.assign(**{"function among three": hit}).reset_index()
