"""A corpus of any size annotated: part by part to disk, in flat memory.

Each part becomes one entry of `folder/annotations.sqlite`, whole or absent after a crash, with the state that the
annotator had after it. What a chat annotator sets aside is asked again when the corpus is through. Processes share the
work: under `accelerate launch` or `torchrun` each takes every n-th part; chat annotators, whose pool may hang on the
part before, share the calls of each part, by the journal of their client: start the same command twice.
"""

import time
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from lib import TenfoldError
from lib.core.store import Journal, key_of
from lib.usergpt.chat_annotator import ChatAnnotator
from lib.usergpt.conversations import Annotation, Annotator, Conversation, batched

FILE = "annotations.sqlite"
EXCERPT = 160  # characters of a masked conversation that are kept beside its labels


@dataclass(frozen=True)
class Share:
    """Which part of the work this process does."""

    index: int
    count: int


def share_of_process() -> Share:
    """Tell this process's share under `accelerate launch` or `torchrun`; everything in a single process."""
    from accelerate import PartialState

    state = PartialState()
    return Share(state.process_index, state.num_processes)


@dataclass
class Progress:
    """What one run did: conversations annotated now and found done before, faults left by reason, and its seconds."""

    annotated: int = 0
    done_before: int = 0
    faults: Counter[str] = field(default_factory=Counter)
    seconds: float = 0.0


def annotate_corpus(
    conversations: Iterable[Conversation],
    annotator: Annotator,
    folder: Path | str,
    *,
    part_size: int = 512,
    share: Share | None = None,
    total: int | None = None,
) -> Progress:
    """Annotate conversations into a folder, going on where an earlier run of the same corpus stopped.

    An annotator's `settings()`, where it has one, says in JSON what its labels hang on; of another its class is known.
    Raises TenfoldError where a part that is there holds other conversations (another corpus, order or part size), or
    labels of other settings.
    """
    from tqdm import tqdm

    chat = annotator if isinstance(annotator, ChatAnnotator) else None
    share = share or (Share(0, 1) if chat else share_of_process())
    done, began, numbers, folder = Progress(), time.perf_counter(), [], Path(folder)
    with Journal(folder / FILE) as ledger, tqdm(total=total, unit="conv", desc="annotate") as bar:
        begun, said = len(ledger) > 0, getattr(annotator, "settings", None)
        settings = key_of(said() if callable(said) else f"{type(annotator).__module__}.{type(annotator).__qualname__}")
        if not begun:
            ledger.once("start", lambda: {"settings": settings, "state": chat.state() if chat else {}})
        start: Any = ledger.get("start")
        if start["settings"] != settings if start else callable(said):
            raise TenfoldError(
                f"{folder} holds labels of another model or form, or of other settings: use another folder for these."
            )
        if chat:
            chat.restore(start["state"])
        for number, batch in enumerate(batched(conversations, part_size)):
            if chat or number % share.count == share.index:
                key = f"part {number:06d}"
                if new := key not in ledger:
                    part = _part(batch, annotator)
                    ledger.once(key, lambda part=part: part)  # of several processes the first decides
                kept = ledger[key]
                if [row["id"] for row in kept["rows"]] != [conversation.id for conversation in batch]:
                    raise TenfoldError(
                        f"{key} of {folder} holds other conversations than this corpus gives there: use another "
                        "folder, or the same corpus and part size."
                    )
                if chat:
                    chat.restore(kept["state"])
                numbers.append(number)
                done.annotated += len(batch) * new
                done.done_before += len(batch) * (not new)
            bar.update(len(batch))
        done.faults = sum((_last(ledger, number, chat) for number in numbers), Counter())
    done.seconds = time.perf_counter() - began
    return done


def _part(batch: list[Conversation], annotator: Annotator) -> dict[str, Any]:
    """Rows of a part as JSON, and the annotator's state after it; what was set aside keeps what was shown of it."""
    identities, requests, state = [c.id for c in batch], [""] * len(batch), {}
    if isinstance(annotator, ChatAnnotator):
        requests = annotator.requests(batch)
        annotations, state = annotator.first(identities, requests), annotator.state()
    else:
        annotations = list(annotator.annotate(batch))
    if [annotation.id for annotation in annotations] != identities:
        raise TenfoldError("an annotator must give one annotation for each conversation, in order: this one did not.")
    rows = []
    for annotation, conversation, request in zip(annotations, batch, requests, strict=True):
        excerpt = " ".join(conversation.masked().excerpt(EXCERPT).split())
        row = asdict(annotation) | {"thread": conversation.thread, "excerpt": excerpt}
        rows.append(row | ({"request": request} if annotation.fault else {}))
    return {"rows": rows, "state": state}


def _last(ledger: Journal, number: int, chat: ChatAnnotator | None) -> Counter[str]:
    """Ask again for what a part set aside, with the state that its prompts had; return the faults that are left."""
    rows = _rows(ledger, number)
    left = {row["id"]: row["request"] for row in rows if row["fault"]}
    if left and chat:
        before, state = ledger["start"] if number == 0 else ledger[f"part {number - 1:06d}"], chat.state()
        chat.restore(before["state"])
        found = {i: asdict(annotation) for i, annotation in chat.again(left).items()}
        chat.restore(state)
        kept = {i: row for i, row in ledger.get(f"again {number:06d}", {}).items() if not row["fault"]}
        ledger.put(f"again {number:06d}", found | kept)
        rows = _rows(ledger, number)
    return Counter(row["fault"] for row in rows if row["fault"])


def _rows(ledger: Journal, number: int) -> list[dict[str, Any]]:
    again = ledger.get(f"again {number:06d}", {})
    return [row | again.get(row["id"], {}) for row in ledger[f"part {number:06d}"]["rows"]]


def read_rows(folder: Path | str) -> Iterator[dict[str, Any]]:
    """Read what `annotate_corpus` kept of each conversation: its labels, thread, and masked `excerpt`, part after part.

    Raises TenfoldError where the folder holds no annotations.
    """
    file = Path(folder) / FILE
    if not file.exists():
        raise TenfoldError(f"{folder} holds no annotations: fill it by annotate_corpus first.")
    with Journal(file) as ledger:
        for key in sorted(key for key in ledger if key.startswith("part ")):
            yield from _rows(ledger, int(key.split()[1]))


def read_annotations(folder: Path | str) -> Iterator[Annotation]:
    """Read the annotations of a folder that `annotate_corpus` filled, part after part."""
    for row in read_rows(folder):
        yield Annotation(row["id"], row["domain"], tuple(row["tasks"]), row["summary"], row["fault"])
