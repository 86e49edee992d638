"""A model's KV cache over rows that advance by different numbers of tokens, with rollback.

Rows share the cache's slots. A slot that holds padding or a refused token is masked for its row, slots that no row uses
are cut off, and when too many are wasted the rows are packed anew. Positions count a row's own tokens only.
"""

from dataclasses import dataclass
from typing import Any, cast

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers import DynamicCache

from lib import TenfoldError

WASTE = 64  # masked slots of the fullest row that are put up with before rows are packed


@dataclass(frozen=True)
class Step:
    """Last hidden states of the tokens fed, and the inputs of the layers asked for, joined along the last axis."""

    hidden: Float[Tensor, "batch fed width"]
    features: Float[Tensor, "batch fed features"] | None


class Context:
    """What a decoder has read so far: `lengths` tokens of each row, kept as keys and values.

    `layers` names hidden states to return as features (0: the embeddings, i: the output of layer i). A decoder with a
    `new_cache()` of its own, such as one compressed by LoRC, keeps that; its rows cannot advance differently, so it
    decodes one row at a time. Raises TenfoldError for more.
    """

    def __init__(self, model: Any, batch: int, *, layers: tuple[int, ...] = ()) -> None:
        # A decoder without a head answers get_decoder() with itself or not at all.
        self.decoder = model.get_decoder() if hasattr(model, "get_decoder") else model
        device = next(model.parameters()).device
        make = getattr(self.decoder, "new_cache", None)
        if make is not None and batch > 1:
            raise TenfoldError("this model's cache holds rows that advance alike: decode one prompt at a time.")
        self.cache = DynamicCache() if make is None else make()
        self.mask = torch.zeros(batch, 0, dtype=torch.bool, device=device)
        self.lengths = torch.zeros(batch, dtype=torch.long, device=device)
        self.layers = layers
        self._full = True  # no slot of any row is masked

    def extend(
        self,
        tokens: Int[Tensor, "batch fed"],
        valid: Bool[Tensor, "batch fed"] | None = None,
        **inputs: Any,
    ) -> Step:
        """Feed tokens (those not `valid` are padding, ignored) and return their hidden states.

        A first text that is the same in every row (many samples of one prompt) is read once.
        """
        valid = torch.ones_like(tokens, dtype=torch.bool) if valid is None else valid
        read = 1 if not inputs and self._one_text(tokens, valid) else len(tokens)
        positions = (self.lengths[:, None] + valid.cumsum(1) - 1).clamp(min=0)
        self._full = self._full and bool(valid.all())
        self.mask = torch.cat([self.mask, valid], dim=1)
        masked = {} if self._full else {"attention_mask": self.mask.long()}
        embeds = inputs or {"input_ids": tokens[:read]}
        output = self.decoder(
            **embeds,
            **masked,
            position_ids=positions[:read],
            cache=self.cache,
            use_cache=True,
            output_hidden_states=bool(self.layers),
        )
        self.lengths = self.lengths + valid.sum(1)
        states = [output.last_hidden_state, *(output.hidden_states[i] for i in self.layers)]
        if read < len(tokens):
            self.cache.batch_repeat_interleave(len(tokens))
            states = [state.repeat_interleave(len(tokens), dim=0) for state in states]
        return Step(hidden=states[0], features=torch.cat(states[1:], dim=-1) if self.layers else None)

    def _one_text(self, tokens: Tensor, valid: Tensor) -> bool:
        """Whether nothing has been read, and every row begins with the same."""
        return not self.mask.shape[1] and len(tokens) > 1 and bool((tokens == tokens[:1]).all() & valid.all())

    def forget(self, refused: Int[Tensor, " batch"]) -> None:
        """Take back the last `refused` tokens of each row."""
        lengths = self.lengths - refused
        # Rank of each valid slot within its row, counted from 1: those beyond the row's new length go.
        self.mask = self.mask & (self.mask.cumsum(1) <= lengths[:, None])
        self.lengths = lengths
        slots = self.mask.shape[1]
        used = int((self.mask * torch.arange(1, slots + 1, device=self.mask.device)).max()) if slots else 0
        if used < slots:
            self.cache.crop(used - slots)
            self.mask = self.mask[:, :used]
        self._full = bool(self.mask.all())
        if used - int(lengths.max()) > WASTE:
            self._pack()

    def _pack(self) -> None:
        """Move every row's valid slots to the right end, without gaps."""
        longest = int(self.lengths.max())
        order = self.mask.long().argsort(dim=1, stable=True)[:, -longest:]  # masked slots first, the rest in order
        for layer in cast(list[Any], self.cache.layers):
            index = order[:, None, :, None].expand(-1, layer.keys.shape[1], -1, layer.keys.shape[3])
            layer.keys, layer.values = layer.keys.gather(2, index), layer.values.gather(2, index)
        self.mask = self.mask.gather(1, order)
