"""Questions whose answers are known by execution: a tool, arguments near those of its examples, and words for both.

A retriever that matches words is flattered by questions that reuse a docstring's; so each technical word with an
everyday equivalent is replaced (with a probability), and the sentence around it comes from a template.
"""

import math
import random
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from lib.sciagent.docstrings import context_of, first_clause, goal_of
from lib.sciagent.sandbox import Sandbox
from lib.sciagent.tools import Parameter, Tool, Toolset, written

LONGEST = 500  # characters of a question
MOST_GIVEN = 6
FACTORS = (0.6, 1.6)  # a number of an example is multiplied by something in between
PARAPHRASED = 0.7  # probability of replacing a word that has an everyday equivalent
EVERYDAY = {
    "reynolds number": ("ratio of inertial to viscous forces",), "friction factor": ("flow resistance coefficient",),
    "heat transfer coefficient": ("surface conductance for heat",),
    "thermal conductivity": ("ability to conduct heat",), "kinematic viscosity": ("momentum diffusivity",),
    "dynamic viscosity": ("internal resistance to flow",),
    "viscosity": ("thickness in the sense of resistance to flow", "resistance to flow"),
    "density": ("mass per volume", "specific mass"), "superficial velocity": ("speed over the empty cross-section",),
    "velocity": ("speed",), "volumetric flow rate": ("volume passing per second",),
    "mass flow rate": ("mass passing per second",), "flow rate": ("throughput",), "inner diameter": ("bore",),
    "diameter": ("width across",), "roughness": ("unevenness",), "pressure drop": ("loss of pressure",),
    "pipe": ("tube", "conduit"), "molecular weight": ("molar mass",), "heat capacity": ("heat needed per degree",),
    "heat of vaporization": ("energy to boil it off",), "surface tension": ("tension of the interface",),
    "critical temperature": ("temperature at the critical point",),
    "critical pressure": ("pressure at the critical point",),
    "normal boiling point": ("boiling temperature at one atmosphere",),
    "boiling point": ("temperature at which it boils",), "melting point": ("temperature at which it melts",),
    "acentric factor": ("measure of how non-spherical the molecules are",), "vapor pressure": ("saturation pressure",),
    "vapor": ("gas phase",), "mole fraction": ("share of the moles",), "void fraction": ("share of empty space",),
    "enthalpy": ("heat content",), "efficiency": ("effectiveness",), "calculated": ("found",),
    "probability density": ("density of the law",), "probability of a value up to": ("chance of at most",),
    "probability of a value above": ("chance of more than",),
    "quantile at probability": ("value that is not exceeded with probability",), "continuous random variable": ("law",),
    "discrete random variable": ("law on whole numbers",), "cumulative distribution function": ("cumulative law",),
    "interest rate": ("rate of interest",), "rate of interest": ("interest",), "payment": ("instalment",),
    "future value": ("final balance",), "present value": ("value today",), "compounding periods": ("terms",),
    "integer": ("whole number",), "packed bed": ("column filled with grains",), "tank": ("vessel",),
    "angle": ("inclination",),
}  # fmt: skip
TEMPLATES = {
    "train": (
        "What is the {goal}{context} if {givens}?",
        "Find the {goal}{context}, given that {givens}.",
        "Suppose {givens}. Determine the {goal}{context}.",
        "{Givens}. How large is the {goal}{context}?",
        "Compute the {goal}{context} when {givens}.",
        "A measurement shows that {givens}. From this, work out the {goal}{context}.",
    ),
    "test": (
        "In a lab report {givens}. Which value does the {goal}{context} take?",
        "I need the {goal}{context}; I know that {givens}.",
        "With the following data, {givens}, evaluate the {goal}{context}.",
    ),
}


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

    @classmethod
    def from_record(cls, record: dict[str, Any]) -> "Question":
        """Make a question again out of its `vars`, also where these went through JSON."""
        functions = tuple(record["functions"])
        return cls(**{**record, "functions": functions})


def askable(tool: Tool) -> bool:
    """Whether a question can be worded: numbers or short texts as arguments, all described, and one number back."""
    if not tool.examples:
        return False
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
    """Move an example's arguments: floats to three digits, large whole numbers by a factor, small ones by at most 1."""
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
    """Word a question for a call of a tool; `share` is how many technical words are put in everyday ones."""
    goal = goal_of(tool.returns.text, tool.summary)
    context = context_of(tool.summary, goal)
    known = [_known(tool, name, value, draw, share) for name, value in arguments.items()]
    goal, context = (reworded(text, draw, share) for text in (goal, context))
    return sentence(goal, context, known, split=split, draw=draw)


def _known(tool: Tool, name: str, value: Any, draw: random.Random, share: float) -> str:
    parameter = _parameter(tool, name)
    return known_quantity(reworded(parameter.text, draw, share), written(value).strip("'"), parameter.unit)


