"""What a larger model writes: `make replies PAPER=sciagent` records it, the notebook replays it.

The settings below are part of every question's key: a notebook that asks in another way finds no reply.
"""

from collections.abc import Sequence
from typing import Any

import torch
from tqdm import tqdm

from lib.core.chat import Chat, ChatClient, Decoding, Messages, Replayer, Reply, reply_key
from lib.core.local_chat import LocalChat
from lib.sciagent.agent import TO_ACT, Action, action_prompt
from lib.sciagent.retriever import WordIndex
from lib.sciagent.sandbox import Limits, Sandbox
from lib.sciagent.study import corpus, free_questions
from lib.sciagent.study.questions import Question, askable
from lib.sciagent.tools import Tool, Toolset
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
        "How heavy is a barrel of crude against one of water, when I know its degrees?",
        "Specific gravity of a liquid from its API gravity.",
    ),
    (
        "How likely is it that ten dice throws give at most two sixes?",
        "Binomial distribution, cumulative distribution function: probability of at most k successes in n trials.",
    ),
)
PLANS = Decoding(temperature=0.0, max_tokens=40, seed=0)
TO_ASK = (
    "You are given a function of a scientific Python library. Write the question of a person who needs what this "
    "function computes, worded plainly: name the thing that is asked for and what it depends on by everyday words "
    "(thickness of a liquid for viscosity, push for pressure, bore for inner diameter), not by the terms of the "
    "documentation, and never the function's name. Stay with what the function computes. One short question, nothing "
    "else."
)
EXAMPLES = (
    (
        "Ohnesorge. Calculates Ohnesorge number for a fluid with the given characteristic length, density, "
        "viscosity, surface tension. Returns Ohnesorge number.",
        "Which plain figure weighs the stickiness of a droplet against its heaviness and the pull of its skin?",
    ),
    (
        "API to SG. Calculates specific gravity of a liquid from its API. Given API of the fluid. Returns specific "
        "gravity of the fluid.",
        "How heavy is a crude oil against water, when I know the degrees that the trade gives it?",
    ),
    (
        "V horiz spherical. Calculates volume of a tank with spherical heads, according to a fill height. Given "
        "diameter of the main cylindrical section, length, height of fluid. Returns volume.",
        "How many litres are in a lying drum with round ends when I know how high the liquid stands?",
    ),
    (
        "binom sf. Probability of a value above k under a binomial discrete random variable. Given value, number of "
        "trials, chance of success.",
        "Each of forty lamps fails with the same chance; how likely do more than three of them fail?",
    ),
    (
        "Churchill 1977. Calculates Darcy friction factor using the method in Churchill (1977). Given reynolds "
        "number, relative roughness. Returns darcy friction factor.",
        "How strongly does the wall of a rough line hold back what flows, by one formula of 1977 for slow and fast "
        "flow?",
    ),
    (
        "d Antoine d T. Calculates the first temperature derivative of vapor pressure of a chemical using the "
        "Antoine equation. Given temperature of fluid, coefficients. Returns derivative.",
        "By how much more does a liquid push to become gas for each degree of warming, with the three constants from "
        "the old tables?",
    ),
    (
        "R cylinder. Calculates the thermal resistance of a cylinder wall. Given inner diameter, outer diameter, "
        "thermal conductivity, length. Returns thermal resistance.",
        "How well does lagging round a pipe keep the warmth in, its inner and outer size known?",
    ),
    (
        "totient. Calculate the Euler totient function phi(n). Given . Returns .",
        "How many numbers below a given one share no divisor with it?",
    ),
    (
        "gumbel r ppf. Quantile of a right-skewed Gumbel continuous random variable. Given probability. Returns .",
        "Which yearly highest flood is not passed with a given chance, if yearly highs lean to large values?",
    ),
    (
        "ellipe. Complete elliptic integral of the second kind. Given parameter. Returns value of the elliptic "
        "integral.",
        "Which integral do I need for the way round an oval, and what is its value?",
    ),
)
ASKING = Decoding(temperature=0.0, max_tokens=40, seed=0)
LIBRARIES = ("fluids", "ht", "chemicals", "thermo", "chempy", "numpy_financial", "scipy", "sympy")
HELD_OUT = ("ht",)
POSED = 80  # questions on functions never trained on, for which programs are recorded
SHOWN = 3  # functions
LONGEST = 160  # tokens of a program
SEED = 3  # of the questions; the notebook's own test questions have another
TOGETHER = 16  # questions asked at once
MANY = 96  # short ones
LONGEST_DESCRIPTION = 320  # characters of a function's text


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


def to_ask(tool: Tool) -> Messages:
    """Ask for a question in everyday words that a function answers, given what a search reads of it."""
    turns = [{"role": "system", "content": TO_ASK}]
    for described, question in EXAMPLES:
        turns += [{"role": "user", "content": described}, {"role": "assistant", "content": question}]
    return [*turns, {"role": "user", "content": tool.indexed()[:LONGEST_DESCRIPTION]}]


def questions_by(chat: Any, tools: Sequence[Tool]) -> dict[str, str]:
    """Let a chat word one question for each function, by its name.

    Nobody (None) words none; a recording those that it holds; one that an endpoint failed at is left out.
    """
    if chat is None:
        return {}
    asking = {tool.name: to_ask(tool) for tool in tools}
    if isinstance(chat, Replayer):
        asking = {name: asked for name, asked in asking.items() if reply_key(chat.model, asked, ASKING) in chat.rows}
    said = zip(asking, chat.complete_many(list(asking.values()), ASKING), strict=True)
    return {name: reply.text.strip().split("\n")[0] for name, reply in said if isinstance(reply, Reply)}


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
    chat = None if name in LANGUAGE_MODELS else chat_of(name)
    settings = Decoding(temperature=0.0, max_tokens=LONGEST)
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
    asking = [to_ask(tool) for tool in tools]
    for start in tqdm(range(0, len(asking), MANY), desc="questions"):
        client.complete_many(asking[start : start + MANY], ASKING)
    settings = Decoding(temperature=0.0, max_tokens=LONGEST)
    for shown in showings(tools, questions).values():
        asked = [prompt(tools, question, names) for question, names in zip(questions, shown, strict=True)]
        for start in range(0, len(asked), TOGETHER):
            client.complete_many(asked[start : start + TOGETHER], settings)
