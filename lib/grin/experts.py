"""Experts without a capacity: every token reaches all its experts, however skewed the routing (arXiv:2409.12136, 2.2).

Tokens are sorted by expert, one grouped matrix product runs all experts at once, and the rows go back to their tokens.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.activations import ACT2FN

from lib.grin.routing import Routing


class Experts(nn.Module):
    """SwiGLU experts as two stacked weights, named and laid out as transformers' PhiMoE experts are.

    transformers' own grouped implementation is the same computation and the benchmark's peer; it is not used because
    it cannot apply a forward-only scale (Algorithm 1's expert gradient) and insists on a model config.
    """

    def __init__(self, width: int, inner: int, experts: int, *, activation: str = "silu") -> None:
        super().__init__()
        self.gate_up_proj = nn.Parameter(torch.empty(experts, 2 * inner, width))
        self.down_proj = nn.Parameter(torch.empty(experts, width, inner))
        self.activation = ACT2FN[activation]
        for weight in (self.gate_up_proj, self.down_proj):
            nn.init.normal_(weight, std=weight.shape[-1] ** -0.5)

    def forward(self, hidden: Float[Tensor, "tokens width"], routing: Routing) -> Float[Tensor, "tokens width"]:
        """Return the weighted sum of each token's experts, in the dtype of `hidden`."""
        tokens, k = routing.indices.shape
        experts = len(self.gate_up_proj)
        if experts == 1 and k == 1:  # a dense feed-forward layer needs no sorting
            rows = self._swiglu(hidden @ self.gate_up_proj[0].T) @ self.down_proj[0].T
            return self._weighted(rows.unsqueeze(1), routing).sum(1).to(hidden.dtype)
        order = routing.indices.flatten().argsort(stable=True)
        ends = tokens_per_expert(routing.indices, experts).cumsum(0, dtype=torch.int32)
        rows = hidden[order.div(k, rounding_mode="floor")]
        rows = grouped_linear(self._swiglu(grouped_linear(rows, self.gate_up_proj, ends)), self.down_proj, ends)
        back = torch.empty_like(order).scatter_(0, order, torch.arange(len(order), device=order.device))
        return self._weighted(rows[back].view(tokens, k, -1), routing).sum(1).to(hidden.dtype)

    def all_outputs(self, hidden: Float[Tensor, "tokens width"]) -> Float[Tensor, "tokens experts width"]:
        """Return every expert's output for every token, unweighted: what sparse routing avoids, for analysis."""
        return torch.stack([
            self._swiglu(hidden @ up.T) @ down.T for up, down in zip(self.gate_up_proj, self.down_proj, strict=True)
        ], dim=1)  # fmt: skip

    def _swiglu(self, both: Tensor) -> Tensor:
        gate, up = both.chunk(2, dim=-1)
        return self.activation(gate) * up

    @staticmethod
    def _weighted(rows: Float[Tensor, "tokens k width"], routing: Routing) -> Float[Tensor, "tokens k width"]:
        weighted = rows * routing.weights.unsqueeze(-1)
        if routing.output_scale is None:
            return weighted
        return weighted + ((routing.output_scale.unsqueeze(-1) - 1) * weighted).detach()  # Algorithm 1


def tokens_per_expert(indices: Int[Tensor, "tokens k"], experts: int) -> Int[Tensor, "experts"]:
    """Return how many of the k x tokens dispatches each expert gets."""
    return torch.bincount(indices.flatten(), minlength=experts)


def grouped_linear(
    rows: Float[Tensor, "rows in"], weight: Float[Tensor, "groups out in"], ends: Int[Tensor, "groups"]
) -> Float[Tensor, "rows out"]:
    """Return each row times its group's weight transposed; group g holds rows ends[g-1] to ends[g]."""
    if rows.dtype == torch.float64:  # grouped_mm has no float64; gradient checks need it
        starts = [0, *ends.tolist()]
        return torch.cat([F.linear(rows[a:b], w) for a, b, w in zip(starts, starts[1:], weight, strict=False)])
    return F.grouped_mm(rows, weight.transpose(-2, -1), offs=ends)
