"""Rotary angles for keys that are rotated when they are used, not when they are cached.

The paper leaves open when RoPE is applied to compressed keys. R_i stands between W_q and the right factor of W_k, so K
cannot be absorbed: latents are cached before RoPE, and keys are rotated after reconstruction. Only differences of
positions matter, so both sides are rotated by their index in the cache, which needs one table for all rows and layers.
"""

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

FIXED_ROPE = ("default", "linear", "llama3", "yarn")


class RotaryTable:
    """Cosines and sines by cache index, grown on demand and shared by all layers of a model."""

    def __init__(self, rotary_embedding: Any) -> None:
        self.rotary = rotary_embedding
        self.tables: dict[tuple[torch.device, torch.dtype], tuple[Tensor, Tensor]] = {}

    def at(self, length: int, like: Tensor) -> tuple[Float[Tensor, "half length"], Float[Tensor, "half length"]]:
        """Return cosine and sine of the first `length` indices, in the dtype and on the device of `like`."""
        key = (like.device, like.dtype)
        if key not in self.tables or self.tables[key][0].shape[1] < length:
            self.tables[key] = self._make(max(2 * length, 1024), like)
        cos, sin = self.tables[key]
        return cos[:, :length], sin[:, :length]

    def _make(self, length: int, like: Tensor) -> tuple[Tensor, Tensor]:
        frequencies = self.rotary.inv_freq.float().to(like.device)
        angles = frequencies[:, None] * torch.arange(length, device=like.device, dtype=torch.float32)
        scaling = self.rotary.attention_scaling
        return (angles.cos() * scaling).to(like.dtype), (angles.sin() * scaling).to(like.dtype)


def require_fixed_rope(config: Any) -> None:
    """Raise ValueError where the angles change with the length, since keys are rotated when they are used."""
    parameters = config.rope_parameters or {}
    kind = parameters.get("rope_type", "default")
    if kind not in FIXED_ROPE:
        raise ValueError(
            f"{kind!r} RoPE changes its angles with the length, so keys cannot be rotated later: not supported"
        )


def rotate(
    states: Float[Tensor, "batch heads tokens dim"],
    cos: Float[Tensor, "half tokens"],
    sin: Float[Tensor, "half tokens"],
) -> Float[Tensor, "batch heads tokens dim"]:
    """Rotate queries or keys laid out by token (the half-split RoPE of the Llama family)."""
    first, second = states.chunk(2, dim=-1)
    cos, sin = cos.T, sin.T
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)


def rotate_columns_(
    states: Float[Tensor, "batch heads dim tokens"],
    cos: Float[Tensor, "half tokens"],
    sin: Float[Tensor, "half tokens"],
) -> Float[Tensor, "batch heads dim tokens"]:
    """Rotate keys laid out by channel, in place: four passes over contiguous halves and no copy of the page."""
    first, second = states.chunk(2, dim=2)
    crossed = first * sin
    first.mul_(cos).addcmul_(second, sin, value=-1)
    second.mul_(cos).add_(crossed)
    return states


def rotate_at(
    states: Float[Tensor, "batch tokens heads dim"],
    index: Int[Tensor, "batch tokens"],
    cos: Float[Tensor, "half length"],
    sin: Float[Tensor, "half length"],
) -> Float[Tensor, "batch tokens heads dim"]:
    """Rotate states whose indices differ from row to row."""
    first, second = states.chunk(2, dim=-1)
    cos, sin = (table.T[index].unsqueeze(2) for table in (cos, sin))
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)
