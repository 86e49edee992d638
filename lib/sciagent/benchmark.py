"""A SciToolBench-like benchmark: questions on functions that training never saw, by domain, with what is shown varied.

A question counts as answered where the program's value is right (`answers.right`: tolerance, units). Beside it is kept
whether the calls are correct (the right functions with the right arguments), whether the gold function was called at
all, and how many calls were made.
"""

import ast
import random
from collections.abc import Iterable, Sequence
from typing import Any

from lib.sciagent.agent import Action
from lib.sciagent.answers import right
from lib.sciagent.questions import Question
from lib.sciagent.sandbox import Sandbox
from lib.sciagent.tools import Tool
from lib.sciagent.toolset import Toolset


def pick(tools: Iterable[Tool], number: int, *, seed: int) -> list[Tool]:
    """Tools drawn in turn from each domain, so that no domain is crowded out."""
    draw = random.Random(seed)
    by_domain: dict[str, list[Tool]] = {}
    for tool in tools:
        by_domain.setdefault(tool.domain, []).append(tool)
    for kept in by_domain.values():
        draw.shuffle(kept)
    picked = []
    while len(picked) < number and any(by_domain.values()):
        picked += [by_domain[domain].pop() for domain in sorted(by_domain) if by_domain[domain]]
    return picked[:number]


def among(gold: Sequence[str], ranked: Sequence[str], distractors: int, *, draw: random.Random) -> tuple[str, ...]:
    """Gold functions and so many of the best-ranked others, in random order."""
    names = [*gold, *[name for name in ranked if name not in gold][:distractors]]
    draw.shuffle(names)
    return tuple(names)


def at_random(tools: Sequence[str], number: int, gold: Sequence[str], *, draw: random.Random) -> tuple[str, ...]:
    """So many functions at random, none of them gold."""
    return tuple(draw.sample([name for name in tools if name not in gold], number))


def score(
    action: Action, questions: Sequence[Question], shown: Sequence[Sequence[str]], tools: Toolset, sandbox: Sandbox, *,
    progress: bool = False,
) -> list[dict[str, Any]]:  # fmt: skip
    """One row a question: whether it was answered and correctly called, calls, attempts, kind of outcome, program."""
    attempts = action.attempts([q.text for q in questions], shown, tools, sandbox, progress=progress)
    rows = []
    for question, names, tried in zip(questions, shown, attempts, strict=True):
        last = tried[-1]
        rows.append({
            "domain": question.domain, "needs": len(question.functions), "shown": len(names),
            "available": set(question.functions) <= set(names),
            "right": last.execution.ok and right(last.execution.value, question.answer, unit=question.unit),
            "correct": bool(question.functions) and made(last.program, tools) == made(question.program, tools),
            "gold_called": bool(question.functions) and set(question.functions) <= set(last.called),
            "calls": len(last.called), "attempts": len(tried), "kind": last.execution.kind, "program": last.program,
        })  # fmt: skip
    return rows


def made(program: str, tools: Toolset) -> list[tuple[str, dict[str, Any]]]:
    """Calls of tools in a program, with arguments by parameter (a variable by name); none in what is no Python."""
    try:
        tree = ast.parse(program)
    except SyntaxError:
        return []
    found = [n for n in ast.walk(tree) if isinstance(n, ast.Call) and _name(n) in tools]
    found.sort(key=lambda n: (n.lineno, n.col_offset))
    return [(_name(n), _arguments(n, tools[_name(n)])) for n in found]


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
