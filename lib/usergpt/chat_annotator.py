"""The paper's annotator for any chat model: three conversations a call, k demonstrations from a growing pool.

Requests are masked before they leave; replies are cached; a conversation that no attempt could label is kept with its
fault, and counted.
"""

from collections import Counter
from collections.abc import Generator, Iterable, Iterator, Sequence
from random import Random

from lib.usergpt.annotation import Annotation
from lib.usergpt.chat_models import ChatModel, Reply
from lib.usergpt.conversations import Conversation, batched
from lib.usergpt.demonstrations import DemonstrationPool
from lib.usergpt.privacy import mask
from lib.usergpt.prompting import build_prompt, parse_reply
from lib.usergpt.reply_cache import ReplyCache, key_of

Call = tuple[str, int]  # a prompt and the number of its attempt


class ChatAnnotator:
    """Labels conversations with free-form domains and task types.

    `per_call` conversations share a prompt (the paper: 3) with `k` demonstrations; `characters` of each are shown.
    What does not parse is asked again `attempts` times in all. `faults` counts what stayed without labels, by reason.
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
        cache: ReplyCache | None = None,
    ) -> None:
        self.model, self.pool = model, pool
        self.k, self.per_call, self.characters, self.attempts = k, per_call, characters, attempts
        self.random = Random(seed)
        self.cache = ReplyCache() if cache is None else cache
        self.faults: Counter[str] = Counter()
        self.calls = 0

    def annotate(self, conversations: Iterable[Conversation]) -> Iterator[Annotation]:
        """Yield one annotation for each conversation, call by call."""
        for batch in batched(conversations, self.per_call):
            yield from in_lockstep([(self, batch)], self.model)[0]

    def dialogue(self, conversations: Sequence[Conversation]) -> Generator[Call, Reply, list[Annotation]]:
        """Yield what to ask next and take the reply; return the annotations of all conversations."""
        found = []
        for batch in batched(conversations, self.per_call):
            found += yield from self._one_call(batch)
        return found

    def _one_call(self, batch: Sequence[Conversation]) -> Generator[Call, Reply, list[Annotation]]:
        requests = [mask(conversation.text if len(conversation.text) <= self.characters else conversation.excerpt(
            self.characters)) for conversation in batch]  # fmt: skip
        prompt = build_prompt(requests, self.pool.draw(self.k, self.random))
        identities = [conversation.id for conversation in batch]
        best: dict[str, Annotation] = {}
        for attempt in range(self.attempts):
            self.calls += 1
            reply = yield prompt, attempt
            fresh = (
                [Annotation(identity, fault=reply.fault) for identity in identities]
                if reply.fault
                else parse_reply(reply.text, identities)
            )
            best = {a.id: best[a.id] if a.id in best and not best[a.id].fault else a for a in fresh}
            if not any(annotation.fault for annotation in best.values()):
                break
        annotations = [best[identity] for identity in identities]
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
    waiting: dict[int, Call] = {}

    def advance(place: int, reply: Reply | None) -> None:
        try:
            waiting[place] = dialogues[place].send(reply)  # type: ignore[arg-type] # None starts a generator
        except StopIteration as end:
            results[place] = end.value
            waiting.pop(place, None)

    for place in range(len(jobs)):
        advance(place, None)
    while waiting:
        calls = dict(waiting)
        replies = _answers([(jobs[place][0].cache, *call) for place, call in calls.items()], model)
        for place, reply in zip(calls, replies, strict=True):
            advance(place, reply)
    return results


def _answers(calls: Sequence[tuple[ReplyCache, str, int]], model: ChatModel) -> list[Reply]:
    """Replies from the caches where they are there, else from the model; new ones are masked and kept."""
    keys = [key_of(model.name, prompt, attempt) for _, prompt, attempt in calls]
    kept = [cache.get(key) for (cache, _, _), key in zip(calls, keys, strict=True)]
    replies = [Reply() if text is None else Reply(text) for text in kept]
    for attempt in sorted({call[2] for call in calls}):
        new = [i for i, text in enumerate(kept) if text is None and calls[i][2] == attempt]
        asked = model.complete([calls[i][1] for i in new], attempt=attempt) if new else []
        for i, reply in zip(new, asked, strict=True):
            replies[i] = reply if reply.fault else Reply(mask(reply.text))
            if not reply.fault:
                calls[i][0].put(keys[i], replies[i].text)
    return replies
