"""The science tasks of the `evals` asset as questions with a tool each: a held-out set in other people's words."""

import random
import re
from typing import Any

from lib.sciagent.sandbox import Sandbox
from lib.sciagent.science_tools import SCIENCE_TOOLS, TASKS
from lib.sciagent.toolset import Toolset

ASKED = {
    "resistor_ohm_calculator": "What is the resistance of a four band resistor with the colors '{}'?",
    "balance_chemical_equation": "Balance the chemical equation '{}'.",
    "determinant": "What is the determinant of the matrix {}?",
}
TO_DECIMALS = {"determinant": 0.01, "ph_calculation": 0.06, "dna_melting_calculation": 0.06}  # as the tasks round


def science_toolset(sandbox: Sandbox) -> Toolset:
    """Toolset of the functions these tasks need, each verified by its doctests."""
    tools = Toolset()
    for domain, functions in SCIENCE_TOOLS.items():
        for function in functions:
            tools.add(sandbox=sandbox, domain=domain)(function)
    return tools


def science_tasks(each: int, *, seed: int) -> list[dict[str, Any]]:
    """Up to `each` rows a task: task, question, the function that serves, and the answers that count as right."""
    from lib.zoo import load_dataset

    rows: dict[str, list[dict[str, Any]]] = {task: [] for task in TASKS}
    for row in load_dataset("evals", "all").to_list():
        if row["task"] in rows:
            text = ASKED.get(row["task"], "{}").format(" ".join(row["input"].split()))
            text = re.sub(r"\s*(Answer with a single word|Provide your).*$", "", text)
            rows[row["task"]].append(
                {"task": row["task"], "question": text, "function": TASKS[row["task"]], "ideals": list(row["ideals"])}
            )
    draw = random.Random(seed)
    return [row for task in TASKS for row in draw.sample(rows[task], min(each, len(rows[task])))]


def solved(row: dict[str, Any], value: Any) -> bool:
    """Whether a value is one of a row's answers, as exactly as the task states them."""
    from lib.sciagent.answers import quantity, right

    if value is None:
        return False
    absolute = TO_DECIMALS.get(row["task"])
    for ideal in row["ideals"]:
        number, given = quantity(ideal)[0], quantity(value)[0]
        if absolute is not None and number is not None and given is not None:
            if abs(number - given) <= absolute:
                return True
        elif right(value, ideal.strip("[]"), relative=1e-6):
            return True
    return False
