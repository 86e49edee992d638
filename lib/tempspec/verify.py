"""Accept or resample a tree of drafted tokens so that what comes out is drawn from the target.

A chain of tokens is arXiv:2211.17192, Algorithm 1. Siblings are drawn without replacement and tried in the order drawn,
each against what its refused elder siblings left of the target's law (arXiv:2305.09781, 2402.14160).

Symbols: p = `target_probs`, q = `laws`, both after temperature, top-k and top-p. The newest verified token is slot 0 of
a tree and drafted token i is slot i + 1; `parents[i]` is the slot that token i follows, always an earlier one.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from lib.core.generation import draw


@dataclass(frozen=True)
class Verification:
    """Which drafted tokens of each row are accepted (a path from the root), its last slot, and the token after it."""

    path: Bool[Tensor, "batch drafted"]
    end: Int[Tensor, " batch"]
    next_token: Int[Tensor, " batch"]

    @property
    def accepted(self) -> Int[Tensor, " batch"]:
        """Number of tokens accepted in each row."""
        return self.path.sum(1)


def chain(tokens: Int[Tensor, "batch drafted"]) -> Int[Tensor, "batch drafted"]:
    """Return the parents of tokens that follow one another."""
    return torch.arange(tokens.shape[1], device=tokens.device).expand_as(tokens)


def walk(
    parents: Int[Tensor, "batch drafted"],
    valid: Bool[Tensor, "batch drafted"],
    keep: Callable[[int, Tensor, Tensor], Tensor],
) -> tuple[Bool[Tensor, "batch drafted"], Int[Tensor, " batch"]]:
    """Follow each row's tree from its root through every child kept; return the path and the slot where it ends.

    `keep(node, end, asked)` says of one drafted token whether the rows `asked` go on to it from the slot `end`.
    """
    path, end = torch.zeros_like(valid), torch.zeros_like(parents[:, :1]).sum(1)
    for node in range(parents.shape[1]):
        asked = valid[:, node] & (parents[:, node] == end)
        if bool(asked.any()):
            path[:, node] = asked & keep(node, end, asked)
            end = torch.where(path[:, node], node + 1, end)
    return path, end


def verify(
    tokens: Int[Tensor, "batch drafted"],
    laws: Float[Tensor, "batch parents vocab"] | None,
    target_probs: Float[Tensor, "batch drafted+1 vocab"],
    *,
    parents: Int[Tensor, "batch drafted"] | None = None,
    valid: Bool[Tensor, "batch drafted"] | None = None,
    certain: Bool[Tensor, " batch"] | None = None,
    generator: torch.Generator | None = None,
) -> Verification:
    """Accept the longest path that keeps the target's distribution, and draw the token after it.

    `laws[b, s]` is the law q that the children of slot s were drawn from (those without children may be missing at the
    end). Token x is kept with probability min(1, p(x) / q(x)); where it is refused, p becomes norm(max(0, p - q)), and
    q, for its next sibling, norm(q without x). Where no child is left the next token is drawn from p. Rows that are
    `certain` (all, without laws) hold tokens chosen without chance: q is 1 at each.

    By default the tokens are a chain, and all are `valid`. The noise used here is drawn after, and so apart from, that
    of drafting. Raises ValueError where a drafted token has draft probability 0.
    """
    parents = chain(tokens) if parents is None else parents
    valid = torch.ones_like(tokens, dtype=torch.bool) if valid is None else valid
    sure = torch.full_like(valid.any(1), laws is None) if certain is None else certain
    left = target_probs[:, 0].clone()  # p, less what refused siblings took
    rest = None if laws is None or not laws.shape[1] else laws[:, 0].clone()  # q without them, not normalised

    def keep(node: int, end: Tensor, asked: Tensor) -> Tensor:
        x = tokens[:, node, None]
        p, q = left.gather(1, x)[:, 0], torch.ones_like(left[:, 0])
        if rest is not None:
            q = torch.where(sure, q, rest.gather(1, x)[:, 0] / rest.sum(1))
            if bool((asked & ~(q > 0)).any()):
                raise ValueError("a drafted token has draft probability 0: pass the law that it was drawn from")
        where = p.device if generator is None else generator.device
        noise = torch.rand(len(p), dtype=torch.float64, generator=generator, device=where).to(p.device)
        kept = noise * q < p  # u < p / q
        _refuse(left, rest, x, (asked & ~kept).nonzero()[:, 0], sure)
        moved = (asked & kept).nonzero()[:, 0]
        left[moved] = target_probs[moved, node + 1]
        if rest is not None and laws is not None and node + 1 < laws.shape[1]:
            rest[moved] = laws[moved, node + 1]
        return kept

    path, end = walk(parents, valid, keep)
    return Verification(path, end, draw(left, generator=generator))


def _refuse(left: Tensor, rest: Tensor | None, x: Tensor, rows: Tensor, sure: Tensor) -> None:
    """Take out of p and q, in place, the sibling x that was refused in these rows."""
    if not len(rows):
        return
    own = torch.zeros_like(left[rows]).scatter_(1, x[rows], 1.0)
    if rest is None:
        q = own
    else:
        q = torch.where(sure[rows, None], own, rest[rows] / rest[rows].sum(1, keepdim=True))
        rest[rows] = rest[rows] * (1 - own)
    residual = (left[rows] - q).clamp(min=0)
    if rest is None or bool(sure[rows].any()):
        residual = torch.where(sure[rows, None], left[rows] * (1 - own), residual)
    total = residual.sum(1, keepdim=True)
    # p = q up to rounding leaves no residual; a refusal there has probability 0 up to rounding too.
    left[rows] = torch.where(total > 0, residual / total, left[rows])


def verify_greedy(
    tokens: Int[Tensor, "batch drafted"],
    target_choice: Int[Tensor, "batch drafted+1"],
    *,
    parents: Int[Tensor, "batch drafted"] | None = None,
    valid: Bool[Tensor, "batch drafted"] | None = None,
) -> Verification:
    """Accept drafted tokens while they are the target's own choice (its largest logit), then take its next choice."""
    parents = chain(tokens) if parents is None else parents
    valid = torch.ones_like(tokens, dtype=torch.bool) if valid is None else valid
    path, end = walk(
        parents, valid, lambda node, end, asked: tokens[:, node] == target_choice.gather(1, end[:, None])[:, 0]
    )
    return Verification(path, end, target_choice.gather(1, end[:, None])[:, 0])
