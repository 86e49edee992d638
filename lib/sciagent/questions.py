"""Questions whose answers are known by execution: a tool, arguments near those of its examples, and words for both."""

import math
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from lib.sciagent import phrases
from lib.sciagent.sandbox import Sandbox
from lib.sciagent.tools import Parameter, Tool, written
from lib.sciagent.toolset import Toolset

LONGEST = 500  # characters of a question
MOST_GIVEN = 6
FACTORS = (0.6, 1.6)  # a number of an example is multiplied by something in between


@dataclass(frozen=True)
class Question:
    """A question, the functions that answer it, a plan in technical words, a program, and its answer as executed.

    `functions` are the positive functions (none where a formula does); `family` keeps similar functions together in
    splits; `goal` is what is asked for.
    """

    text: str
    plan: str
    program: str
    functions: tuple[str, ...]
    answer: Any
    unit: str
    domain: str
    family: str
    goal: str


def askable(tool: Tool) -> bool:
    """Whether a question can be worded: numbers or short texts as arguments, all described, and one number back."""
    arguments = tool.examples[0].arguments
    described = {p.name for p in tool.parameters if p.text}
    plain = all(isinstance(v, (int, float, str)) and not isinstance(v, bool) for v in arguments.values())
    value = tool.examples[0].value
    return (
        plain and 1 <= len(arguments) <= MOST_GIVEN and set(arguments) <= described
        and isinstance(value, (int, float)) and not isinstance(value, bool) and bool(tool.summary)
        and any(isinstance(v, (int, float)) for v in arguments.values())
    )  # fmt: skip


def perturbed(tool: Tool, draw: random.Random) -> dict[str, Any]:
    """Arguments near those of one of the tool's examples: floats to three digits, whole numbers and texts as they are
    or moved by one."""
    arguments = dict(draw.choice(tool.examples).arguments)
    for name, value in arguments.items():
        if isinstance(value, float) and value != 0:
            low, high = FACTORS if not 0 < value < 1 else (FACTORS[0], min(FACTORS[1], 0.98 / value))
            arguments[name] = float(f"{value * draw.uniform(low, high):.3g}")
        elif isinstance(value, int) and abs(value) > 9:
            arguments[name] = round(value * draw.uniform(*FACTORS))
        elif isinstance(value, int) and value > 0:
            arguments[name] = value + draw.choice((0, 1))
    return arguments


def worded(tool: Tool, arguments: dict[str, Any], *, split: str, draw: random.Random, share: float) -> str:
    """A question for a call of a tool; `share` is how many technical words are put in everyday ones."""
    goal = phrases.goal_of(tool.returns.text, tool.summary)
    context = phrases.context_of(tool.summary, goal)
    known = [_known(tool, name, value, draw, share) for name, value in arguments.items()]
    goal, context = (phrases.reworded(text, draw, share) for text in (goal, context))
    return phrases.sentence(goal, context, known, split=split, draw=draw)


def _known(tool: Tool, name: str, value: Any, draw: random.Random, share: float) -> str:
    parameter = _parameter(tool, name)
    return phrases.given(phrases.reworded(parameter.text, draw, share), written(value).strip("'"), parameter.unit)


def plan_of(tool: Tool) -> str:
    """Plan in the documentation's own words: what to compute, how, and from what."""
    goal = phrases.goal_of(tool.returns.text, tool.summary)
    how = phrases.context_of(tool.summary, goal) or goal
    names = [phrases.first_clause(_parameter(tool, n).text, 30) for n in list(tool.examples[0].arguments)[:4]]
    return f"Compute {how} from {', '.join(names)}."


def _parameter(tool: Tool, name: str) -> Parameter:
    return next(p for p in tool.parameters if p.name == name)


def of_tools(
    tools: Iterable[Tool], toolset: Toolset, *, sandbox: Sandbox, each: int, split: str, seed: int,
    share: float = phrases.PARAPHRASED, progress: bool = False,
) -> list[Question]:  # fmt: skip
    """Up to `each` questions a tool, with answers executed in the sandbox; calls that fail or overflow are dropped."""
    drafts = []
    for tool in tools:
        draw = random.Random(f"{seed}/{split}/{tool.name}")
        for _ in range(each):
            arguments = perturbed(tool, draw)
            text = worded(tool, arguments, split=split, draw=draw, share=share)
            drafts.append((tool, text, f"answer = {tool.call(arguments)}"))
    jobs = [toolset.job(program, [tool.name]) for tool, _, program in drafts]
    found = []
    for (tool, text, program), outcome in zip(drafts, sandbox.map(jobs, progress=progress), strict=True):
        if outcome.ok and _is_number(outcome.value) and len(text) <= LONGEST:
            goal = phrases.goal_of(tool.returns.text, tool.summary)
            found.append(Question(
                text, plan_of(tool), program, (tool.name,), outcome.value, tool.returns.unit, tool.domain, tool.family,
                goal,
            ))  # fmt: skip
    return found


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value) and value != 0


def chains(
    tools: Sequence[Tool], toolset: Toolset, *, sandbox: Sandbox, most: int, split: str, seed: int,
    share: float = phrases.PARAPHRASED,
) -> list[Question]:  # fmt: skip
    """Questions that take two calls: the result of one function is an argument of the next (by name and unit)."""
    draw = random.Random(f"{seed}/{split}/chains")
    pairs = [
        (first, second, p.name)
        for second in tools
        for p in second.parameters
        if p.name in second.examples[0].arguments and len(second.examples[0].arguments) > 1
        for first in tools
        if first.returns.name == p.name
        and first.returns.unit == p.unit
        and first.library == second.library
        and len(p.name) > 1
        and first is not second
        and p.name not in first.examples[0].arguments
    ]
    draw.shuffle(pairs)
    drafts = [_chained(*pair, split=split, draw=draw, share=share) for pair in pairs[: 3 * most]]
    jobs = [toolset.job(q.program, q.functions) for q in drafts]
    outcomes = sandbox.map(jobs)
    answered = [
        Question(**(vars(q) | {"answer": o.value})) for q, o in zip(drafts, outcomes, strict=True)
        if o.ok and _is_number(o.value) and len(q.text) <= LONGEST
    ]  # fmt: skip
    return answered[:most]


def _chained(first: Tool, second: Tool, link: str, *, split: str, draw: random.Random, share: float) -> Question:
    one, two = perturbed(first, draw), perturbed(second, draw)
    two.pop(link, None)
    middle = phrases.reworded(phrases.goal_of(first.returns.text, first.summary), draw, share)
    question = worded(second, two, split=split, draw=draw, share=share)
    known = [_known(first, n, v, draw, share) for n, v in one.items()]
    text = f"First get the {middle} from these facts: {', '.join(known)}. Then: {question}"
    arguments = {n: two.get(n) for n in second.examples[0].arguments if n == link or n in two}
    inner = ", ".join("step1" if n == link else written(v) for n, v in arguments.items())
    if not second.positional:
        inner = ", ".join(f"{n}={'step1' if n == link else written(v)}" for n, v in arguments.items())
    program = f"step1 = {first.call(one)}\nanswer = {second.name}({inner})"
    goal = phrases.goal_of(second.returns.text, second.summary)
    return Question(
        text, f"{plan_of(first)} Then {plan_of(second)}", program, (first.name, second.name), None,
        second.returns.unit, second.domain, second.family, goal,
    )  # fmt: skip
