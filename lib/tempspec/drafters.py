"""What a drafter is, and those that are models: they draft one token after another, or a tree level by level.

A drafter reads the verified prefix and proposes tokens with the laws that they were drawn from. It may be anything that
keeps this contract; `verify` makes the output exact whatever it proposes.
"""

from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from lib.core.generation import Warping, draw
from lib.tempspec.modeling import known_logits, step_bytes, widen
from lib.tempspec.shape import Shape, places
from lib.tempspec.trees import TreeContext
from lib.tempspec.verify import walk

PADDING = 1024  # tokens by which vocabularies of one tokenizer are made longer at most


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
    """A tree of drafted tokens, parents before children and siblings in the order drawn; see `verify` for its parts.

    Without `parents` it is a chain. `laws` are None where all tokens were chosen without chance, and mean nothing in
    rows that are `certain`. `confidence` guesses each token's chance of acceptance from what was known before it was
    drawn.
    """

    tokens: Int[Tensor, "batch drafted"]
    valid: Bool[Tensor, "batch drafted"]
    confidence: Float[Tensor, "batch drafted"]
    laws: Float[Tensor, "batch parents vocab"] | None = None
    parents: Int[Tensor, "batch drafted"] | None = None
    certain: Bool[Tensor, " batch"] | None = None

    @classmethod
    def nothing(cls, prefix: Prefix) -> "Proposal":
        """Return the proposal of no tokens."""
        none = prefix.tokens[:, :0]
        return cls(none, none.bool(), none.float())

    def first(self, count: int) -> "Proposal":
        """Return the first `count` tokens of a chain."""
        return Proposal(self.tokens[:, :count], self.valid[:, :count], self.confidence[:, :count], self.laws)


@runtime_checkable
class Drafter(Protocol):
    """Proposes tokens; `layers` are the target's hidden states that it wants to see."""

    layers: tuple[int, ...]

    def begin(self, target: Any, batch: int) -> None:
        """Start on a new batch of prompts for a target model."""
        ...

    def cost(self, target: Any) -> float:
        """Return what a drafted token costs, in plain steps of the target: counted, not measured."""
        ...

    def propose(
        self,
        prefix: Prefix,
        depth: int,
        *,
        shape: Shape,
        warping: Warping,
        generator: torch.Generator | None = None,
    ) -> Proposal:
        """Propose a tree (or chain) of the given shape, at most `depth` tokens deep."""
        ...


