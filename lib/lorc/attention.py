"""Attention over cached latents (arXiv:2410.03111): keys reconstructed and rotated on use, values never while decoding.

Symbols: q [B, H, n, d]; C_k [B, T, r_k] and C_v [B, T, r_v] the latents; K = C_k U_k^T; the output of head h is
(A_h C_v) U_v,h^T, where A_h are the attention weights: the right factor of W_v is applied to one weighted latent a
query, not to T values. The model's own attention module runs as it is, with these projections in place of k_proj and
v_proj and `attend` in place of its kernel, so that norms, rotations, scales and windows are those of its family.

Deviation: the right factors are not multiplied into W_q and W_o beforehand. R_i stands between W_q and V, and (A C U^T)
W_o in this order is the same product without a larger W_o.
"""

import sys
from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from lib.lorc.cache import LatentLayer
from lib.lorc.latents import Packed, pack
from lib.lorc.projection import LowRankProjection
from lib.lorc.step import Sinks, Step

KERNELS = ("sdpa", "eager")
PREFIX = "lorc_"


def attend(
    module: Any,
    query: Float[Tensor, "batch heads new dim"],
    key: Float[Tensor, "batch kv new dim"],
    value: Float[Tensor, "batch kv new dim"],
    mask: Tensor | None,
    *,
    latents: Step | None = None,
    **options: Any,
) -> tuple[Float[Tensor, "batch new heads dim"], Tensor | None]:
    """Attend from the new tokens to all tokens and cache the latents of the new ones, in place of a model's kernel."""
    name = module.config._attn_implementation.removeprefix(PREFIX)
    kernel = ALL_ATTENTION_FUNCTIONS[name] if name != "eager" else _module_of(module).eager_attention_forward
    if latents is None or latents.cache is None:
        return kernel(module, query, key, value, mask, **options)
    layer = latents.cache.layer(module.layer_idx)
    past, new = len(layer.v), query.shape[2]
    sinks = _store(module, layer, latents, key, value)
    if latents.attends_to_latents(new):
        output, weights = _attend_latents(module, query, layer, latents, sinks, mask, **options)
    else:
        if past:
            key = torch.cat((_all_keys(module, layer, latents, sinks, past), key), dim=2)
            value = torch.cat((_all_values(module, layer, sinks, past), value), dim=2)
        output, weights = kernel(module, query, key, value, mask, **options)
    layer.trim()
    return output, weights


for kernel_name, mask_name in ((PREFIX + name, name) for name in KERNELS):
    ALL_ATTENTION_FUNCTIONS.register(kernel_name, attend)
    ALL_MASK_ATTENTION_FUNCTIONS.register(kernel_name, ALL_MASK_ATTENTION_FUNCTIONS[mask_name])


def _module_of(attention: Any) -> Any:
    return sys.modules[type(attention).__module__]


def _store(module: Any, layer: LatentLayer, step: Step, key: Tensor, value: Tensor) -> Sinks | None:
    """Put the new tokens into the cache; a projection at full rank caches rotated keys and plain values."""
    new: list[Packed] = []
    shared, sinks = module.shared, None
    for matrix, states in (("k", key), ("v", value)):
        projection = getattr(module, f"{matrix}_proj")
        if not isinstance(projection, LowRankProjection):
            new.append(pack(states.transpose(1, 2).flatten(2), 16))
            continue
        packed, rest = step.latents.pop(projection)
        new.append(packed)
        if projection.rest_down is not None:
            sinks = cast(Sinks, step.sinks(shared.sink_tokens, states[:, 0]))
            if rest is not None:
                held = getattr(layer, f"rest_{matrix}")
                held = torch.zeros_like(rest) if held is None else held
                setattr(layer, f"rest_{matrix}", torch.where(sinks.new[..., None], rest, held))
    layer.append(*new)
    return sinks


