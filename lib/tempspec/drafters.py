"""What a drafter is, and the drafters that need no training: any language model, and a look-up in the text so far.

A drafter reads the verified prefix and proposes tokens with the probabilities that they were drawn from. It may be
anything that keeps this contract; `verify` makes the output exact whatever it proposes.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lib.core.generation import Context, Warping, draw
from lib.tempspec.modeling import known_logits, widen


@dataclass
class Prefix:
    """Verified tokens of each row, from its first real one: `tokens[b, :lengths[b]]`; what follows is not defined.

    `features[b, i]` are the target's hidden states at token i, known for all but the newest token.
    """

    tokens: Int[Tensor, "batch capacity"]
    lengths: Int[Tensor, " batch"]
    features: Float[Tensor, "batch capacity width"] | None = None

    def since(self, first: Int[Tensor, " batch"]) -> Int[Tensor, "batch count"]:
        """Return positions from `first` of each row to its newest token, moved to the right end; -1 is padding."""
        count = max(int((self.lengths - first).max()), 1)
        positions = self.lengths[:, None] + torch.arange(-count, 0, device=self.tokens.device)
        return torch.where(positions >= first[:, None], positions, -1)


@dataclass(frozen=True)
class Proposal:
    """Drafted tokens and their draft probabilities over the target's vocabulary; `lengths` counts those of each row.

    `confidence` guesses each token's chance of acceptance from what was known before the token was drawn.
    """

    tokens: Int[Tensor, "batch gamma"]
    probs: Float[Tensor, "batch gamma vocab"]
    lengths: Int[Tensor, " batch"]
    confidence: Float[Tensor, "batch gamma"]

    def first(self, count: int) -> "Proposal":
        """Return the first `count` tokens of it."""
        tokens, probs, confidence = (part[:, :count] for part in (self.tokens, self.probs, self.confidence))
        return Proposal(tokens, probs, self.lengths.clamp(max=count), confidence)


# Whether to draft another token, given the confidence (mean over rows) of those drafted so far.
KeepGoing = Callable[[list[float]], bool]


@runtime_checkable
class Drafter(Protocol):
    """Proposes tokens; `layers` are the target's hidden states that it wants to see."""

    layers: tuple[int, ...]

    def begin(self, target: Any, batch: int) -> None:
        """Start on a new batch of prompts for a target model."""
        ...

    def propose(
        self,
        prefix: Prefix,
        gamma: int,
        *,
        warping: Warping,
        generator: torch.Generator | None = None,
        keep_going: KeepGoing | None = None,
    ) -> Proposal:
        """Propose up to gamma tokens after the prefix; `keep_going` may end the block earlier."""
        ...


class AutoregressiveDrafter:
    """Drafting one token after another: what `ModelDrafter` and `FeatureDrafter` share."""

    model: Any
    layers: tuple[int, ...] = ()
    _vocab: int

    def fingerprint(self) -> list[Any]:
        """Return what its drafts depend on: the model; not what its cache holds of the last prompt."""
        return [self.model]

    def _read(self, prefix: Prefix) -> Float[Tensor, "batch hidden"]:
        """Read what the prefix has gained; return the last hidden state of each row."""
        raise NotImplementedError

    def _feed(self, tokens: Int[Tensor, " batch"], depth: int) -> Float[Tensor, "batch hidden"]:
        """Read one drafted token of each row, the `depth`-th of this block; return the hidden states."""
        raise NotImplementedError

    @torch.inference_mode()
    def propose(
        self,
        prefix: Prefix,
        gamma: int,
        *,
        warping: Warping,
        generator: torch.Generator | None = None,
        keep_going: KeepGoing | None = None,
    ) -> Proposal:
        """Draft up to gamma tokens, each drawn from the drafter's own distribution after the same warping."""
        hidden, tokens, rows, confidence = self._read(prefix), [], [], []
        for depth in range(1, gamma + 1):
            logits, token_ids = known_logits(self.model, hidden)
            q = warping.probs(logits)
            choice = q.argmax(-1) if warping.greedy else draw(q, generator=generator)
            confidence.append(logits.float().softmax(-1).amax(-1) if warping.greedy else q.amax(-1))
            tokens.append(choice if token_ids is None else token_ids[choice])
            rows.append(q if token_ids is None else widen(q, token_ids, self._vocab))
            if depth == gamma or (keep_going and not keep_going([float(c.mean()) for c in confidence])):
                break
            hidden = self._feed(tokens[-1], depth)
        drafted = torch.stack(tokens, dim=1)
        full = torch.full_like(prefix.lengths, drafted.shape[1])
        return Proposal(drafted, torch.stack(rows, dim=1), full, torch.stack(confidence, dim=1))


