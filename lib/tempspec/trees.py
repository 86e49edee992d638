"""A context that reads a tree of tokens in one pass: every token sees the text before the tree and its own ancestors.

A token's position is the number of tokens before it on its path, so that windows and rotary angles are those of the
path alone. What is kept of a tree stays where it is in the cache; the rest is masked, and cut off or packed in time.
"""

from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from lib import TenfoldError
from lib.core.generation import PLACED_BY_SLOT, Context, Step

KINDS = {"full_attention", "sliding_attention"}
ATTENTION = ("eager", "sdpa")


class TreeContext(Context):
    """A `Context` that also reads trees: `grow` them level by level (or at once), then `settle` on a path.

    Raises TenfoldError at the first tree where the model cannot read one exactly: a cache whose rows advance alike, an
    attention kernel that takes no mask of its own, layers that attend to chunks, or distances measured in slots.
    """

    _lines: Bool[Tensor, "rows grown grown"] | None = None  # whose ancestor (or self) each token of the tree is

    def grow(
        self,
        tokens: Int[Tensor, "rows new"],
        parents: Int[Tensor, "rows new"],
        valid: Bool[Tensor, "rows new"],
        *,
        embeddings: Float[Tensor, "rows new width"] | None = None,
    ) -> Step:
        """Read new tokens of the tree and return their hidden states; parents count its tokens, -1 is the text's end.

        The parents have been read before, or stand earlier among the new tokens.
        """
        kinds = self._kinds()
        self._extend(parents)
        assert self._lines is not None
        grown, new = self._lines.shape[2], tokens.shape[1]
        start = self.mask.shape[1] - (grown - new)
        positions = self.lengths[:, None] + self._lines.sum(2) - 1
        self.mask = torch.cat([self.mask, valid], dim=1)
        places = torch.cat([self.mask[:, :start].cumsum(1) - 1, positions], dim=1)  # of every slot
        old = self.mask[:, None, :start].expand(-1, new, -1)
        seen = torch.cat([old, self._lines[:, -new:]], dim=2)
        near = places[:, None] > positions[:, -new:, None] - (self._window() or 0)
        masks = {kind: self._additive(seen & near if kind == "sliding_attention" else seen) for kind in kinds}
        output = self.decoder(
            **({"input_ids": tokens} if embeddings is None else {"inputs_embeds": embeddings}),
            attention_mask=masks if len(masks) > 1 else next(iter(masks.values())),
            position_ids=positions[:, -new:],
            cache=self.cache,
            use_cache=True,
            output_hidden_states=bool(self.layers),
        )
        features = torch.cat([output.hidden_states[i] for i in self.layers], dim=-1) if self.layers else None
        return Step(hidden=output.last_hidden_state, features=features)

    def settle(self, kept: Bool[Tensor, "rows grown"]) -> None:
        """Keep these tokens of the tree (a path from its root in each row), take back the others; the tree ends."""
        self.mask[:, self.mask.shape[1] - kept.shape[1] :] &= kept
        self.lengths = self.mask.sum(1)
        self._lines = None
        self.rollback(torch.zeros_like(self.lengths))

    def _extend(self, parents: Tensor) -> None:
        """Add the new tokens' lines of ancestors; every token sees itself, padding too, so that its row has a sum."""
        rows = torch.arange(len(parents), device=parents.device)
        lines = parents.new_zeros(len(parents), 0, 0, dtype=torch.bool) if self._lines is None else self._lines
        for parent in parents.unbind(1):
            nobody = nn.functional.pad(lines, (0, 0, 0, 1))  # a last row without ancestors, which parent -1 means
            own = nn.functional.pad(nobody[rows, parent], (0, 1), value=True)
            lines = torch.cat([nn.functional.pad(lines, (0, 1)), own[:, None]], dim=1)
        self._lines = lines

    def _kinds(self) -> list[str]:
        """Return the kinds of attention that the decoder wants masks for."""
        config = self.decoder.config.get_text_config()
        named: Any = getattr(config, "layer_types", None) or ()
        kinds: list[str] = sorted(set(named))
        if not self.ragged:
            raise TenfoldError("this model's cache holds rows that advance alike: draft a chain (gamma=…), not a tree.")
        if config.model_type in (*PLACED_BY_SLOT, "bloom") or getattr(config, "alibi", False):
            raise TenfoldError(
                f"{config.model_type} measures distance in slots of its cache: draft a chain (gamma=…), not a tree."
            )
        if config._attn_implementation not in ATTENTION:
            raise TenfoldError(
                f"trees need attn_implementation 'sdpa' or 'eager', not {config._attn_implementation!r}."
            )
        if not set(kinds) <= KINDS:
            raise TenfoldError(f"trees need full or sliding attention, not {', '.join(sorted(set(kinds) - KINDS))}.")
        return kinds or ["sliding_attention" if self._windowed else "full_attention"]

    def _window(self) -> int | None:
        return getattr(self.decoder.config.get_text_config(), "sliding_window", None)

    def _additive(self, seen: Bool[Tensor, "rows new slots"]) -> Float[Tensor, "rows 1 new slots"]:
        dtype: Any = self.decoder.dtype
        blank = torch.zeros(seen.shape, dtype=dtype, device=seen.device)
        return blank.masked_fill(~seen, torch.finfo(dtype).min)[:, None]
