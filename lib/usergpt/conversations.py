"""Conversations out of the usual corpora, one after another, with every fault counted.

Only what users wrote is kept: the paper annotates the concatenation of a conversation's *human* turns. A corpus may
have split one thread into parts `<thread>_<n>`; `thread` keeps them together, so that intervals are over threads.
"""

import hashlib
import heapq
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any, TypeVar

from lib import TenfoldError
from lib.usergpt.language import looks_english

Item = TypeVar("Item")
LONGEST_TURN = 100_000  # characters; what is beyond is cut, and counted
USERS = ("human", "user")


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
    layout.name: layout
    for layout in (
        Layout("sharegpt", "id", "conversations", "from", "value", split_parts=True),
        Layout("wildchat", "conversation_hash", "conversation", "role", "content"),
        Layout("lmsys", "conversation_id", "conversation", "role", "content"),
    )
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

    def excerpt(self, characters: int) -> str:
        """At most `characters` of the human turns: each turn's head and tail, the first turns first."""
        per_turn = max(characters // min(len(self.requests), 3), 40)
        return shorten("\n".join(shorten(turn, per_turn) for turn in self.requests[:12]), characters)


def shorten(text: str, characters: int) -> str:
    """Head and tail of a text of more than `characters`: an instruction stands before or after what it is about."""
    text = text.strip()
    if len(text) <= characters:
        return text
    tail = characters // 3
    return f"{text[: characters - tail - 3].rstrip()} … {text[-tail:].lstrip()}"


class ConversationReader:
    """Iterates over the conversations of a corpus; `faults` counts records left out, `notes` what was kept but odd.

    `records` are dicts in one of the layouts `sharegpt`, `wildchat`, `lmsys` (None: told from the first record). Raises
    TenfoldError at the first record where the corpus is in none of them.
    """

    def __init__(self, records: Iterable[Mapping[str, Any]], *, layout: str | None = None) -> None:
        if layout is not None and layout not in LAYOUTS:
            raise TenfoldError(f"no corpus layout is called {layout!r}: use one of {', '.join(LAYOUTS)}.")
        self.records = records
        self.layout = None if layout is None else LAYOUTS[layout]
        self.faults: Counter[str] = Counter()
        self.notes: Counter[str] = Counter()
        self.read = 0

    def __iter__(self) -> Iterator[Conversation]:
        seen: set[int] = set()  # hashes: 8 bytes a record, so that millions fit
        for record in self.records:
            self.read += 1
            if self.layout is None:
                self.layout = layout_of(record)
            found = self._conversation(record, self.layout)
            if isinstance(found, str):
                self.faults[found] += 1
            elif hash(found.id) in seen:
                self.faults["repeated id"] += 1
            else:
                seen.add(hash(found.id))
                self._note(found)
                yield found

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

    def _note(self, conversation: Conversation) -> None:
        if not looks_english(conversation.excerpt(1000)):
            self.notes["not in English"] += 1


def layout_of(record: Mapping[str, Any]) -> Layout:
    """Layout of a corpus by one record's fields; raises TenfoldError where none fits."""
    for layout in LAYOUTS.values():
        if layout.identity in record and layout.turns in record:
            return layout
    known = "; ".join(f"{layout.name} ({layout.identity}, {layout.turns})" for layout in LAYOUTS.values())
    raise TenfoldError(f"a record with the fields {', '.join(record) or 'none'} is in no known layout: {known}.")


def draw(conversations: Iterable[Conversation], size: int, *, salt: str) -> list[Conversation]:
    """Return `size` conversations drawn evenly in one pass: those of the smallest hash of `salt` and identity.

    A draw does not depend on the order of the corpus, and a larger draw contains a smaller one.
    """
    ranked = ((rank(conversation.id, salt), conversation.id, conversation) for conversation in conversations)
    return [conversation for _, _, conversation in heapq.nsmallest(size, ranked, key=lambda row: row[:2])]


def rank(identity: str, salt: str) -> int:
    """Place of an identity in the order that a salt gives."""
    return int.from_bytes(hashlib.sha256(f"{salt}:{identity}".encode()).digest()[:8], "big")


def batched(items: Iterable[Item], size: int) -> Iterator[list[Item]]:
    """Items in lists of `size`, the last one with what is left."""
    iterator = iter(items)
    while batch := list(islice(iterator, size)):
        yield batch
