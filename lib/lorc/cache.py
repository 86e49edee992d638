"""A KV cache that holds latents: the part of arXiv:2410.03111 that makes the cache smaller.

Per token and layer it stores r_k + r_v values instead of 2 m. Keys are latents from before RoPE (or rotated keys where
a layer's K is not compressed). Latents lie in pages of at most `PAGE_TOKENS` tokens, which hold exactly their tokens,
so that the bytes counted are the bytes held; pages are also the blocks in which keys are reconstructed. A layer with a
sliding window of W keeps the last W - 1 tokens, as transformers' own cache does, and nothing else.
"""

from collections.abc import Iterator
from typing import Any, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import PreTrainedConfig
from transformers.cache_utils import Cache, CacheLayerMixin, get_layer_types_and_kwargs

from lib.lorc.configuration import LowRankSpec, spec_of
from lib.lorc.latents import Packed

PAGE_TOKENS = 1024


class Pages:
    """Latents `[batch, tokens, width]` of one projection of one layer, in the order they came."""

    def __init__(self) -> None:
        self.pages: list[Packed] = []

    def __len__(self) -> int:
        return sum(page.tokens for page in self.pages)

    def __iter__(self) -> Iterator[tuple[int, Packed]]:
        """Yield each page with the number of tokens before it."""
        start = 0
        for page in self.pages:
            yield start, page
            start += page.tokens

    @property
    def nbytes(self) -> int:
        """Bytes that torch holds for the pages: the size of their storages."""
        return sum(part.untyped_storage().nbytes() for page in self.pages for part in _parts(page))

    def append(self, new: Packed) -> None:
        """Add tokens at the end."""
        room = min(PAGE_TOKENS - self.pages[-1].tokens, new.tokens) if self.pages else 0
        if room > 0:
            head = new if room == new.tokens else _slice(new, slice(0, room))
            joined = [torch.cat(pair, dim=1) for pair in zip(_parts(self.pages[-1]), _parts(head), strict=True)]
            self.pages[-1] = _packed(joined, new.width)
        for start in range(max(room, 0), new.tokens, PAGE_TOKENS):
            self.pages.append(_slice(new, slice(start, start + PAGE_TOKENS)))

    def read(self) -> Float[Tensor, "batch tokens width"]:
        """Return all latents as one tensor."""
        pages = [page.latents() for page in self.pages]
        return pages[0] if len(pages) == 1 else torch.cat(pages, dim=1)

    def keep(self, first: int, last: int) -> None:
        """Keep the tokens from `first` to before `last` and free the rest."""
        kept = []
        for start, page in self:
            low, high = max(first - start, 0), min(last - start, page.tokens)
            if low < high:
                kept.append(page if high - low == page.tokens else _slice(page, slice(low, high)))
        self.pages = kept

    def select(self, rows: Int[Tensor, " rows"]) -> None:
        """Take the given rows of the batch, in that order, possibly more than once."""
        self.pages = [
            _packed([part.index_select(0, rows.to(part.device)) for part in _parts(page)], page.width)
            for page in self.pages
        ]


def _parts(page: Packed) -> list[Tensor]:
    return [page.codes] if page.scale is None else [page.codes, page.scale]


def _packed(parts: list[Tensor], width: int) -> Packed:
    return Packed(parts[0], parts[1] if len(parts) > 1 else None, width)


def _slice(page: Packed, tokens: slice) -> Packed:
    # A slice of a longer tensor would keep all of it alive.
    parts = [part[:, tokens].clone(memory_format=torch.contiguous_format) for part in _parts(page)]
    return _packed(parts, page.width)


