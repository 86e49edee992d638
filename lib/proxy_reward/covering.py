"""Greedy k-centre: cover a pool of embeddings by few of its points, farthest first (Gonzalez, 1985).

The selector behind coresetIFT and coresetEFT of arXiv:2407.02119. Symbols: `points` = the embeddings of the pool U,
`chosen` = the labelled set S, `radius` = max over u of the distance to S. The radius is at most twice the smallest
possible one for as many further centres, given the ones that were there (2-approximation).
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

ROWS = 65_536  # rows whose distances to a block of centres are held at once
CENTRES = 64  # centres compared at once with those rows


@dataclass(frozen=True)
class Covering:
    """Centres in the order they were picked, and the radius that was left after each pick."""

    chosen: Int[Tensor, " n"]
    radii: Float[Tensor, " n"]

    @property
    def radius(self) -> float:
        """Return the largest distance from a point to its nearest centre."""
        return float(self.radii[-1])


@torch.no_grad()
def k_center(
    points: Float[Tensor, "points width"],
    n: int,
    *,
    labelled: Int[Tensor, " labelled"] | None = None,
    generator: torch.Generator | None = None,
) -> Covering:
    """Pick `n` further centres, each the point farthest from all centres so far (argmax_u min_s ||u - s||).

    `labelled` are centres from the start; without them the first pick is drawn by `generator` (the first point where
    there is none). Memory beyond the points is linear in their number. Ties go to the lowest index. Raises ValueError
    where fewer than `n` points are left, or a point is not finite.
    """
    taken = torch.zeros(len(points), dtype=torch.bool)
    if labelled is not None:
        taken[labelled] = True
    left = int((~taken).sum())
    if not 1 <= n <= left:
        raise ValueError(f"{n} centres were asked for, and {left} points are left: ask for 1 to {left}")
    if not torch.isfinite(points).all():
        raise ValueError("an embedding is not finite: find the text it came from, or leave that item out of the pool")
    spread = Spread(points)
    if labelled is None or len(labelled) == 0:
        first = 0 if generator is None else int(torch.randint(len(points), (1,), generator=generator))
    else:
        spread.add(points[labelled])
        first = None
    chosen, radii = [], []
    for _ in range(n):
        nearest = spread.squared.masked_fill(taken, -1.0)
        pick = first if first is not None else int(nearest.argmax())
        first = None
        taken[pick] = True
        spread.add(points[pick : pick + 1])
        chosen.append(pick)
        radii.append(spread.squared.masked_fill(taken, 0.0).max())
    return Covering(torch.tensor(chosen), torch.stack(radii).sqrt())


class Spread:
    """Squared distance of every point to its nearest centre so far."""

    def __init__(self, points: Float[Tensor, "points width"]) -> None:
        # Distances are of shifted points: |u|² - 2 u·s + |s|² cancels badly where all points share a large mean.
        self.shift = points.mean(dim=0)
        self.points = points - self.shift
        self.norms = self.points.square().sum(dim=1)
        self.squared = torch.full((len(points),), torch.inf, dtype=points.dtype)

    def add(self, centres: Float[Tensor, "centres width"]) -> None:
        """Take further centres into account."""
        for block in (centres - self.shift).split(CENTRES):
            norms = block.square().sum(dim=1)
            for start in range(0, len(self.points), ROWS):
                rows = slice(start, start + ROWS)
                products = self.points[rows] @ block.T
                nearest = (norms - 2 * products).amin(dim=1) + self.norms[rows]
                torch.minimum(self.squared[rows], nearest.clamp(min=0), out=self.squared[rows])


@torch.no_grad()
def covering_radius(points: Float[Tensor, "points width"], centres: Int[Tensor, " centres"]) -> float:
    """Return the largest distance from a point to the nearest of some centres; raises ValueError without a centre."""
    if len(centres) == 0:
        raise ValueError("no centre was given: a radius needs at least one")
    spread = Spread(points)
    spread.add(points[centres])
    return float(spread.squared.max().sqrt())
