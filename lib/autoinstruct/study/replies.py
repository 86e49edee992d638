"""What a larger model writes for the suite: `make replies PAPER=autoinstruct` records it, the notebook replays it.

The settings below are part of every question's key: a notebook that asks in another way finds no reply.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import torch

from lib.autoinstruct.candidates import CandidateSet
from lib.autoinstruct.generation import STYLES, generate, meta_prompts
from lib.autoinstruct.study.baselines import RESAMPLE
from lib.autoinstruct.study.suite import RULE, suite_rows
from lib.autoinstruct.tasks import Task, make_tasks
from lib.core.chat import Chat, ChatClient, Decoding, Messages, Replayer, complete_all, reply_key
from lib.core.local_chat import LocalChat
from lib.zoo import shipped
from lib.zoo.models import LANGUAGE_MODELS, load_lm

MODEL = "qwen2.5-coder-1.5b-instruct"
SHOWN = 2  # demonstrations of a task that the generator sees
SAMPLES = 1  # candidates it writes in each style
LONGEST = 80  # tokens
SEED = 0
TOGETHER = 6  # tasks asked about at once, so that what their prompts begin with is read once
FLY_TASKS, FLY_EXAMPLES = 40, 2  # tasks, and examples of each, for which an instruction of their own is written
VARIED_TASKS, VARIANTS = 8, 2  # tasks on which APE searches, and variants of each candidate


def decoding(*, n: int = SAMPLES) -> Decoding:
    """Give the settings under which replies are recorded."""
    return Decoding(temperature=1.0, top_p=1.0, max_tokens=LONGEST, seed=SEED, n=n)


def local(name: str) -> LocalChat:
    """Load the model whose replies are recorded, with bfloat16 weights."""
    return LocalChat(*load_lm(name, dtype=torch.bfloat16))


def generator(name: str, network: Any, tokenizer: Any) -> Chat:
    """Give who writes: `recorded` replies, the `model` that follows instructions, a short name, an endpoint's model."""
    if name == "recorded":
        return shipped.replies("autoinstruct")
    if name in LANGUAGE_MODELS:
        return LocalChat(*load_lm(name, dtype=network.dtype, device=network.device))
    return LocalChat(network, tokenizer) if name == "model" else ChatClient(model=name)


def questions_of(task: Task) -> list[Messages]:
    """List the meta-prompts of a task, one a style."""
    return list(meta_prompts(task.instruction, task.demonstrations[:SHOWN]).values())


def written(chat: Chat, task: Task, *, samples: int, max_tokens: int, seed: int) -> CandidateSet:
    """Have the candidates of a task written, with its human instruction."""
    options: dict[str, Any] = {"samples": samples, "max_tokens": max_tokens, "seed": seed}
    return generate(chat, task.instruction, task.demonstrations[:SHOWN], **options)


def answered(chat: Chat, questions: Sequence[Messages], settings: Decoding) -> bool:
    """Tell whether a chat has an answer to every question: a live one has, a recording may have stopped before."""
    if not isinstance(chat, Replayer):
        return True
    return all(reply_key(chat.model, messages, settings) in chat.rows for messages in questions)


def variation_questions(chat: Chat, task: Task) -> list[Messages]:
    """List what APE asks in its first round, of whichever of a task's candidates it keeps."""
    return [RESAMPLE.format(instruction=r.text) for r in complete_all(chat, questions_of(task), decoding())]


def can_vary(chat: Chat, task: Task, settings: Decoding) -> bool:
    """Tell whether a chat has variants of a task's candidates for APE: a live one, which is asked nothing here, has."""
    return not isinstance(chat, Replayer) or answered(chat, variation_questions(chat, task), settings)


def candidate_questions(tasks: Sequence[Task]) -> Iterator[list[Messages]]:
    """List the meta-prompts of the tasks, in parts whose neighbours begin alike: by task, then by worked tasks."""
    for start in range(0, len(tasks), TOGETHER):
        prompts = [meta_prompts(t.instruction, t.demonstrations[:SHOWN]) for t in tasks[start : start + TOGETHER]]
        yield [own[style] for own in prompts for style in STYLES]
        yield [own[style] for style in prompts[0] if style not in STYLES for own in prompts]


def on_the_fly(task: Task, text: str) -> Messages:
    """Ask for an instruction for one input of a task."""
    asked = meta_prompts(task.instruction, task.demonstrations[:SHOWN])["one-sentence"]
    question = f"The next input is:\n{text}\n\n{asked[-1]['content']}"
    return [*asked[:-1], {"role": "user", "content": question}]


def record(client: Any) -> None:
    """Ask all that the notebook replays; what is recorded is not asked again.

    Candidates come first, for all tasks; then an instruction for single examples, and variants for APE, for some.
    """
    tasks, _ = make_tasks(suite_rows(), RULE)
    for questions in candidate_questions(tasks):
        complete_all(client, questions, decoding())
    fly = [on_the_fly(task, e.input) for task in tasks[:FLY_TASKS] for e in task.examples[:FLY_EXAMPLES]]
    for part in _parts(fly):
        complete_all(client, part, decoding(n=1))
    for part in _parts([text for task in tasks[:VARIED_TASKS] for text in variation_questions(client, task)]):
        complete_all(client, part, decoding(n=VARIANTS))


def _parts(questions: Sequence[Messages], size: int = 24) -> Iterator[Sequence[Messages]]:
    for start in range(0, len(questions), size):
        yield questions[start : start + size]
