"""Evaluation: whether answers are right, calls correct, and functions found (a SciToolBench-like benchmark).

Answers are compared as `lib.sciagent.quantities.right` has it. Beside the answer is kept whether the calls are correct
(the right functions with the right arguments), whether the gold function was called, and how many calls were made.
"""

import ast
import random
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from lib.sciagent.agent import Action
from lib.sciagent.quantities import right
from lib.sciagent.sandbox import Sandbox
from lib.sciagent.study.questions import Question
from lib.sciagent.tools import Tool, Toolset

# --- retrieval ---


def ranks(searched: Sequence[Sequence[str]], wanted: Sequence[Sequence[str]]) -> np.ndarray:
    """Return the rank (from 1) of the worst-placed wanted function of each query; infinity where one was not found."""
    worst = []
    for names, needed in zip(searched, wanted, strict=True):
        place = {name: i + 1 for i, name in enumerate(names)}
        worst.append(max(place.get(name, np.inf) for name in needed))
    return np.array(worst)


def any_rank(searched: Sequence[Sequence[str]], serving: Sequence[Sequence[str]]) -> np.ndarray:
    """Return the rank (from 1) of the best-placed function that serves each query; infinity where none was found."""
    rows = zip(searched, serving, strict=True)
    return np.array(
        [min((i + 1 for i, name in enumerate(names) if name in good), default=np.inf) for names, good in rows]
    )


def hit_at(rank: np.ndarray, k: int) -> np.ndarray:
    """Return 1 for each query all of whose functions are among the first k, else 0."""
    return (rank <= k).astype(float)


def reciprocal(rank: np.ndarray) -> np.ndarray:
    """Return the reciprocal rank of each query, 0 where not found; their mean is the MRR."""
    return 1 / rank


def retrieval_row(rank: np.ndarray) -> dict[str, float]:
    """Summarise ranks [seeds, queries]: hit@k at a few depths, and the MRR."""
    return {f"hit@{k}": float(hit_at(rank, k).mean()) for k in (1, 3, 5, 10)} | {"MRR": float(reciprocal(rank).mean())}


# --- programs ---


def among(gold: Sequence[str], ranked: Sequence[str], distractors: int, *, draw: random.Random) -> tuple[str, ...]:
    """Show gold functions and so many of the best-ranked others, in random order."""
    names = [*gold, *[name for name in ranked if name not in gold][:distractors]]
    draw.shuffle(names)
    return tuple(names)


def at_random(tools: Sequence[str], number: int, gold: Sequence[str], *, draw: random.Random) -> tuple[str, ...]:
    """Show so many functions at random, none of them gold."""
    return tuple(draw.sample([name for name in tools if name not in gold], number))


def score(
    action: Action, questions: Sequence[Question], shown: Sequence[Sequence[str]], tools: Toolset, sandbox: Sandbox, *,
    progress: bool = False,
) -> list[dict[str, Any]]:  # fmt: skip
    """Score each question: whether it was answered and correctly called, calls, attempts, kind of outcome, program."""
    attempts = action.attempts([q.text for q in questions], shown, tools, sandbox, progress=progress)
    rows = []
    for question, tried in zip(questions, attempts, strict=True):
        last = tried[-1]
        rows.append({
            "domain": question.domain,
            "right": last.execution.ok and right(last.execution.value, question.answer, unit=question.unit),
            "correct": bool(question.functions) and calls_in(last.program, tools) == calls_in(question.program, tools),
            "gold_called": bool(question.functions) and set(question.functions) <= set(last.called),
            "calls": len(last.called), "attempts": len(tried), "kind": last.execution.kind, "program": last.program,
        })  # fmt: skip
    return rows


def calls_in(program: str, tools: Toolset) -> list[tuple[str, dict[str, Any]]]:
    """Calls of tools in a program, with arguments by parameter (a variable by name); none in what is no Python."""
    try:
        tree = ast.parse(program)
    except SyntaxError:
        return []
    called = [n for n in ast.walk(tree) if isinstance(n, ast.Call) and _name(n) in tools]
    called.sort(key=lambda n: (n.lineno, n.col_offset))
    return [(_name(n), _arguments(n, tools[_name(n)])) for n in called]


def _name(call: ast.Call) -> str:
    return call.func.id if isinstance(call.func, ast.Name) else ""


def _arguments(call: ast.Call, tool: Tool) -> dict[str, Any]:
    names = [p.name for p in tool.parameters]
    given = {**dict(zip(names, call.args, strict=False)), **{str(k.arg): k.value for k in call.keywords}}
    return {name: _literal(node) for name, node in given.items()}


def _literal(node: ast.expr) -> Any:
    try:
        return ast.literal_eval(node)
    except ValueError:
        return ast.unparse(node)


def calls_row(scores: pd.DataFrame) -> dict[str, float]:
    """Summarise the rows of `score`: shares of correct calls and of programs that ran, calls, answers corrected."""
    columns = {
        "correct calls": scores["correct"], "gold called": scores["gold_called"], "ran": scores["kind"] == "ok",
        "calls": scores["calls"], "corrected": (scores["attempts"] > 1) & scores["right"],
    }  # fmt: skip
    return {name: float(np.mean(values)) for name, values in columns.items()}


def compare_corpora(ablated: pd.DataFrame) -> tuple[dict[str, tuple[np.ndarray, np.ndarray]], float, str]:
    """Pair the answers of models of four corpora: for each claim a pair, the best mean accuracy, and the better half.

    A mean is over both kinds of questions, with a function and without, whatever the number of each.
    """
    groups = ablated.sort_values("number").groupby(["model", "condition"])
    right_of = {key: part["right"].to_numpy(float) for key, part in groups}

    def both(name: str) -> list[np.ndarray]:
        return [right_of[name, "with a function"], right_of[name, "without"]]

    reached = {name: float(np.mean([part.mean() for part in both(name)])) for name in ablated["model"].unique()}
    better = max(("with functions only", "function-free only"), key=lambda name: reached[name])
    mixed, half = (np.concatenate(both(name)) for name in ("mixed, cross-retrieved", better))
    sizes = [len(part) for part in both(better)]
    weights = np.repeat([0.5 / size for size in sizes], sizes) * len(half)
    cross, own = (right_of[f"mixed, {how}", "with a function"] for how in ("cross-retrieved", "own functions"))
    pairs = {
        "cross-retrieval-beats-own-functions": (cross, own),
        "mixed-corpus-beats-either-half": (weights * mixed, weights * half),
    }
    return pairs, max(reached.values()), better
