"""Rotations of keys that are rotated when they are used.

The paper leaves open when RoPE is applied to compressed keys. R_i stands between W_q and the right factor of W_k, so K
cannot be absorbed: latents are cached before RoPE, and keys are rotated after reconstruction, each at its position.
"""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

FIXED_ROPE = ("default", "linear", "llama3", "yarn")


def require_fixed_rope(config: Any) -> None:
    """Raise ValueError where the angles change with the length, since keys are rotated when they are used."""
    parameters = config.rope_parameters or {}
    nested = [each for each in parameters.values() if isinstance(each, dict)] or [parameters]  # one a layer type
    for each in nested:
        kind = each.get("rope_type", "default")
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
