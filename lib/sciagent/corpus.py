"""A MathFunc-like corpus: questions, plans, functions shown and solutions verified by execution (arXiv:2402.11451).

Every training question gets ad-hoc functions of its own, as the paper's were written for one question each: a wrapper
around the library's function, named and documented in the question's words. **Own-function** samples show it.
**Cross-retrieval** samples show what is retrieved from the library and the ad-hoc functions of *other* questions, never
the question's own, and are kept where the library function that answers is among them. Function-free samples show
retrieved functions too, and use none.
"""

import ast
import hashlib
import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from lib.sciagent import phrases
from lib.sciagent.form import Form, parts
from lib.sciagent.questions import Question
from lib.sciagent.tools import Example, Parameter, Tool
from lib.sciagent.toolset import Toolset

MODES = ("cross", "own")
HELD_OUT_FAMILIES = 4  # one family in so many is for tests
Retrieve = Callable[[Sequence[str], Sequence[str]], list[list[str]]]  # queries and candidate names -> ranked names


@dataclass(frozen=True)
class Sample:
    """What the action model learns from: a question, the names of the functions shown, and the program."""

    question: Question
    shown: tuple[str, ...]
    program: str


def in_test(family: str, *, held_out_libraries: Sequence[str] = ()) -> bool:
    """Whether a family of functions (a library's module) is held out: by a hash that no seed moves, or its library."""
    if family.split(".")[0] in held_out_libraries:
        return True
    return int(hashlib.sha256(family.encode()).hexdigest()[:8], 16) % HELD_OUT_FAMILIES == 0


def split_tools(tools: Sequence[Tool], *, held_out_libraries: Sequence[str] = ()) -> tuple[list[Tool], list[Tool]]:
    """Tools for training and tools for testing: no family, and no held-out library, on both sides.

    The methods of one family compute the same quantity in other ways, so a split within families would leak.
    """
    test = [tool for tool in tools if in_test(unit_of_split(tool), held_out_libraries=held_out_libraries)]
    names = {tool.name for tool in test}
    return [tool for tool in tools if tool.name not in names], test


def unit_of_split(tool: Tool) -> str:
    """What a split keeps together: the module, whose functions are methods for one quantity.

    A module of distributions holds many quantities (a unit is one distribution), and so do those of mathematics and
    finance (a unit is a stem of names: `gammainc` and `gammaincc`).
    """
    if tool.domain == "statistics":
        return f"{tool.family}.{tool.name.rpartition('_')[0]}"
    return f"{tool.family}.{tool.name[:4]}" if tool.domain in ("mathematics", "finance") else tool.family


def own_function(question: Question, toolset: Toolset, number: int) -> Tool:
    """The ad-hoc function of a question: a wrapper of its library function, in the question's words."""
    tool = toolset[question.functions[-1]]
    words = re.findall(r"[a-z]+", question.goal.lower())[:4] or ["value"]
    name = f"{'_'.join(words)}_{number}"
    example = _example(question, tool)
    wanted = {p.name: p for p in tool.parameters if p.name in example}
    renamed = {p.name: _argument(p, i) for i, p in enumerate(wanted.values())}
    passed = ", ".join(renamed[n] if tool.positional else f"{n}={renamed[n]}" for n in example)
    module, _, attribute = tool.place.partition(":")
    source = (
        f"def {name}({', '.join(renamed.values())}):\n    import {module}\n    return {module}.{attribute}({passed})\n"
    )
    draw = random.Random(name)
    return Tool(
        name=name, library="adhoc", family=tool.family, domain=tool.domain,
        summary=phrases.reworded(phrases.context_of(tool.summary, question.goal) or question.goal, draw, 1.0),
        parameters=tuple(
            Parameter(renamed[p.name], phrases.reworded(p.text, draw, 1.0), p.unit, p.kind) for p in wanted.values()
        ),
        returns=Parameter("value", phrases.reworded(question.goal, draw, 1.0), tool.returns.unit),
        examples=(Example({renamed[n]: v for n, v in example.items()}, question.answer, True),),
        source=source,
    )  # fmt: skip


