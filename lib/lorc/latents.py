"""The two factors of one projection as a module: `down` makes what is cached, `up` makes keys or values of it.

Symbols of arXiv:2410.03111, transposed as in transformers: `down` = (U S)^T, `up` = V. `rest_*` is the other half of
the basis, which only sink tokens use (extension): up down + rest_up rest_down is the whole projection.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from lib.lorc.decompose import Basis


class LowRankProjection(nn.Module):
    """A projection of `width` outputs through `rank` latents, in `groups` of heads with a basis each."""

    def __init__(
        self, hidden: int, width: int, rank: int, *, groups: int, bias: bool, rest: bool, absorbed: bool
    ) -> None:
        super().__init__()
        size, each = width // groups, rank // groups
        self.groups, self.rank, self.width = groups, rank, width
        self.down = nn.Parameter(torch.empty(rank, hidden))
        self.rest_down = nn.Parameter(torch.empty(width - rank, hidden)) if rest else None
        # An absorbed projection's right factor lives in the output projection.
        self.up = None if absorbed else nn.Parameter(torch.empty(groups, size, each))
        self.rest_up = nn.Parameter(torch.empty(groups, size, size - each)) if rest and not absorbed else None
        self.bias = nn.Parameter(torch.empty(width)) if bias and not absorbed else None

    @torch.no_grad()
    def load(self, basis: Basis, bias: Tensor | None, *, like: Tensor) -> None:
        """Fill the factors from a basis, in the dtype and on the device of `like`."""
        each = self.rank // self.groups
        values = {
            "down": basis.down[:, :each].flatten(0, 1),
            "rest_down": basis.down[:, each:].flatten(0, 1),
            "up": basis.up[:, :, :each],
            "rest_up": basis.up[:, :, each:],
            "bias": bias,
        }
        for name, value in values.items():
            if getattr(self, name) is not None and value is not None:
                setattr(self, name, nn.Parameter(value.to(like).contiguous()))

    def latents(self, hidden: Float[Tensor, "batch tokens hidden"]) -> Float[Tensor, "batch tokens rank"]:
        """Return what is cached for each token."""
        return functional.linear(hidden, self.down)

    def rest(self, hidden: Float[Tensor, "batch sinks hidden"]) -> Float[Tensor, "batch sinks rest"]:
        """Return what the rank leaves out of the given tokens."""
        assert self.rest_down is not None
        return functional.linear(hidden, self.rest_down)

    def expand(self, latents: Float[Tensor, "batch tokens rank"]) -> Float[Tensor, "batch tokens width"]:
        """Return keys or values from latents, with the bias."""
        assert self.up is not None
        expanded = _expand(self.up, latents)
        return expanded if self.bias is None else expanded + self.bias

    def expand_rest(self, rest: Float[Tensor, "batch sinks rest"]) -> Float[Tensor, "batch sinks width"]:
        """Return what is missing from the keys or values of sink tokens."""
        assert self.rest_up is not None
        return _expand(self.rest_up, rest)

    def expand_columns(
        self, latents: Float[Tensor, "batch tokens rank"], *, out: Float[Tensor, "batch width tokens"]
    ) -> Float[Tensor, "batch width tokens"]:
        """Write keys by channel, with the bias, into `out`: RoPE and scores then read memory in order."""
        assert self.up is not None
        batch, tokens, _ = latents.shape
        size = self.width // self.groups
        parts = latents.view(batch, tokens, self.groups, -1).permute(0, 2, 3, 1)
        if batch * self.groups == 1:
            torch.mm(self.up[0], parts[0, 0], out=out[0])
        else:
            up = self.up.expand(batch, -1, -1, -1).flatten(0, 1)
            torch.bmm(up, parts.flatten(0, 1), out=out.view(batch * self.groups, size, tokens))
        return out if self.bias is None else out.add_(self.bias[:, None])


def _expand(up: Tensor, latents: Tensor) -> Tensor:
    if up.shape[0] == 1:
        return functional.linear(latents, up[0])
    batch, tokens, _ = latents.shape
    parts = latents.view(batch, tokens, up.shape[0], -1).transpose(1, 2)
    return torch.matmul(parts, up.transpose(1, 2)).transpose(1, 2).reshape(batch, tokens, -1)
