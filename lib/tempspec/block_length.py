"""How many tokens to draft: a fixed number, or as many as pay for themselves.

The rule compares what one more drafted token costs (the drafter's step and the target's longer block) with what it is
worth: the chance that it and all before it are accepted, times the seconds that a token takes at present. Chances come
from the drafter's confidence, calibrated on what was accepted so far. Costs are measured while decoding: of the target
the smallest seconds seen of late for each block length, since everything that disturbs a clock only adds to it.
"""

from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Int
from torch import Tensor

BINS = 10
PRIOR = 4.0  # a bin starts as if it had seen this many tokens accepted as often as the drafter is confident
MEMORY = 0.95  # share of a running mean that survives a block
FORGET = 1.01  # by which a smallest time grows each time its block length is met again
FIRST = 2  # tokens drafted in the first block, before anything is known
EXPLORE = 8  # blocks without drafting after which one token is tried


@dataclass
class FixedGamma:
    """The same block length always."""

    gamma: int

    def __post_init__(self) -> None:
        if self.gamma < 0:
            raise ValueError(f"gamma is {self.gamma}: draft 0 tokens (plain decoding) or more")

    def begin(self) -> int:
        """Longest block to draft now."""
        return self.gamma

    def keep_going(self, confidence: list[float]) -> bool:
        """Always: a fixed block is drafted to its end."""
        return True

    def observe(self, **seen: object) -> None:
        """Nothing is learnt."""


@dataclass
class AutoGamma:
    """Block length from the running acceptance and the measured costs, decided token by token."""

    longest: int = 8
    accepted: Tensor = field(default_factory=lambda: PRIOR * (torch.arange(BINS) + 0.5) / BINS)
    tested: Tensor = field(default_factory=lambda: torch.full((BINS,), PRIOR))
    recent: float = 0.5  # running mean of acceptance, where tested
    draft_seconds: float = 0.0  # one step of the drafter
    target_seconds: dict[int, float] = field(default_factory=dict)  # by tokens fed to the target
    block_seconds: float = 0.0  # running mean of a block's seconds
    gained: float = 0.0  # and of its tokens
    skipped: int = 0

    def begin(self) -> int:
        """Longest block to draft now: 0 where the drafter does not pay, but for a trial now and then."""
        if not self.gained or self._pays(self.recent, 0):
            self.skipped = 0
            return self.longest
        self.skipped += 1
        if self.skipped > EXPLORE:
            self.skipped = 0
            return 1
        return 0

    def keep_going(self, confidence: list[float]) -> bool:
        """Whether the next token is worth drafting after tokens of this confidence."""
        if not self.gained:
            return len(confidence) < FIRST
        chances = self.accepted / self.tested
        reach = 1.0
        for value in confidence:
            reach *= float(chances[_bin(value)])
        return self._pays(reach * self.recent, len(confidence))

    def _pays(self, chance: float, drafted: int) -> bool:
        longer = max(self._target(drafted + 2) - self._target(drafted + 1), 0.0)
        return chance * self.block_seconds / self.gained > self.draft_seconds + longer

    def _target(self, fed: int) -> float:
        """Seconds of the target for that many tokens: measured, or the nearest count that was."""
        if not self.target_seconds:
            return 0.0
        return self.target_seconds[min(self.target_seconds, key=lambda known: abs(known - fed))]

    def observe(
        self,
        *,
        confidence: Float[Tensor, "batch gamma"],
        lengths: Int[Tensor, " batch"],
        accepted: Int[Tensor, " batch"],
        draft_seconds: float,
        target_seconds: float,
    ) -> None:
        """Learn from one block."""
        drafted = confidence.shape[1]
        depth = torch.arange(drafted, device=confidence.device)
        tested = depth < torch.minimum(accepted + 1, lengths)[:, None]
        hits = depth < accepted[:, None]
        bins = (confidence * BINS).long().clamp(max=BINS - 1)
        self.tested += torch.bincount(bins[tested], minlength=BINS).cpu()
        self.accepted += torch.bincount(bins[hits], minlength=BINS).cpu()
        if bool(tested.any()):
            self.recent = _mean(self.recent, float(hits.sum()) / float(tested.sum()))
        if drafted:
            self.draft_seconds = _mean(self.draft_seconds, draft_seconds / drafted)
        known = FORGET * self.target_seconds.get(drafted + 1, target_seconds)
        self.target_seconds[drafted + 1] = min(known, target_seconds)
        self.gained = _mean(self.gained, float(accepted.float().mean()) + 1)
        self.block_seconds = _mean(self.block_seconds, drafted * self.draft_seconds + self.target_seconds[drafted + 1])


def _mean(old: float, new: float) -> float:
    return MEMORY * old + (1 - MEMORY) * new if old else new


def _bin(confidence: float) -> int:
    return min(int(confidence * BINS), BINS - 1)
