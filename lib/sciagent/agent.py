"""The agent: plan, retrieve, write a program with the functions shown, run it, correct it once (arXiv:2402.11451).

G = M_plan(q);  F_k = topk cos(E(q, G), E(f));  S = M_act(q, F_k);  answer = run(S)

The models are local ones (`model`, `tokenizer`) or anything that chats (`lib.core.chat`: an endpoint, recorded
replies). Programs are free Python with the functions at hand; a very small model may be held to a grammar instead.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lib.core.chat import Chat, Decoding, complete_all
from lib.core.local_chat import LocalChat
from lib.sciagent import decoding
from lib.sciagent.grammar import ProgramGrammar
from lib.sciagent.program import called_in, program_in, without_redefinitions
from lib.sciagent.sandbox import Execution, Mode, Sandbox
from lib.sciagent.tools import Tool, Toolset

TO_PLAN = "In one sentence, say which quantity must be computed, by what method, and from which given quantities."
TO_ACT = (
    "Answer the question by a short Python program. The functions listed are imported already. Where one of them gives "
    "what is asked, call it with the given numbers, in the units that it documents, and never work its formula out "
    "yourself; write plain Python only where none does (math and numpy may be imported). Write one line of comment "
    "that says what is computed and by which function, assign the value to `answer`, and write nothing else, in one "
    "```python block."
)


def plan_prompt(question: str, instruction: str = "") -> str:
    """Write what the planner reads: `G = M_plan(q)`."""
    return f"{instruction}\n\nQuestion: {question}" if instruction else f"Question: {question}\nPlan:"


def action_prompt(
    question: str, tools: Sequence[Tool], *, instruction: str = "", error: str = "", program: str = "",
    whole: bool = False,
) -> str:  # fmt: skip
    """Write what the action model reads: `M_act(q, F_k)`, with an instruction before it or a program that failed.

    `whole` descriptions say each parameter's meaning and unit.
    """
    shown = "\n".join(f"- {tool.shown() if whole else tool.brief()}" for tool in tools) or "none"
    failed = f"\nFailed program:\n{program}\nError: {error}" if error else ""
    told = f"{instruction}\n\n" if instruction else ""
    return f"{told}Functions:\n{shown}\n\nQuestion: {question}{failed}\nProgram:\n"


def texts_of(
    model: Any, tokenizer: Any, prompts: Sequence[str], *, max_new_tokens: int, instructed: bool, progress: bool
) -> list[str]:
    """Let a model answer prompts greedily: a chat, or a local model, in its chat template where it is `instructed`."""
    if isinstance(model, Chat):
        chat = model
    else:
        chat = LocalChat(model, tokenizer, template=instructed and bool(tokenizer.chat_template), progress=progress)
    return [reply.text for reply in complete_all(chat, prompts, Decoding(temperature=0.0, max_tokens=max_new_tokens))]


@dataclass(frozen=True)
class Planner:
    """`M_plan`: a language model that writes a short plan for a question.

    An `instruction` is for models that were not trained to plan (`trainer.train`), such as `TO_PLAN`.
    """

    model: Any
    tokenizer: Any = None
    max_new_tokens: int = 48
    instruction: str = ""

    def plans(self, questions: Sequence[str], *, progress: bool = False) -> list[str]:
        """Write one line of plan a question."""
        prompts = [plan_prompt(q, self.instruction) for q in questions]
        texts = texts_of(
            self.model, self.tokenizer, prompts, max_new_tokens=self.max_new_tokens,
            instructed=bool(self.instruction), progress=progress,
        )  # fmt: skip
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

    Programs are free Python, taken out of their fences; their value is `answer`, or what they print last. `constrained`
    holds a local model to a grammar in which only shown functions and the question's values occur: for very small
    models; there `rank_odds` say how likely the function at each rank is the right one (`retriever.rank_odds`), which
    weighs in the choice of a function. What a free program defines under the name of a shown function is dropped, so
    that it calls the real one. A program that fails is shown to the model once more, with its error (`correct`). The
    `instruction` goes before every prompt: adapters of `trainer.train` learn without one, other models want it.
    """

    model: Any
    tokenizer: Any = None
    constrained: bool = False
    correct: bool = True
    max_new_tokens: int = 300
    instruction: str = TO_ACT
    rank_odds: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if not all(odd > 0 for odd in self.rank_odds):
            raise ValueError(f"rank_odds = {self.rank_odds}: each must be above 0, as `retriever.rank_odds` gives them")

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
            error: dict[str, Any] = {"error": failed[i].failed, "program": failed[i].program} if failed else {}
            prompts.append(
                action_prompt(question, listed, instruction=self.instruction, whole=not self.constrained, **error)
            )
            grammars.append(ProgramGrammar(listed, question, self._odds(len(listed))))
        if self.constrained:
            programs = decoding.generate(self.model, self.tokenizer, prompts, grammars, progress=progress)
        else:
            replies = texts_of(
                self.model, self.tokenizer, prompts, max_new_tokens=self.max_new_tokens,
                instructed=bool(self.instruction), progress=progress,
            )  # fmt: skip
            written = zip(replies, shown, strict=True)
            programs = [without_redefinitions(program_in(reply), names) for reply, names in written]
        mode: Mode = "constrained" if self.constrained else "free"
        outcomes = sandbox.map([tools.job(p, names, mode=mode) for p, names in zip(programs, shown, strict=True)])
        rows = zip(programs, shown, outcomes, strict=True)
        return [Attempt(program, called_in(program, names), outcome) for program, names, outcome in rows]

    def _odds(self, number: int) -> tuple[float, ...]:
        """Odds of so many functions in the order of their ranks; those beyond the known ranks are as the last known."""
        known = self.rank_odds[:number]
        return (*known, *known[-1:] * (number - len(known))) if known else ()


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
        constrained: bool | None = None, encoder: str = "minilm", dtype: Any = None, device: str | None = None,
        shown: int = 3,
    ) -> "SciAgent":  # fmt: skip
        """Make an agent of a language model, a sentence encoder (short or hub names, folders) and a trained adapter.

        Without an adapter the model is instructed in words, which wants one that follows them. Unless you say, programs
        are `constrained` to the grammar with an adapter, which learns its choices only, and free without one.
        """
        from lib.sciagent import trainer
        from lib.zoo import load_lm

        base, tokenizer = load_lm(model, dtype=dtype, device=device)
        if adapter is not None:
            base = trainer.load(base, Path(adapter))
        plan, act = ("", "") if adapter is not None else (TO_PLAN, TO_ACT)
        planner = Planner(base, tokenizer, instruction=plan)
        held = adapter is not None if constrained is None else constrained
        action = Action(base, tokenizer, constrained=held, instruction=act)
        return cls(planner, action, tools, sandbox, _hybrid(encoder, device), shown)

    @classmethod
    def from_chat(
        cls, chat: Chat, tools: Toolset, sandbox: Sandbox, *, encoder: str = "minilm", device: str | None = None,
        shown: int = 3,
    ) -> "SciAgent":  # fmt: skip
        """Make an agent of anything that chats: an OpenAI-compatible endpoint (`ChatClient`) or recorded replies."""
        planner, action = Planner(chat, instruction=TO_PLAN), Action(chat)
        return cls(planner, action, tools, sandbox, _hybrid(encoder, device), shown)

    def swap(self, tools: Toolset) -> "SciAgent":
        """Return the same agent over another toolset."""
        return SciAgent(self.planner, self.action, tools, self.sandbox, self.index, self.shown)

    def solve(self, question: str) -> Trace:
        """Solve one question; raises ValueError for an empty one, or a list (`solve_all` takes those)."""
        if not isinstance(question, str):
            raise ValueError(f"solve takes one question as a text, not a {type(question).__name__}: use solve_all")
        return self.solve_all([question])[0]

    def solve_all(self, questions: Sequence[str], *, progress: bool = False) -> list[Trace]:
        """Solve many questions, in batches; raises ValueError for an empty one, or one text in place of a list."""
        if isinstance(questions, str):
            raise ValueError("solve_all takes a list of questions, and this is one text: use solve")
        if not all(q.strip() for q in questions):
            raise ValueError("a question is empty: say what to compute and from what")
        plans = self.planner.plans(questions, progress=progress)
        queries = [f"{q} {p}" for q, p in zip(questions, plans, strict=True)]
        shown = self._searchable.search(queries, self.shown)
        attempts = self.action.attempts(questions, shown, self.tools, self.sandbox, progress=progress)
        rows = zip(questions, plans, shown, attempts, strict=True)
        return [Trace(q, p, tuple(s), tuple(a)) for q, p, s, a in rows]


def _hybrid(encoder: str, device: str | None) -> Callable[[Toolset], Any]:
    from lib.sciagent.retriever import hybrid
    from lib.zoo import load_encoder

    return hybrid(load_encoder(encoder, device))
