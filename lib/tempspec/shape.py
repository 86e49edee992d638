"""How much to draft: a chain of fixed length or of as many tokens as pay for themselves, or a tree.

All decisions are made before the tokens that they concern are drawn (from what the drafter thinks, not from what came
out), which keeps the law exact, and from counted costs, not from the clock, which keeps it reproducible by seed.

Symbols: c = cost of a drafted token, v = cost of one token more in the target's pass, both over a plain step.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

BINS = 10
PRIOR = 4.0  # a bin starts as if it had seen this many tokens accepted as often as the drafter is confident
MEMORY = 0.95  # share of a running mean that survives a block
FIRST = 2  # tokens drafted in the first block, before anything is known
EXPLORE = 8  # blocks without drafting after which one token is tried


@dataclass
class Shape:
    """A chain of always the same length, and the base of all shapes; `width` is the most children of one token.

    Raises ValueError for a negative length.
    """

    gamma: int
    width = 1

    def __post_init__(self) -> None:
        if self.gamma < 0:
            raise ValueError(f"gamma is {self.gamma}: draft 0 tokens (plain decoding) or more")

    def begin(self) -> int:
        """Return the most tokens to draft one after another now."""
        return self.gamma

    def keep_going(self, confidence: list[float]) -> bool:
        """Say whether to draft a token after tokens of this confidence (the mean over rows)."""
        return True

    def chances(self, likely: Float[Tensor, "batch nodes width"]) -> Float[Tensor, "batch nodes width"]:
        """Return the chance of a node's first, second, … child to be accepted, of its likeliest draft probabilities."""
        return likely

    def branch(
        self, depth: int, reach: Float[Tensor, "batch nodes"], chances: Float[Tensor, "batch nodes width"]
    ) -> Int[Tensor, "batch nodes"]:
        """Return how many children each newest node has, of its chance to be accepted and its children's after it."""
        return torch.ones_like(reach, dtype=torch.long)

    def observe(
        self,
        confidence: Float[Tensor, "batch drafted"],
        parents: Int[Tensor, "batch drafted"],
        valid: Bool[Tensor, "batch drafted"],
        path: Bool[Tensor, "batch drafted"],
    ) -> None:
        """Learn from one block which of its tokens were accepted: those on the path."""


@dataclass
class AutoGamma(Shape):
    """A chain of as many tokens as pay for themselves, decided token by token.

    One more token is drafted where the chance that it and all before it are accepted, times what a token costs at
    present, exceeds c + v. Chances come from the drafter's confidence, calibrated on what was accepted so far. Without
    a `draft_cost` the decoder counts the drafter's weights over the target's, which is what a step that waits for
    memory costs; a person who has measured costs gives them.
    """

    gamma: int = 8  # the longest chain
    draft_cost: float | None = None  # c
    token_cost: float = 0.05  # v
    accepted: Tensor = field(default_factory=lambda: PRIOR * (torch.arange(BINS) + 0.5) / BINS)
    tested: Tensor = field(default_factory=lambda: torch.full((BINS,), PRIOR))
    recent: float = 0.5  # running mean of acceptance, where tested
    spent: float = 0.0  # running mean of a block's cost
    gained: float = 0.0  # and of its tokens
    skipped: int = 0

    def begin(self) -> int:
        """Return the longest chain to draft now: 0 where the drafter does not pay, but for a trial now and then."""
        if not self.gained or self._pays(self.recent):
            self.skipped = 0
            return self.gamma
        self.skipped += 1
        if self.skipped > EXPLORE:
            self.skipped = 0
            return 1
        return 0

    def keep_going(self, confidence: list[float]) -> bool:
        """Say whether the next token is worth drafting after tokens of this confidence."""
        if not self.gained:
            return len(confidence) < FIRST
        chances, reach = self.accepted / self.tested, 1.0
        for value in confidence:
            reach *= float(chances[min(int(value * BINS), BINS - 1)])
        return self._pays(reach * self.recent)

    def _pays(self, chance: float) -> bool:
        return chance * self.spent / self.gained > (self.draft_cost or 0.0) + self.token_cost

    def observe(self, confidence: Tensor, parents: Tensor, valid: Tensor, path: Tensor) -> None:
        """Learn from one block."""
        tested = could_follow(parents, valid, path)
        bins = self._bins(confidence, parents)
        self.tested = self.tested + torch.bincount(bins[tested], minlength=len(self.tested)).cpu()
        self.accepted = self.accepted + torch.bincount(bins[path], minlength=len(self.accepted)).cpu()
        above = depths(parents, valid)
        levels = int(above.max()) + 1 if above.shape[1] else 0
        reached = sum(int((tested & (above == level)).any(1).sum()) for level in range(levels))
        if reached:
            self.recent = _mean(self.recent, float(path.sum()) / reached)
        self.gained = _mean(self.gained, float(path.sum(1).float().mean()) + 1)
        spent = levels * (self.draft_cost or 0.0) + confidence.shape[1] * self.token_cost
        self.spent = _mean(self.spent, 1 + spent)

    def _bins(self, confidence: Tensor, parents: Tensor) -> Tensor:
        """Return the bin in which each drafted token is counted."""
        return (confidence * BINS).long().clamp(max=BINS - 1)


