"""Demonstrations that a chat annotator is shown, and how their pool grows while it reads (section 3 of 2310.12418)."""

import tomllib
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from random import Random
from typing import Any, Literal, get_args

from lib import TenfoldError
from lib.usergpt.conversations import Annotation, batched

Rule = Literal["published", "stated", "fixed"]


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
    """Demonstrations to draw from, growing by what the annotator says; `share` is λ, `per_call` the script's step.

    `rule` says when a conversation joins the pool for one of its task types that no demonstration has yet:

    - "published", the authors' script: on the type's repeat, its count *before* this conversation being at least
      λ · step · (conversations before this call). That counter already advances by the step, so that the threshold is
      3λ (15 % where the paper says 5 %) with three conversations a call, and 0 in the first call.
    - "stated", our reading of the paper's words: when the type's count, this conversation's call included, is above
      λ · (conversations so far).
    - "fixed": never.

    Raises ValueError for an empty pool, an unknown rule, or a λ that is no share.
    """

    def __init__(
        self, start: Sequence[Demonstration], *, rule: Rule | str = "published", share: float = 0.05, per_call: int = 3
    ) -> None:
        if not start:
            raise ValueError("a pool needs at least one demonstration to start from")
        if not 0 < share < 1:
            raise ValueError(f"λ = {share} is no share: give a number between 0 and 1")
        if rule not in get_args(Rule):
            raise ValueError(f"rule={rule!r} is unknown: use one of {', '.join(get_args(Rule))}")
        self.demonstrations = list(start)
        self.rule, self.share, self.per_call = rule, share, per_call
        self.counts: Counter[str] = Counter()
        self.seen = 0

    def grow(self, annotations: Sequence[Annotation], requests: Sequence[str]) -> int:
        """Count the task types, call by call, and add the conversations that the rule calls for; returns how many."""
        before = len(self.demonstrations)
        for call in batched(zip(annotations, requests, strict=True), self.per_call):
            if self.rule == "stated":
                self.counts.update(task for annotation, _ in call for task in annotation.tasks)
            for annotation, request in call:
                if self.rule != "fixed" and any(self._is_due(task, len(call)) for task in annotation.tasks):
                    new = Demonstration(request, annotation.domain or "", annotation.summary, annotation.tasks)
                    self.demonstrations.append(new)
                if self.rule != "stated":
                    self.counts.update(annotation.tasks)
            self.seen += len(call)
        return len(self.demonstrations) - before

    def _is_due(self, task: str, call: int) -> bool:
        if any(task in demonstration.tasks for demonstration in self.demonstrations):
            return False
        if self.rule == "published":  # Deviation kept: 3λ, and 0 in the first call
            return 0 < self.counts[task] >= self.share * self.per_call * self.seen
        return self.counts[task] > self.share * (self.seen + call)

    def draw(self, k: int, random: Random) -> list[Demonstration]:
        """Draw `k` demonstrations (all where there are fewer), in random order."""
        return random.sample(self.demonstrations, min(k, len(self.demonstrations)))

    def state(self) -> dict[str, Any]:
        """Return what the pool has become, as JSON can hold it."""
        return {"demonstrations": [asdict(d) for d in self.demonstrations], "counts": self.counts, "seen": self.seen}

    def restore(self, state: dict[str, Any]) -> None:
        """Become what a `state` says."""
        rows = state["demonstrations"]
        self.demonstrations = [Demonstration(**row | {"tasks": tuple(row["tasks"])}) for row in rows]
        self.counts, self.seen = Counter(state["counts"]), state["seen"]
