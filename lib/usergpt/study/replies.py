"""What chat models are asked: the guide's names, recorded of a larger model and replayed, and pools side by side."""

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
import torch

from lib import zoo
from lib.core.chat import Decoding
from lib.core.local_chat import LocalChat
from lib.usergpt.chat_annotator import ChatAnnotator, ChatModel, FreeForm, Guide
from lib.usergpt.conversations import Conversation, ConversationReader, draw
from lib.usergpt.pool import DemonstrationPool, Rule, load_demonstrations
from lib.usergpt.taxonomy import SALT, load_taxonomy

RECORDED = 300  # of the fresh conversations, the first ones, whose guide replies are shipped
FRESH = 300  # conversations after the first 300 of the same draw: labelled by a language model
NAMES = Decoding(temperature=0, max_tokens=16, logprobs=20)
LABELS = Decoding(temperature=0.4, max_tokens=200)  # the paper's temperature
CHARACTERS = {"guide": 400, "pool": 160}  # of a conversation that are shown
RUNS, CALLS = 40, 10  # of each rule of the pool, and calls of three conversations in a run
TOGETHER = 20  # runs whose conversations are drawn together: more runs leave the earlier ones as they are
RULES: tuple[Rule, ...] = ("fixed", "published")


def local(name: str) -> LocalChat:
    """Load the model whose replies are recorded, with bfloat16 weights."""
    return LocalChat(*zoo.load_lm(name, dtype=torch.bfloat16), batch_rows=30)


def guide_annotator(model: ChatModel) -> ChatAnnotator:
    """Return the annotator that picks labels of the written guide, as it is recorded."""
    return ChatAnnotator(model, Guide(load_taxonomy()), characters=CHARACTERS["guide"], decoding=NAMES)


def ask_guide(model: ChatModel, conversations: Sequence[Conversation]) -> pd.DataFrame:
    """Label conversations by the guide: rows of `id`, `domain`, `tasks`, `fault`, and what was told of all labels.

    `told_tasks` and `told_domains` are their log-probabilities, all equal where nothing was told.
    """
    annotator = guide_annotator(model)
    form, requests = annotator.form, annotator.requests(conversations)
    assert isinstance(form, Guide)
    replies = model.complete_many([form.messages([request]) for request in requests], NAMES)
    rows = []
    for conversation, reply in zip(conversations, replies, strict=True):
        (a,) = form.read(reply, [conversation.id])  # type: ignore[arg-type]
        told = [form.scores(reply, kind) or [0.0] * len(own) for kind, own in form.names.items()]  # type: ignore[arg-type]
        rows.append((a.id, a.domain or "", " | ".join(a.tasks), a.fault, *told))
    return pd.DataFrame(rows, columns=["id", "domain", "tasks", "fault", *(f"told_{kind}" for kind in form.names)])


def pool_runs(
    model: ChatModel, corpus: Sequence[Conversation], *, runs: int = RUNS, calls: int = CALLS,
    rules: Sequence[Rule] = RULES, share: float = 0.05,
) -> pd.DataFrame:  # fmt: skip
    """Annotate the same draws of conversations under every rule of the pool, all jobs' next calls in one batch.

    One row a rule, run and conversation `read`: the distinct labels so far, its fault, and the pool's size.
    """
    drawn = draw(corpus, 3 * CALLS * RUNS, salt="pool")  # each run has its own, however few are asked for
    jobs: Mapping[tuple[int, Rule], FreeForm] = {
        (run, rule): FreeForm(DemonstrationPool(load_demonstrations(), rule=rule, share=share), seed=run)
        for run in range(runs)
        for rule in rules
    }
    reader = ChatAnnotator(model, next(iter(jobs.values())), characters=CHARACTERS["pool"])
    rows: list[tuple[Any, ...]] = []
    distinct: dict[tuple[int, Rule], set[str]] = {job: set() for job in jobs}
    for call in range(calls):
        places = [(run // TOGETHER * CALLS + call) * TOGETHER + run % TOGETHER for run in range(runs)]
        batches = [drawn[3 * place :][:3] for place in places]
        requests = [reader.requests(batch) for batch in batches]
        prompts = {job: form.messages(requests[job[0]]) for job, form in jobs.items()}
        unique = list(dict.fromkeys(prompts.values()))  # rules agree until their pools differ
        replies = dict(zip(unique, model.complete_many(unique, LABELS), strict=True))
        for job, form in jobs.items():
            annotations = form.read(replies[prompts[job]], [c.id for c in batches[job[0]]])  # type: ignore[arg-type]
            form.pool.grow(annotations, requests[job[0]])
            for place, annotation in enumerate(annotations, 1):
                distinct[job].update(annotation.tasks)
                size = len(form.pool.demonstrations)
                rows.append((job[1], job[0], 3 * call + place, len(distinct[job]), annotation.fault, size))
    return pd.DataFrame(rows, columns=["rule", "run", "read", "distinct", "fault", "pool"])


def labelled_draw(corpus: Sequence[Conversation], count: int = 300) -> tuple[list[Conversation], list[Conversation]]:
    """Give the first 300 conversations of the labelled draw (or fewer), and as many fresh ones that come after 300."""
    both = draw(corpus, 300 + min(count, FRESH), salt=SALT)
    return both[:count], both[300:]


def record(model: ChatModel) -> None:
    """Ask everything that the notebook replays, the most needed first."""
    corpus = list(ConversationReader(zoo.stream_dataset("sharegpt", "all")))
    ask_guide(model, labelled_draw(corpus)[1][:RECORDED])
    pool_runs(model, corpus)
