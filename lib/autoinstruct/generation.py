"""The paper's generator: several samples of every style's meta-prompt from a capable model, the seed instruction first.

A style is a request to that model. Few-shot, it has seen demonstrations; zero-shot it has not, and the style that
explains examples falls away. Three further meta-prompts ask for no style but show complete worked tasks, whose
instructions are alike in length.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest

from lib.autoinstruct.candidates import Candidate, CandidateSet, collect
from lib.autoinstruct.tasks import Demonstration
from lib.core.chat import Chat, Decoding, complete_all

ASK = (
    "Now write an instruction for this task, for a new person. {style} Say what is given, what to do and how to "
    "answer. Write only the instruction."
)
STYLES = {
    "one-sentence": "Write one sentence.",
    "one-paragraph": "Write one detailed paragraph of at most fifty words.",
    "step-by-step": "Write at most four short numbered steps.",
    "use-example": "Explain in it, in at most fifty words, how the examples above lead to their answers.",
}
SYSTEM = "You write instructions for tasks, from a short description and examples."


@dataclass(frozen=True)
class WorkedTask:
    """A complete task to imitate: its short description, examples and full instruction."""

    task: str
    demonstrations: tuple[Demonstration, ...]
    instruction: str


WORKED: Mapping[str, Sequence[WorkedTask]] = {  # instructions of about ten, twenty-five and fifty words
    "worked-tasks-1": (
        WorkedTask(
            "Opposites.",
            (Demonstration("hot", "cold"), Demonstration("early", "late")),
            "Write the word that means the opposite of the given word.",
        ),
        WorkedTask(
            "Is the number even?",
            (Demonstration("14", "yes"), Demonstration("9", "no")),
            "Answer yes if the number is even, no if it is odd.",
        ),
    ),
    "worked-tasks-2": (
        WorkedTask(
            "Mood of a message.",
            (Demonstration("The lamp broke on day one.", "bad"), Demonstration("It fits like a glove!", "good")),
            "You are given a message about a product. Decide whether its author is content, and answer with one "
            "word, in lower case: good or bad.",
        ),
        WorkedTask(
            "Largest number.",
            (Demonstration("4, 17, 9", "17"), Demonstration("-3, -8", "-3")),
            "The input is a list of numbers with commas between them. Compare all of them and write only the largest "
            "one, without any explanation.",
        ),
    ),
    "worked-tasks-3": (
        WorkedTask(
            "Dates.",
            (Demonstration("7 March 2019", "2019-03-07"), Demonstration("30 June 1998", "1998-06-30")),
            "In this task you are given a date as a day, the name of a month and a year. Rewrite it as the year with "
            "four digits, the month with two and the day with two, in this order, with a hyphen between them. Put a "
            "zero before numbers below ten, and write nothing but the date.",
        ),
        WorkedTask(
            "Which season?",
            (Demonstration("Leaves turn red.", "autumn"), Demonstration("Ice on the lake.", "winter")),
            "You will read a sentence that describes something which happens in nature at one time of the year. Think "
            "about when it happens in the northern half of the world, choose among spring, summer, autumn and winter, "
            "and answer with the name of the season, as one word in lower case.",
        ),
    ),
}
FEW_SHOT = (*STYLES, *WORKED)
ZERO_SHOT = tuple(style for style in FEW_SHOT if style != "use-example")


def meta_prompt(
    style: str,
    task: str,
    demonstrations: Sequence[Demonstration] = (),
    *,
    worked: Mapping[str, Sequence[WorkedTask]] = WORKED,
) -> list[dict[str, str]]:
    """Request an instruction in a style, for a task (the seed instruction) with its demonstrations, as a dialogue.

    Demonstrations are turns of their own, since small models copy those that stand in the request itself; so all styles
    of a task begin alike, and a server's prefix cache reads that once. `worked` holds the tasks to imitate, by style.
    Raises ValueError for an unknown style, or `use-example` without demonstrations.
    """
    if style not in (*STYLES, *worked):
        raise ValueError(f"there is no style {style!r}: use one of {', '.join((*STYLES, *worked))}")
    if style == "use-example" and not demonstrations:
        raise ValueError("the style 'use-example' explains examples: give demonstrations, or use the zero-shot styles")
    if style in worked:
        shown = [
            turn
            for one in worked[style]
            for turn in (
                ("user", _described(one.task, one.demonstrations if demonstrations else ())),
                ("assistant", one.instruction),
            )
        ]
        turns = [("system", SYSTEM), *shown, ("user", _described(task, demonstrations))]
    elif demonstrations:
        shown = [turn for d in demonstrations for turn in (("user", d.input), ("assistant", d.output))]
        turns = [("system", task), *shown, ("user", ASK.format(style=STYLES[style]))]
    else:
        turns = [("system", SYSTEM), ("user", _described(task, ())), ("assistant", "I see.")]
        turns += [("user", ASK.format(style=STYLES[style]))]
    return [{"role": role, "content": text} for role, text in turns]


def _described(task: str, demonstrations: Sequence[Demonstration]) -> str:
    lines = [f"Task: {task}", *(f"Input: {demo.input}\nOutput: {demo.output}" for demo in demonstrations)]
    return "\n".join([*lines, "Instruction:"])


def meta_prompts(
    instruction: str,
    demonstrations: Sequence[Demonstration] = (),
    *,
    worked: Mapping[str, Sequence[WorkedTask]] = WORKED,
) -> dict[str, list[dict[str, str]]]:
    """Give the meta-prompt of every style: all seven few-shot, without `use-example` zero-shot."""
    styles = [style for style in (*STYLES, *worked) if demonstrations or style != "use-example"]
    return {style: meta_prompt(style, instruction, demonstrations, worked=worked) for style in styles}


def generate(
    chat: Chat,
    instruction: str,
    demonstrations: Sequence[Demonstration] = (),
    *,
    worked: Mapping[str, Sequence[WorkedTask]] = WORKED,
    samples: int = 3,
    max_tokens: int = 512,
    seed: int = 0,
) -> CandidateSet:
    """Write candidates of a task: its own instruction, then `samples` of every style (few-shot with demonstrations).

    `chat` answers the meta-prompts: a `ChatClient`, recorded replies, a `LocalChat`, or your own. With all seven
    few-shot styles and three samples these are the paper's 22 candidates, zero-shot 19. A reply that was cut off at
    `max_tokens` is refused as `unfinished`.
    """
    prompts = meta_prompts(instruction, demonstrations, worked=worked)
    decoding = Decoding(temperature=1.0, top_p=1.0, max_tokens=max_tokens, seed=seed, n=samples)
    candidates, unfinished = [Candidate(instruction, "human", "human")], 0
    for style, reply in zip(prompts, complete_all(chat, list(prompts.values()), decoding), strict=True):
        for text, end in zip_longest(reply.texts, reply.finish[: len(reply.texts)]):
            unfinished += end == "length"
            candidates += [Candidate(text, "model", style)] if end != "length" else []
    return collect(candidates, demonstrations=demonstrations, refused={"unfinished": unfinished} if unfinished else {})
