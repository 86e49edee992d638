"""Latents as the cache keeps them: as they are, or rounded to few bits (an extension of arXiv:2410.03111)."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True)
class Packed:
    """Latents as they are kept: themselves, or codes of few bits with one scale a token (extension).

    Codes of 4 bits lie two in a byte. `width` is the number of latents of a token.
    """

    codes: Tensor
    scale: Float[Tensor, "batch tokens 1"] | None
    width: int

    @property
    def tokens(self) -> int:
        """Number of tokens."""
        return self.codes.shape[1]

    def latents(self) -> Float[Tensor, "batch tokens width"]:
        """Return the latents in the dtype they came in."""
        codes = self.codes
        if self.scale is None:
            return codes
        if codes.dtype == torch.uint8:
            codes = torch.stack((codes & 15, codes >> 4), dim=-1).flatten(2)[..., : self.width].to(torch.int8) - 8
        return codes * self.scale


def pack(latents: Float[Tensor, "batch tokens width"], bits: int) -> Packed:
    """Round each token's latents to 8 or 4 bits with one scale, largest magnitude / 127 or 7; 16 keeps them.

    An extension of arXiv:2410.03111.
    """
    width = latents.shape[-1]
    if bits == 16:
        return Packed(latents, None, width)
    largest = 2 ** (bits - 1) - 1
    scale = (latents.abs().amax(dim=-1, keepdim=True) / largest).clamp_min(torch.finfo(latents.dtype).tiny)
    codes = (latents / scale).round().clamp(-largest, largest).to(torch.int8)
    if bits == 4:
        pairs = torch.nn.functional.pad(codes + 8, (0, width % 2)).to(torch.uint8).unflatten(-1, (-1, 2))
        codes = pairs[..., 0] | pairs[..., 1] << 4
    return Packed(codes, scale, width)


def mixing(size: int) -> Float[Tensor, "size size"]:
    """Return an orthogonal matrix that spreads each latent over all, so that few bits round them evenly (extension).

    Deviation: Hartley's matrix (cos + sin)(2 pi i j / n) / sqrt(n) stands for Hadamard's, which exists for few sizes;
    signs drawn once keep outliers of one sign from adding up. It is multiplied into the factors and costs nothing.
    """
    index = torch.arange(size, dtype=torch.float64)
    angle = 2 * torch.pi * torch.outer(index, index) / size
    signs = torch.randint(0, 2, (size,), generator=torch.Generator().manual_seed(0)).double() * 2 - 1
    return (angle.cos() + angle.sin()) * signs / size**0.5
