"""What the layers of a compressed model share while they run: the pass at hand, its sinks, angles, scratch memory.

Sink tokens are an extension of arXiv:2410.03111, off by default. The hidden state of the first token is massive and W_v
maps it near zero, so what a truncated W_v leaves of it drowns the other values. The first `sink_tokens` positions of
each row therefore also keep the other half of the basis: up C + rest_up R is exactly W x for a sink.
"""

import inspect
import sys
from dataclasses import dataclass, field
from math import prod
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from lib.lorc.cache import LowRankCache
from lib.lorc.latents import Packed

# Up to this many new tokens it is cheaper to weigh latents than to reconstruct the values that they stand for.
SHORT = 16


@dataclass(frozen=True)
class Sinks:
    """Where the sinks of each row are among all its tokens, and which of them are among the new ones."""

    index: Int[Tensor, "batch sinks"]
    past: int
    new: Bool[Tensor, "batch sinks"]
    any_new: bool
    first: int
    last: int
    tokens: int

    def gather(self, hidden: Float[Tensor, "batch tokens hidden"]) -> Float[Tensor, "batch sinks hidden"]:
        """Return the states of the sinks among the new tokens; those of others are of no meaning."""
        chosen = (self.index - self.past).clamp(0, hidden.shape[1] - 1)
        return hidden.gather(1, chosen.unsqueeze(-1).expand(-1, -1, hidden.shape[-1]))

    def within(self, start: int, tokens: int) -> bool:
        """Say whether any row may have a sink among `tokens` tokens from index `start`."""
        return self.first < start + tokens and self.last >= start

    def add(
        self,
        states: Float[Tensor, "batch tokens width"],
        missing: Float[Tensor, "batch sinks width"],
        *,
        start: int,
        in_place: bool = False,
    ) -> Float[Tensor, "batch tokens width"]:
        """Add to the sinks among states that begin at index `start` what is missing from them."""
        local = self.index - start
        inside = (local >= 0) & (local < states.shape[1]) & (self.index < self.tokens)
        missing = missing * inside.unsqueeze(-1)
        index = local.clamp(0, states.shape[1] - 1).unsqueeze(-1).expand_as(missing)
        return states.scatter_add_(1, index, missing) if in_place else states.scatter_add(1, index, missing)

    def weights(self, rows: Float[Tensor, "batch groups rows held"], dropped: int) -> Tensor:
        """Return the weights that the sinks get among the tokens held: [batch, groups, rows, sinks]."""
        local = self.index - dropped
        inside = (local >= 0) & (local < rows.shape[-1])
        along = local.clamp(0, rows.shape[-1] - 1)[:, None, None].expand(*rows.shape[:-1], -1)
        return rows.gather(-1, along) * inside[:, None, None]


@dataclass
class Step:
    """One pass of a model: the cache that it fills, the tokens that were there before, latents not yet cached."""

    cache: LowRankCache | None
    past: int
    starts: Int[Tensor, " batch"] | None = None
    latents: dict[Any, tuple[Packed, Tensor | None]] = field(default_factory=dict)  # by projection, those of its sinks
    _sinks: Sinks | None = None
    _angles: dict[Any, tuple[Tensor, ...]] = field(default_factory=dict)

    def attends_to_latents(self, new: int) -> bool:
        """Say whether `new` tokens attend to latents, keys made page by page, and not to keys and values made whole."""
        return bool(self.past) and new <= SHORT and self.cache is not None and not torch.is_grad_enabled()

    def sinks(self, count: int, like: Float[Tensor, "batch tokens _"]) -> Sinks | None:
        """Return where the first `count` real tokens of each row are, once a pass."""
        if not count or self._sinks is not None:
            return self._sinks
        batch, new, _ = like.shape
        starts = torch.zeros(batch, dtype=torch.long) if self.starts is None else self.starts
        lowest, highest = int(starts.min()), int(starts.max()) + count - 1
        index = starts.to(like.device)[:, None] + torch.arange(count, device=like.device)
        fresh = (index >= self.past) & (index < self.past + new)
        any_new = highest >= self.past and bool(fresh.any())
        sinks = Sinks(index, self.past, fresh, any_new, lowest, highest, self.past + new)
        if self.cache is not None:
            self._sinks = sinks
        return sinks

    def angles(
        self, shared: "Shared", attention: Any, start: int, tokens: int, like: Tensor, *, columns: bool
    ) -> tuple[Tensor, ...]:
        """Return cosines and sines of the held tokens from index `start`: [*, tokens, dim] each by token.

        By channel they are one tensor [*, 2, 1, dim / 2, tokens], which broadcasts over heads and halves of keys.
        """
        kind = shared.kind(attention)
        key = (kind, columns, start, tokens)
        if key not in self._angles:
            self._angles[key] = self._taken(shared, kind, slice(start, start + tokens), like, columns)
        return self._angles[key]

    def _taken(self, shared: "Shared", kind: str, here: slice, like: Tensor, columns: bool) -> tuple[Tensor, ...]:
        positions = None if self.cache is None else self.cache.positions
        if positions is None:
            rows, flat = shared.table(kind, here.stop, like)
            return (flat[..., here],) if columns else tuple(each[None, here] for each in rows)
        positions = positions[:, here].to(like.device)
        rows, flat = shared.table(kind, int(positions.max()) + 1, like)
        if not columns:
            return tuple(each[positions] for each in rows)
        return (flat[..., positions].permute(3, 0, 1, 2, 4).unsqueeze(1),)


