"""Experts without a capacity: every token reaches all its experts, however skewed the routing (arXiv:2409.12136, 2.2).

Tokens are sorted by expert, one grouped matrix product runs all experts at once, and the rows go back to their tokens.
"""

from collections.abc import Callable

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
        return dispatch(hidden, routing, self.gate_up_proj, self.down_proj, self.activation).to(hidden.dtype)

    def all_outputs(self, hidden: Float[Tensor, "tokens width"]) -> Float[Tensor, "tokens experts width"]:
        """Return every expert's output for every token, unweighted: what sparse routing avoids, for analysis."""
        return torch.stack([
            swiglu(hidden @ up.T, self.activation) @ down.T
            for up, down in zip(self.gate_up_proj, self.down_proj, strict=True)
        ], dim=1)  # fmt: skip


def dispatch(
    hidden: Float[Tensor, "tokens width"],
    routing: Routing,
    gate_up: Float[Tensor, "experts both width"],
    down: Float[Tensor, "experts width inner"],
    activation: Callable[[Tensor], Tensor],
) -> Float[Tensor, "tokens width"]:
    """Return the weighted sum of each token's experts for given expert weights, in the wider of the dtypes met.

    The sum is linear in slices of the inner size, so that processes may each hold a slice and add up their results.
    """
    tokens, k = routing.indices.shape
    experts = len(gate_up)
    if experts == 1 and k == 1:  # a dense feed-forward layer needs no sorting
        rows = swiglu(hidden @ gate_up[0].T, activation) @ down[0].T
        return _weighted(rows.unsqueeze(1), routing).sum(1)
    order = routing.indices.flatten().argsort(stable=True)
    ends = tokens_per_expert(routing.indices, experts).cumsum(0, dtype=torch.int32)
    rows = hidden[order.div(k, rounding_mode="floor")]
    rows = grouped_linear(swiglu(grouped_linear(rows, gate_up, ends), activation), down, ends)
    back = torch.empty_like(order).scatter_(0, order, torch.arange(len(order), device=order.device))
    return _weighted(rows[back].view(tokens, k, -1), routing).sum(1)


def swiglu(both: Float[Tensor, "*rows both"], activation: Callable[[Tensor], Tensor]) -> Float[Tensor, "*rows inner"]:
    """Return activation(gate) x up for rows that hold both, one after the other."""
    gate, up = both.chunk(2, dim=-1)
    return activation(gate) * up


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
    # grouped_mm has no float64, which gradient checks need, and takes rows of a multiple of 16 bytes only.
    if rows.dtype == torch.float64 or any(size * rows.element_size() % 16 for size in weight.shape[1:]):
        starts = [0, *ends.tolist()]
        return torch.cat([F.linear(rows[a:b], w) for a, b, w in zip(starts, starts[1:], weight, strict=False)])
    return F.grouped_mm(rows, weight.transpose(-2, -1), offs=ends)
