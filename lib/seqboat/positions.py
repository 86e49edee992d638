"""Where tokens are: a learned bias over distances, rotary embeddings, and a sinusoid added to the input.

The first two take *original* positions, so that a compressed sequence still knows how far apart its tokens are.
"""

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn


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
    """Rotate pairs of channels by their position (rotary embeddings, arXiv:2104.09864); z must be even."""
    half = x.shape[-1] // 2
    speeds = base ** (-torch.arange(half, device=x.device, dtype=torch.float32) / half)
    angles = positions.unsqueeze(-1) * speeds
    first, second = x.float().chunk(2, dim=-1)
    cos, sin = angles.cos(), angles.sin()
    return torch.cat([first * cos - second * sin, first * sin + second * cos], dim=-1).to(x.dtype)


def sinusoid(positions: Int[Tensor, "batch tokens"], width: int) -> Float[Tensor, "batch tokens width"]:
    """Return sines and cosines of positions at geometric wavelengths; `width` must be even."""
    half = width // 2
    speeds = torch.exp(torch.arange(half, device=positions.device) * (-math.log(1e4) / max(1, half - 1)))
    angles = positions.unsqueeze(-1) * speeds
    return torch.cat([angles.sin(), angles.cos()], dim=-1)
