"""A growing store of latents in pages: no token is copied twice a step, and no byte is held that is not a token's.

Concatenating a whole cache at each step copies it all; a buffer with room to grow holds more than it stores. A list of
pages of fixed length does neither: only the last page is copied when it grows. Pages are also the blocks in which
keys are reconstructed.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

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
