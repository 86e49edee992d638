"""The distribution that tokens are drawn from: temperature, then top-k, then top-p, in float32 (arXiv:2410.10141).

Symbols: `temperature` = T; p_T = softmax(z / T). T = 0 is greedy decoding: all probability on the largest logit.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn


@dataclass(frozen=True)
class Warping:
    """Temperature, number of most likely tokens kept (0: all) and probability mass kept (1: all).

    Raises ValueError for a temperature below 0, a negative top_k, or a top_p outside (0, 1].
    """

    temperature: float | int = 1.0
    top_k: int = 0
    top_p: float | int = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < float("inf"):
            raise ValueError(f"temperature is {self.temperature}: give 0 (greedy) or a positive number")
        if self.top_k < 0:
            raise ValueError(f"top_k is {self.top_k}: give the number of tokens kept, or 0 for all")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p is {self.top_p}: give the probability mass kept, above 0 and at most 1")

    @property
    def greedy(self) -> bool:
        """Whether every draw is the most likely token."""
        return self.temperature == 0 or self.top_k == 1

    def probs(self, logits: Float[Tensor, "*rows vocab"]) -> Float[Tensor, "*rows vocab"]:
        """Return p_T in float32; greedy decoding gives a row of zeros with a one.

        Each kind of truncation keeps what transformers' warpers of the same name keep.
        """
        logits = logits.float()
        if self.greedy:
            return torch.zeros_like(logits).scatter_(-1, logits.argmax(-1, keepdim=True), 1.0)
        if self.temperature != 1:
            logits = logits / self.temperature
        if 0 < self.top_k < logits.shape[-1]:
            smallest = logits.topk(self.top_k, dim=-1).values[..., -1:]
            logits = logits.masked_fill(logits < smallest, -torch.inf)
        if self.top_p < 1:
            ascending, order = logits.sort(dim=-1)
            below = ascending.softmax(-1).cumsum(-1) <= 1 - self.top_p
            below[..., -1] = False
            logits = logits.masked_fill(below.gather(-1, order.argsort(-1)), -torch.inf)
        return logits.softmax(-1)


BLOCK = 256  # tokens summed before one is looked for


def draw(probs: Float[Tensor, "*rows vocab"], *, generator: torch.Generator | None = None) -> Int[Tensor, "*rows"]:
    """Draw one token a row from weights that need not sum to one, by the inverse of their cumulative sum in float64.

    First the block of tokens is drawn, then the token in it: one pass over a large vocabulary, several times faster
    than `torch.multinomial`. Raises ValueError for a row without weight.
    """
    vocab = probs.shape[-1]
    weights = nn.functional.pad(probs, (0, -vocab % BLOCK)).unflatten(-1, (-1, BLOCK))  # [*rows, blocks, BLOCK]
    blocks = weights.sum(-1, dtype=torch.float64).cumsum(-1)
    total = blocks[..., -1:]
    if not bool((total > 0).all()):
        raise ValueError("a row of probabilities sums to 0: nothing can be drawn from it")
    where = total.device if generator is None else generator.device
    uniform = torch.rand(total.shape, dtype=torch.float64, generator=generator, device=where).to(total.device)
    block, left = _search(blocks, uniform * total)
    inside = weights.gather(-2, block[..., None].expand(*block.shape, BLOCK)).squeeze(-2).double().cumsum(-1)
    token, _ = _search(inside, left)
    return (block * BLOCK + token).squeeze(-1)


def _search(cumulative: Tensor, level: Tensor) -> tuple[Tensor, Tensor]:
    """First entry whose cumulative sum exceeds the level (so never one of weight 0), and how far into it that is."""
    total = cumulative[..., -1:]
    level = torch.minimum(level, total.nextafter(torch.zeros_like(total)))
    place = torch.searchsorted(cumulative, level, right=True)
    before = torch.where(place > 0, cumulative.gather(-1, (place - 1).clamp(min=0)), 0.0)
    return place, (level - before).clamp(min=0)