class LatentLayer(CacheLayerMixin):
    """The latents of one layer: `k` and `v` pages of `[batch, tokens, rank]`, of the last `window` - 1 tokens if given.

    Extension: `rest_k` and `rest_v` hold what the ranks leave out of the first positions, `[batch, sinks, width -
    rank]`.
    """

    is_croppable = True
    supports_early_init = False

    def __init__(self, window: int | None = None) -> None:
        super().__init__()
        self.window, self.is_sliding, self.recording = window, window is not None, False
        self.reset()

    def reset(self) -> None:
        """Forget all tokens."""
        self.k, self.v, self.dropped, self.is_initialized = Pages(), Pages(), 0, False
        self.rest_k: Tensor | None = None
        self.rest_v: Tensor | None = None

    def append(self, k: Packed, v: Packed) -> None:
        """Add the latents of new tokens."""
        self.k.append(k)
        self.v.append(v)
        self.is_initialized = True

    def trim(self) -> None:
        """Let go of the tokens that no later one sees: all but the last `window` - 1."""
        excess = len(self.v) - (self.window - 1) if self.window else 0
        if excess > 0 and not self.recording:
            self._keep(excess, len(self.v))
            self.dropped += excess

    def _keep(self, first: int, last: int) -> None:
        self.k.keep(first, last)
        self.v.keep(first, last)

    def activate_past_recording(self) -> None:
        """Keep what leaves the window until the next `crop`, for decoders that take tokens back."""
        self.recording = True

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Do nothing: pages grow with their tokens."""

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Return keys and values as they come: the attention of a compressed model takes their latents itself."""
        if not kwargs.get("kwargs", {}).get("latents"):
            raise ValueError(
                "a LowRankCache holds a compressed model's latents: give this model a DynamicCache instead"
            )
        return key_states, value_states

    def get_seq_length(self) -> int:
        """Return the number of tokens seen."""
        return self.dropped + len(self.v)

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Return the length and offset of the keys that the next `query_length` tokens see."""
        return len(self.v) + query_length, self.dropped

    def get_max_length(self) -> int:
        """Return the window, or -1: the cache grows without a limit."""
        return self.window or -1

    def crop(self, tokens_to_remove: int) -> None:
        """Take back the last tokens; `tokens_to_remove` is negative or zero, as for transformers' own caches."""
        if tokens_to_remove > 0:
            raise ValueError(f"crop takes the number of tokens to remove as a negative number, got {tokens_to_remove}")
        length = max(len(self.v) + tokens_to_remove, 0)
        if tokens_to_remove and self.dropped and not self.recording:
            raise ValueError("tokens that left the window cannot come back: call activate_past_recording before")
        self._keep(0, length)
        recording, self.recording = self.recording, False
        self.trim()
        self.recording = recording
        if not self.get_seq_length():
            self.reset()

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
            codes = self.v.pages[0].codes
            self.batch_select_indices(torch.arange(codes.shape[0], device=codes.device).repeat_interleave(repeats))

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
        # Index of each row's first real token, and each token's position; None where both are as without padding.
        self.starts: Int[Tensor, " batch"] | None = None
        self.positions: Int[Tensor, "batch tokens"] | None = None
        _, options = get_layer_types_and_kwargs(config)
        super().__init__(layers=[LatentLayer(each.get("sliding_window")) for each in options])

    def layer(self, index: int) -> LatentLayer:
        """Return the latents of one layer."""
        return cast(LatentLayer, self.layers[index])

    def held_bytes(self) -> int:
        """Return the bytes that torch holds for the latents.

        They are batch x tokens x sum of (r_k + r_v) x itemsize, over the tokens of the window where a layer has one.
        With sink tokens each row adds its first positions' missing width - rank values; with 8 or 4 bits a latent takes
        a byte or half of one and each token adds one scale per matrix and layer.
        """
        return sum(self.layer(index).held_bytes() for index in range(len(self.layers)))

    def place(self, position_ids: Int[Tensor, "rows new"], batch: int) -> None:
        """Note the positions of the next tokens, where they are not simply their indices."""
        past, new = self.get_seq_length(), position_ids.shape[-1]
        index = torch.arange(past + new, device=position_ids.device)
        if self.positions is not None or not torch.equal(position_ids, index[past:].expand_as(position_ids)):
            before = index[:past].expand(batch, -1) if self.positions is None else self.positions
            self.positions = torch.cat((before.to(position_ids), position_ids.expand(batch, -1)), dim=1)

    def reset(self) -> None:
        """Forget all tokens."""
        super().reset()
        self.starts = self.positions = None

    def crop(self, tokens_to_remove: int) -> None:
        """Take back the last tokens of every layer; the number is negative, as for transformers' own caches."""
        super().crop(tokens_to_remove)
        length = self.get_seq_length()
        self.positions = self.positions[:, :length].clone() if self.positions is not None and length else None

    def reorder_cache(self, beam_idx: Int[Tensor, " rows"]) -> None:
        """Take the rows that the beams go on from."""
        self.batch_select_indices(beam_idx)

    def batch_select_indices(self, indices: Int[Tensor, " rows"]) -> None:
        """Take the given rows of the batch."""
        super().batch_select_indices(indices)
        self._rows(lambda rows: rows.index_select(0, indices.to(rows.device)))

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat each row of the batch."""
        super().batch_repeat_interleave(repeats)
        self._rows(lambda rows: rows.repeat_interleave(repeats, dim=0))

    def _rows(self, take: Any) -> None:
        self.starts, self.positions = (None if rows is None else take(rows) for rows in (self.starts, self.positions))
