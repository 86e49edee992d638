"""Attention of each token to its neighbours in a window, in memory linear in length, and what tells it where they are.

In SeqBoat the window of w counts *active* tokens (the compressed sequence), so its span in the text has no bound:
causal, a query sees itself and the w keys before it; otherwise w keys on both sides. Three functions turn scores into
weights: `softmax` (q·k/√z), `relu2` (the square of its positive part) and `laplace` (MEGA, Eq. 16 of arXiv:2209.10655),
the last two after division by the number of keys in reach. Masks are applied *after* the function, since Laplace is
not 0 at 0. The relative bias and rotary embeddings take *original* positions, so that a compressed sequence still knows
how far apart its tokens are.
"""

import math
from collections.abc import Callable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

FUNCTIONS = ("softmax", "relu2", "laplace")
Bias = Callable[[Tensor, Tensor], Tensor]


def weigh(scores: Float[Tensor, "*batch queries keys"], allowed: Bool[Tensor, "*b q k"], function: str) -> Tensor:
    """Return attention weights, 0 where not allowed; a query without any key has none at all."""
    if function == "softmax":
        floor = torch.finfo(scores.dtype).min / 2
        return scores.masked_fill(~allowed, floor).softmax(-1) * allowed
    if function == "relu2":
        return scores.relu().square() * allowed
    if function == "laplace":
        mean, deviation = math.sqrt(0.5), math.sqrt(0.25 / math.pi)
        return 0.5 * (1.0 + torch.erf((scores - mean) / (deviation * math.sqrt(2.0)))) * allowed
    raise ValueError(f"the attention function must be one of {', '.join(FUNCTIONS)}, got {function!r}")


def window_attention(
    queries: Float[Tensor, "batch queries z"],
    keys: Float[Tensor, "batch keys z"],
    values: Float[Tensor, "batch keys h"],
    *,
    mask: Bool[Tensor, "batch keys"],
    window: int | None,
    causal: bool,
    function: str = "softmax",
    bias: Bias | None = None,
    positions: Int[Tensor, "batch keys"] | None = None,
    dropout: Callable[[Tensor], Tensor] | None = None,
) -> Float[Tensor, "batch queries h"]:
    """Return each query's weighted sum of values; queries are the last of the keys, which may begin with a past.

    `window` None lets a query see all keys (causal: those before it). `bias(query_positions, key_positions)` is added
    to the scores; a key's position is its index where none is given. Raises ValueError for a window below 1, an unknown
    function, or a past that the window does not hold.
    """
    if window is not None and window < 1:
        raise ValueError(f"the window must be at least 1 key, or None for all of them, got {window}")
    if window is None or window >= keys.shape[1]:
        blocks: _Whole | _Bands = _Whole(queries.shape[1], keys.shape[1], causal)
    else:
        blocks = _Bands(queries.shape[1], keys.shape[1], window, causal)
    query, key, value = blocks.queries(queries), blocks.keys(keys), blocks.keys(values)
    allowed = blocks.keys(mask).unsqueeze(2) & blocks.near(keys.device)
    scores = query @ key.transpose(-1, -2)
    scores = scores * queries.shape[-1] ** -0.5 if function == "softmax" else scores / _reach(allowed, window, causal)
    if bias is not None:
        if positions is None:
            positions = torch.arange(keys.shape[1], device=keys.device).expand(keys.shape[:2])
        scores = scores + bias(blocks.queries(positions[:, -queries.shape[1] :]), blocks.keys(positions))
    exact = scores.to(torch.promote_types(scores.dtype, torch.float32))  # exponentials and their sums
    weights = weigh(exact, allowed, function).to(values.dtype)
    weights = weights if dropout is None else dropout(weights)
    return (weights @ value).flatten(1, 2)[:, : queries.shape[1]]


def _reach(allowed: Tensor, window: int | None, causal: bool) -> Tensor | float:
    """Number of keys in reach that scores of `relu2` and `laplace` are divided by: w, 2w, or all that are seen."""
    if window is None:
        return allowed.sum(-1, keepdim=True).clamp(min=1)
    return float(window if causal else 2 * window)


