"""Conversations out of the usual corpora, one after another, with every fault counted, and what is said of each.

Only what users wrote is kept: the paper annotates the concatenation of a conversation's *human* turns. A corpus may
have split one thread into parts `<thread>_<n>`; `thread` keeps them together, so that intervals are over threads.
"""

import hashlib
import heapq
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any, Protocol, TypeVar, runtime_checkable

from lib import TenfoldError
from lib.usergpt.privacy import mask

Item = TypeVar("Item")
LONGEST_TURN = 100_000  # characters; what is beyond is cut, and counted
USERS = ("human", "user")
COMMON = {
    "en": "the of and to a in is for that you with on this are i my it be as what how can me from write please",
    "es": "de la que el en y los del las un por con una para es como se lo su al más pero",
    "fr": "de la le les des et en un une du pour que est dans qui sur pas avec ce vous je",
    "de": "der die und in den von zu das mit sich des auf für ist im dem nicht ein eine ich wie",
    "pt": "de que e o da em um para é com não uma os no se na por mais as dos como eu",
    "it": "di e il la che in un per è una sono con non del si da come le dei nel mi",
    "nl": "de van een het en in is dat op te zijn met voor niet aan er om ook ik",
}
WORDS = {language: frozenset(words.split()) for language, words in COMMON.items()}
FEWEST_WORDS = 8
FOREIGN_LETTERS = 0.3  # share of letters outside the Latin script


@dataclass(frozen=True)
class Layout:
    """Where a corpus keeps the identity, the turns, and a turn's speaker and text."""

    name: str
    identity: str
    turns: str
    speaker: str
    text: str
    split_parts: bool = False


LAYOUTS = {
    "sharegpt": Layout("sharegpt", "id", "conversations", "from", "value", split_parts=True),
    "wildchat": Layout("wildchat", "conversation_hash", "conversation", "role", "content"),
    "lmsys": Layout("lmsys", "conversation_id", "conversation", "role", "content"),
}


