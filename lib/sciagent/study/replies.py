"""What a larger model writes: `make replies PAPER=sciagent` records it, the notebook replays it.

The settings below are part of every question's key: a notebook that asks in another way finds no reply.
"""

from collections.abc import Sequence
from typing import Any

import torch

from lib.core.chat import Chat, ChatClient, Decoding, Messages, Replayer, reply_key
from lib.core.local_chat import LocalChat
from lib.sciagent.agent import TO_ACT, Action, action_prompt
from lib.sciagent.retriever import WordIndex
from lib.sciagent.sandbox import Limits, Sandbox
from lib.sciagent.study import corpus, free_questions
from lib.sciagent.study.questions import Question, askable
from lib.sciagent.tools import Toolset
from lib.zoo import shipped
from lib.zoo.models import LANGUAGE_MODELS, load_lm

MODEL = "qwen2.5-coder-1.5b-instruct"
TO_NAME = (
    "You know the documentation of scientific Python libraries (fluid mechanics, heat transfer, chemistry, statistics, "
    "special functions, finance). For a question in everyday words, say in one line, in the technical words of such a "
    "documentation, which function is needed and what it computes. Do not answer the question."
)
NAMED = (
    (
        "How many drops would a fluid of this stickiness and weight form per second at the nozzle, relative to its "
        "surface pull?",
        "Ohnesorge number: ratio of viscous forces to inertia and surface tension.",
    ),
    (
        "How fast may I pump slurry before the grains settle on the bottom of the line?",
        "Critical deposition velocity (limit deposition velocity) of a slurry in a horizontal pipe.",
    ),
    (
        "My wallet earns 3 % a year; when has it doubled?",
        "Number of compounding periods for a present value to reach a future value at an interest rate.",
    ),
    (
        "How likely is it that ten dice throws give at most two sixes?",
        "Binomial distribution, cumulative distribution function: probability of at most k successes in n trials.",
    ),
)
PLANS = Decoding(temperature=0.0, max_tokens=40, seed=0)
LIBRARIES = ("fluids", "ht", "chemicals", "thermo", "chempy", "numpy_financial", "scipy", "sympy")
HELD_OUT = ("ht",)
POSED = 80  # questions on functions never trained on, for which programs are recorded
SHOWN = 3  # functions
LONGEST = 160  # tokens of a program
SEED = 3  # of the questions; the notebook's own test questions have another
TOGETHER = 16  # questions asked at once


def local(name: str) -> LocalChat:
    """Load the model whose replies are recorded, with bfloat16 weights."""
    return LocalChat(*load_lm(name, dtype=torch.bfloat16))


def to_name(question: str) -> Messages:
    """Ask which function a question in everyday words needs, in technical words: the plan of a prompted model."""
    turns = [{"role": "system", "content": TO_NAME}]
    for asked, named in NAMED:
        turns += [{"role": "user", "content": asked}, {"role": "assistant", "content": named}]
    return [*turns, {"role": "user", "content": question}]


def plans_by(chat: Chat, questions: Sequence[str]) -> list[str]:
    """Let a chat write one line of plan a question."""
    return [chat.complete(to_name(question), PLANS).text.strip().split("\n")[0] for question in questions]


def posed(tools: Toolset, sandbox: Sandbox) -> list[Question]:
    """Ask questions on functions never trained on, as the notebook does."""
    _, unseen = corpus.split_tools([tool for tool in tools if askable(tool)], held_out_libraries=list(HELD_OUT))
    return corpus.questions_on(unseen, POSED, toolset=tools, sandbox=sandbox, split="test", seed=SEED)


def showings(tools: Toolset, questions: Sequence[Question]) -> dict[str, list[tuple[str, ...]]]:
    """Choose the functions to show: those retrieved by words alone (alike on every processor), the right one, none."""
    names = [tool.name for tool in tools]
    ranked = WordIndex(names, [tool.indexed() for tool in tools]).search([q.text for q in questions], SHOWN)
    return {
        "retrieved": [tuple(row) for row in ranked],
        "gold": [q.functions for q in questions],
        "none": [() for _ in questions],
    }


def chat_of(name: str) -> Chat | None:
    """Give who writes: `recorded` replies, an endpoint's model, or nobody for an empty name."""
    if not name:
        return None
    return shipped.replies("sciagent") if name == "recorded" else ChatClient(model=name)


def action(name: str, *, dtype: str, device: Any) -> Action:
    """Return the action model of a short name, or whom `chat_of` gives, which writes free programs at one attempt."""
    model, tokenizer = load_lm(name, dtype=dtype, device=device) if name in LANGUAGE_MODELS else (chat_of(name), None)
    return Action(model, tokenizer, correct=False, max_new_tokens=LONGEST)


def prompt(tools: Toolset, question: Question, names: Sequence[str]) -> str:
    """Write what the action model reads."""
    return action_prompt(question.text, [tools[name] for name in names], instruction=TO_ACT, whole=True)


def recorded(name: str, tools: Toolset, questions: Sequence[Question]) -> bool:
    """Tell whether a writer has programs for all questions: a live one has, a recording knows its own toolset only."""
    chat, settings = chat_of(name), Decoding(temperature=0.0, max_tokens=LONGEST)
    if not isinstance(chat, Replayer):
        return True
    shown = [row for rows in showings(tools, questions).values() for row in zip(questions, rows, strict=True)]
    return all(reply_key(chat.model, prompt(tools, *each), settings) in chat.rows for each in shown)


def record(client: Any) -> None:
    """Ask all that the notebook replays; what is recorded is not asked again."""
    naming = [to_name(question) for question, _ in free_questions.questions("test")]
    for start in range(0, len(naming), TOGETHER):
        client.complete_many(naming[start : start + TOGETHER], PLANS)
    preload = [name for name in LIBRARIES if name != "scipy"] + ["numpy", "pandas", "scipy.special", "scipy.stats"]
    with Sandbox(
        workers=1, preload=preload, limits=Limits(seconds=20.0, cpu_seconds=4.0), allow_weaker=True
    ) as sandbox:
        tools = Toolset()
        for library in LIBRARIES:
            tools = tools | Toolset.from_package(library, sandbox=sandbox)
        questions = posed(tools, sandbox)
    settings = Decoding(temperature=0.0, max_tokens=LONGEST)
    for shown in showings(tools, questions).values():
        asked = [prompt(tools, question, names) for question, names in zip(questions, shown, strict=True)]
        for start in range(0, len(asked), TOGETHER):
            client.complete_many(asked[start : start + TOGETHER], settings)