def depths(parents: Int[Tensor, "batch drafted"], valid: Bool[Tensor, "batch drafted"]) -> Int[Tensor, "batch drafted"]:
    """Return the depth of every drafted token, from 0; -1 where there is none."""
    slots = torch.full((len(parents), parents.shape[1] + 1), -1, device=parents.device)  # the root's is -1
    for node in range(parents.shape[1]):
        slots[:, node + 1] = slots.gather(1, parents[:, node : node + 1])[:, 0] + 1
    return torch.where(valid, slots[:, 1:], -1)


def could_follow(
    parents: Int[Tensor, "batch drafted"], valid: Bool[Tensor, "batch drafted"], path: Bool[Tensor, "batch drafted"]
) -> Bool[Tensor, "batch drafted"]:
    """Return which drafted tokens follow the text or an accepted token: one of those, or none, is accepted next."""
    return valid & nn.functional.pad(path, (1, 0), value=True).gather(1, parents)


def _mean(old: float, new: float) -> float:
    return MEMORY * old + (1 - MEMORY) * new if old else new


PATHS = ((0,), (1,), (2,), (0, 0), (0, 1), (1, 0), (0, 0, 0), (0, 0, 1), (0, 0, 0, 0))


class StaticTree(Shape):
    """Always the same tree, given as paths of ranks: (0, 1) is the second child of the root's first one.

    Raises ValueError where a path's parent or elder sibling is not among the paths.
    """

    def __init__(self, paths: Sequence[Sequence[int]] = PATHS) -> None:
        self.paths = {tuple(path) for path in paths}
        needed = {path[:-1] for path in self.paths if len(path) > 1}
        needed |= {(*path[:-1], path[-1] - 1) for path in self.paths if path and path[-1] > 0}
        if not needed <= self.paths or any(not path or min(path) < 0 for path in self.paths):
            raise ValueError(
                f"these paths are no tree: {sorted(needed - self.paths)} are missing, or a rank is negative"
            )
        super().__init__(max(map(len, self.paths), default=0))
        self.width = 1 + max((rank for path in self.paths for rank in path), default=0)

    def branch(self, depth: int, reach: Tensor, chances: Tensor) -> Tensor:
        """Return the number of children of each node of this depth, in the order of their paths."""
        nodes = sorted(path for path in self.paths if len(path) == depth) if depth else [()]
        counts = [sum(path[:-1] == node for path in self.paths if len(path) == depth + 1) for node in nodes]
        return torch.tensor(counts, device=reach.device).expand_as(reach)