class AutoregressiveDrafter:
    """Drafting level by level: what `ModelDrafter` and `FeatureDrafter` share."""

    model: Any
    layers: tuple[int, ...] = ()
    _vocab: int
    _context: TreeContext
    _tree: bool = False  # whether what was fed last was a tree

    def fingerprint(self) -> list[Any]:
        """Return what its drafts depend on: the model; not what its cache holds of the last prompt."""
        return [self.model]

    def cost(self, target: Any) -> float:
        """Return the weights that a step of the drafter reads over those that a step of the target reads."""
        return step_bytes(self.model) / step_bytes(target)

    def _read(self, prefix: Prefix) -> Float[Tensor, "batch hidden"]:
        """Read what the prefix has gained; return the last hidden state of each row."""
        raise NotImplementedError

    def _feed(
        self,
        tokens: Int[Tensor, "batch new"],
        parents: Int[Tensor, "batch new"],
        valid: Bool[Tensor, "batch new"],
        depth: int,
    ) -> Float[Tensor, "batch new hidden"]:
        """Read drafted tokens of one depth, parents counted among those fed (-1: the prefix); return hidden states."""
        raise NotImplementedError

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
        """Draft by the drafter's own law after the same warping; siblings are drawn without replacement."""
        hidden = self._read(prefix)[:, None]
        self._tree = shape.width > 1
        reach = hidden.new_ones(hidden.shape[:2], dtype=torch.float32)
        alive, first = reach > 0, 0  # of the newest nodes: whether a row has them, and the first one's slot
        parts: list[tuple[Tensor, ...]] = []
        laws: list[Tensor] = []
        means: list[float] = []
        for level in range(depth):
            logits, token_ids = self._logits(hidden)
            q = warping.probs(logits)
            guess = logits.float().softmax(-1) if warping.greedy else q
            likely = guess.topk(min(shape.width, guess.shape[-1]), dim=-1).values  # [batch, nodes, ranks]
            chances = shape.chances(likely)
            counts = shape.branch(level, reach, chances).clamp(max=likely.shape[-1])
            if not bool(counts.any()):
                break
            node, rank, valid = places(counts)
            ranked, possible = siblings(logits if warping.greedy else q, int(counts.max()), warping, generator)
            rows = torch.arange(len(node), device=node.device)[:, None]
            tokens = ranked[rows, node, rank]
            alive = valid & alive[rows, node] & possible[rows, node, rank]
            before, reach = reach, reach[rows, node] * chances[rows, node, rank] * alive
            confidence = likely[rows, node, rank]
            parts.append((tokens if token_ids is None else token_ids[tokens], first + node, alive, confidence))
            if not warping.greedy:
                laws.append(widen(q, token_ids, self._vocab))
            means.append(float(reach.sum() / before.sum()) if self._tree else float(confidence[:, 0].mean()))
            if level + 1 == depth or not shape.keep_going(means):
                break
            new, first = parts[-1], first + hidden.shape[1]
            hidden = self._feed(new[0], new[1] - 1, new[2], level + 1)
        if not parts:
            return Proposal.nothing(prefix)
        tokens, parents, valid, confidence = (torch.cat(part, dim=1) for part in zip(*parts, strict=True))
        given = torch.cat(laws, dim=1) if laws else None
        return Proposal(tokens, valid, confidence, given, parents if self._tree else None)

    def _logits(self, hidden: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return logits over tokens that the target has too, and their ids (None: the first ones of the vocabulary)."""
        logits, token_ids = known_logits(self.model, hidden)
        return (logits[..., : self._vocab], None) if token_ids is None else (logits, token_ids)


def siblings(
    weights: Float[Tensor, "batch nodes tokens"], count: int, warping: Warping, generator: torch.Generator | None
) -> tuple[Int[Tensor, "batch nodes count"], Bool[Tensor, "batch nodes count"]]:
    """Draw tokens of each node one after another without replacement, and say which were possible (weight above 0).

    Greedy decoding takes the largest logits in order. An exponential race: the i-th smallest of E_x / q_x, with E_x
    exponential, is the i-th draw.
    """
    if warping.greedy:
        drawn = weights.topk(count, dim=-1).indices
        return drawn, torch.ones_like(drawn, dtype=torch.bool)
    if count == 1:
        drawn = draw(weights, generator=generator)[..., None]
        return drawn, torch.ones_like(drawn, dtype=torch.bool)
    where = weights.device if generator is None else generator.device
    race = torch.empty(weights.shape, dtype=torch.float64, device=where).exponential_(generator=generator)
    drawn = (weights.double() / race.to(weights.device)).topk(count, dim=-1).indices
    return drawn, weights.gather(-1, drawn) > 0


def vocabularies(target: Any, drafter: Any) -> tuple[int, int]:
    """Return the sizes of both vocabularies; raises ValueError where they differ by more than padding."""
    theirs, own = (model.config.get_text_config().vocab_size for model in (target, drafter))
    if abs(own - theirs) >= PADDING:
        raise ValueError(
            f"the drafter's vocabulary has {own} tokens, the target's {theirs}: use a drafter with the target's "
            "tokenizer, or a UniversalDrafter"
        )
    return theirs, own


class ModelDrafter(AutoregressiveDrafter):
    """Any causal language model with the target's tokenizer, with a KV cache of its own.

    Its head may be a `ReducedHead` (see `truncate`); its vocabulary may be padded otherwise than the target's. Raises
    ValueError where the two differ by more (their tokenizers differ: see `UniversalDrafter`).
    """

    def __init__(self, model: Any) -> None:
        self.model = model.eval()

    def begin(self, target: Any, batch: int) -> None:
        """Start with an empty cache."""
        self._vocab, self._own = vocabularies(target, self.model)
        self._context = TreeContext(self.model, batch)
        self._context.keep_for_rollback()
        self._verified = torch.zeros_like(self._context.lengths)  # prefix tokens in the cache at the last proposal
        self._fed: list[tuple[Tensor, Tensor, Tensor]] = []  # and the drafted tokens read after them

    def _read(self, prefix: Prefix) -> Tensor:
        self._keep_accepted(prefix)
        positions = prefix.since(self._context.lengths)
        tokens = prefix.tokens.gather(1, positions.clamp(min=0))
        self._verified, self._fed = prefix.lengths.clone(), []
        return self._context.read(tokens.clamp(max=self._own - 1), positions >= 0).hidden[:, -1]

    def _keep_accepted(self, prefix: Prefix) -> None:
        """Take back drafted tokens that were refused; the newest token is always left to be read."""
        if not self._fed:
            return
        tokens, parents, valid = (torch.cat(part, dim=1) for part in zip(*self._fed, strict=True))
        depths = torch.zeros_like(prefix.lengths)

        def same(node: int, end: Tensor, asked: Tensor) -> Tensor:
            place = self._verified + depths
            wanted = prefix.tokens.gather(1, place.clamp(max=prefix.tokens.shape[1] - 1)[:, None])[:, 0]
            kept = asked & (tokens[:, node] == wanted) & (place < prefix.lengths - 1)
            depths.add_(kept)
            return kept

        path, _ = walk(parents + 1, valid, same)
        if self._tree:
            self._context.settle(path)
        else:
            self._context.rollback(tokens.shape[1] - path.sum(1))

    def _feed(self, tokens: Tensor, parents: Tensor, valid: Tensor, depth: int) -> Tensor:
        self._fed.append((tokens, parents, valid))
        known = tokens.clamp(max=self._own - 1)
        if self._tree:
            return self._context.grow(known, parents, valid).hidden
        return self._context.read(known).hidden
