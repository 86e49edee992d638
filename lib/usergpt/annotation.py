"""What an annotator says of a conversation, and a corpus of any size annotated: part by part to disk, in flat memory.

Each part of the corpus becomes one parquet file, renamed when complete; a repeated run skips the parts that are there.
Under `accelerate launch` or `torchrun` each process takes every n-th part.
"""

import time
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Protocol, runtime_checkable

from lib import TenfoldError
from lib.usergpt.conversations import Conversation, batched


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
    """What one run did: conversations annotated now and found done before, faults by reason, and its seconds."""

    annotated: int = 0
    done_before: int = 0
    faults: Counter[str] = field(default_factory=Counter)
    seconds: float = 0.0


def annotate_corpus(
    conversations: Iterable[Conversation],
    annotator: Annotator,
    folder: Path,
    *,
    part_size: int = 512,
    share: Share | None = None,
    total: int | None = None,
) -> Progress:
    """Annotate conversations into `folder/part-<n>.parquet`, going on where an earlier run of the same corpus stopped.

    Raises TenfoldError where a part that is there holds other conversations (another corpus, order or part size).
    """
    from tqdm import tqdm

    share = share or share_of_process()
    folder.mkdir(parents=True, exist_ok=True)
    done, began = Progress(), time.perf_counter()
    with tqdm(total=total, unit="conv", desc="annotate", disable=share.index > 0) as bar:
        for number, batch in enumerate(batched(conversations, part_size)):
            if number % share.count == share.index:
                path = folder / f"part-{number:06d}.parquet"
                if path.exists():
                    _check_same(path, batch)
                    done.done_before += len(batch)
                else:
                    annotations = list(annotator.annotate(batch))
                    _write(path, batch, annotations)
                    done.annotated += len(batch)
                    done.faults.update(a.fault for a in annotations if a.fault)
            bar.update(len(batch))
    done.seconds = time.perf_counter() - began
    return done


def _write(path: Path, batch: list[Conversation], annotations: list[Annotation]) -> None:
    import pandas as pd

    threads = {conversation.id: conversation.thread for conversation in batch}
    if [annotation.id for annotation in annotations] != list(threads):
        raise TenfoldError("an annotator must give one annotation for each conversation, in order: this one did not.")
    rows = [asdict(a) | {"thread": threads[a.id], "tasks": " | ".join(a.tasks)} for a in annotations]
    temporary = path.with_name(f".{path.name}")
    pd.DataFrame(rows).to_parquet(temporary, index=False)
    temporary.rename(path)


def _check_same(path: Path, batch: list[Conversation]) -> None:
    import pyarrow.parquet

    kept = pyarrow.parquet.read_table(path, columns=["id"])["id"].to_pylist()
    if kept != [conversation.id for conversation in batch]:
        raise TenfoldError(
            f"{path.name} holds other conversations than this corpus gives there: use another folder, or the same "
            "corpus and part size."
        )


def read_annotations(folder: Path) -> Iterator[Annotation]:
    """Read the annotations of a folder that `annotate_corpus` filled, part after part."""
    import pyarrow.parquet

    for path in sorted(folder.glob("part-*.parquet")):
        for row in pyarrow.parquet.read_table(path).to_pylist():
            tasks = tuple(filter(None, row["tasks"].split(" | ")))
            yield Annotation(row["id"], row["domain"], tasks, row["summary"], row["fault"])
