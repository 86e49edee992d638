"""From an attention module to its low-rank form: which weights are shared, factored or folded (arXiv:2410.03111)."""

from typing import Any, cast

import torch
from torch import Tensor, nn

from lib.lorc.architecture import MATRICES, attentions, projection
from lib.lorc.attention import LowRankAttention
from lib.lorc.decomposition import Decomposition
from lib.lorc.spec import LowRankSpec


def converted_attentions(model: nn.Module, spec: LowRankSpec, decomposition: Decomposition) -> list[LowRankAttention]:
    """Build the low-rank attention of every layer without touching the model; unchanged weights are shared with it."""
    return [_convert(old, index, spec, decomposition) for index, old in enumerate(attentions(model))]


def biases_of(model: nn.Module) -> tuple[str, ...]:
    """Return which of the q, k, v and o projections have a bias."""
    first = attentions(model)[0]
    return tuple(name for name in "qkvo" if getattr(first, f"{name}_proj").bias is not None)


def _convert(old: Any, index: int, spec: LowRankSpec, decomposition: Decomposition) -> LowRankAttention:
    like = cast(Tensor, old.q_proj.weight)
    with torch.device("meta"):
        new = LowRankAttention(old.config, index, spec)
    new.q_proj, new.q_norm, new.k_norm = old.q_proj, getattr(old, "q_norm", None), getattr(old, "k_norm", None)
    for matrix in MATRICES:
        factors = new.keys if matrix == "k" else new.values
        if factors is None:
            setattr(new, f"{matrix}_proj", projection(old, matrix))
        else:
            factors.load(decomposition.of(matrix)[index], projection(old, matrix).bias, like=like)
    new.o_proj = _absorb(old, new, index, spec, decomposition) if new.absorbed else old.o_proj
    return new.train(old.training)


def _absorb(old: Any, new: LowRankAttention, index: int, spec: LowRankSpec, decomposition: Decomposition) -> nn.Linear:
    """Fold U_v into W_o head by head, and the bias of V into a bias of W_o (arXiv:2410.03111)."""
    weight = cast(Tensor, old.o_proj.weight).detach()
    # In float64, so that a float64 model equals its replaced weights to float64's rounding.
    up = decomposition.v[index].up.double().to(weight.device)
    # Sinks need the whole basis; without them W_o keeps the columns of the rank alone.
    up = up if spec.sink_tokens else up[:, :, : spec.plan.ranks_v[index] // up.shape[0]]
    heads = weight.double().unflatten(1, (new.query_heads, new.head_dim))
    folded = torch.einsum("Dhd,hdr->Dhr", heads, up.repeat_interleave(new.num_key_value_groups, dim=0)).flatten(1)
    with torch.device("meta"):
        output = nn.Linear(folded.shape[1], folded.shape[0], bias=new.o_proj.bias is not None)
    output.weight = nn.Parameter(folded.to(weight))
    if output.bias is not None:
        shift = torch.zeros(weight.shape[0]).to(up) if old.o_proj.bias is None else old.o_proj.bias.double()
        if old.v_proj.bias is not None:
            values = old.v_proj.bias.double().unflatten(0, (new.kv_heads, new.head_dim))
            shift = shift + weight.double() @ values.repeat_interleave(new.num_key_value_groups, dim=0).flatten()
        output.bias = nn.Parameter(shift.detach().to(weight))
    return output
