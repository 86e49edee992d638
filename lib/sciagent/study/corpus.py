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
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from lib.sciagent.agent import action_prompt, plan_prompt
from lib.sciagent.docstrings import context_of, first_clause
from lib.sciagent.grammar import ProgramGrammar, choices_of
from lib.sciagent.sandbox import Sandbox
from lib.sciagent.study.formulas import of_formulas
from lib.sciagent.study.questions import Question, of_tools, reworded
from lib.sciagent.tools import Example, Parameter, Tool, Toolset
from lib.sciagent.trainer import PromptCompletion

MODES = ("cross", "own")
HELD_OUT_FAMILIES = 4  # one family in so many is for tests
Search = Callable[[Sequence[str]], list[list[str]]]  # queries -> names of functions, best first


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
    """Split tools into those for training and those for testing: no family, and no held-out library, on both sides.

    The methods of one family compute the same quantity in other ways, so a split within families would leak.
    """
    test = [tool for tool in tools if in_test(unit_of_split(tool), held_out_libraries=held_out_libraries)]
    names = {tool.name for tool in test}
    return [tool for tool in tools if tool.name not in names], test


def unit_of_split(tool: Tool) -> str:
    """Return what a split keeps together: the module, whose functions are methods for one quantity.

    A module of distributions holds many quantities (a unit is one distribution), and so do those of mathematics and
    finance (a unit is a stem of names: `gammainc` and `gammaincc`).
    """
    if tool.domain == "statistics":
        return f"{tool.family}.{tool.name.rpartition('_')[0]}"
    return f"{tool.family}.{tool.name[:4]}" if tool.domain in ("mathematics", "finance") else tool.family


def pick(tools: Iterable[Tool], number: int, *, seed: int) -> list[Tool]:
    """Draw tools in turn from each domain, so that no domain is crowded out."""
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


def questions_on(
    pool: Sequence[Tool], number: int, *, toolset: Toolset, sandbox: Sandbox, split: str, seed: int
) -> list[Question]:
    """Ask a question on each of `number` tools (fewer where calls fail), drawn in turn from each domain."""
    picked = pick(pool, round(1.25 * number), seed=seed)
    return of_tools(picked, toolset, sandbox=sandbox, each=1, split=split, seed=seed)[:number]


def retrieval_examples(
    asked: Sequence[Question], toolset: Toolset, search: Search
) -> tuple[list[str], list[str], list[list[str]]]:
    """What tunes a retriever: queries (with a plan and without), texts of their functions, best-ranked wrong texts."""
    queries = [q.text for q in asked] + [f"{q.text} {q.plan}" for q in asked]
    twice = [*asked, *asked]
    positives = [toolset[q.functions[0]].indexed() for q in twice]
    near = zip(twice, search(queries), strict=True)
    negatives = [[toolset[n].indexed() for n in names if n not in q.functions] for q, names in near]
    return queries, positives, negatives


def own_function(question: Question, toolset: Toolset, number: int) -> Tool:
    """Make the ad-hoc function of a question: a wrapper of its library function, in the question's words."""
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
        summary=reworded(context_of(tool.summary, question.goal) or question.goal, draw, 1.0),
        parameters=tuple(
            Parameter(renamed[p.name], reworded(p.text, draw, 1.0), p.unit, p.kind) for p in wanted.values()
        ),
        returns=Parameter("value", reworded(question.goal, draw, 1.0), tool.returns.unit),
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
    words = re.findall(r"[a-z]+", first_clause(parameter.text, 40).lower())[:2] or ["value"]
    return "_".join([*words, str(position)])


@dataclass(frozen=True)
class Corpus:
    """Training questions with the ad-hoc function of each (None where the question needs none)."""

    questions: tuple[Question, ...]
    own: tuple[Tool | None, ...]
    tools: Toolset  # the library and all ad-hoc functions

    @classmethod
    def build(cls, questions: Sequence[Question], library: Toolset) -> "Corpus":
        """Build the corpus of questions over a library's tools."""
        own = [own_function(q, library, i) if q.functions else None for i, q in enumerate(questions)]
        return cls(tuple(questions), tuple(own), library | Toolset(tool for tool in own if tool))

    def candidates(self, number: int) -> list[str]:
        """List what question `number` may retrieve: all but its own ad-hoc function."""
        own = self.own[number]
        return [tool.name for tool in self.tools if own is None or tool.name != own.name]

    def samples(self, mode: str, search: Search, *, shown: int, seed: int, shuffled: float = 0.5) -> list[Sample]:
        """Make training samples of the questions, with `shown` functions each at most.

        Functions stand in the order of their ranks, as before the agent, but for a share `shuffled` of the samples:
        otherwise a model would learn to take the first. Raises ValueError for a mode other than `cross` and `own`.
        """
        if mode not in MODES:
            raise ValueError(f"mode {mode!r} is neither 'cross' nor 'own'")
        ranked = search([f"{q.text} {q.plan}" for q in self.questions])
        draw = random.Random(f"{seed}/{mode}")
        made = [self._sample(i, names, mode, shown, draw) for i, names in enumerate(ranked)]
        samples = [sample for sample in made if sample is not None]
        return [_shuffled(sample, draw) if draw.random() < shuffled else sample for sample in samples]

    def leaks(self, samples: Iterable[Sample]) -> int:
        """Count the samples that show the ad-hoc function of their own question."""
        own = {id(q): tool.name for q, tool in zip(self.questions, self.own, strict=True) if tool}
        return sum(own.get(id(sample.question)) in sample.shown for sample in samples)

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
    """Part the sample's solution into choices, each with its options; nothing where no program of the grammar is it."""
    grammar = ProgramGrammar([toolset[name] for name in sample.shown], sample.question.text)
    try:
        return tuple(choices_of(sample.program, grammar))
    except ValueError:
        return ()


def action_examples(samples: Iterable[Sample], toolset: Toolset) -> list[PromptCompletion]:
    """Return what teaches the action model: prompts and solutions of samples in which there is something to choose."""
    written = [(sample, written_out(sample, toolset)) for sample in samples]
    return [
        PromptCompletion(action_prompt(sample.question.text, [toolset[n] for n in sample.shown]), parts)
        for sample, parts in written if any(len(options) != 1 for _, options in parts)
    ]  # fmt: skip


def plan_examples(questions: Iterable[Question]) -> list[PromptCompletion]:
    """Return what teaches the planner: questions and their plans."""
    return [PromptCompletion(plan_prompt(q.text), ((f" {q.plan}", ()),)) for q in questions]


def ablation_corpora(
    samples: dict[str, list[Sample]], library: Toolset, search: Search, *, number: int, shown: int, seed: int
) -> dict[str, list[Sample]]:
    """Make corpora of `number` samples: mixed (cross-retrieved, own functions), and each half of the mixture alone.

    Formula questions are few: those that train the function-free corpus are drawn anew from the same formulas.
    """
    using = {mode: [s for s in made if s.question.functions] for mode, made in samples.items()}
    more = Corpus.build(of_formulas(number, split="train", seed=seed + 1), library)
    only_free = more.samples("cross", search, shown=shown, seed=seed)
    without = len(samples["cross"]) - len(using["cross"])
    free = round(without / max(1, len(samples["cross"])) * number)
    return {
        "mixed, cross-retrieved": using["cross"][: number - free] + only_free[:free],
        "mixed, own functions": using["own"][: number - free] + only_free[:free],
        "with functions only": using["cross"][:number],
        "function-free only": only_free[:number],
    }
