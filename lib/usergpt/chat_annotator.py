"""The paper's annotator for any chat model (section 3 of arXiv:2310.12418): three conversations a call, with k
demonstrations from a pool that grows by the rule λ.

Requests are masked before they leave; replies are kept; a conversation that no attempt could label is kept with its
fault, and counted. The prompt's wording is ours; its layout of numbered inputs and outputs with three bracketed fields
is the paper's.
"""

import re
import tomllib
from collections import Counter
from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Literal

from lib import TenfoldError
from lib.core.chat import ChatFailed
from lib.core.store import Journal, key_of
from lib.usergpt.annotation import Annotation
from lib.usergpt.chat_models import ChatModel
from lib.usergpt.conversations import Conversation, batched
from lib.usergpt.privacy import mask

Rule = Literal["stated", "published", "fixed"]
Call = tuple[str, int]  # a prompt and the number of its attempt
STEPS = """You label what people asked an AI assistant. Do three things for each input:
1. Name the domain of the request in one to three words.
2. Say in one short sentence what the person wants.
3. Name the types of task, from coarse to fine, with commas between them. There may be several.
Keep exactly the format of the outputs shown, and label each input once."""
TRIGGER = "Now label the following inputs in the same format."
FIELDS = ("domain", "summary", "task type")
BLOCK = re.compile(r"^\W*output\s+(\d+)\W*$", re.IGNORECASE | re.MULTILINE)


# --- demonstrations ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Demonstration:
    """A request with its labels, shown to a chat model."""

    request: str
    domain: str
    summary: str
    tasks: tuple[str, ...]


def load_demonstrations(path: Path | None = None) -> list[Demonstration]:
    """Read the demonstrations of a file (ours where None); raises TenfoldError where one lacks a field."""
    path = path or Path(__file__).with_name("demonstrations.toml")
    try:
        rows = tomllib.loads(path.read_text(encoding="utf8"))["demonstrations"]
        return [Demonstration(r["request"], r["domain"], r["summary"], tuple(r["tasks"])) for r in rows]
    except (KeyError, TypeError, tomllib.TOMLDecodeError) as error:
        raise TenfoldError(
            f"{path.name} holds no demonstrations ({error}): each needs request, domain, summary and tasks."
        ) from None


class DemonstrationPool:
    """Demonstrations to draw from, growing by what the annotator says; `share` is λ.

    A conversation becomes a demonstration when one of its task types is frequent, more than a share λ of the
    conversations so far, and no demonstration has that type yet. The published script compares with a counter that
    already advances by the three conversations of a call, multiplied by three again: its threshold is 3λ (15 % where
    the paper says 5 %), and 0 at the first call, whose new types all enter. `rule="published"` does the same,
    `rule="stated"` does what the paper says. Raises ValueError for an empty pool, or a λ that is no share.
    """

    def __init__(self, start: Sequence[Demonstration], *, rule: Rule = "stated", share: float = 0.05) -> None:
        if not start:
            raise ValueError("a pool needs at least one demonstration to start from")
        if not 0 < share < 1:
            raise ValueError(f"λ = {share} is no share: give a number between 0 and 1")
        self.demonstrations = list(start)
        self.rule, self.share = rule, share
        self.counts: Counter[str] = Counter()
        self.seen = 0

    def threshold(self, just_read: int) -> float:
        """Count that a type must exceed (`stated`) or reach (`published`) after a call of `just_read` conversations."""
        if self.rule == "published":
            return (self.seen - just_read) * just_read * self.share  # Deviation kept: 3λ, and 0 at the first call
        return self.share * self.seen

    def grow(self, annotations: Sequence[Annotation], requests: Sequence[str]) -> int:
        """Count the task types of one call and add the conversations that the rule calls for; returns how many."""
        self.seen += len(annotations)
        for annotation in annotations:
            self.counts.update(annotation.tasks)
        if self.rule == "fixed":
            return 0
        threshold, before = self.threshold(len(annotations)), len(self.demonstrations)
        for annotation, request in zip(annotations, requests, strict=True):
            if any(self._is_due(task, threshold) for task in annotation.tasks):
                new = Demonstration(request, annotation.domain or "", annotation.summary, annotation.tasks)
                self.demonstrations.append(new)
        return len(self.demonstrations) - before

    def _is_due(self, task: str, threshold: float) -> bool:
        if any(task in demonstration.tasks for demonstration in self.demonstrations):
            return False
        return self.counts[task] >= threshold if self.rule == "published" else self.counts[task] > threshold

    def draw(self, k: int, random: Random) -> list[Demonstration]:
        """Draw `k` demonstrations (all where there are fewer), in random order."""
        return random.sample(self.demonstrations, min(k, len(self.demonstrations)))


