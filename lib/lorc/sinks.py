"""Sink tokens at full rank: an extension of arXiv:2410.03111, off by default.

The hidden state of the first token is massive and W_v maps it near zero, so what a truncated W_v leaves of it drowns
the other values. The first `sink_tokens` positions of each row therefore also keep the other half of the basis, and the
latents of all tokens stay as they are: up C + rest_up R is exactly W x for a sink.
"""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from lib.lorc.cache import LatentLayer
from lib.lorc.rotary import Angles, rotate_at


@dataclass(frozen=True)
class Sinks:
    """Where the sinks of each row are: `index` into the cache, and whether a token has come there yet."""

    index: Int[Tensor, "batch sinks"]
    present: Bool[Tensor, "batch sinks"]

    @classmethod
    def update(
        cls,
        attention: Any,
        layer: LatentLayer,
        hidden: Float[Tensor, "batch tokens hidden"],
        starts: Tensor | None,
        *,
        past: int,
    ) -> "Sinks | None":
        """Store the rest of the sinks among the new tokens and return where all sinks are, or None without sinks."""
        count = attention.spec.sink_tokens
        if not count or (attention.keys is None and attention.values is None):
            return None
        batch, new, _ = hidden.shape
        needed = past < count if starts is None else None
        starts = torch.zeros(batch, dtype=torch.long) if starts is None else starts
        starts = starts.to(hidden.device)
        index = starts[:, None] + torch.arange(count, device=hidden.device)
        fresh = (index >= past) & (index < past + new)
        if needed or (needed is None and fresh.any()):
            chosen = (index - past).clamp(0, new - 1)
            states = hidden.gather(1, chosen.unsqueeze(-1).expand(-1, -1, hidden.shape[-1]))
            layer.rest_k = _store(layer.rest_k, attention.keys, states, fresh)
            layer.rest_v = _store(layer.rest_v, attention.values, states, fresh)
        total = past + new
        return cls(index=index.clamp_max(total - 1), present=index < total)

    def add_rows(
        self, states: Float[Tensor, "batch tokens width"], missing: Float[Tensor, "batch sinks width"]
    ) -> Float[Tensor, "batch tokens width"]:
        """Add to each row's sinks what is missing from them."""
        missing = missing * self.present.unsqueeze(-1)
        return states.scatter_add(1, self.index.unsqueeze(-1).expand_as(missing), missing)

    def correct_scores(
        self,
        attention: Any,
        scores: Float[Tensor, "batch kv rows total"],
        query: Tensor,
        layer: LatentLayer,
        angles: Angles,
    ) -> None:
        """Add q . R_i (what is missing from key i) to the scores of the sinks, in place."""
        if layer.rest_k is None:
            return
        missing = attention.keys.expand_rest(layer.rest_k) * self.present.unsqueeze(-1)
        heads = missing.unflatten(-1, (attention.kv_heads, attention.head_dim))
        rotated = rotate_at(heads, self.index, angles)
        added = torch.matmul(query, rotated.permute(0, 2, 3, 1))
        scores.scatter_add_(-1, self._along(added), added)

    def add_values(self, attention: Any, weighted: Tensor, weights: Tensor, layer: LatentLayer) -> Tensor:
        """Add the weighted rest of the sinks: to the heads, or beside the latents where W_o holds the basis."""
        if layer.rest_v is None:
            return weighted
        rest = layer.rest_v * self.present.unsqueeze(-1)
        heads = attention.kv_heads if attention.absorbed else 1
        batch, _, _, total = weights.shape
        rows = weights.reshape(batch, heads, -1, total)
        taken = rows.gather(-1, self._along(rows))
        part = torch.matmul(taken, rest.unflatten(-1, (heads, -1)).transpose(1, 2))
        part = part.view(batch, attention.kv_heads, -1, part.shape[-1])
        if attention.absorbed:
            return torch.cat((weighted, part), dim=-1)
        up = attention.values.rest_up.view(attention.kv_heads, attention.head_dim, -1)
        return weighted + torch.matmul(part, up.transpose(1, 2))

    def _along(self, rows: Tensor) -> Tensor:
        return self.index[:, None, None, :].expand(*rows.shape[:-1], -1)


def _store(held: Tensor | None, projection: Any, states: Tensor, fresh: Bool[Tensor, "batch sinks"]) -> Tensor | None:
    """Put what the rank leaves out of fresh sinks beside what is held of the others."""
    if projection is None:
        return None
    new = projection.rest(states)
    return torch.where(fresh.unsqueeze(-1), new, torch.zeros_like(new) if held is None else held)
