"""Experts without a capacity: every token reaches all its experts, however skewed the routing (arXiv:2409.12136, 2.2).

Tokens are sorted by expert, one grouped matrix product runs all experts at once, and the rows go back to their tokens.
"""

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F
from transformers.activations import ACT2FN, SiLUActivation

from lib.grin.routing import Routing

FEW_SHAPES = 64  # a multiple of rows that leaves few shapes, and few filling rows


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
    experts = len(gate_up)
    if experts == 1 and routing.indices.shape[1] == 1:  # a dense feed-forward layer needs no sorting
        every = torch.arange(len(hidden), device=hidden.device).unsqueeze(1)
        plan = DispatchPlan(source=every[:, 0], rows=every, ends=tokens_per_expert(routing.indices, 1).to(torch.int32))
        rows = swiglu(hidden @ gate_up[0].T, activation) @ down[0].T
        return _Combined.apply(rows, routing.weights, routing.output_scale, plan)
    # On CPUs oneDNN compiles a bfloat16 product for every new shape, and routing makes new shapes all the time.
    compiled = hidden.device.type == "cpu" and hidden.dtype == torch.bfloat16
    plan = plan_dispatch(routing.indices, experts, multiple=FEW_SHAPES if compiled else 1)
    rows = grouped_linear(_Taken.apply(hidden, plan), gate_up, plan.ends)
    rows = grouped_linear(swiglu(rows, activation), down, plan.ends)
    return _Combined.apply(rows, routing.weights, routing.output_scale, plan)


@dataclass(frozen=True)
class DispatchPlan:
    """Where every dispatch goes: row r holds token `source[r]`, and choice c of token t is row `rows[t, c]`.

    Expert e has the rows `ends[e-1]` to `ends[e]`. Rows that fill an expert's share up hold token 0 and are not read.
    """

    source: Int[Tensor, "rows"]
    rows: Int[Tensor, "tokens k"]
    ends: Int[Tensor, "experts"]


@torch.no_grad()
def plan_dispatch(indices: Int[Tensor, "tokens k"], experts: int, *, multiple: int = 1) -> DispatchPlan:
    """Return rows sorted by expert, each expert's number of rows rounded up to a multiple."""
    k, expert = indices.shape[1], indices.flatten()
    order = expert.argsort(stable=True)
    counts = tokens_per_expert(indices, experts)
    room = counts if multiple == 1 else (counts + multiple - 1).div(multiple, rounding_mode="floor") * multiple
    ends = room.cumsum(0)
    ahead = (ends - room) - (counts.cumsum(0) - counts)  # filling rows before each expert's first
    at = torch.arange(len(order), device=order.device) + ahead[expert[order]]
    rows = torch.empty_like(order).scatter_(0, order, at)
    total = len(order) if multiple == 1 else int(ends[-1])
    source = order.new_zeros(total).scatter_(0, at, order.div(k, rounding_mode="floor"))
    return DispatchPlan(source=source, rows=rows.view_as(indices), ends=ends.to(torch.int32))


class _Taken(torch.autograd.Function):
    """Rows of the tokens that a plan dispatches; the gradient is gathered too, where indexing would scatter and add."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, plan: DispatchPlan) -> Tensor:
        ctx.plan = plan
        return hidden.index_select(0, plan.source)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        first, *others = ctx.plan.rows.unbind(1)
        total = gradients[0].index_select(0, first)
        for rows in others:
            total = total + gradients[0].index_select(0, rows)
        return total, None


class _Combined(torch.autograd.Function):
    """Each token's sum of its weighted rows; `scale` acts in the forward pass only (Algorithm 1).

    No row belongs to two choices, so the gradient of the rows is written, not added up.
    """

    @staticmethod
    def forward(ctx: Any, rows: Tensor, weights: Tensor, scale: Tensor | None, plan: DispatchPlan) -> Tensor:
        ctx.save_for_backward(rows, weights)
        ctx.plan = plan
        scaled = weights if scale is None else weights * scale
        parts = [rows.index_select(0, at) * w for at, w in _choices(plan, scaled)]
        return sum(parts[1:], start=parts[0])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None, None]:
        (given,), (rows, weights), plan = gradients, ctx.saved_tensors, ctx.plan
        filled = torch.zeros_like if len(plan.source) > plan.rows.numel() else torch.empty_like
        to_rows, to_weights = filled(rows), []
        for at, weight in _choices(plan, weights):
            to_rows.index_copy_(0, at, (given * weight).to(rows.dtype))
            to_weights.append((given * rows.index_select(0, at)).sum(-1))
        return to_rows, torch.stack(to_weights, -1).to(weights.dtype), None, None


def _choices(plan: DispatchPlan, weights: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Rows [tokens] and weights [tokens, 1] of each choice."""
    return list(zip(plan.rows.unbind(1), weights.unsqueeze(-1).unbind(1), strict=True))