@dataclass(frozen=True)
class Conversation:
    """What a user asked in one conversation (or in one part of a thread that its corpus has split)."""

    id: str
    thread: str
    requests: tuple[str, ...]

    @property
    def text(self) -> str:
        """All human turns, one after another."""
        return "\n".join(self.requests)

    def masked(self) -> "Conversation":
        """Return the conversation with what may identify or harm a person masked in every turn."""
        return replace(self, requests=tuple(map(mask, self.requests)))

    def excerpt(self, characters: int) -> str:
        """At most `characters` of the human turns: each turn's head and tail, the first turns first."""
        per_turn = max(characters // min(len(self.requests), 3), 40)
        return shorten("\n".join(shorten(turn, per_turn) for turn in self.requests[:12]), characters)


def shorten(text: str, characters: int) -> str:
    """Cut a longer text to head and tail: an instruction stands before or after what it is about."""
    text = text.strip()
    if len(text) <= characters:
        return text
    tail = characters // 3
    return f"{text[: characters - tail - 3].rstrip()} … {text[-tail:].lstrip()}"


@dataclass(frozen=True)
class Annotation:
    """Domain, task types (coarse to fine) and a summary of one conversation; `fault` says why there is none.

    An annotator that finds nothing to say abstains: no domain, no tasks, no fault.
    """

    id: str
    domain: str | None = None
    tasks: tuple[str, ...] = ()
    summary: str = ""
    fault: str = ""


@runtime_checkable
class Annotator(Protocol):
    """Anything that labels conversations: it gives exactly one annotation for each, in order, and drops none."""

    def annotate(self, conversations: Iterable[Conversation]) -> Iterator[Annotation]:
        """Yield one annotation for each conversation."""
        ...


class ConversationReader:
    """Iterates over the conversations of a corpus; `faults` counts records left out, `notes` what was kept but odd.

    `records` are dicts in one of the layouts `sharegpt`, `wildchat`, `lmsys` (None: told from the first record). Raises
    TenfoldError at the first record where the corpus is in none of them, TypeError for a path.
    """

    def __init__(self, records: Iterable[Mapping[str, Any]], *, layout: str | None = None) -> None:
        if isinstance(records, str | os.PathLike):
            raise TypeError(
                f"records are dicts, not the path {str(records)!r}: read the file first, for example by json.load"
            )
        if layout is not None and layout not in LAYOUTS:
            raise TenfoldError(f"no corpus layout is called {layout!r}: use one of {', '.join(LAYOUTS)}.")
        self.records = records
        self.layout = None if layout is None else LAYOUTS[layout]
        self.faults: Counter[str] = Counter()
        self.notes: Counter[str] = Counter()
        self.read = 0

    def __iter__(self) -> Iterator[Conversation]:
        seen: set[int] = set()  # hashes: 8 bytes a record, so that millions fit
        self.read, self.faults, self.notes = 0, Counter(), Counter()  # a second reading counts anew
        for record in self.records:
            self.read += 1
            if self.layout is None:
                self.layout = layout_of(record)
            conversation = self._conversation(record, self.layout)
            if isinstance(conversation, str):
                self.faults[conversation] += 1
            elif hash(conversation.id) in seen:
                self.faults["repeated id"] += 1
            else:
                seen.add(hash(conversation.id))
                if not looks_english(conversation.excerpt(1000)):
                    self.notes["not in English"] += 1
                yield conversation

    def _conversation(self, record: Mapping[str, Any], layout: Layout) -> Conversation | str:
        try:
            identity = str(record[layout.identity])
            turns = [(str(t[layout.speaker]).lower(), t[layout.text]) for t in record[layout.turns]]
        except (KeyError, TypeError):
            return "not in the corpus's layout"
        asked = [text.strip() for speaker, text in turns if speaker in USERS and isinstance(text, str)]
        if not asked:
            return "no human turn"
        if not any(asked):
            return "empty request"
        if any(len(text) > LONGEST_TURN for text in asked):
            self.notes[f"a turn of more than {LONGEST_TURN:,} characters, cut"] += 1
        thread = identity.rsplit("_", 1)[0] if layout.split_parts else identity
        return Conversation(identity, thread, tuple(text[:LONGEST_TURN] for text in asked if text))


def layout_of(record: Mapping[str, Any]) -> Layout:
    """Tell the layout of a corpus by one record's fields; raises TenfoldError where none fits."""
    for layout in LAYOUTS.values():
        if layout.identity in record and layout.turns in record:
            return layout
    known = "; ".join(f"{layout.name} ({layout.identity}, {layout.turns})" for layout in LAYOUTS.values())
    raise TenfoldError(f"a record with the fields {', '.join(record) or 'none'} is in no known layout: {known}.")


def draw(conversations: Iterable[Conversation], size: int, *, salt: str) -> list[Conversation]:
    """Draw `size` conversations evenly in one pass: those of the smallest hash of `salt` and identity.

    A draw does not depend on the order of the corpus, and a larger draw contains a smaller one.
    """
    ranked = ((rank(conversation.id, salt), conversation.id, conversation) for conversation in conversations)
    return [conversation for _, _, conversation in heapq.nsmallest(size, ranked, key=lambda row: row[:2])]


def rank(identity: str, salt: str) -> int:
    """Give the place of an identity in the order that a salt gives."""
    return int.from_bytes(hashlib.sha256(f"{salt}:{identity}".encode()).digest()[:8], "big")


def batched(items: Iterable[Item], size: int) -> Iterator[list[Item]]:
    """Yield items in lists of `size`, the last one with what is left."""
    iterator = iter(items)
    while batch := list(islice(iterator, size)):
        yield batch


def looks_english(text: str) -> bool:
    """Tell whether a text is English, as far as script and common words tell; code and texts of a few words pass."""
    letters = [c for c in text if c.isalpha()]
    if not letters:
        return True
    if sum(ord(c) > 0x24F for c in letters) > FOREIGN_LETTERS * len(letters):
        return False
    words = re.findall(r"[^\W\d_]+", text.lower())
    if len(words) < FEWEST_WORDS:
        return True
    hits = {language: sum(word in common for word in words) for language, common in WORDS.items()}
    best = max(hits, key=lambda language: hits[language])
    return best == "en" or hits[best] <= hits["en"] or hits[best] < 0.1 * len(words)