class Shared:
    """Angles and scratch memory of a model's layers, made on demand and never part of a cache or a checkpoint.

    A page of keys lives only until its scores are taken. Reusing its memory saves the page faults that a new allocation
    costs at each page, which is half the time of the reconstruction on a CPU.
    """

    def __init__(self, rotary_embedding: Any, sink_tokens: int) -> None:
        self.rotary, self.sink_tokens, self.step = rotary_embedding, sink_tokens, None
        self.typed = "layer_type" in inspect.signature(rotary_embedding.forward).parameters
        self._tables: dict[Any, tuple[tuple[Tensor, Tensor], Tensor]] = {}
        self._flat: dict[Any, Tensor] = {}
        # By layer: asked of each layer at each token.
        self._half_split: dict[int, bool] = {}
        self._rotates: dict[int, bool] = {}
        self.step: Step | None

    def kind(self, attention: Any) -> str:
        """Return which of the model's rotations a layer uses (Gemma-3 has one a layer type)."""
        return str(attention.layer_type) if self.typed else ""

    def rotates(self, attention: Any) -> bool:
        """Say whether a layer rotates its keys: SmolLM3 and Cohere-2 have layers that do not."""
        index = attention.layer_idx
        if index not in self._rotates:
            cohere = attention.config.model_type.endswith("cohere2")
            self._rotates[index] = (
                attention.sliding_window is not None if cohere else bool(getattr(attention, "use_rope", True))
            )
        return self._rotates[index]

    def half_split(self, attention: Any) -> bool:
        """Say whether keys can be rotated by channel: no norm before it, and the rotation is the Llama family's."""
        index = attention.layer_idx
        if index not in self._half_split:
            dim = attention.head_dim
            keys, angles = torch.linspace(-1, 1, 3 * dim).view(1, 1, 3, dim), torch.linspace(0, 2, 3 * (dim // 2))
            cos, sin = (each.view(1, 3, -1) for each in (angles.cos(), angles.sin()))
            whole = (each.repeat(1, 1, 2) for each in (cos, sin))
            rotate = sys.modules[type(attention).__module__].apply_rotary_pos_emb
            theirs, (first, second) = rotate(keys, keys, *whole)[1], keys.chunk(2, -1)
            ours = torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)
            normed = getattr(attention, "k_norm", None) is not None
            self._half_split[index] = not normed and torch.allclose(theirs, ours, atol=1e-6)
        return self._half_split[index]

    def table(self, kind: str, length: int, like: Tensor) -> tuple[tuple[Tensor, Tensor], Tensor]:
        """Return cosines and sines of positions from 0: [length, dim] by token, [2, 1, dim / 2, length] by channel."""
        key = (kind, like.device, like.dtype)
        if key not in self._tables or self._tables[key][0][0].shape[0] < length:
            with torch.inference_mode(False), torch.no_grad():  # a later pass may have gradients
                positions = torch.arange(max(2 * length, 1024), device=like.device)[None]
                cos, sin = (each[0] for each in self.rotary(like, positions, *([kind] if self.typed else [])))
                half = cos.shape[-1] // 2
                columns = torch.stack([each[:, :half].T for each in (cos, sin)])[:, None]
                self._tables[key] = ((cos, sin), columns.contiguous())
        return self._tables[key]

    def scratch(self, name: str, shape: tuple[int, ...], like: Tensor) -> Tensor:
        """Return uninitialised memory of a shape, the same at each call of a name: copy what must outlive the next."""
        key, size = (name, like.device, like.dtype), prod(shape)
        flat = self._flat.get(key)
        if flat is None or flat.numel() < size:
            with torch.inference_mode(False):  # a later pass outside that mode writes to it
                flat = self._flat[key] = torch.empty(size, dtype=like.dtype, device=like.device)
        return flat[:size].view(shape)
