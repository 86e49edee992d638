"""A vocabulary head over the most frequent tokens only: more than half of a small drafter's time is its full head.

Tokens outside have draft probability 0, which keeps speculative sampling exact: the residual can still produce them.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn


class ReducedHead(nn.Module):
    """Logits over `token_ids` of a larger vocabulary; `forward` gives the others -inf, as any full head could.

    Raises ValueError for token ids that repeat or lie outside the vocabulary.
    """

    token_ids: Tensor

    def __init__(self, weight: Float[Tensor, "kept hidden"], token_ids: Int[Tensor, " kept"], vocab_size: int) -> None:
        super().__init__()
        if len(token_ids.unique()) != len(token_ids) or len(token_ids) != len(weight):
            raise ValueError("a reduced head needs one row of weights for each of its token ids, none twice")
        if int(token_ids.min()) < 0 or int(token_ids.max()) >= vocab_size:
            raise ValueError(f"a token id lies outside the vocabulary of {vocab_size}")
        self.weight = nn.Parameter(weight.clone())
        self.register_buffer("token_ids", token_ids.clone())
        self.vocab_size = vocab_size

    def reduced(self, hidden: Float[Tensor, "*rows hidden"]) -> Float[Tensor, "*rows kept"]:
        """Logits of the kept tokens only."""
        return nn.functional.linear(hidden, self.weight)

    def forward(self, hidden: Float[Tensor, "*rows hidden"]) -> Float[Tensor, "*rows vocab"]:
        """Logits over the whole vocabulary, -inf for tokens that were not kept."""
        return widen(self.reduced(hidden), self.token_ids, self.vocab_size, -torch.inf)


def widen(
    values: Float[Tensor, "*rows kept"], token_ids: Int[Tensor, " kept"], vocab_size: int, fill: float = 0.0
) -> Float[Tensor, "*rows vocab"]:
    """Spread values of the kept tokens over the whole vocabulary."""
    whole = values.new_full((*values.shape[:-1], vocab_size), fill)
    whole[..., token_ids] = values
    return whole


def reduced_logits(head: Any, hidden: Tensor) -> tuple[Tensor, Tensor | None]:
    """Logits of a head over what it knows, and the ids of those tokens (None: the whole vocabulary)."""
    if isinstance(head, ReducedHead):
        return head.reduced(hidden), head.token_ids
    return head(hidden), None


def frequent_tokens(texts: Iterable[Sequence[int] | Tensor], count: int, vocab_size: int) -> Int[Tensor, " count"]:
    """Ids of the `count` most frequent tokens, in ascending order; those never met fill up by smallest id.

    Raises ValueError where `count` is not between 1 and the vocabulary's size.
    """
    if not 1 <= count <= vocab_size:
        raise ValueError(f"count is {count}: keep between 1 and {vocab_size} tokens")
    met = torch.zeros(vocab_size, dtype=torch.long)
    for tokens in texts:
        met += torch.bincount(torch.as_tensor(tokens, dtype=torch.long), minlength=vocab_size)
    return met.argsort(descending=True, stable=True)[:count].sort().values
