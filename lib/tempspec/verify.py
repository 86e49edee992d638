"""Accept or resample a tree of drafted tokens so that what comes out is drawn from the target.

This is traversal verification (arXiv:2505.12398): leaves are asked before what they follow, so that a token refused on
its own account may still be accepted for what was drafted after it. Of a chain it is block verification
(arXiv:2403.10444), of one token arXiv:2211.17192, Algorithm 1. Siblings are drawn without replacement and tried in the
order drawn, each against what its refused elder siblings left of the target's law (arXiv:2305.09781, 2402.14160).

Symbols: p = `target_probs`, q = `laws`, both after temperature, top-k and top-p; a = chance that all up to a slot is
accepted. The newest verified token is slot 0 of a tree and drafted token i is slot i + 1; `parents[i]` is the slot that
token i follows, always an earlier one.
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
    """Accept a path that keeps the target's distribution, on average the longest known, and draw the token after it.

    `laws[b, s]` is the law q that the children of slot s were drawn from (those without children may be missing at the
    end). The root has a = 1, and token x after a slot of chance a gets min(1, a p(x) / q(x)). Where x and all after it
    are refused, that slot's p becomes norm(r), with r = max(0, a p - q), its a becomes sum(r) / (sum(r) + 1 - a), and
    q, for the next sibling, norm(q without x). A slot whose children are all refused is accepted with chance a, and
    the token after it is drawn from its p. Rows that are `certain` (all, without laws) hold tokens chosen without
    chance: q is 1 at each.

    By default the tokens are a chain, and all are `valid`. The noise used here is drawn after, and so apart from, that
    of drafting. Raises ValueError where a drafted token has draft probability 0.
    """
    parents = chain(tokens) if parents is None else parents
    valid = torch.ones_like(tokens, dtype=torch.bool) if valid is None else valid
    sure = torch.full_like(valid.any(1), laws is None) if certain is None else certain
    where = tokens.device if generator is None else generator.device
    noise = torch.rand(valid.shape, dtype=torch.float64, generator=generator, device=where).to(tokens.device)
    path, end, following = torch.zeros_like(valid), torch.zeros_like(parents[:, :1]).sum(1), target_probs[:, 0].clone()
    for rows in _alike(parents, valid, sure):
        first = int(rows[0])
        children = _children(parents[first].tolist(), valid[first].tolist())
        q = None if laws is None or bool(sure[first]) else laws[rows]
        tree = _Tree(tokens[rows], q, target_probs[rows], noise[rows], children)
        path[rows], end[rows], following[rows] = tree.ends()
    return Verification(path, end, draw(following, generator=generator))


def _alike(parents: Tensor, valid: Tensor, sure: Tensor) -> list[Tensor]:
    """Gather the rows whose trees have one shape."""
    if len(parents) == 1:
        return [torch.zeros(1, dtype=torch.long, device=parents.device)]
    shapes = torch.cat([torch.where(valid, parents, -1), sure[:, None].long()], dim=1)
    which = shapes.unique(dim=0, return_inverse=True)[1]
    return [(which == shape).nonzero()[:, 0] for shape in range(int(which.max()) + 1)]


def _children(parents: list[int], valid: list[bool]) -> list[list[int]]:
    """Return the drafted tokens after every slot, in the order drawn."""
    children: list[list[int]] = [[] for _ in range(len(parents) + 1)]
    for node, (parent, there) in enumerate(zip(parents, valid, strict=True)):
        if there:
            children[parent].append(node)
    return children


@dataclass
class _Tree:
    """Rows whose drafted trees have one shape, asked from the leaves to the root."""

    tokens: Tensor
    laws: Tensor | None
    target_probs: Tensor
    noise: Tensor
    children: list[list[int]]

    def __post_init__(self) -> None:
        self.asked = torch.ones_like(self.noise[:, :1], dtype=torch.bool).all(1)  # where nothing is accepted yet
        self.path, self.end = torch.zeros_like(self.tokens, dtype=torch.bool), self.asked.long() - 1
        self.following = self.target_probs[:, 0]

    def ends(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return each row's path, the slot where it ends, and what is left there of the target's law."""
        self._visit(0, torch.ones_like(self.following[:, 0]), ())
        return self.path, self.end, self.following

    def _visit(self, slot: int, chance: Tensor, above: tuple[int, ...]) -> None:
        """Ask the tokens after a slot, then the slot itself; `above` are the tokens from the root to it."""
        left = self.target_probs[:, slot]
        rest = self.laws[:, slot] if self.laws is not None and self.children[slot] else None
        for node in self.children[slot]:
            x = self.tokens[:, node, None]
            p, q = left.gather(1, x)[:, 0], torch.ones_like(chance) if rest is None else rest.gather(1, x)[:, 0]
            if not bool((q > 0).all()):
                raise ValueError("a drafted token has draft probability 0: pass the law that it was drawn from")
            of_child = (chance * p / q).clamp(max=1)
            if bool((self.asked & (of_child > 0)).any()):
                self._visit(node + 1, of_child, (*above, node))
            going = self.asked & (chance > 0)
            if not bool(going.any()):
                break
            chance, left = _less(chance, left, rest, x, going)
            if rest is not None:
                rest = rest.scatter(1, x, 0.0)
                rest = rest / rest.sum(1, keepdim=True).clamp(min=torch.finfo(rest.dtype).tiny)
        ends_here = self.asked & (self.noise[:, slot - 1] < chance) if slot else self.asked
        if bool(ends_here.any()):
            for node in above:
                self.path[:, node] |= ends_here
            self.end = torch.where(ends_here, slot, self.end)
            self.following = torch.where(ends_here[:, None], left, self.following)
            self.asked = self.asked & ~ends_here


def _less(chance: Tensor, left: Tensor, rest: Tensor | None, x: Tensor, going: Tensor) -> tuple[Tensor, Tensor]:
    """Return a slot's chance and law after the token x there and all that follows it were refused in some rows."""
    kept = chance[:, None] * left
    residual = kept.scatter(1, x, 0.0) if rest is None else (kept - rest).clamp(min=0)
    total = residual.sum(1)
    # p = q up to rounding leaves no residual; where a = 1, a refusal there has probability 0 up to rounding too.
    some = going & (total > 0)
    after = torch.where(some, total / (total + 1 - chance).clamp(min=torch.finfo(total.dtype).tiny), chance.floor())
    left = torch.where(some[:, None], residual / total.clamp(min=torch.finfo(total.dtype).tiny)[:, None], left)
    return torch.where(going, after, chance), left


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
