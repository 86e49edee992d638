"""Attention over cached latents (arXiv:2410.03111): keys reconstructed and rotated on use, values never while decoding.

A projection is two factors, transposed as in transformers: `down` = (U S)^T makes the latent that is cached, `up` = V
makes keys or values of it. `rest_*` is the other half of the basis, which only sink tokens use (extension): up down +
rest_up rest_down is the whole projection.

Symbols: q [B, H, n, d]; C_k [B, T, r_k] and C_v [B, T, r_v] the latents; K = C_k U_k^T; the output of head h is
(A_h C_v) U_v,h^T W_o,h, where A_h are the attention weights: the right factor of W_v is applied to one weighted latent
a query, not to T values.
"""

from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.llama.modeling_llama import eager_attention_forward
from transformers.models.qwen3.modeling_qwen3 import Qwen3RMSNorm

from lib.lorc.cache import LatentLayer, LowRankCache, Page
from lib.lorc.configuration import Geometry, LowRankSpec, Matrix, geometry
from lib.lorc.decomposition import Basis
from lib.lorc.rotary import Angles, SharedBuffers, rotate, rotate_columns_
from lib.lorc.sinks import Sinks

# Up to this many new tokens it is cheaper to weigh latents than to reconstruct the values that they stand for.
SHORT = 16


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