class _Whole:
    """One block: every query with every key."""

    def __init__(self, count: int, total: int, causal: bool) -> None:
        self.count, self.total, self.causal = count, total, causal

    def queries(self, x: Tensor) -> Tensor:
        """Return queries as [batch, 1, count, ...]."""
        return x.unsqueeze(1)

    keys = queries

    def near(self, device: torch.device) -> Bool[Tensor, "count total"]:
        """Return which keys each query could see."""
        everything = torch.ones(self.count, self.total, dtype=torch.bool, device=device)
        return everything.tril(self.total - self.count) if self.causal else everything


class _Bands:
    """Blocks of queries, each with the keys that its window can reach: [batch, blocks, block or reach, ...].

    Five queries, w = 2, causal: blocks of two queries, which reach w keys before them; zeros stand at the dots.

        queries  0 1 | 2 3 | 4 .        a block's queries, from 0: i
        keys     . . 0 1 2 3 4 .        a block's keys, from 0: j
        block 0  [. . 0 1]              query i sees key j where 0 <= i + w - j <= w
        block 1      [0 1 2 3]          (without causality -w <= i + w - j <= w, and w keys more behind)
        block 2          [2 3 4 .]
    """

    def __init__(self, count: int, total: int, window: int, causal: bool) -> None:
        past = total - count
        if past > window:
            raise ValueError(f"a past of {past} keys is longer than the window of {window}")
        self.window, self.causal = window, causal
        self.block = min(window, count)
        after = 0 if causal else window
        self.reach = window + self.block + after
        self.short = -count % self.block
        self.around = (window - past, self.short + after)

    def queries(self, x: Tensor) -> Tensor:
        """Return queries in blocks, with zeros after the last."""
        filled = torch.cat([x, x.new_zeros(len(x), self.short, *x.shape[2:])], dim=1) if self.short else x
        return filled.unflatten(1, (-1, self.block))

    def keys(self, x: Tensor) -> Tensor:
        """Return each block's keys, with zeros around the row."""
        before, behind = (x.new_zeros(len(x), n, *x.shape[2:]) for n in self.around)
        return torch.cat([before, x, behind], dim=1).unfold(1, self.reach, self.block).movedim(-1, 2)

    def near(self, device: torch.device) -> Bool[Tensor, "block reach"]:
        """Return which of a block's keys each of its queries could see."""
        query = torch.arange(self.block, device=device).unsqueeze(1) + self.window
        distance = query - torch.arange(self.reach, device=device)
        return (distance >= (0 if self.causal else -self.window)) & (distance <= self.window)


class RelativeBias(nn.Module):
    """A learned number for each distance i - j, from -(reach - 1) to reach - 1."""

    def __init__(self, reach: int) -> None:
        super().__init__()
        self.reach = reach
        self.weight = nn.Parameter(torch.empty(2 * reach - 1))
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draw small values."""
        nn.init.trunc_normal_(self.weight, std=0.02, a=-0.04, b=0.04)

    def forward(self, queries: Int[Tensor, "*batch q"], keys: Int[Tensor, "*batch k"]) -> Float[Tensor, "*batch q k"]:
        """Return the bias of each pair of positions; pairs out of reach (masked ones among them) get the outermost."""
        distance = queries.unsqueeze(-1) - keys.unsqueeze(-2)
        index = (distance + self.reach - 1).clamp(0, 2 * self.reach - 2)
        return self.weight.index_select(0, index.flatten()).view(index.shape)  # 50x faster backward than embedding


def rotate(
    x: Float[Tensor, "batch tokens z"], positions: Int[Tensor, "batch tokens"], *, base: float = 1e4
) -> Float[Tensor, "batch tokens z"]:
    """Rotate pairs of channels by their position, counted from 0 (rotary embeddings, arXiv:2104.09864); z must be even.

    Channel i is paired with channel i + z/2, as in Llama; the paper of rotary embeddings pairs neighbours, which is the
    same up to the order of channels. Angles are position · base^(-2i/z).
    """
    half = x.shape[-1] // 2
    speeds = base ** (-torch.arange(half, device=x.device, dtype=torch.float32) / half)
    angles = positions.unsqueeze(-1) * speeds
    first, second = x.float().chunk(2, dim=-1)
    cos, sin = angles.cos(), angles.sin()
    return torch.cat([first * cos - second * sin, first * sin + second * cos], dim=-1).to(x.dtype)
