"""The agent: plan, retrieve, write a program with the functions shown, run it, correct it once (arXiv:2402.11451).

G = M_plan(q);  F_k = topk cos(E(q, G), E(f));  S = M_act(q, F_k);  answer = run(S)
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lib.sciagent import decoding
from lib.sciagent.grammar import ProgramGrammar
from lib.sciagent.program import ProgramRefused, calls, checked
from lib.sciagent.sandbox import Execution, Sandbox
from lib.sciagent.tools import Tool, Toolset


def plan_prompt(question: str) -> str:
    """Write what the planner reads: `G = M_plan(q)`."""
    return f"Question: {question}\nPlan:"


def action_prompt(
    question: str, tools: Sequence[Tool], *, instruction: str = "", error: str = "", program: str = ""
) -> str:  # fmt: skip
    """Write what the action model reads: `M_act(q, F_k)`, with an instruction before it or a program that failed."""
    shown = "\n".join(f"- {tool.brief()}" for tool in tools) or "none"
    failed = f"\nFailed program:\n{program}\nError: {error}" if error else ""
    told = f"{instruction}\n\n" if instruction else ""
    return f"{told}Functions:\n{shown}\n\nQuestion: {question}{failed}\nProgram:\n"


@dataclass(frozen=True)
class Planner:
    """`M_plan`: a language model that writes a short plan for a question."""

    model: Any
    tokenizer: Any
    max_new_tokens: int = 48

    def plans(self, questions: Sequence[str], *, progress: bool = False) -> list[str]:
        """Write one line of plan a question."""
        prompts = [plan_prompt(q) for q in questions]
        texts = decoding.generate(
            self.model, self.tokenizer, prompts, max_new_tokens=self.max_new_tokens, progress=progress
        )
        return [text.strip().split("\n")[0] for text in texts]


@dataclass(frozen=True)
class Attempt:
    """A program for a question, and what came of it; `called` are the shown functions it calls."""

    program: str
    called: tuple[str, ...]
    execution: Execution

    @property
    def failed(self) -> str:
        """Why there is no answer; "" where there is one."""
        if not self.execution.ok:
            return self.execution.error
        return "" if self.execution.value is not None else "the program gives no answer"


@dataclass(frozen=True)
class Action:
    """`M_act`: a language model that writes a rationale and a program with the functions it is shown, or with none.

    Its programs are held to a grammar in which only shown functions and the question's values occur (`constrained`). A
    program that fails is shown to the model once more, with its error (`correct`). `max_new_tokens` limits free text.
    An `instruction` goes before every prompt: adapters of `trainer.train` learn without one, other models may want it.
    """

    model: Any
    tokenizer: Any
    constrained: bool = True
    correct: bool = True
    max_new_tokens: int = 150
    instruction: str = ""

    def attempts(
        self, questions: Sequence[str], shown: Sequence[Sequence[str]], tools: Toolset,
        sandbox: Sandbox, *, progress: bool = False,
    ) -> list[list[Attempt]]:  # fmt: skip
        """Attempt each question: once, or twice where the first attempt failed; the last one is the answer."""
        tried = [[a] for a in self._write(questions, shown, tools, sandbox, None, progress)]
        failed = [i for i, a in enumerate(tried) if a[-1].failed] if self.correct else []
        if failed:
            posed, offered = [questions[i] for i in failed], [shown[i] for i in failed]
            again = self._write(posed, offered, tools, sandbox, [tried[i][-1] for i in failed], progress)
            for i, attempt in zip(failed, again, strict=True):
                tried[i].append(attempt)
        return tried

    def _write(
        self, questions: Sequence[str], shown: Sequence[Sequence[str]], tools: Toolset,
        sandbox: Sandbox, failed: list[Attempt] | None, progress: bool,
    ) -> list[Attempt]:  # fmt: skip
        prompts, grammars = [], []
        for i, (question, names) in enumerate(zip(questions, shown, strict=True)):
            listed = [tools[name] for name in names]
            error = {"error": failed[i].failed, "program": failed[i].program} if failed else {}
            prompts.append(action_prompt(question, listed, instruction=self.instruction, **error))
            grammars.append(ProgramGrammar(listed, question))
        programs = decoding.generate(
            self.model, self.tokenizer, prompts, max_new_tokens=self.max_new_tokens,
            grammars=grammars if self.constrained else None, progress=progress,
        )  # fmt: skip
        outcomes = sandbox.map([tools.job(p, names) for p, names in zip(programs, shown, strict=True)])
        rows = zip(programs, shown, outcomes, strict=True)
        return [Attempt(program, _called(program, names), outcome) for program, names, outcome in rows]


def _called(program: str, names: Sequence[str]) -> tuple[str, ...]:
    try:
        return tuple(calls(checked(program, functions=names), names))
    except ProgramRefused:
        return ()


@dataclass(frozen=True)
class Trace:
    """One question from plan to answer; print it."""

    question: str
    plan: str
    functions: tuple[str, ...]
    attempts: tuple[Attempt, ...]

    @property
    def program(self) -> str:
        """The last program written."""
        return self.attempts[-1].program

    @property
    def output(self) -> str:
        """What it printed, or the error it ended with."""
        last = self.attempts[-1]
        return last.failed or last.execution.stdout

    @property
    def answer(self) -> Any:
        """Its value; None where it failed."""
        return self.attempts[-1].execution.value

    def __str__(self) -> str:
        lines = [f"Question   {self.question}", f"Plan       {self.plan}", f"Retrieved  {', '.join(self.functions)}"]
        for number, attempt in enumerate(self.attempts, start=1):
            label = "Program    " if number == 1 else "Corrected  "
            lines.append(label + attempt.program.replace("\n", "\n" + " " * len(label)))
            lines.append(f"Output     {attempt.failed or attempt.execution.value}")
        return "\n".join(lines)


@dataclass
class SciAgent:
    """An agent over a toolset, which `swap` exchanges for another one without training.

    `index` makes the retriever's index of a toolset (`lib.sciagent.retriever`); `shown` functions are put before the
    action model.
    """

    planner: Planner
    action: Action
    tools: Toolset
    sandbox: Sandbox
    index: Callable[[Toolset], Any]
    shown: int = 3
    _searchable: Any = field(init=False)

    def __post_init__(self) -> None:
        if not len(self.tools):
            raise ValueError("the toolset is empty: add functions, or take those of a package by from_package")
        self._searchable = self.index(self.tools)

    @classmethod
    def from_pretrained(
        cls, model: str, tools: Toolset, sandbox: Sandbox, *, adapter: str | Path | None = None,
        encoder: str = "minilm", dtype: Any = None, device: str | None = None, shown: int = 3,
    ) -> "SciAgent":  # fmt: skip
        """Make an agent of a language model, a sentence encoder (short or hub names, folders) and a trained adapter.

        A model without an adapter was never taught the two prompts: expect little of it.
        """
        from lib.sciagent import trainer
        from lib.sciagent.retriever import hybrid
        from lib.zoo import load_encoder, load_lm

        base, tokenizer = load_lm(model, dtype=dtype, device=device)
        base = base if adapter is None else trainer.load(base, Path(adapter))
        index = hybrid(load_encoder(encoder, device))
        return cls(Planner(base, tokenizer), Action(base, tokenizer), tools, sandbox, index, shown)

    def swap(self, tools: Toolset) -> "SciAgent":
        """Return the same agent over another toolset."""
        return SciAgent(self.planner, self.action, tools, self.sandbox, self.index, self.shown)

    def solve(self, question: str) -> Trace:
        """Solve one question; raises ValueError for an empty one."""
        return self.solve_all([question])[0]

    def solve_all(self, questions: Sequence[str], *, progress: bool = False) -> list[Trace]:
        """Solve many questions, in batches."""
        if not all(q.strip() for q in questions):
            raise ValueError("a question is empty: say what to compute and from what")
        plans = self.planner.plans(questions, progress=progress)
        queries = [f"{q} {p}" for q, p in zip(questions, plans, strict=True)]
        shown = self._searchable.search(queries, self.shown)
        attempts = self.action.attempts(questions, shown, self.tools, self.sandbox, progress=progress)
        rows = zip(questions, plans, shown, attempts, strict=True)
        return [Trace(q, p, tuple(s), tuple(a)) for q, p, s, a in rows]