def _example(question: Question, tool: Tool) -> dict[str, Any]:
    """Arguments of a question's last call by name; of the tool's first example where one is a variable."""
    call = ast.parse(question.program.splitlines()[-1].removeprefix("answer = "), mode="eval").body
    assert isinstance(call, ast.Call)
    try:
        values = [ast.literal_eval(a) for a in [*call.args, *(k.value for k in call.keywords)]]
    except ValueError:
        return tool.examples[0].arguments
    names = [k.arg for k in call.keywords] or [p.name for p in tool.parameters]
    return {str(n): v for n, v in zip(names, values, strict=False)}


def _argument(parameter: Parameter, position: int) -> str:
    words = re.findall(r"[a-z]+", phrases.first_clause(parameter.text, 40).lower())[:2]
    return "_".join([*words, str(position)])


@dataclass(frozen=True)
class Corpus:
    """Training questions with the ad-hoc function of each (None where the question needs none)."""

    questions: tuple[Question, ...]
    own: tuple[Tool | None, ...]
    library: Toolset
    tools: Toolset  # the library and all ad-hoc functions

    @classmethod
    def build(cls, questions: Sequence[Question], library: Toolset) -> "Corpus":
        """Corpus of questions over a library's tools."""
        own = [own_function(q, library, i) if q.functions else None for i, q in enumerate(questions)]
        return cls(tuple(questions), tuple(own), library, library | Toolset(tool for tool in own if tool))

    def candidates(self, number: int) -> list[str]:
        """Names that question `number` may retrieve: all but its own ad-hoc function."""
        own = self.own[number]
        return [tool.name for tool in self.tools if own is None or tool.name != own.name]

    def samples(
        self, mode: str, retrieve: Retrieve, *, shown: int, seed: int, keep: Sequence[int] | None = None,
        shuffled: float = 0.5,
    ) -> list[Sample]:  # fmt: skip
        """Training samples of the questions (those numbered in `keep`), with `shown` functions each at most.

        Functions stand in the order of their ranks, as before the agent, but for a share `shuffled` of the samples:
        otherwise a model would learn to take the first. Raises ValueError for a mode other than `cross` and `own`.
        """
        if mode not in MODES:
            raise ValueError(f"mode {mode!r} is neither 'cross' nor 'own'")
        numbers = list(range(len(self.questions)) if keep is None else keep)
        queries = [f"{self.questions[i].text} {self.questions[i].plan}" for i in numbers]
        ranked = retrieve(queries, [tool.name for tool in self.tools])
        draw = random.Random(f"{seed}/{mode}")
        made = [self._sample(i, names, mode, shown, draw) for i, names in zip(numbers, ranked, strict=True)]
        found = [sample for sample in made if sample is not None]
        return [_shuffled(sample, draw) if draw.random() < shuffled else sample for sample in found]

    def _sample(self, i: int, ranked: list[str], mode: str, shown: int, draw: random.Random) -> Sample | None:
        question, own = self.questions[i], self.own[i]
        if own is not None and mode == "own":
            if len(question.functions) > 1:
                return None  # an ad-hoc function answers one call
            return Sample(question, (own.name,), f"answer = {own.call(own.examples[0].arguments)}")
        allowed = set(self.candidates(i))
        names = [name for name in ranked if name in allowed][: draw.randint(1, shown)]
        if not set(question.functions) <= set(names):
            return None  # what was retrieved cannot answer it
        return Sample(question, tuple(names), question.program)


def _shuffled(sample: Sample, draw: random.Random) -> Sample:
    return replace(sample, shown=tuple(draw.sample(sample.shown, len(sample.shown))))


def written_out(sample: Sample, toolset: Toolset) -> tuple[tuple[str, tuple[str, ...]], ...]:
    """The sample's solution in parts, each with its options (`form.parts`); none where its form has no such program."""
    try:
        return tuple(parts(sample.program, Form([toolset[name] for name in sample.shown], sample.question.text)))
    except ValueError:
        return ()
