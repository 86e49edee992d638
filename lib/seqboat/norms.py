"""Normalisations over [batch, tokens, width] that know padding: layer, scale and batch norm."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

NORMS = ("layer", "scale", "batch")


class ScaleNorm(nn.Module):
    """x / rms(x) times one learned scalar."""

    def __init__(self, *, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps
        self.scale = nn.Parameter(torch.ones(()))

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Put the scale to 1."""
        self.scale.fill_(1.0)

    def forward(self, x: Tensor) -> Tensor:
        """Return the normalised tensor."""
        mean_square = x.float().square().mean(-1, keepdim=True)
        return (self.scale * x.float() * torch.rsqrt(mean_square + self.eps)).to(x.dtype)


class Norm(nn.Module):
    """One of the three by name; batch norm takes its statistics from real tokens only. Raises ValueError if unknown."""

    def __init__(self, kind: str, width: int, *, affine: bool = True) -> None:
        super().__init__()
        if kind not in NORMS:
            raise ValueError(f"the norm must be one of {', '.join(NORMS)}, got {kind!r}")
        self.kind = kind
        if kind == "scale":
            self.norm: nn.Module = ScaleNorm()
        elif kind == "layer":
            self.norm = nn.LayerNorm(width, elementwise_affine=affine)
        else:
            self.norm = nn.BatchNorm1d(width, affine=affine)

    def forward(
        self, x: Float[Tensor, "batch tokens width"], real: Bool[Tensor, "batch tokens"] | None = None
    ) -> Float[Tensor, "batch tokens width"]:
        """Return the normalised states; padding is left zero by batch norm."""
        if self.kind != "batch":
            return self.norm(x)
        if real is None:
            return self.norm(x.flatten(0, 1)).view_as(x)
        return torch.zeros_like(x).masked_scatter(real.unsqueeze(-1), self.norm(x[real]))