class ModelDrafter(AutoregressiveDrafter):
    """Any causal language model with the target's tokenizer, with a KV cache of its own.

    Its head may be a `ReducedHead` (see `truncate`). Raises ValueError where its vocabulary is not as large as the
    target's (their tokenizers differ).
    """

    def __init__(self, model: Any) -> None:
        self.model = model.eval()

    def begin(self, target: Any, batch: int) -> None:
        """Start with an empty cache."""
        self._vocab = target.config.vocab_size
        if self.model.config.vocab_size != self._vocab:
            raise ValueError(
                f"the drafter's vocabulary has {self.model.config.vocab_size} tokens, the target's {self._vocab}: "
                "use a drafter with the target's tokenizer"
            )
        self._context = Context(self.model, batch)
        self._verified = torch.zeros_like(self._context.lengths)  # prefix tokens in the cache at the last proposal
        self._drafted: list[Tensor] = []  # and the drafted tokens read after them

    def _read(self, prefix: Prefix) -> Tensor:
        self._keep_accepted(prefix)
        positions = prefix.since(self._context.lengths)
        tokens = prefix.tokens.gather(1, positions.clamp(min=0))
        self._verified, self._drafted = prefix.lengths.clone(), []
        return self._context.read(tokens, positions >= 0).hidden[:, -1]

    def _keep_accepted(self, prefix: Prefix) -> None:
        """Take back drafted tokens that were refused; the newest token is always left to be read."""
        if not self._drafted:
            return
        drafted = torch.stack(self._drafted, dim=1)
        places = self._verified[:, None] + torch.arange(drafted.shape[1], device=drafted.device)
        same = prefix.tokens.gather(1, places.clamp(max=prefix.tokens.shape[1] - 1)) == drafted
        accepted = (same & (places < prefix.lengths[:, None] - 1)).cumprod(dim=1).sum(dim=1)
        self._context.rollback(drafted.shape[1] - accepted)

    def _feed(self, tokens: Tensor, depth: int) -> Tensor:
        self._drafted.append(tokens)
        return self._context.read(tokens[:, None]).hidden[:, -1]


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
            following, size = self._continuation(prefix.tokens[row, :length], gamma)
            tokens[row, : len(following)], lengths[row] = following, len(following)
            confidence[row] = size / (size + 1)
        probs = torch.zeros(batch, gamma, self._vocab, device=tokens.device).scatter_(-1, tokens[..., None], 1.0)
        return Proposal(tokens, probs, lengths, confidence)

    def _continuation(self, tokens: Tensor, gamma: int) -> tuple[Tensor, int]:
        """Return what followed the newest n-gram before, and n; nothing and 0 where it is new."""
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
        own = self.first.propose(prefix, gamma, **options)
        has = own.lengths > 0
        if bool(has.all()):
            return own
        other = self.second.propose(prefix, gamma, **options)
        if not bool(has.any()):
            return other
        own = own.first(other.tokens.shape[1])
        return Proposal(
            torch.where(has[:, None], own.tokens, other.tokens),
            torch.where(has[:, None, None], own.probs, other.probs),
            torch.where(has, own.lengths, other.lengths),
            torch.where(has[:, None], own.confidence, other.confidence),
        )