# --- the prompt, and its strict reading ----------------------------------------------------------------------------


def build_prompt(requests: Sequence[str], demonstrations: Sequence[Demonstration]) -> str:
    """Ask for the labels of some requests after k demonstrations."""
    shown = [f"** Input {i} **\n{d.request}" for i, d in enumerate(demonstrations, 1)]
    answers = [f"** Output {i} **\n{_fields(d)}" for i, d in enumerate(demonstrations, 1)]
    asked = [f"** Input {i} **\n{request}" for i, request in enumerate(requests, 1)]
    return "\n\n".join([STEPS, *shown, *answers, TRIGGER, *asked])


def _fields(demonstration: Demonstration) -> str:
    values = (demonstration.domain, demonstration.summary, ", ".join(demonstration.tasks))
    return "\n".join(f"[{field}] {value}" for field, value in zip(FIELDS, values, strict=True))


def parse_reply(reply: str, identities: Sequence[str]) -> list[Annotation]:
    """Read one annotation for each identity: what the reply says of it, or why it says nothing that can be used.

    Every output block is read by its own number; a broken one costs its own conversation, never its neighbours.
    """
    parts = BLOCK.split(reply)
    numbers, bodies = parts[1::2], parts[2::2]
    if not numbers and len(identities) == 1:
        numbers, bodies = ["1"], [reply]  # a single request needs no header
    blocks = [(int(number), body) for number, body in zip(numbers, bodies, strict=True)]
    return [_read([b for n, b in blocks if n == place], identity) for place, identity in enumerate(identities, 1)]


def _read(bodies: Sequence[str], identity: str) -> Annotation:
    if len(bodies) != 1:
        return Annotation(identity, fault="no output" if not bodies else "more than one output")
    values = {}
    for field in FIELDS:
        lines = re.findall(rf"^\s*\[{field}\][ \t]*(.*)$", bodies[0], re.IGNORECASE | re.MULTILINE)
        if not lines or not lines[0].strip():
            return Annotation(identity, fault=f"no [{field}]")
        if len(lines) > 1:
            return Annotation(identity, fault=f"more than one [{field}]")
        values[field] = lines[0].strip()
    tasks = tuple(dict.fromkeys(filter(None, map(_bare, re.split(r"[,;/]", values["task type"])))))
    if not tasks:
        return Annotation(identity, fault="no [task type]")
    return Annotation(identity, _bare(values["domain"]), tasks, values["summary"])


def _bare(phrase: str) -> str:
    """A label in lower case, without brackets, quotes, a full stop or doubled spaces."""
    return " ".join(re.sub(r"[\[\]\"'*.]", " ", phrase.lower()).split())


# --- the annotator -------------------------------------------------------------------------------------------------


