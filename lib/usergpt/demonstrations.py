"""The pool of demonstrations, and the rule λ by which it grows (section 3 of arXiv:2310.12418).

A conversation becomes a demonstration when one of its task types is frequent, more than a share λ of the conversations
so far, and no demonstration has that type yet. The published script compares with a counter that already advances by
the three conversations of a call, multiplied by three again: its threshold is 3λ (15 % where the paper says 5 %), and 0
at the first call, whose new types all enter. `rule="published"` does the same; `rule="stated"` does what the paper
says.
"""

import tomllib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Literal

from lib import TenfoldError
from lib.usergpt.annotation import Annotation

Rule = Literal["stated", "published", "fixed"]


@dataclass(frozen=True)
class Demonstration:
    """A request with its labels, shown to a chat model."""

    request: str
    domain: str
    summary: str
    tasks: tuple[str, ...]


def load_demonstrations(path: Path | None = None) -> list[Demonstration]:
    """Demonstrations of a file (ours where None); raises TenfoldError where one lacks a field."""
    path = path or Path(__file__).with_name("demonstrations.toml")
    try:
        rows = tomllib.loads(path.read_text(encoding="utf8"))["demonstrations"]
        return [Demonstration(r["request"], r["domain"], r["summary"], tuple(r["tasks"])) for r in rows]
    except (KeyError, TypeError, tomllib.TOMLDecodeError) as error:
        raise TenfoldError(
            f"{path.name} holds no demonstrations ({error}): each needs request, domain, summary and tasks."
        ) from None


class DemonstrationPool:
    """Demonstrations to draw from, growing by what the annotator says.

    `share` is λ. `grow` is to be called once for each call of the chat model, with what it said.
    """

    def __init__(self, start: Sequence[Demonstration], *, rule: Rule = "stated", share: float = 0.05) -> None:
        if not start:
            raise TenfoldError("a pool needs at least one demonstration to start from.")
        if not 0 < share < 1:
            raise TenfoldError(f"λ = {share} is no share: give a number between 0 and 1.")
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
        """Count one call's task types and add the conversations that the rule calls for; returns how many."""
        self.seen += len(annotations)
        for annotation in annotations:
            self.counts.update(annotation.tasks)
        if self.rule == "fixed":
            return 0
        threshold, before = self.threshold(len(annotations)), len(self.demonstrations)
        for annotation, request in zip(annotations, requests, strict=True):
            if any(self._is_due(task, threshold) for task in annotation.tasks):
                self.demonstrations.append(
                    Demonstration(request, annotation.domain or "", annotation.summary, annotation.tasks)
                )
        return len(self.demonstrations) - before

    def _is_due(self, task: str, threshold: float) -> bool:
        if any(task in demonstration.tasks for demonstration in self.demonstrations):
            return False
        return self.counts[task] >= threshold if self.rule == "published" else self.counts[task] > threshold

    def draw(self, k: int, random: Random) -> list[Demonstration]:
        """Return `k` demonstrations (all where there are fewer), in random order."""
        return random.sample(self.demonstrations, min(k, len(self.demonstrations)))
