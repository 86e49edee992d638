"""Rotary angles for keys that are rotated when they are used, and the memory that layers share while they run.

The paper leaves open when RoPE is applied to compressed keys. R_i stands between W_q and the right factor of W_k, so K
cannot be absorbed: latents are cached before RoPE, and keys are rotated after reconstruction. Only differences of
positions matter, so both sides are rotated by their index in the cache, which needs one table for all rows and layers.
"""

from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

FIXED_ROPE = ("default", "linear", "llama3", "yarn")


@dataclass(frozen=True)
class Angles:
    """Cosines and sines of cache indices in two layouts: by channel for cached keys, by token for new states."""

    cos: Float[Tensor, "half length"]
    sin: Float[Tensor, "half length"]
    cos_rows: Float[Tensor, "length half"]
    sin_rows: Float[Tensor, "length half"]


class SharedBuffers:
    """Angles and scratch memory of a model's layers, made on demand and never part of a cache or a checkpoint.

    A page of keys lives only until its scores are taken. Reusing its memory saves the page faults that a new allocation
    costs at each page, which is half the time of the reconstruction on a CPU.
    """

    def __init__(self, rotary_embedding: Any) -> None:
        self.rotary = rotary_embedding
        self._tables: dict[tuple[torch.device, torch.dtype], Angles] = {}
        self._flat: dict[tuple[str, torch.device, torch.dtype], Tensor] = {}

    def angles(self, length: int, like: Tensor) -> Angles:
        """Return the angles of `length` cache indices or more, in the dtype and on the device of `like`."""
        key = (like.device, like.dtype)
        table = self._tables.get(key)
        if table is None or table.cos.shape[1] < length:
            table = self._tables[key] = self._table(max(2 * length, 1024), like)
        return table

    def _table(self, length: int, like: Tensor) -> Angles:
        frequencies = self.rotary.inv_freq.float().to(like.device)
        angles = frequencies[:, None] * torch.arange(length, device=like.device, dtype=torch.float32)
        cos, sin = ((each * self.rotary.attention_scaling).to(like.dtype) for each in (angles.cos(), angles.sin()))
        return Angles(cos=cos, sin=sin, cos_rows=cos.T.contiguous(), sin_rows=sin.T.contiguous())

    def scratch(self, name: str, shape: tuple[int, ...], like: Tensor) -> Tensor:
        """Return uninitialised memory of a shape, the same at each call of a name: copy what must outlive the next."""
        key, size = (name, like.device, like.dtype), prod(shape)
        flat = self._flat.get(key)
        if flat is None or flat.numel() < size:
            flat = self._flat[key] = torch.empty(size, dtype=like.dtype, device=like.device)
        return flat[:size].view(shape)


def require_fixed_rope(config: Any) -> None:
    """Raise ValueError where the angles change with the length, since keys are rotated when they are used."""
    kind = (config.rope_parameters or {}).get("rope_type", "default")
    if kind not in FIXED_ROPE:
        raise ValueError(
            f"{kind!r} RoPE changes its angles with the length, so keys cannot be rotated later: not supported"
        )


def rotate(
    states: Float[Tensor, "batch heads tokens dim"],
    cos: Float[Tensor, "*tokens half"],
    sin: Float[Tensor, "*tokens half"],
) -> Float[Tensor, "batch heads tokens dim"]:
    """Rotate queries or keys laid out by token (the half-split RoPE of the Llama family)."""
    first, second = states.chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)


def rotate_columns_(
    states: Float[Tensor, "batch heads dim tokens"],
    cos: Float[Tensor, "half tokens"],
    sin: Float[Tensor, "half tokens"],
    *,
    scratch: Float[Tensor, "batch heads half tokens"],
) -> Float[Tensor, "batch heads dim tokens"]:
    """Rotate keys laid out by channel, in place: passes over contiguous halves, and no copy of the page."""
    first, second = states.chunk(2, dim=2)
    crossed = torch.mul(first, sin, out=scratch)
    first.mul_(cos).addcmul_(second, sin, value=-1)
    second.mul_(cos).add_(crossed)
    return states


def rotate_at(
    states: Float[Tensor, "batch tokens heads dim"], index: Int[Tensor, "batch tokens"], angles: Angles
) -> Float[Tensor, "batch tokens heads dim"]:
    """Rotate states whose indices differ from row to row."""
    cos, sin = (table[index].unsqueeze(2) for table in (angles.cos_rows, angles.sin_rows))
    return rotate(states, cos, sin)
