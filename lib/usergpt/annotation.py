"""What an annotator says of a conversation, and the protocol that every annotator keeps."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from lib.usergpt.conversations import Conversation


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