def plan_of(tool: Tool) -> str:
    """Write a plan in the documentation's own words: what to compute, how, and from what."""
    goal = goal_of(tool.returns.text, tool.summary)
    how = context_of(tool.summary, goal) or goal
    names = [first_clause(_parameter(tool, n).text, 30) for n in list(tool.examples[0].arguments)[:4]]
    return f"Compute {how} from {', '.join(names)}."


def _parameter(tool: Tool, name: str) -> Parameter:
    return next(p for p in tool.parameters if p.name == name)


def of_tools(
    tools: Iterable[Tool], toolset: Toolset, *, sandbox: Sandbox, each: int, split: str, seed: int,
    share: float = PARAPHRASED, progress: bool = False,
) -> list[Question]:  # fmt: skip
    """Ask up to `each` questions a tool, with answers executed in the sandbox; calls that fail are dropped."""
    drafts = []
    for tool in tools:
        draw = random.Random(f"{seed}/{split}/{tool.name}")
        for _ in range(each):
            arguments = perturbed(tool, draw)
            text = worded(tool, arguments, split=split, draw=draw, share=share)
            drafts.append(_draft(text, plan_of(tool), f"answer = {tool.call(arguments)}", (tool,)))
    return _answered(drafts, toolset, sandbox, progress)


def _answered(drafts: list[Question], toolset: Toolset, sandbox: Sandbox, progress: bool = False) -> list[Question]:
    """Drafts with the answers that their programs give, where these are numbers."""
    outcomes = sandbox.map([toolset.job(q.program, q.functions) for q in drafts], progress=progress)
    return [
        replace(draft, answer=outcome.value) for draft, outcome in zip(drafts, outcomes, strict=True)
        if outcome.ok and _is_number(outcome.value) and len(draft.text) <= LONGEST
    ]  # fmt: skip


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value) and value != 0


def of_chains(
    tools: Sequence[Tool], toolset: Toolset, *, sandbox: Sandbox, most: int, split: str, seed: int,
    share: float = PARAPHRASED,
) -> list[Question]:  # fmt: skip
    """Ask questions that take two calls: the result of one function is an argument of the next (by name and unit)."""
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
    return _answered(drafts, toolset, sandbox)[:most]


def _chained(first: Tool, second: Tool, link: str, *, split: str, draw: random.Random, share: float) -> Question:
    one, two = perturbed(first, draw), perturbed(second, draw)
    two.pop(link, None)
    middle = reworded(goal_of(first.returns.text, first.summary), draw, share)
    question = worded(second, two, split=split, draw=draw, share=share)
    known = [_known(first, n, v, draw, share) for n, v in one.items()]
    text = f"First get the {middle} from these facts: {', '.join(known)}. Then: {question}"
    values = {n: written(value) for n, value in two.items()} | {link: "step1"}
    values = {n: values[n] for n in second.examples[0].arguments if n in values}
    passed = ", ".join(source if second.positional else f"{n}={source}" for n, source in values.items())
    program = f"step1 = {first.call(one)}\nanswer = {second.name}({passed})"
    return _draft(text, f"{plan_of(first)} Then {plan_of(second)}", program, (first, second))


def _draft(text: str, plan: str, program: str, tools: tuple[Tool, ...]) -> Question:
    last, names = tools[-1], tuple(tool.name for tool in tools)
    goal = goal_of(last.returns.text, last.summary)
    return Question(text, plan, program, names, None, last.returns.unit, last.domain, last.family, goal)


# --- wording ---


def reworded(text: str, draw: random.Random, share: float = PARAPHRASED) -> str:
    """Replace technical words by everyday ones, each with probability `share`."""
    for word, others in EVERYDAY.items():
        if re.search(rf"\b{word}\b", text, re.I) and draw.random() < share:
            text = re.sub(rf"(?<!probability )\b{word}(e?s)?\b", draw.choice(others), text, flags=re.I)
    return text


def known_quantity(text: str, value: str, unit: str) -> str:
    """Say a known quantity, such as `the speed is 2.5 m/s`."""
    text = re.sub(r"^(the|a|an)\s+", "", first_clause(text, 50), flags=re.I)
    return f"the {text} is {value}{f' {unit}' if unit else ''}"


def sentence(goal: str, context: str, givens: Sequence[str], *, split: str, draw: random.Random) -> str:
    """Put a question into one of the split's templates, the known quantities in random order."""
    known = list(givens)
    draw.shuffle(known)
    listed = ", ".join(known[:-1]) + (" and " if len(known) > 1 else "") + known[-1]
    template = draw.choice(TEMPLATES[split])
    goal = re.sub(r"^(the|a|an)\s+", "", goal, flags=re.I)
    context = f" ({context})" if context else ""
    return template.format(goal=goal, context=context, givens=listed, Givens=listed[:1].upper() + listed[1:])