class ChatAnnotator:
    """Labels conversations with free-form domains and task types.

    `per_call` conversations share a prompt (the paper: 3) with `k` demonstrations; `characters` of each are shown.
    What does not parse is asked again `attempts` times in all. Masked replies are kept in `journal` where one is given
    (a `ChatClient` has its own). `faults` counts what stayed without labels, by reason.
    """

    def __init__(
        self,
        model: ChatModel,
        pool: DemonstrationPool,
        *,
        k: int = 3,
        per_call: int = 3,
        characters: int = 2000,
        attempts: int = 2,
        seed: int = 0,
        journal: Journal | None = None,
    ) -> None:
        self.model, self.pool = model, pool
        self.k, self.per_call, self.characters, self.attempts = k, per_call, characters, attempts
        self.random, self.journal = Random(seed), journal
        self.faults: Counter[str] = Counter()
        self.calls = 0

    def annotate(self, conversations: Iterable[Conversation]) -> Iterator[Annotation]:
        """Yield one annotation for each conversation, call by call."""
        for batch in batched(conversations, self.per_call):
            yield from in_lockstep([(self, batch)], self.model)[0]

    def dialogue(self, conversations: Sequence[Conversation]) -> Generator[Call, str | ChatFailed, list[Annotation]]:
        """Yield what to ask next and take the reply; return the annotations of all conversations."""
        annotations = []
        for batch in batched(conversations, self.per_call):
            annotations += yield from self._one_call(batch)
        return annotations

    def _one_call(self, batch: Sequence[Conversation]) -> Generator[Call, str | ChatFailed, list[Annotation]]:
        requests = [mask(c.text if len(c.text) <= self.characters else c.excerpt(self.characters)) for c in batch]
        prompt = build_prompt(requests, self.pool.draw(self.k, self.random))
        best = {conversation.id: Annotation(conversation.id, fault="not asked") for conversation in batch}
        for attempt in range(self.attempts):
            self.calls += 1
            reply = yield prompt, attempt
            if isinstance(reply, ChatFailed):
                fresh = [Annotation(identity, fault=reply.reason) for identity in best]
            else:
                fresh = parse_reply(reply, list(best))
            best = {new.id: new if best[new.id].fault else best[new.id] for new in fresh}
            if not any(annotation.fault for annotation in best.values()):
                break
        annotations = list(best.values())
        self.faults.update(annotation.fault for annotation in annotations if annotation.fault)
        self.pool.grow(annotations, requests)
        return annotations


def in_lockstep(
    jobs: Sequence[tuple[ChatAnnotator, Sequence[Conversation]]], model: ChatModel
) -> list[list[Annotation]]:
    """Run several annotators side by side, so that a local model answers their prompts in one batch.

    A growing pool makes one annotator's calls depend on each other; annotators do not depend on one another.
    """
    dialogues = [annotator.dialogue(conversations) for annotator, conversations in jobs]
    results: list[list[Annotation]] = [[] for _ in jobs]
    replies: dict[int, str | ChatFailed | None] = dict.fromkeys(range(len(jobs)))  # None starts a dialogue
    while replies:
        calls: dict[int, Call] = {}
        for place, reply in replies.items():
            try:
                calls[place] = dialogues[place].send(reply)  # type: ignore[arg-type]
            except StopIteration as end:
                results[place] = end.value
        replies = {}
        for attempt in sorted({attempt for _, attempt in calls.values()}):
            same = {p: (jobs[p][0].journal, prompt) for p, (prompt, again) in calls.items() if again == attempt}
            replies |= _replies(same, model, attempt)
    return results


def _replies(
    asked: dict[int, tuple[Journal | None, str]], model: ChatModel, attempt: int
) -> dict[int, str | ChatFailed]:
    """Replies from the journals where they are there, else from the model; new ones are masked and kept."""
    keys = {place: key_of(model.model, prompt, attempt) for place, (_, prompt) in asked.items()}
    replies = {
        place: journal[keys[place]]
        for place, (journal, _) in asked.items()
        if journal is not None and keys[place] in journal
    }
    new = [place for place in asked if place not in replies]
    made = model.complete_many([asked[place][1] for place in new], attempt=attempt) if new else []
    for place, reply in zip(new, made, strict=True):
        replies[place] = reply if isinstance(reply, ChatFailed) else mask(reply.text)
        journal = asked[place][0]
        if journal is not None and not isinstance(reply, ChatFailed):
            journal.put(keys[place], replies[place])
    return replies