def swiglu(both: Float[Tensor, "*rows both"], activation: Callable[[Tensor], Tensor]) -> Float[Tensor, "*rows inner"]:
    """Return activation(gate) x up for rows that hold both, one after the other."""
    if isinstance(activation, nn.SiLU | SiLUActivation):
        return _SwiGLU.apply(both)
    gate, up = both.chunk(2, dim=-1)
    return activation(gate) * up


class _SwiGLU(torch.autograd.Function):
    """silu(gate) x up, whose gradient is written in place: no copy joins the halves, and only `both` is kept."""

    @staticmethod
    def forward(ctx: Any, both: Tensor) -> Tensor:
        ctx.save_for_backward(both)
        gate, up = both.chunk(2, dim=-1)
        return F.silu(gate).mul_(up)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        (both,) = ctx.saved_tensors
        gate, up = both.chunk(2, dim=-1)
        made = torch.empty_like(both)
        to_gate, to_up = made.chunk(2, dim=-1)
        torch.mul(gradients[0], F.silu(gate), out=to_up)
        torch.ops.aten.silu_backward.grad_input(gradients[0] * up, gate, grad_input=to_gate)
        return made


def tokens_per_expert(indices: Int[Tensor, "tokens k"], experts: int) -> Int[Tensor, "experts"]:
    """Return how many of the k x tokens dispatches each expert gets."""
    return torch.bincount(indices.flatten(), minlength=experts)


def grouped_linear(
    rows: Float[Tensor, "rows in"], weight: Float[Tensor, "groups out in"], ends: Int[Tensor, "groups"]
) -> Float[Tensor, "rows out"]:
    """Return each row times its group's weight transposed; group g holds rows ends[g-1] to ends[g].

    A GPU runs all groups as one kernel where it has one: bfloat16, and rows of whole 16 bytes. Elsewhere each group is
    a product of its own: a processor gains nothing from one call, and torch's has no float64 and cannot be compiled.
    """
    whole = all(size * rows.element_size() % 16 == 0 for size in weight.shape[1:])
    if rows.is_cuda and rows.dtype == torch.bfloat16 and whole:
        return F.grouped_mm(rows, weight.transpose(-2, -1), offs=ends)
    return _uncompiled(rows, weight, ends)


class _GroupedLinear(torch.autograd.Function):
    """A matrix product for each group, written into its place of one result."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, weight: Tensor, ends: Tensor) -> Tensor:
        ctx.save_for_backward(rows, weight)
        ctx.groups = [slice(a, b) for a, b in itertools.pairwise([0, *ends.tolist()])]
        out = rows.new_empty(len(rows), weight.shape[1])
        for group, own in zip(ctx.groups, weight, strict=True):
            torch.mm(rows[group], own.T, out=out[group])
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        rows, weight = ctx.saved_tensors
        given = gradients[0].contiguous()
        to_rows, to_weight = (
            torch.empty_like(t) if n else None for t, n in zip((rows, weight), ctx.needs_input_grad[:2], strict=True)
        )
        for index, group in enumerate(ctx.groups):
            if to_rows is not None:
                torch.mm(given[group], weight[index], out=to_rows[group])
            if to_weight is not None:
                torch.mm(given[group].T, rows[group], out=to_weight[index])
        return to_rows, to_weight, None


def _by_group(rows: Tensor, weight: Tensor, ends: Tensor) -> Tensor:
    return _GroupedLinear.apply(rows, weight, ends)


_uncompiled: Any = torch.compiler.disable(_by_group)  # the groups' sizes are read from the data