class LowRankAttention(nn.Module):
    """The attention of one layer of a compressed model, in place of the Llama family's.

    A projection at full rank is kept as it is: its keys are cached rotated, its values as they are.
    """

    def __init__(self, config: Any, layer_idx: int, spec: LowRankSpec) -> None:
        super().__init__()
        sizes = geometry(config)
        self.config, self.layer_idx, self.spec = config, layer_idx, spec
        self.head_dim, self.kv_heads, self.query_heads = sizes.head_dim, sizes.kv_heads, sizes.query_heads
        self.num_key_value_groups = sizes.query_heads // sizes.kv_heads
        self.scaling, self.is_causal = sizes.head_dim**-0.5, True
        self.attention_dropout = config.attention_dropout
        self.shared = cast(SharedBuffers, None)  # by all layers; set by the model
        self.q_proj = nn.Linear(sizes.hidden, sizes.query_heads * sizes.head_dim, bias="q" in spec.biases)
        norms = (Qwen3RMSNorm(sizes.head_dim, eps=config.rms_norm_eps) if sizes.key_norm else None for _ in range(2))
        self.q_norm, self.k_norm = norms
        # Deviation: U_v is folded into W_o only per head. For a joint basis that would make W_o [D, H r_v] instead of
        # [D, H d], mostly larger; applying U_v to the weighted latent is the same product, in cheaper order.
        rank_v = spec.plan.ranks_v[layer_idx]
        self.absorbed = rank_v < sizes.width and spec.granularity == "head"
        self.k_proj, self.keys = self._projection(sizes, "k", absorbed=False)
        self.v_proj, self.values = self._projection(sizes, "v", absorbed=self.absorbed)
        out_dim = rank_v // sizes.kv_heads if self.absorbed and not spec.sink_tokens else sizes.head_dim
        # The weights of a query sum to one, so a bias of V that W_o absorbs becomes a bias of W_o.
        self.o_proj = nn.Linear(
            sizes.query_heads * out_dim, sizes.hidden, bias="o" in spec.biases or (self.absorbed and "v" in spec.biases)
        )

    def _projection(
        self, sizes: Geometry, matrix: Matrix, *, absorbed: bool
    ) -> tuple[nn.Linear | None, LowRankProjection | None]:
        """Return one of the two: the projection as it was at full rank, its factors otherwise."""
        rank, bias = self.spec.plan.ranks(matrix)[self.layer_idx], matrix in self.spec.biases
        if rank == sizes.width:
            return nn.Linear(sizes.hidden, sizes.width, bias=bias), None
        groups, rest = sizes.kv_heads if self.spec.granularity == "head" else 1, self.spec.sink_tokens > 0
        return None, LowRankProjection(
            sizes.hidden, sizes.width, rank, groups=groups, bias=bias, rest=rest, absorbed=absorbed
        )

    def forward(
        self,
        hidden_states: Float[Tensor, "batch tokens hidden"],
        position_embeddings: Any = None,
        attention_mask: Tensor | None = None,
        cache: LowRankCache | None = None,
        **kwargs: Any,
    ) -> tuple[Float[Tensor, "batch tokens hidden"], Tensor | None]:
        """Attend from the new tokens to all tokens, and cache the latents of the new ones."""
        layer = LatentLayer(int8=self.spec.int8) if cache is None else cache.layer(self.layer_idx)
        past, new = layer.get_seq_length(), hidden_states.shape[1]
        angles = self.shared.angles(past + new, hidden_states)
        cos, sin = angles.cos_rows[past : past + new], angles.sin_rows[past : past + new]
        query = rotate(self._queries(hidden_states), cos, sin)
        layer.append(self._key_latents(hidden_states, cos, sin), self._value_latents(hidden_states))
        sinks = Sinks.update(self, layer, hidden_states, kwargs.get("row_starts"), past=past)
        if past and new <= SHORT and not torch.is_grad_enabled():
            output, weights = self._attend_latents(query, layer, attention_mask, sinks, angles)
        else:
            output, weights = self._attend_reconstructed(query, layer, attention_mask, sinks, angles)
        return self.o_proj(output.flatten(2)), weights

    def _queries(self, hidden: Tensor) -> Tensor:
        query = self.q_proj(hidden).unflatten(-1, (self.query_heads, self.head_dim))
        return (query if self.q_norm is None else self.q_norm(query)).transpose(1, 2)

    def _key_latents(self, hidden: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        if self.keys is not None:
            return self.keys.latents(hidden)
        keys = cast(nn.Linear, self.k_proj)(hidden).unflatten(-1, (self.kv_heads, self.head_dim))
        keys = keys if self.k_norm is None else self.k_norm(keys)
        return rotate(keys.transpose(1, 2), cos, sin).transpose(1, 2).flatten(2)

    def _value_latents(self, hidden: Tensor) -> Tensor:
        return cast(nn.Linear, self.v_proj)(hidden) if self.values is None else self.values.latents(hidden)

    def _attend_latents(
        self, query: Tensor, layer: LatentLayer, mask: Tensor | None, sinks: Sinks | None, angles: Angles
    ) -> tuple[Tensor, Tensor]:
        """Attend page by page: one block of keys at a time, and no values at all."""
        batch, _, new, _ = query.shape
        # [B, KV heads, group x n, d]: the queries that share a KV head are one matrix.
        grouped = (query * self.scaling).reshape(batch, self.kv_heads, -1, self.head_dim)
        parts = [torch.matmul(grouped, self._page_keys(page, angles)) for page in layer.k]
        scores = parts[0] if len(parts) == 1 else torch.cat(parts, dim=-1)
        if sinks is not None:
            sinks.correct_scores(self, scores, grouped, layer, angles)
        scores = _mask(scores.view(batch, self.query_heads, new, -1), mask)
        precise = torch.promote_types(query.dtype, torch.float32)
        weights = functional.softmax(scores, dim=-1, dtype=precise).to(query.dtype)
        return self._weigh_values(weights, layer, sinks).transpose(1, 2), weights

    def _page_keys(self, page: Page, angles: Angles) -> Float[Tensor, "batch heads dim tokens"]:
        """Return the rotated keys of one page, in memory that the next page takes over."""
        latents = page.latents()
        batch, tokens, _ = latents.shape
        if self.keys is None:
            return latents.view(batch, tokens, self.kv_heads, self.head_dim).permute(0, 2, 3, 1)
        shape = (batch, self.kv_heads, self.head_dim, tokens)
        keys = self.shared.scratch("keys", shape, latents)
        self.keys.expand_columns(latents, out=keys.view(batch, -1, tokens))
        half = self.shared.scratch("half", (batch, self.kv_heads, self.head_dim // 2, tokens), latents)
        here = slice(page.start, page.start + tokens)
        return rotate_columns_(keys, angles.cos[:, here], angles.sin[:, here], scratch=half)

    def _weigh_values(self, weights: Tensor, layer: LatentLayer, sinks: Sinks | None) -> Tensor:
        """Return sum_t A_t C_v,t taken through U_v: [B, H, n, d], or [B, H, n, r] where W_o holds U_v."""
        heads = 1 if self.values is not None and not self.absorbed else self.kv_heads
        batch, _, new, _ = weights.shape
        rows = weights.reshape(batch, heads, -1, weights.shape[-1])
        parts = []
        for page in layer.v:
            latents = page.latents().view(batch, page.tokens, heads, -1).transpose(1, 2)
            parts.append(torch.matmul(rows[..., page.start : page.start + page.tokens], latents))
        # Pages are added up in float32, as one long product would be.
        total = parts[0] if len(parts) == 1 else torch.stack(parts).sum(0, dtype=torch.float32).to(weights.dtype)
        weighted = total.view(batch, self.kv_heads, -1, total.shape[-1])
        if self.values is not None and not self.absorbed:
            up = cast(Tensor, self.values.up).view(self.kv_heads, self.head_dim, -1)
            weighted = torch.matmul(weighted, up.transpose(1, 2))
            if self.values.bias is not None:
                # The weights of a query sum to one, so a bias of V passes through attention unchanged.
                weighted = weighted + self.values.bias.view(self.kv_heads, 1, self.head_dim)
        if sinks is not None:
            weighted = sinks.add_values(self, weighted, rows, layer)
        return weighted.reshape(batch, self.query_heads, new, -1)

    def _attend_reconstructed(
        self, query: Tensor, layer: LatentLayer, mask: Tensor | None, sinks: Sinks | None, angles: Angles
    ) -> tuple[Tensor, Tensor | None]:
        """Attend with the model's own kernel over this layer's keys and values, freed again after the layer.

        For many new tokens that is cheaper: n H (r_v - d) T multiply-adds saved for r_v m T spent.
        """
        keys, values = self._all_keys(layer, sinks, angles), self._all_values(layer, sinks)
        width = values.shape[-1]
        values = functional.pad(values, (0, self.head_dim - width))  # fused kernels want one head size
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, eager_attention_forward)
        dropout = self.attention_dropout if self.training else 0.0
        output, weights = attend(self, query, keys, values, mask, dropout=dropout, scaling=self.scaling)
        return output[..., :width], weights

    def _all_keys(self, layer: LatentLayer, sinks: Sinks | None, angles: Angles) -> Tensor:
        keys = layer.k.read()
        if self.keys is None:
            return keys.unflatten(-1, (self.kv_heads, self.head_dim)).transpose(1, 2)
        keys = self.keys.expand(keys)
        if sinks is not None and layer.rest_k is not None:
            keys = sinks.add_rows(keys, self.keys.expand_rest(layer.rest_k))
        heads, count = keys.unflatten(-1, (self.kv_heads, self.head_dim)).transpose(1, 2), len(layer.k)
        return rotate(heads, angles.cos_rows[:count], angles.sin_rows[:count])

    def _all_values(self, layer: LatentLayer, sinks: Sinks | None) -> Tensor:
        values = layer.v.read()
        if self.values is not None and not self.absorbed:
            values = self.values.expand(values)
        if sinks is None or layer.rest_v is None or self.values is None:
            return values.unflatten(-1, (self.kv_heads, -1)).transpose(1, 2)
        if not self.absorbed:
            values = sinks.add_rows(values, self.values.expand_rest(layer.rest_v))
            return values.unflatten(-1, (self.kv_heads, -1)).transpose(1, 2)
        rest = sinks.add_rows(values.new_zeros(*values.shape[:2], layer.rest_v.shape[-1]), layer.rest_v)
        pair = [part.unflatten(-1, (self.kv_heads, -1)) for part in (values, rest)]
        return torch.cat(pair, dim=-1).transpose(1, 2)


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
