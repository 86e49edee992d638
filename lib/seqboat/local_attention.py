"""Attention of each token to its neighbours in a window, in memory linear in length.

In SeqBoat the window of w counts *active* tokens (the compressed sequence), so its span in the text has no bound:
causal, a query sees itself and the w keys before it; otherwise w keys on both sides. Three functions turn scores into
weights: `softmax` (q·k/√z), `relu2` (the square of its positive part) and `laplace` (MEGA, Eq. 16 of arXiv:2209.10655),
the last two after division by the number of keys in reach. Masks are applied *after* the function, since Laplace is
not 0 at 0.
"""

import math
from collections.abc import Callable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import pad

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
    if positions is None:
        positions = torch.arange(keys.shape[1], device=keys.device).expand(keys.shape[:2])
    if window is None or window >= keys.shape[1]:
        blocks = _whole(queries, keys, values, mask, positions, causal)
    else:
        blocks = _banded(queries, keys, values, mask, positions, window, causal)
    query, key, value, allowed, query_at, key_at = blocks
    scores = query @ key.transpose(-1, -2)
    scores = scores * queries.shape[-1] ** -0.5 if function == "softmax" else scores / _reach(allowed, window, causal)
    if bias is not None:
        scores = scores + bias(query_at, key_at)
    weights = weigh(_precise(scores), allowed, function).to(values.dtype)
    weights = weights if dropout is None else dropout(weights)
    return (weights @ value).flatten(1, 2)[:, : queries.shape[1]]


def _precise(scores: Tensor) -> Tensor:
    """Return scores in at least float32, where exponentials and their sums are taken."""
    return scores.to(torch.promote_types(scores.dtype, torch.float32))


def _reach(allowed: Tensor, window: int | None, causal: bool) -> Tensor | float:
    """Number of keys in reach that scores of `relu2` and `laplace` are divided by: w, 2w, or all that are seen."""
    if window is None:
        return allowed.sum(-1, keepdim=True).clamp(min=1)
    return float(window if causal else 2 * window)


def _whole(q: Tensor, k: Tensor, v: Tensor, mask: Tensor, positions: Tensor, causal: bool) -> tuple[Tensor, ...]:
    """One block: every query with every key."""
    count, past = q.shape[1], k.shape[1] - q.shape[1]
    allowed = mask.unsqueeze(1).expand(-1, count, -1)
    if causal:
        allowed = allowed & torch.ones(count, k.shape[1], dtype=torch.bool, device=k.device).tril(past)
    whole = (q, k, v, allowed, positions[:, past:], positions)
    return tuple(part.unsqueeze(1) for part in whole)


def _banded(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor, positions: Tensor, window: int, causal: bool
) -> tuple[Tensor, ...]:
    """Blocks of queries, each with the keys that its window can reach: [batch, blocks, block, ...]."""
    count, past = q.shape[1], k.shape[1] - q.shape[1]
    if past > window:
        raise ValueError(f"a past of {past} keys is longer than the window of {window}")
    block = min(window, count)
    blocks = -(-count // block)
    after = 0 if causal else window
    reach = window + block + after

    def around(x: Tensor) -> Tensor:
        """Each block's keys, with zeros around the row: [batch, blocks, reach, ...]."""
        before, behind = (x.new_zeros(len(x), n, *x.shape[2:]) for n in (window - past, blocks * block - count + after))
        return torch.cat([before, x, behind], dim=1).unfold(1, reach, block).movedim(-1, 2)

    distance = torch.arange(block, device=q.device).unsqueeze(1) + window - torch.arange(reach, device=q.device)
    near = (distance >= (0 if causal else -window)) & (distance <= window)
    query = pad(q, (0, 0, 0, blocks * block - count)).unflatten(1, (blocks, block))
    at = pad(positions[:, past:], (0, blocks * block - count)).unflatten(1, (blocks, block))
    return query, around(k), around(v), around(mask).unsqueeze(2) & near, at, around(positions)
