"""Low-rank projections, which stand in place of a model's k_proj and v_proj (arXiv:2410.03111).

A projection is two factors, transposed as in transformers: `down` = (U S)^T makes the latent that is cached, `up` = V
makes keys or values of it. `rest_*` is the other half of the basis, which only sink tokens use (extension): up down +
rest_up rest_down is the whole projection.
"""

from typing import cast

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from lib.lorc.decomposition import Basis
from lib.lorc.latents import mixing, pack
from lib.lorc.step import Shared, Step


class LowRankProjection(nn.Module):
    """A projection of `width` outputs through `rank` latents, in `groups` of heads with a basis each."""

    def __init__(self, linear: nn.Linear, rank: int, shared: Shared, *, groups: int, bits: int, rest: bool) -> None:
        super().__init__()
        width, hidden = linear.weight.shape
        size, each = width // groups, rank // groups
        self.groups, self.rank, self.width, self.bits, self.shared = groups, rank, width, bits, shared
        self.down = nn.Parameter(torch.empty(rank, hidden))
        self.up = nn.Parameter(torch.empty(groups, size, each))
        self.rest_down = nn.Parameter(torch.empty(width - rank, hidden)) if rest else None
        self.rest_up = nn.Parameter(torch.empty(groups, size, size - each)) if rest else None
        self.bias = None if linear.bias is None else nn.Parameter(torch.empty(width))

    @torch.no_grad()
    def load(self, basis: Basis, bias: Tensor | None, *, like: Tensor) -> None:
        """Fill the factors from a basis, in the dtype and on the device of `like`."""
        each = self.rank // self.groups
        down, up = basis.down[:, :each], basis.up[:, :, :each]
        if self.bits < 16:
            mix = mixing(each).to(down)
            down, up = mix @ down, up @ mix.T
        values = {
            "down": down.flatten(0, 1),
            "up": up,
            "rest_down": basis.down[:, each:].flatten(0, 1),
            "rest_up": basis.up[:, :, each:],
            "bias": bias,
        }
        for name, value in values.items():
            if getattr(self, name) is not None and value is not None:
                setattr(self, name, nn.Parameter(value.to(like).contiguous()))

    def forward(self, hidden: Float[Tensor, "batch tokens hidden"]) -> Float[Tensor, "batch tokens width"]:
        """Return keys or values of the new tokens, and leave their latents with the pass for attention to cache.

        A pass that attends to latents alone never reads the keys and values: it gets stand-ins of their shape.
        """
        packed, rest = pack(functional.linear(hidden, self.down), self.bits), None
        step = self.shared.step or Step(None, 0)
        unread = step.attends_to_latents(hidden.shape[1])
        output = hidden[..., :1].expand(-1, -1, self.width) if unread else self.expand(packed.latents())
        sinks = step.sinks(self.shared.sink_tokens, hidden) if self.rest_down is not None else None
        if sinks is not None and sinks.any_new:
            rest = functional.linear(sinks.gather(hidden), cast(Tensor, self.rest_down))
            output = output if unread else sinks.add(output, self.expand_rest(rest), start=sinks.past)
        if step.cache is not None:
            step.latents[self] = (packed, rest)
        return output

    def expand(self, latents: Float[Tensor, "batch tokens rank"]) -> Float[Tensor, "batch tokens width"]:
        """Return keys or values from latents, with the bias."""
        expanded = _expand(self.up, latents)
        return expanded if self.bias is None else expanded + self.bias

    def expand_rest(self, rest: Float[Tensor, "batch sinks rest"]) -> Float[Tensor, "batch sinks width"]:
        """Return what is missing from the keys or values of sink tokens."""
        return _expand(cast(Tensor, self.rest_up), rest)

    def expand_columns(
        self, latents: Float[Tensor, "batch tokens rank"], *, out: Float[Tensor, "batch width tokens"]
    ) -> Float[Tensor, "batch width tokens"]:
        """Write keys by channel, with the bias, into `out`: RoPE and scores then read memory in order."""
        batch, tokens, _ = latents.shape
        parts = latents.view(batch, tokens, self.groups, -1).permute(0, 2, 3, 1)
        if batch * self.groups == 1:
            torch.mm(self.up[0], parts[0, 0], out=out[0])
        else:
            up = self.up.expand(batch, -1, -1, -1).flatten(0, 1)
            torch.bmm(up, parts.flatten(0, 1), out=out.view(batch * self.groups, -1, tokens))
        return out if self.bias is None else out.add_(self.bias[:, None])


def _expand(up: Tensor, latents: Tensor) -> Tensor:
    if up.shape[0] == 1:
        return functional.linear(latents, up[0])
    batch, tokens, _ = latents.shape
    parts = latents.view(batch, tokens, up.shape[0], -1).transpose(1, 2)
    return torch.matmul(parts, up.transpose(1, 2)).transpose(1, 2).reshape(batch, tokens, -1)
