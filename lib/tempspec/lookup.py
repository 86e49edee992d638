"""Drafting without a model: what followed the last few tokens the last time they occurred (prompt lookup decoding)."""

from typing import Any

import torch
from torch import Tensor

from lib.tempspec.drafting import Drafter, KeepGoing, Prefix, Proposal
from lib.tempspec.warping import Warping


class PromptLookupDrafter:
    """Copies what followed the most recent earlier occurrence of the newest n-gram, the longest n first.

    Its draft distribution is certain (a one), so a token is accepted with the target's own probability of it.
    """

    layers: tuple[int, ...] = ()

    def __init__(self, *, longest: int = 4, shortest: int = 2) -> None:
        if not 1 <= shortest <= longest:
            raise ValueError(f"n-grams from {shortest} to {longest} tokens: give 1 <= shortest <= longest")
        self.longest, self.shortest = longest, shortest

    def begin(self, target: Any, batch: int) -> None:
        """Nothing is kept between blocks."""
        self._vocab = target.config.vocab_size

    def propose(
        self,
        prefix: Prefix,
        gamma: int,
        *,
        warping: Warping,
        generator: torch.Generator | None = None,
        keep_going: KeepGoing | None = None,
    ) -> Proposal:
        """Propose the continuation of an earlier occurrence; rows without one propose nothing."""
        batch = len(prefix.lengths)
        tokens = prefix.tokens.new_zeros(batch, gamma)
        lengths = torch.zeros_like(prefix.lengths)
        confidence = torch.zeros(batch, gamma, device=tokens.device)
        for row, length in enumerate(prefix.lengths.tolist()):
            found, size = self._continuation(prefix.tokens[row, :length], gamma)
            tokens[row, : len(found)], lengths[row] = found, len(found)
            confidence[row] = size / (size + 1)
        probs = torch.zeros(batch, gamma, self._vocab, device=tokens.device).scatter_(-1, tokens[..., None], 1.0)
        return Proposal(tokens, probs, lengths, confidence)

    def _continuation(self, tokens: Tensor, gamma: int) -> tuple[Tensor, int]:
        """What followed the newest n-gram before, and n; nothing and 0 where it is new."""
        for size in range(min(self.longest, len(tokens) - 1), self.shortest - 1, -1):
            earlier = tokens[:-1].unfold(0, size, 1)  # every n-gram that something follows
            places = (earlier == tokens[-size:]).all(dim=1).nonzero()
            if len(places):
                start = int(places[-1]) + size
                return tokens[start : start + gamma], size
        return tokens[:0], 0


class FirstOf:
    """The first drafter's proposal where it has one, the second's where it has none."""

    def __init__(self, first: Drafter, second: Drafter) -> None:
        self.first, self.second = first, second
        self.layers = second.layers
        if first.layers:
            raise ValueError("the first drafter of FirstOf may not ask for the target's hidden states: swap the two")

    def begin(self, target: Any, batch: int) -> None:
        """Start both."""
        self.first.begin(target, batch)
        self.second.begin(target, batch)

    def propose(
        self,
        prefix: Prefix,
        gamma: int,
        *,
        warping: Warping,
        generator: torch.Generator | None = None,
        keep_going: KeepGoing | None = None,
    ) -> Proposal:
        """Ask the second drafter only where the first has nothing for some row."""
        options: dict[str, Any] = {"warping": warping, "generator": generator, "keep_going": keep_going}
        found = self.first.propose(prefix, gamma, **options)
        has = found.lengths > 0
        if bool(has.all()):
            return found
        other = self.second.propose(prefix, gamma, **options)
        if not bool(has.any()):
            return other
        width = other.tokens.shape[1]
        return Proposal(
            torch.where(has[:, None], found.tokens[:, :width], other.tokens),
            torch.where(has[:, None, None], found.probs[:, :width], other.probs),
            torch.where(has, found.lengths.clamp(max=width), other.lengths),
            torch.where(has[:, None], found.confidence[:, :width], other.confidence),
        )
