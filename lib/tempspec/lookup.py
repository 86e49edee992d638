"""Drafters whose tokens are chosen without chance: they give no laws, and a token is accepted with the target's own p.

A look-up in the text so far, a language model with another tokenizer, and the first of two that has something to say.
"""

from collections.abc import Iterator, Sequence
from itertools import count
from os.path import commonprefix
from typing import Any

import torch
from torch import Tensor, nn

from lib.core.generation import Context, Warping
from lib.core.scoring import padded
from lib.tempspec.drafters import Drafter, Prefix, Proposal
from lib.tempspec.modeling import step_bytes
from lib.tempspec.shape import Shape

TAIL = 8  # tokens of the text that a universal drafter's words are tokenized with


def merged(
    prefix: Prefix, rows: Sequence[Sequence[tuple[Sequence[int], float]]], *, shape: Shape, depth: int
) -> Proposal:
    """Merge each row's continuations (tokens, each with this confidence), best first, into a tree or chain.

    A chain takes the first continuation only. The tree's nodes stand in the order of depth, so that parents come first.
    """
    columns: list[list[tuple[int, int, float]]] = []  # of each row: token, parent's slot, confidence
    for continuations in rows:
        paths: dict[tuple[int, ...], float] = {}
        for tokens, confidence in continuations[: shape.width]:
            for size in range(1, min(depth, len(tokens)) + 1):
                if not shape.keep_going([confidence] * (size - 1)) and size > 1:
                    break
                paths.setdefault(tuple(tokens[:size]), confidence)
        ordered = sorted(paths, key=len)
        slots = {(): 0} | {path: slot for slot, path in enumerate(ordered, start=1)}
        columns.append([(path[-1], slots[path[:-1]], paths[path]) for path in ordered])
    longest, device = max(map(len, columns)), prefix.tokens.device
    whole = [column + [(0, 0, 0.0)] * (longest - len(column)) for column in columns]
    table = torch.tensor(whole, dtype=torch.float64, device=device).reshape(len(rows), longest, 3)
    lengths = torch.tensor([len(column) for column in columns], device=device)
    valid = torch.arange(longest, device=device) < lengths[:, None]
    parents = table[..., 1].long() if shape.width > 1 else None
    return Proposal(table[..., 0].long(), valid, table[..., 2].float(), None, parents)


class PromptLookupDrafter:
    """Copies what followed earlier occurrences of the newest n-gram, the longest n first, the most recent first.

    A tree takes as many different continuations as it is wide, a chain the first.
    """

    layers: tuple[int, ...] = ()

    def __init__(self, *, longest: int = 4, shortest: int = 2) -> None:
        if not 1 <= shortest <= longest:
            raise ValueError(f"n-grams from {shortest} to {longest} tokens: give 1 <= shortest <= longest")
        self.longest, self.shortest = longest, shortest

    def begin(self, target: Any, batch: int) -> None:
        """Keep nothing between blocks."""

    def cost(self, target: Any) -> float:
        """Return 0: looking up costs nothing beside a model's step."""
        return 0.0

    def propose(
        self,
        prefix: Prefix,
        depth: int,
        *,
        shape: Shape,
        warping: Warping,
        generator: torch.Generator | None = None,
    ) -> Proposal:
        """Propose the continuations of earlier occurrences; rows without one propose nothing."""
        rows = []
        for row, length in enumerate(prefix.lengths.tolist()):
            found: dict[tuple[int, ...], float] = {}
            for tokens, size in self._continuations(prefix.tokens[row, :length], depth):
                found.setdefault(tokens, size / (size + 1))
                if len(found) == shape.width:
                    break
            rows.append(list(found.items()))
        return merged(prefix, rows, shape=shape, depth=depth)

    def _continuations(self, tokens: Tensor, depth: int) -> Iterator[tuple[tuple[int, ...], int]]:
        """Yield what followed the newest n-gram before, and n."""
        for size in range(min(self.longest, len(tokens) - 1), self.shortest - 1, -1):
            earlier = tokens[:-1].unfold(0, size, 1)  # every n-gram that something follows
            for place in (earlier == tokens[-size:]).all(dim=1).nonzero()[:, 0].flip(0).tolist():
                yield tuple(tokens[place + size : place + size + depth].tolist()), size