def _attend_latents(
    module: Any,
    query: Tensor,
    layer: LatentLayer,
    step: Step,
    sinks: Sinks | None,
    mask: Tensor | None,
    *,
    scaling: float,
    softcap: float | None = None,
    **_: Any,
) -> tuple[Tensor, Tensor]:
    """Attend page by page: one block of keys at a time, and no values at all."""
    batch, heads, new, dim = query.shape
    # [B, KV heads, group x n, d]: the queries that share a KV head are one matrix.
    grouped = (query * scaling).reshape(batch, heads // module.num_key_value_groups, -1, dim)
    parts = [_page_scores(module, grouped, layer, step, sinks, start, page) for start, page in layer.k]
    scores = (parts[0] if len(parts) == 1 else torch.cat(parts, dim=-1)).view(batch, heads, new, -1)
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    scores = _mask(scores, mask)
    weights = functional.softmax(scores, dim=-1)  # in float32 inside, whatever the dtype
    return _weigh_values(module, weights, layer, sinks, dim).transpose(1, 2), weights


def _page_scores(
    module: Any, query: Tensor, layer: LatentLayer, step: Step, sinks: Sinks | None, start: int, page: Packed
) -> Float[Tensor, "batch heads rows tokens"]:
    """Return the scores of one page, whose keys are made in memory that the next page takes over.

    q . R k = [q1, q2] . [k1 cos, k2 cos] + [q2, -q1] . [k1 sin, k2 sin]: one product by channel, then one by queries.
    """
    keys, shared, dim = module.k_proj, module.shared, module.head_dim
    if not isinstance(keys, LowRankProjection):
        return torch.matmul(query, page.codes.unflatten(-1, (-1, dim)).permute(0, 2, 3, 1))
    if not shared.half_split(module):
        return torch.matmul(query, _page_rows(module, layer, step, sinks, start, page).transpose(2, 3))
    latents, start = page.latents(), layer.dropped + start
    batch, tokens, _ = latents.shape
    columns = keys.expand_columns(latents, out=shared.scratch("keys", (batch, keys.width, tokens), latents))
    if sinks is not None and layer.rest_k is not None and sinks.within(start, tokens):
        sinks.add(columns.transpose(1, 2), keys.expand_rest(layer.rest_k), start=start, in_place=True)
    if not shared.rotates(module):
        return torch.matmul(query, columns.view(batch, -1, dim, tokens))
    halves, (first, second) = columns.view(batch, -1, 1, 2, dim // 2, tokens), query.chunk(2, dim=-1)
    both = shared.scratch("both", (batch, halves.shape[1], 2, 2, dim // 2, tokens), latents)
    torch.mul(halves, step.angles(shared, module, start, tokens, latents, columns=True)[0], out=both)
    return torch.matmul(torch.cat((first, second, second, -first), dim=-1), both.view(batch, -1, 2 * dim, tokens))


def _page_rows(
    module: Any, layer: LatentLayer, step: Step, sinks: Sinks | None, start: int, page: Packed
) -> Float[Tensor, "batch heads tokens dim"]:
    """Return the rotated keys of one page as the model's own code makes them: norm, then rotation."""
    projection, shared = module.k_proj, module.shared
    latents, start = page.latents(), layer.dropped + start
    keys = projection.expand(latents)
    if sinks is not None and layer.rest_k is not None and sinks.within(start, page.tokens):
        keys = sinks.add(keys, projection.expand_rest(layer.rest_k), start=start)
    norm = getattr(module, "k_norm", None)
    whole = norm is not None and norm.weight.shape[-1] == projection.width
    keys = norm(keys) if norm is not None and whole else keys
    keys = keys.unflatten(-1, (-1, module.head_dim))
    keys = (norm(keys) if norm is not None and not whole else keys).transpose(1, 2)
    if not shared.rotates(module):
        return keys
    cos, sin = step.angles(shared, module, start, page.tokens, latents, columns=False)
    return _module_of(module).apply_rotary_pos_emb(keys, keys, cos, sin)[1]


def _weigh_values(module: Any, weights: Tensor, layer: LatentLayer, sinks: Sinks | None, dim: int) -> Tensor:
    """Return (sum_t A_t C_v,t) U_v^T: [B, H, n, d]."""
    values = module.v_proj
    low = isinstance(values, LowRankProjection)
    batch, heads, new, _ = weights.shape
    kv_heads = heads // module.num_key_value_groups
    groups = values.groups if low else kv_heads
    rows = weights.reshape(batch, groups, -1, weights.shape[-1])
    parts = []
    for start, page in layer.v:
        latents = page.latents().view(batch, page.tokens, groups, -1).transpose(1, 2)
        here = rows if len(layer.v.pages) == 1 else rows[..., start : start + page.tokens]
        parts.append(torch.matmul(here, latents))
    # Pages are added up in float32, as one long product would be.
    total = parts[0] if len(parts) == 1 else torch.stack(parts).sum(0, dtype=torch.float32).to(weights.dtype)
    if not low:
        return total.reshape(batch, heads, new, -1)
    weighted = _per_head(values.up, total, kv_heads, dim)
    if sinks is not None and layer.rest_v is not None:
        taken, rest = sinks.weights(rows, layer.dropped), layer.rest_v.unflatten(-1, (groups, -1)).transpose(1, 2)
        weighted = weighted + _per_head(cast(Tensor, values.rest_up), torch.matmul(taken, rest), kv_heads, dim)
    if values.bias is not None:
        # The weights of a query sum to one, so a bias of V passes through attention unchanged.
        weighted = weighted + values.bias.view(kv_heads, 1, dim)
    return weighted.reshape(batch, heads, new, dim)


def _per_head(up: Tensor, weighted: Tensor, kv_heads: int, dim: int) -> Tensor:
    """Apply each KV head's rows of U_v to the latents that its queries weighed."""
    factors = up.reshape(kv_heads, dim, -1)
    return torch.matmul(weighted.reshape(len(weighted), kv_heads, -1, weighted.shape[-1]), factors.transpose(1, 2))


def _all_keys(module: Any, layer: LatentLayer, step: Step, sinks: Sinks | None, past: int) -> Tensor:
    """Reconstruct the past tokens' keys, freed again after the layer; for many new tokens that is cheaper."""
    if not isinstance(module.k_proj, LowRankProjection):
        return layer.k.read().unflatten(-1, (-1, module.head_dim)).transpose(1, 2)[:, :, :past]
    parts = [_page_rows(module, layer, step, sinks, start, page) for start, page in layer.k]
    return torch.cat(parts, dim=2)[:, :, :past]


def _all_values(module: Any, layer: LatentLayer, sinks: Sinks | None, past: int) -> Tensor:
    values = layer.v.read()
    if isinstance(module.v_proj, LowRankProjection):
        values = module.v_proj.expand(values)
        if sinks is not None and layer.rest_v is not None:
            values = sinks.add(values, module.v_proj.expand_rest(layer.rest_v), start=layer.dropped)
    return values.unflatten(-1, (-1, module.head_dim)).transpose(1, 2)[:, :, :past]


def _mask(
    scores: Float[Tensor, "batch heads new total"], mask: Tensor | None
) -> Float[Tensor, "batch heads new total"]:
    lowest = torch.finfo(scores.dtype).min
    if mask is None:
        new, total = scores.shape[-2:]
        if new == 1:
            return scores
        seen = torch.ones(new, total, dtype=torch.bool, device=scores.device).tril(total - new)
        return scores.masked_fill(~seen, lowest)
    return scores.masked_fill(~mask, lowest) if mask.dtype == torch.bool else scores + mask
