"""A KV cache that holds latents: the part of arXiv:2410.03111 that makes the cache smaller.

Per token and layer it stores r_k + r_v values instead of 2 m. Keys are latents from before RoPE (or rotated keys where
a layer's K is not compressed). Latents lie in pages of fixed length, which hold exactly their tokens, so that the bytes
counted are the bytes held: concatenating a whole cache at each step copies it all, and a buffer with room to grow holds
more than it stores. Pages are also the blocks in which keys are reconstructed.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import PreTrainedConfig
from transformers.cache_utils import Cache, CacheLayerMixin

from lib.lorc.configuration import LowRankSpec, spec_of

PAGE_TOKENS = 1024
INT8_LARGEST = 127


@dataclass(frozen=True)
class Page:
    """Latents of up to `PAGE_TOKENS` tokens; as int8 codes with one scale a token when quantised."""

    start: int
    codes: Tensor
    scale: Float[Tensor, "batch tokens 1"] | None

    @property
    def tokens(self) -> int:
        """Number of tokens in the page."""
        return self.codes.shape[1]

    def latents(self) -> Float[Tensor, "batch tokens width"]:
        """Return the latents in the dtype they were stored from."""
        return self.codes if self.scale is None else self.codes * self.scale


class Pages:
    """Latents `[batch, tokens, width]` of one projection of one layer, in the order they came."""

    def __init__(self, *, int8: bool = False) -> None:
        self.int8 = int8
        self.codes: list[Tensor] = []
        self.scales: list[Tensor] = []

    def __len__(self) -> int:
        return sum(page.shape[1] for page in self.codes[-1:]) + PAGE_TOKENS * max(len(self.codes) - 1, 0)

    def __iter__(self) -> Iterator[Page]:
        for index, codes in enumerate(self.codes):
            yield Page(index * PAGE_TOKENS, codes, self.scales[index] if self.int8 else None)

    @property
    def nbytes(self) -> int:
        """Bytes that torch holds for the pages: the size of their storages."""
        return sum(page.untyped_storage().nbytes() for page in (*self.codes, *self.scales))

    def append(self, latents: Float[Tensor, "batch tokens width"]) -> None:
        """Add tokens at the end."""
        if not self.int8:
            _extend(self.codes, latents)
            return
        codes, scale = quantise(latents)
        _extend(self.codes, codes)
        _extend(self.scales, scale)

    def read(self) -> Float[Tensor, "batch tokens width"]:
        """Return all latents as one tensor."""
        pages = [page.latents() for page in self]
        return pages[0] if len(pages) == 1 else torch.cat(pages, dim=1)

    def crop(self, length: int) -> None:
        """Keep the first `length` tokens and free the rest."""
        for pages in (self.codes, self.scales):
            full, rest = divmod(length, PAGE_TOKENS)
            tail = [page[:, :rest].clone() for page in pages[full : full + 1] if rest]
            pages[full:] = tail

    def select(self, rows: Int[Tensor, " rows"]) -> None:
        """Take the given rows of the batch, in that order, possibly more than once."""
        self.codes = [page.index_select(0, rows.to(page.device)) for page in self.codes]
        self.scales = [page.index_select(0, rows.to(page.device)) for page in self.scales]


def quantise(
    latents: Float[Tensor, "batch tokens width"],
) -> tuple[Int[Tensor, "batch tokens width"], Float[Tensor, "batch tokens 1"]]:
    """Round each token's latents to int8 with one scale: largest magnitude / 127 (an extension of arXiv:2410.03111)."""
    tiny = torch.finfo(latents.dtype).tiny
    scale = (latents.abs().amax(dim=-1, keepdim=True) / INT8_LARGEST).clamp_min(tiny)
    codes = (latents / scale).round().clamp(-INT8_LARGEST, INT8_LARGEST)
    return codes.to(torch.int8), scale


def _extend(pages: list[Tensor], new: Tensor) -> None:
    room = PAGE_TOKENS - pages[-1].shape[1] if pages else 0
    if room:
        pages[-1] = torch.cat((pages[-1], new[:, :room]), dim=1)
    for part in new[:, room:].split(PAGE_TOKENS, dim=1) if new.shape[1] > room else ():
        # A slice of a longer tensor would keep all of it alive.
        pages.append(part.clone(memory_format=torch.contiguous_format))


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

    def held_bytes(self) -> int:
        """Return the bytes that torch holds for the latents.

        They are batch x tokens x sum of (r_k + r_v) x itemsize. With sink tokens each row adds its first positions'
        missing width - rank values; with int8 the item size is 1 and each token adds one scale per matrix and layer.
        """
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