class UniversalDrafter:
    """A language model with a tokenizer of its own: its greedy words are tokenized anew with the target's tokenizer.

    Exact whatever the tokenizers are, since what it proposes is verified as chosen without chance (compare
    transformers' universal assisted generation). It reads the text in its own tokens and keeps what stays the same.
    """

    layers: tuple[int, ...] = ()

    def __init__(self, model: Any, tokenizer: Any, target_tokenizer: Any) -> None:
        self.model, self.tokenizer, self.target_tokenizer = model.eval(), tokenizer, target_tokenizer

    def begin(self, target: Any, batch: int) -> None:
        """Start with an empty cache."""
        self._vocab = target.config.get_text_config().vocab_size
        self._context, self._known = Context(self.model, batch), [[] for _ in range(batch)]
        self._context.keep_for_rollback()

    def cost(self, target: Any) -> float:
        """Return the weights that a step of the drafter reads over those that a step of the target reads."""
        return step_bytes(self.model) / step_bytes(target)

    @torch.inference_mode()
    def propose(
        self,
        prefix: Prefix,
        depth: int,
        *,
        shape: Shape,
        warping: Warping,
        generator: torch.Generator | None = None,
    ) -> Proposal:
        """Draft up to `depth` of the drafter's own tokens greedily, and propose the target's tokens for their text."""
        texts = [prefix.tokens[row, :length].tolist() for row, length in enumerate(prefix.lengths.tolist())]
        ids = [self.tokenizer(self.target_tokenizer.decode(tokens)).input_ids or [0] for tokens in texts]
        most = getattr(self.model.config.get_text_config(), "max_position_embeddings", None)
        if most is not None and max(map(len, ids)) + depth > most:  # it may need more tokens than the target
            return Proposal.nothing(prefix)
        hidden = self._read(ids)
        new: list[Tensor] = []
        means: list[float] = []
        for step in count(1):
            probs = self._context.logits(hidden).softmax(-1)
            new.append(probs.argmax(-1))
            means.append(float(probs.amax(-1).mean()))
            if step == depth or not shape.keep_going(means):
                break
            hidden = self._context.read(new[-1][:, None]).hidden[:, -1]
        self._context.rollback(torch.full_like(self._context.lengths, len(new) - 1))
        words = [self.tokenizer.decode(row) for row in torch.stack(new, dim=1).tolist()]
        sure = sum(means) / len(means)
        rows = [[(self._anew(text, word)[:depth], sure)] for text, word in zip(texts, words, strict=True)]
        return merged(prefix, rows, shape=shape, depth=depth)

    def _read(self, ids: list[list[int]]) -> Tensor:
        """Read each row's text in the drafter's tokens; what was read before and has changed is taken back."""
        kept = [min(len(commonprefix([old, now])), len(now) - 1) for old, now in zip(self._known, ids, strict=True)]
        counts = [len(old) - length for old, length in zip(self._known, kept, strict=True)]
        device = self._context.lengths.device
        if self._context.mask.shape[1]:
            self._context.rollback(torch.tensor(counts, device=device))
        self._known = ids
        ends = [now[length:] for now, length in zip(ids, kept, strict=True)]
        return self._context.read(*padded(ends, side="left", device=device)).hidden[:, -1]

    def _anew(self, tokens: list[int], word: str) -> list[int]:
        """Return the target's tokens of a word after others: those that follow the same last tokens, or of it alone."""
        tail = tokens[-TAIL:]
        together = self._encode(self.target_tokenizer.decode(tail) + word)
        made = together[len(tail) :] if together[: len(tail)] == tail else self._encode(word)
        return [token for token in made if token < self._vocab]

    def _encode(self, text: str) -> list[int]:
        return self.target_tokenizer(text, add_special_tokens=False).input_ids


class FirstOf:
    """The first drafter's proposal where it has one, the second's where it has none."""

    def __init__(self, first: Drafter, second: Drafter) -> None:
        self.first, self.second = first, second
        self.layers, self.model = second.layers, getattr(second, "model", None)
        if first.layers:
            raise ValueError("the first drafter of FirstOf may not ask for the target's hidden states: swap the two")

    def begin(self, target: Any, batch: int) -> None:
        """Start both."""
        self.first.begin(target, batch)
        self.second.begin(target, batch)

    def cost(self, target: Any) -> float:
        """Return the second drafter's cost, the larger one as a rule."""
        return self.second.cost(target)

    def propose(
        self,
        prefix: Prefix,
        depth: int,
        *,
        shape: Shape,
        warping: Warping,
        generator: torch.Generator | None = None,
    ) -> Proposal:
        """Ask the second drafter only where the first has nothing for some row."""
        options: dict[str, Any] = {"shape": shape, "warping": warping, "generator": generator}
        own = self.first.propose(prefix, depth, **options)
        has = own.valid.any(1)
        if bool(has.all()):
            return own
        other = self.second.propose(prefix, depth, **options)
        return _either(has, own, other) if bool(has.any()) else other


def _either(has: Tensor, own: Proposal, other: Proposal) -> Proposal:
    """Take the rows that have it from the first proposal, the rest from the second."""
    size = max(own.tokens.shape[1], other.tokens.shape[1])
    parts = []
    for name in ("tokens", "valid", "confidence", "parents"):
        a, b = getattr(own, name), getattr(other, name)
        if a is None or b is None:
            parts.append(None)
            continue
        a, b = (nn.functional.pad(part, (0, size - part.shape[1])) for part in (a, b))
        parts.append(torch.where(has[:, None], a, b))
    tokens, valid, confidence, parents = parts
    sure = [torch.full_like(has, p.laws is None) if p.certain is None else p.certain for p in (own, other)]
    laws = own.laws if other.laws is None else other.laws  # of two with laws, the first's rows take theirs below
    if own.laws is not None and other.laws is not None:
        raise ValueError("both drafters of FirstOf draw from laws: make the first one a look-up or a UniversalDrafter")
    return Proposal(tokens, valid, confidence, laws, parents, torch.where(has, *sure))
