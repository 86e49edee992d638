"""What decoding keeps of the text: each layer's EMA state and its last w active tokens. The same size at any length."""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers import Cache


class Past(NamedTuple):
    """The last w active tokens of each row, at the right end: what attention keeps of the text. Memory O(w)."""

    keys: Float[Tensor, "batch window z"]
    values: Float[Tensor, "batch window h"]
    positions: Int[Tensor, "batch window"]
    mask: Bool[Tensor, "batch window"]


@dataclass
class LayerState:
    """One layer's EMA state [batch, width, N] and past; both None before the first token."""

    ema: Float[Tensor, "batch width n"] | None = None
    past: Past | None = None


class SeqBoatCache(Cache):
    """Cache of a causal SeqBoat for `generate`; its memory does not grow with the text."""

    is_compileable = False  # pyright: ignore[reportAssignmentType] - a property in the parent
    is_linear = (False,)  # pyright: ignore[reportAssignmentType] - so that `generate` skips what was read, as of keys

    def __init__(self, layers: int) -> None:
        super().__init__(layers=[])
        self.states = [LayerState() for _ in range(layers)]
        self.counts: Tensor | None = None  # real tokens read of each row
        self.seen = 0

    def __len__(self) -> int:
        return len(self.states)

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Return the number of tokens read, padding included."""
        return self.seen

    def advance(self, real: Tensor) -> Int[Tensor, "batch tokens"]:
        """Return the positions of the next tokens in each row's text, and count them as read."""
        before = torch.zeros_like(real[:, 0], dtype=torch.long) if self.counts is None else self.counts
        positions = (before.unsqueeze(1) + real.cumsum(1) - 1).clamp(min=0)
        self.counts, self.seen = before + real.sum(1), self.seen + real.shape[1]
        return positions

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Keep the rows that beam search chose, in its order."""
        self.batch_select_indices(beam_idx)

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep chosen rows."""

        def chosen(part: Tensor) -> Tensor:
            return part.index_select(0, indices.to(part.device))

        self.counts = None if self.counts is None else chosen(self.counts)
        for state in self.states:
            state.ema = None if state.ema is None else chosen(state.ema)
            state.past = None if state.past is None else Past(*map(chosen, state.past))

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat each row."""
        if self.counts is not None:
            rows = torch.arange(len(self.counts), device=self.counts.device)
            self.batch_select_indices(rows.repeat_interleave(repeats))

    def reset(self) -> None:
        """Forget the text."""
        self.states = [LayerState() for _ in self.states]
        self.counts, self.seen = None, 0

    def num_bytes(self) -> int:
        """Return the number of bytes held."""
        parts = [part for state in self.states for part in (state.ema, *(state.past or ()))]
        return sum(part.nbytes for part in parts if part is not None)
