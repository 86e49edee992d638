"""Evaluation: whether answers are right, calls correct, and functions found (a SciToolBench-like benchmark).

Numbers follow SciBench's habit of a few per cent, here `RELATIVE`; vectors and tables of numbers are compared item by
item; a unit on one side only is ignored, two units that cannot be converted are wrong. Beside the answer is kept
whether the calls are correct (the right functions with the right arguments), whether the gold function was called at
all, and how many calls were made.
"""

import ast
import functools
import math
import random
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from lib.sciagent.agent import Action
from lib.sciagent.sandbox import Sandbox
from lib.sciagent.study.questions import Question
from lib.sciagent.tools import Tool, Toolset

RELATIVE = 0.01
NUMBER = re.compile(r"[-+]?(?:\d[\d,]*\.?\d*|\.\d+)(?:[eE][-+]?\d+)?")
FRACTION = re.compile(r"^\s*([-+]?\d+(?:\.\d+)?)\s*/\s*(\d+(?:\.\d+)?)")
SPELLED = {"degrees": "degree", "degF": "degF", "degC": "degC"}


def right(given: Any, wanted: Any, *, unit: str = "", relative: float = RELATIVE) -> bool:
    """Whether an answer (a value, or text that may end with a unit) is the wanted one.

    `unit` is the wanted answer's own. Truth values and texts must agree exactly but for case and spacing; a wanted 0
    allows an absolute error of `relative`.
    """
    if isinstance(wanted, bool) or isinstance(given, bool):
        return given is wanted or _normal(str(given)) == _normal(str(wanted))
    if isinstance(wanted, (list, tuple)):
        listed = isinstance(given, (list, tuple)) and len(given) == len(wanted)
        return listed and all(right(g, w, unit=unit, relative=relative) for g, w in zip(given, wanted, strict=True))
    if isinstance(wanted, dict):
        same = isinstance(given, dict) and set(given) == set(wanted)
        return same and all(right(given[k], wanted[k], unit=unit, relative=relative) for k in wanted)
    target, target_unit = quantity(wanted)
    value, value_unit = quantity(given)
    if target is None or value is None:
        return given is not None and _normal(str(given)) == _normal(str(wanted))
    value = converted(value, value_unit, target_unit or unit)
    return value is not None and close(value, target, relative=relative)


def close(value: float, wanted: float, *, relative: float = RELATIVE) -> bool:
    """Whether a number is within the relative tolerance (absolute where 0 is wanted); never for NaN."""
    if not (math.isfinite(value) and math.isfinite(wanted)):
        return False
    return abs(value - wanted) <= relative * (abs(wanted) or 1.0) * (1 + 1e-12)


def quantity(answer: Any) -> tuple[float | None, str]:
    """Read number and unit of an answer such as 2.5, "2.5 m/s" or "1/4"; no number where a text is more than that."""
    if isinstance(answer, (int, float)):
        return float(answer), ""
    text = str(answer).strip().strip("[]$").strip()
    fraction = FRACTION.match(text)
    if fraction and float(fraction[2]):
        return float(fraction[1]) / float(fraction[2]), text[fraction.end() :].strip()
    number = NUMBER.match(text)
    if not number:
        return None, ""
    unit = text[number.end() :].strip(" .")
    if re.search(r"\d{2,}|[?!,;]|\s\w+\s\w+", unit):
        return None, ""  # a sentence or a list, not a quantity
    return float(number[0].replace(",", "")), unit


def converted(value: float, unit: str, wanted: str) -> float | None:
    """Convert a value to another unit; unchanged where one of them is missing or unknown, None where they disagree."""
    if not unit or not wanted or unit == wanted:
        return value
    from pint import DimensionalityError

    one, other = _unit(unit), _unit(wanted)
    if one is None or other is None:
        return value if _normal(unit) == _normal(wanted) else None
    try:
        return float(registry().Quantity(value, one).to(other).magnitude)
    except DimensionalityError:
        return None


@functools.cache
def registry() -> Any:
    """Make Pint's registry of units, once."""
    from pint import UnitRegistry

    return UnitRegistry(autoconvert_offset_to_baseunit=True)


def _unit(text: str) -> Any:
    from pint import UndefinedUnitError

    try:
        return registry().parse_units(SPELLED.get(text, text).replace("^", "**"))
    except (UndefinedUnitError, ValueError, TypeError, AttributeError, SyntaxError):
        return None
    except Exception as error:  # pint's parser raises its own kinds for text that is no unit
        if type(error).__module__.startswith(("pint", "tokenize")):
            return None
        raise


def _normal(text: str) -> str:
    return re.sub(r"\s+|^['\"]|['\"]$", "", text.casefold())


# --- retrieval ---


def ranks(searched: Sequence[Sequence[str]], wanted: Sequence[Sequence[str]]) -> np.ndarray:
    """Return the rank (from 1) of the worst-placed wanted function of each query; infinity where one was not found."""
    worst = []
    for names, needed in zip(searched, wanted, strict=True):
        place = {name: i + 1 for i, name in enumerate(names)}
        worst.append(max(place.get(name, np.inf) for name in needed))
    return np.array(worst)


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
