"""A KV cache that holds latents: the part of arXiv:2410.03111 that makes the cache smaller.

Per token and layer it stores r_k + r_v values instead of 2 m. Keys are latents from before RoPE (or rotated keys where
a layer's K is not compressed). Each page holds exactly its tokens, so the bytes counted are the bytes held.
"""

from typing import Any, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import PreTrainedConfig
from transformers.cache_utils import Cache, CacheLayerMixin

from lib.lorc.pages import Pages
from lib.lorc.spec import LowRankSpec, spec_of


class LatentLayer(CacheLayerMixin):
    """The latents of one layer: `k` and `v` pages of `[batch, tokens, rank]`.

    Extension: `rest_k` and `rest_v` hold what the ranks leave out of the first positions, `[batch, sinks, width -
    rank]`.
    """

    is_sliding = False
    is_croppable = True
    supports_early_init = False

    def __init__(self, *, int8: bool = False) -> None:
        super().__init__()
        self.k, self.v = Pages(int8=int8), Pages(int8=int8)
        self.rest_k: Tensor | None = None
        self.rest_v: Tensor | None = None

    def append(self, k: Float[Tensor, "batch tokens rank_k"], v: Float[Tensor, "batch tokens rank_v"]) -> None:
        """Add the latents of new tokens."""
        self.k.append(k)
        self.v.append(v)
        self.is_initialized = True

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Refuse keys and values: they come from a model that is not compressed."""
        self.update(key_states, value_states)

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Refuse keys and values: they come from a model that is not compressed."""
        raise ValueError("a LowRankCache holds a compressed model's latents: give this model a DynamicCache instead")

    def get_seq_length(self) -> int:
        """Return the number of tokens held."""
        return len(self.v)

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Return the length and offset of the keys that the next `query_length` tokens see."""
        return len(self.v) + query_length, 0

    def get_max_length(self) -> int:
        """Return -1: the cache grows without a limit."""
        return -1

    def crop(self, tokens_to_remove: int) -> None:
        """Take back the last tokens; `tokens_to_remove` is negative or zero, as for transformers' own caches."""
        if tokens_to_remove > 0:
            raise ValueError(f"crop takes the number of tokens to remove as a negative number, got {tokens_to_remove}")
        length = max(len(self.v) + tokens_to_remove, 0)
        self.k.crop(length)
        self.v.crop(length)
        if length == 0:
            self.reset()

    def reset(self) -> None:
        """Forget all tokens."""
        self.k, self.v = Pages(int8=self.k.int8), Pages(int8=self.v.int8)
        self.rest_k = self.rest_v = None
        self.is_initialized = False

    def batch_select_indices(self, indices: Int[Tensor, " rows"]) -> None:
        """Take the given rows of the batch."""
        self.k.select(indices)
        self.v.select(indices)
        self.rest_k, self.rest_v = (
            None if rest is None else rest.index_select(0, indices.to(rest.device))
            for rest in (self.rest_k, self.rest_v)
        )

    def reorder_cache(self, beam_idx: Int[Tensor, " rows"]) -> None:
        """Take the rows that the beams go on from."""
        self.batch_select_indices(beam_idx)

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat each row of the batch."""
        if len(self.v):
            rows = torch.arange(self.v.codes[0].shape[0], device=self.v.codes[0].device)
            self.batch_select_indices(rows.repeat_interleave(repeats))

    def offload(self) -> None:
        """Refuse: the latents are small so that they can stay on the device."""
        raise ValueError("a LowRankCache cannot be offloaded: leave cache_implementation unset")

    def prefetch(self) -> None:
        """Refuse, as `offload` does."""
        self.offload()

    def held_bytes(self) -> int:
        """Return the bytes of the storages that torch holds for this layer."""
        rests = [rest.untyped_storage().nbytes() for rest in (self.rest_k, self.rest_v) if rest is not None]
        return self.k.nbytes + self.v.nbytes + sum(rests)


class LowRankCache(Cache):
    """The cache of a compressed model (arXiv:2410.03111): r_k + r_v values per token and layer.

    Works wherever transformers takes a cache: `generate` (greedy, sampling, beams, left padding, assisted), chunked
    prefill, or `model(..., cache=cache)`. Raises ValueError for the config of a model that is not compressed.
    """

    def __init__(self, config: PreTrainedConfig) -> None:
        self.spec: LowRankSpec = spec_of(config)
        # Index of each row's first real token; all zero unless the batch is padded on the left.
        self.starts: Int[Tensor, " batch"] | None = None
        super().__init__(layers=[LatentLayer(int8=self.spec.int8) for _ in range(self.spec.plan.layers)])

    def layer(self, index: int) -> LatentLayer:
        """Return the latents of one layer."""
        return cast(LatentLayer, self.layers[index])

    def memory_bytes(self) -> int:
        """Return the bytes of the tokens held: batch x tokens x sum of (r_k + r_v) x itemsize.

        With sink tokens each row adds its first positions' missing width - rank values; with int8 the item size is 1
        and each token adds one scale per matrix and layer, in the model's dtype.
        """
        return sum(self._layer_bytes(index) for index in range(len(self.layers)))

    def held_bytes(self) -> int:
        """Return the bytes of the storages that torch holds for the latents; equals `memory_bytes()`."""
        return sum(self.layer(index).held_bytes() for index in range(len(self.layers)))

    def reset(self) -> None:
        """Forget all tokens."""
        super().reset()
        self.starts = None

    def reorder_cache(self, beam_idx: Int[Tensor, " rows"]) -> None:
        """Take the rows that the beams go on from."""
        super().reorder_cache(cast(Any, beam_idx))
        self._select_starts(beam_idx)

    def batch_select_indices(self, indices: Int[Tensor, " rows"]) -> None:
        """Take the given rows of the batch."""
        super().batch_select_indices(indices)
        self._select_starts(indices)

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat each row of the batch."""
        super().batch_repeat_interleave(repeats)
        if self.starts is not None:
            self.starts = self.starts.repeat_interleave(repeats)

    def _select_starts(self, indices: Tensor) -> None:
        if self.starts is not None:
            self.starts = self.starts.index_select(0, indices.to(self.starts.device))

    def _layer_bytes(self, index: int) -> int:
        layer, spec = self.layer(index), self.spec
        if not len(layer.v):
            return 0
        batch, tokens = layer.v.codes[0].shape[0], len(layer.v)
        item = (layer.v.scales if spec.int8 else layer.v.codes)[0].element_size()
        ranks = spec.plan.ranks_k[index] + spec.plan.ranks_v[index]
        per_token = ranks + 2 * item if spec.int8 else ranks * item
        rest = spec.rest("k", index) + spec.rest("v", index)
        return batch * (tokens * per_token + spec.sink_tokens * rest * item)