class DynamicTree(Shape):
    """A tree that grows where the drafter is confident, after EAGLE-2 (arXiv:2406.16858, section 4.1).

    At each depth the `width` likeliest places for a token get one, over all newest nodes together: a place is a node
    and a rank among its children, its chance the product of draft probabilities of those ranks down to it. Places below
    `floor` get none. (EAGLE-2 ranks the tokens drawn; ranking places before anything is drawn is the same at T = 0, and
    exact above it, where a token once drawn may not be dropped for being unlikely.)
    """

    def __init__(self, *, width: int = 6, depth: int = 5, floor: float = 0.03) -> None:
        if width < 1 or not 0 <= floor < 1:
            raise ValueError(f"a tree of width {width} and floor {floor}: give at least 1, and a probability")
        super().__init__(depth)
        self.width, self.floor = width, floor

    def branch(self, depth: int, reach: Tensor, chances: Tensor) -> Tensor:
        """Return the number of each node's children among the likeliest places."""
        return _best(reach[..., None] * chances, self.width, self.floor)


@dataclass
class AutoTree(AutoGamma):
    """A tree of as many tokens as pay for themselves, decided level by level: `AutoGamma` for trees.

    A place gets a token where its chance to be accepted, times what a token costs at present, exceeds v; a further
    level is drafted where the chance to get there and one step on, times the same, exceeds c + v. A place's chance is
    calibrated by its rank among its siblings and its draft probability: above T = 0 tokens are drawn, and the first of
    them is accepted far more often than it was likely.
    """

    gamma: int = 6  # the deepest level
    width: int = 4  # children of one token at most
    most: int = 16  # tokens of one level at most
    token_cost: float = 0.03  # v
    accepted: Tensor = field(default_factory=lambda: torch.empty(0))
    tested: Tensor = field(default_factory=lambda: torch.empty(0))

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.width < 1 or self.most < 1:
            raise ValueError(f"a tree of width {self.width} with {self.most} tokens a level: give at least 1")
        if not len(self.tested):
            likely = ((torch.arange(BINS) + 0.5) / BINS).square()
            self.tested = torch.full((self.width * BINS,), PRIOR)
            self.accepted = PRIOR * likely.repeat(self.width)

    def chances(self, likely: Tensor) -> Tensor:
        """Return the share of tokens of this rank and about this draft probability that were accepted."""
        ranks = torch.arange(likely.shape[-1], device=likely.device)
        return (self.accepted / self.tested).to(likely.device, likely.dtype)[_unlike(likely) + ranks * BINS]

    def branch(self, depth: int, reach: Tensor, chances: Tensor) -> Tensor:
        """Return the number of each node's children that pay for their place in the target's pass."""
        price = self.spent / self.gained if self.gained else 1.0
        return _best(reach[..., None] * chances, self.most, self.token_cost / price)

    def keep_going(self, confidence: list[float]) -> bool:
        """Say whether the next level is worth drafting after levels of these chances."""
        return self._pays(math.prod(confidence) * self.recent) if self.gained else len(confidence) < FIRST

    def _bins(self, confidence: Tensor, parents: Tensor) -> Tensor:
        same = (parents[:, :, None] == parents[:, None]).tril(-1)  # elder siblings
        return _unlike(confidence) + same.sum(2).clamp(max=self.width - 1) * BINS


def _best(chances: Tensor, most: int, least: float) -> Int[Tensor, "batch nodes"]:
    """Return how many children of each node are among the `most` likeliest places of all, and as likely as `least`."""
    all_places = chances.flatten(1)
    best = all_places.topk(min(most, all_places.shape[1]), dim=1)
    chosen = torch.zeros_like(all_places, dtype=torch.bool).scatter_(1, best.indices, best.values >= least)
    return chosen.unflatten(1, chances.shape[1:]).sum(2)


def _unlike(likely: Tensor) -> Tensor:
    """Return bins of probabilities that are finer where these are small."""
    return (likely.sqrt() * BINS).long().clamp(max=BINS - 1)


def places(
    counts: Int[Tensor, "batch nodes"],
) -> tuple[Int[Tensor, "batch new"], Int[Tensor, "batch new"], Bool[Tensor, "batch new"]]:
    """Lay out the children of all nodes in order: each one's node, its rank there, and whether the row has it."""
    most = int(counts.max())
    rank = torch.arange(most, device=counts.device)
    taken = (rank < counts[..., None]).flatten(1)
    new = int(taken.sum(1).max())
    order = (~taken).long().argsort(dim=1, stable=True)[:, :new]
    return order // most, order % most, taken.gather(1, order)
