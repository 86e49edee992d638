"""Decoding on transformers' own KV cache: contexts that roll back and share beginnings, warping, sampling, the loop.

Symbols: z = logits, T = temperature, p_T = softmax(z / T). Randomness comes in as uniform numbers or a generator, so a
caller decides in which order it is drawn.
"""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from os.path import commonprefix
from typing import Any, cast

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from transformers import DynamicCache

from lib import TenfoldError
from lib.core.scoring import decoder_of, head_logits, padded

PLACED_BY_SLOT = ("gpt_neo", "mpt")  # model types whose attention measures distance in slots of the cache
WASTE = 64  # masked slots of the fullest row that are put up with before rows are packed
BLOCK = 256  # tokens summed before one is looked for
SPARE = 4  # rows that have ended leave the batch when they are at least one in so many


@dataclass(frozen=True)
class Step:
    """Last hidden states of the tokens read, and the inputs of the layers asked for, joined along the last axis."""

    hidden: Float[Tensor, "rows read width"]
    features: Float[Tensor, "rows read features"] | None


class Context:
    """What a causal model has read so far: `lengths` tokens of each row, kept as keys and values.

    Rows may advance by different numbers of tokens: they share the cache's slots, and a slot that holds padding or a
    token taken back is masked for its row. Slots that no row uses are cut off, and when too many are wasted the rows
    are packed anew. Positions count a row's own tokens only.

    `layers` names hidden states to return as features (0: the embeddings, i: the output of layer i). A decoder with a
    `new_cache()` of its own, such as one compressed by LoRC, keeps that, as does one with a recurrent state; its rows
    can only advance alike (`ragged` is False).
    """

    def __init__(self, model: Any, rows: int, *, layers: tuple[int, ...] = ()) -> None:
        self.model, self.decoder, self.layers = model, decoder_of(model), layers
        device = next(model.parameters()).device
        self.cache, self.ragged = _new_cache(self.decoder)
        self.mask = torch.zeros(rows, 0, dtype=torch.bool, device=device)
        self.lengths = torch.zeros(rows, dtype=torch.long, device=device)
        self._windowed, self._recording = has_window(self.decoder.config), False
        self._full = True  # no slot of any row is masked

    def read(
        self,
        tokens: Int[Tensor, "rows read"],
        valid: Bool[Tensor, "rows read"] | None = None,
        *,
        embeddings: Float[Tensor, "rows read width"] | None = None,
    ) -> Step:
        """Read tokens (those not `valid` are padding, ignored) and return their hidden states.

        With `embeddings` these are read in the tokens' stead. A first text that is the same in every row (many samples
        of one prompt) is read once. Raises TenfoldError for padding that rows which must advance alike cannot have.
        """
        valid = torch.ones_like(tokens, dtype=torch.bool) if valid is None else valid
        once = not self.mask.shape[1] and embeddings is None and _one_text(tokens, valid)
        if not self.ragged and self.mask.shape[1] and not bool(valid.all()):
            raise TenfoldError("this model's cache holds rows that advance alike: decode one prompt at a time.")
        if self._windowed and self.mask.shape[1] and not self._gapless(valid):
            return self._read_gapless(tokens, valid, embeddings)
        return self._read(tokens, valid, embeddings, rows=1 if once else len(tokens))

    def _read(self, tokens: Tensor, valid: Tensor, embeddings: Tensor | None, *, rows: int) -> Step:
        positions = (self.lengths[:, None] + valid.cumsum(1) - 1).clamp(min=0)
        self._full = self._full and bool(valid.all())
        self.mask = torch.cat([self.mask, valid], dim=1)
        masked = {} if self._full else {"attention_mask": self.mask.long()}
        inputs = {"input_ids": tokens[:rows]} if embeddings is None else {"inputs_embeds": embeddings}
        output = self.decoder(
            **inputs,
            **masked,
            position_ids=positions[:rows],
            cache=self.cache,
            use_cache=True,
            output_hidden_states=bool(self.layers),
        )
        if self._recording and any(_has_state(layer) for layer in self.cache.layers):
            raise TenfoldError(
                f"{self.decoder.config.model_type} carries a recurrent state, which cannot take back a refused token: "
                "decode it without a drafter, and draft with another model."
            )
        self.lengths = self.lengths + valid.sum(1)
        states = [output.last_hidden_state, *(output.hidden_states[i] for i in self.layers)]
        if rows < len(tokens):
            self.cache.batch_repeat_interleave(len(tokens))
            states = [state.repeat_interleave(len(tokens), dim=0) for state in states]
        return Step(hidden=states[0], features=torch.cat(states[1:], dim=-1) if self.layers else None)

    def _gapless(self, valid: Tensor) -> bool:
        """Whether no row has padding between its tokens (a window over slots would then count it)."""
        mask = torch.cat([self.mask, valid], dim=1)
        return self._full and bool(valid.all()) or not bool((mask[:, :-1] & ~mask[:, 1:]).any())

    def _read_gapless(self, tokens: Tensor, valid: Tensor, embeddings: Tensor | None) -> Step:
        """Read with every row's tokens moved together, and give the states back where the tokens were."""
        self._pack()
        order = (~valid).long().argsort(dim=1, stable=True)  # tokens first, padding behind
        moved = None if embeddings is None else embeddings.gather(1, order[..., None].expand_as(embeddings))
        step = self._read(tokens.gather(1, order), valid.gather(1, order), moved, rows=len(tokens))
        back = order.argsort(dim=1)[..., None]
        states = [s if s is None else s.gather(1, back.expand_as(s)) for s in (step.hidden, step.features)]
        return Step(hidden=cast(Tensor, states[0]), features=states[1])

    def keep_for_rollback(self) -> None:
        """Have a cache that lets go of what left its window keep it until `rollback`.

        From then on a read raises TenfoldError where the model carries a recurrent state, which cannot be taken back.
        """
        if not self.ragged:
            self._recording = True
            self.cache.activate_past_recording()

    def rollback(self, count: Int[Tensor, " rows"]) -> None:
        """Take back the last `count` tokens of each row.

        Raises TenfoldError for different counts where rows must advance alike.
        """
        if not self.ragged and bool((count != count[:1]).any()):
            raise TenfoldError("this model's cache holds rows that advance alike: take back as many tokens of each.")
        lengths = self.lengths - count
        # Rank of each valid slot within its row, counted from 1: those beyond the row's new length go.
        self.mask = self.mask & (self.mask.cumsum(1) <= lengths[:, None])
        self.lengths = lengths
        slots = self.mask.shape[1]
        used = int((self.mask * torch.arange(1, slots + 1, device=self.mask.device)).max()) if slots else 0
        if used < slots or self._recording:  # a cache that keeps the past lets go of what is settled when it is cropped
            self.cache.crop(used - slots)
            self.mask = self.mask[:, :used]
        self._full = bool(self.mask.all())
        if used - int(lengths.max()) > WASTE:
            self._pack()

    def _pack(self) -> None:
        """Move every row's valid slots to the right end, without gaps."""
        longest = int(self.lengths.max())
        order = self.mask.long().argsort(dim=1, stable=True)  # masked slots first, the rest in order
        order = order[:, order.shape[1] - longest :]
        for layer in cast(list[Any], self.cache.layers):
            if not layer.is_initialized:  # it reads another layer's keys and values
                continue
            index = order[:, None, :, None].expand(-1, layer.keys.shape[1], -1, -1)
            layer.keys = layer.keys.gather(2, index.expand(-1, -1, -1, layer.keys.shape[3]))
            layer.values = layer.values.gather(2, index.expand(-1, -1, -1, layer.values.shape[3]))
        self.mask = self.mask.gather(1, order)
        self._full = bool(self.mask.all())

    def select(self, rows: Int[Tensor, " kept"]) -> None:
        """Keep these rows in this order; a row named k times is there k times from now on."""
        if self.mask.shape[1]:
            self.cache.batch_select_indices(rows)
        self.mask, self.lengths = self.mask[rows], self.lengths[rows]
        self._full = bool(self.mask.all())

    def fork(self) -> "Context":
        """Return a second context that has read the same and goes on by itself (many batches may share it)."""
        other = copy.copy(self)
        other.cache = copy.deepcopy(self.cache)
        return other

    def logits(self, hidden: Float[Tensor, "*rows width"]) -> Float[Tensor, "*rows vocab"]:
        """Return the model's own logits of last hidden states, in float32."""
        return head_logits(self.model, hidden)


def _new_cache(decoder: Any) -> tuple[Any, bool]:
    """Return an empty cache for a decoder, and whether its rows may advance by different numbers of tokens."""
    if (make := getattr(decoder, "new_cache", None)) is not None:
        return make(), False
    if getattr(decoder, "_is_stateful", False):
        return DynamicCache(config=decoder.config), False
    return DynamicCache(), True  # without a config no layer drops what leaves its window: all of it can be taken back


def _has_state(layer: Any) -> bool:
    return any(getattr(layer, "is_recurrent_states_initialized", {}).values())


def has_window(config: Any) -> bool:
    """Whether some layer of a model attends to the newest tokens only, or in another way than to all before.

    So does one that measures distance in slots of the cache: a gap between a row's tokens would count.
    """
    config = config.get_text_config()
    if config.model_type in PLACED_BY_SLOT:
        return True
    if kinds := getattr(config, "layer_types", None):
        return set(kinds) != {"full_attention"}
    return getattr(config, "sliding_window", None) is not None and getattr(config, "use_sliding_window", True)


def _one_text(tokens: Tensor, valid: Tensor) -> bool:
    """Whether there are several rows, and every one is the same."""
    return len(tokens) > 1 and bool((tokens == tokens[:1]).all() & valid.all())


def common_length(sequences: Sequence[Sequence[int]]) -> int:
    """Return how many tokens all sequences begin with; each keeps at least one of its own.

    Raises ValueError where there is no sequence, or an empty one.
    """
    if not sequences or not all(map(len, sequences)):
        raise ValueError("there is nothing to read: give at least one sequence, and at least one token in each")
    return min(len(commonprefix([list(s) for s in sequences])), min(map(len, sequences)) - 1)


def read_groups(
    model: Any, groups: Sequence[Sequence[Sequence[int]]]
) -> tuple[Context, Float[Tensor, "prompts width"]]:
    """Read groups of prompts (token ids), each group's common beginning once.

    Returns a context with a row for each prompt, one group after another, and the last hidden state of each. Raises
    ValueError for a group without a prompt or an empty prompt.
    """
    device = next(model.parameters()).device
    shared = [common_length(group) for group in groups]
    context = Context(model, len(groups))
    if any(shared):
        beginnings = [group[0][:length] for group, length in zip(groups, shared, strict=True)]
        context.read(*padded(beginnings, side="left", device=device))
    sizes = torch.tensor([len(group) for group in groups], device=device)
    context.select(torch.arange(len(groups), device=device).repeat_interleave(sizes))
    ends = [prompt[length:] for group, length in zip(groups, shared, strict=True) for prompt in group]
    return context, context.read(*padded(ends, side="left", device=device)).hidden[:, -1]


@dataclass(frozen=True)
class Warping:
    """Temperature, number of most likely tokens kept (0: all) and probability mass kept (1: all), in this order.

    T = 0 is greedy decoding: all probability on the largest logit. Raises ValueError for a temperature below 0, a
    negative top_k, or a top_p outside (0, 1].
    """

    temperature: float | int = 1.0
    top_k: int = 0
    top_p: float | int = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < float("inf"):
            raise ValueError(f"temperature is {self.temperature}: give 0 (greedy) or a positive number")
        if self.top_k < 0:
            raise ValueError(f"top_k is {self.top_k}: give the number of tokens kept, or 0 for all")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p is {self.top_p}: give the probability mass kept, above 0 and at most 1")

    @property
    def greedy(self) -> bool:
        """Whether every draw is the most likely token."""
        return self.temperature == 0 or self.top_k == 1

    def probs(self, logits: Float[Tensor, "*rows vocab"]) -> Float[Tensor, "*rows vocab"]:
        """Return p_T in float32; greedy decoding gives a row of zeros with a one.

        Each kind of truncation keeps what transformers' warpers of the same name keep.
        """
        logits = logits.float()
        if self.greedy:
            return torch.zeros_like(logits).scatter_(-1, logits.argmax(-1, keepdim=True), 1.0)
        if self.temperature != 1:
            logits = logits / self.temperature
        if 0 < self.top_k < logits.shape[-1]:
            smallest = logits.topk(self.top_k, dim=-1).values[..., -1:]
            logits = logits.masked_fill(logits < smallest, -torch.inf)
        if self.top_p < 1:
            ascending, order = logits.sort(dim=-1)
            below = ascending.softmax(-1).cumsum(-1) <= 1 - self.top_p
            below[..., -1] = False
            logits = logits.masked_fill(below.gather(-1, order.argsort(-1)), -torch.inf)
        return logits.softmax(-1)


def draw(
    weights: Float[Tensor, "*rows vocab"],
    *,
    uniform: Float[Tensor, "*rows"] | None = None,
    generator: torch.Generator | None = None,
) -> Int[Tensor, "*rows"]:
    """Draw one token a row from weights that need not sum to one, by the inverse of their cumulative sum in float64.

    `uniform` are numbers in [0, 1), one a row; without them they come from the generator, on its own device. A token of
    weight 0 is never drawn. Raises ValueError for a row without weight.
    """
    return _inverse_cdf(weights, uniform, generator)[0]


def draw_logits(
    logits: Float[Tensor, "rows vocab"], uniform: Float[Tensor, " rows"], *, temperature: float | int = 1.0
) -> tuple[Int[Tensor, " rows"], Float[Tensor, " rows"]]:
    """Return the token of each row at the given quantile of p_T, and its log-probability in nats.

    T = 0 takes the largest logit, at log-probability 0.
    """
    logits = logits.float()
    if temperature == 0:
        return logits.argmax(-1), torch.zeros_like(logits[:, 0])
    if temperature != 1:
        logits = logits / temperature
    weights = (logits - logits.amax(-1, keepdim=True)).exp_()
    token, weight, total = _inverse_cdf(weights, uniform, None)
    return token, (weight.log() - total.log()).to(logits.dtype)


def _inverse_cdf(
    weights: Tensor, uniform: Tensor | None, generator: torch.Generator | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the token drawn in each row, its weight, and the row's sum.

    First the block of tokens is drawn, then the token in it: one pass over a large vocabulary, several times faster
    than `torch.multinomial`.
    """
    blocked = nn.functional.pad(weights, (0, -weights.shape[-1] % BLOCK)).unflatten(-1, (-1, BLOCK))
    blocks = blocked.sum(-1, dtype=torch.float64).cumsum(-1)  # [*rows, blocks]
    total = blocks[..., -1:]
    if not bool((total > 0).all()):
        raise ValueError("a row of probabilities sums to 0: nothing can be drawn from it")
    if uniform is None:
        where = total.device if generator is None else generator.device
        uniform = torch.rand(total.shape, dtype=torch.float64, generator=generator, device=where).squeeze(-1)
    block, left = _search(blocks, uniform[..., None].to(total) * total)
    inside = blocked.gather(-2, block[..., None].expand(*block.shape, BLOCK)).squeeze(-2)
    place, _ = _search(inside.double().cumsum(-1), left)
    return (block * BLOCK + place).squeeze(-1), inside.gather(-1, place).squeeze(-1), total.squeeze(-1)


def _search(cumulative: Tensor, level: Tensor) -> tuple[Tensor, Tensor]:
    """First entry whose cumulative sum exceeds the level (so never one of weight 0), and how far into it that is."""
    total = cumulative[..., -1:]
    level = torch.minimum(level, total.nextafter(torch.zeros_like(total)))
    place = torch.searchsorted(cumulative, level, right=True)
    before = torch.where(place > 0, cumulative.gather(-1, (place - 1).clamp(min=0)), 0.0)
    return place, (level - before).clamp(min=0)


# Chooses a token for each row still in the batch: from its logits, the rows' first numbers, and the step from 0 on.
Choose = Callable[[Float[Tensor, "running vocab"], Int[Tensor, " running"], int], Int[Tensor, " running"]]


def greedy(logits: Float[Tensor, "running vocab"], rows: Int[Tensor, " running"], step: int) -> Tensor:
    """Choose the most likely token of each row."""
    return logits.argmax(-1)


@dataclass(frozen=True)
class Decoded:
    """New tokens of each row, with the one that ended it, and which rows have ended by themselves."""

    tokens: list[list[int]]
    ended: list[bool]


def decode(
    context: Context,
    hidden: Float[Tensor, "rows width"],
    *,
    max_new_tokens: int,
    stops: Sequence[int] = (),
    choose: Choose = greedy,
) -> Decoded:
    """Continue every row of a context from its last hidden state, until a stop token or `max_new_tokens`.

    Rows that have ended leave the batch (and the context) when they are many; `choose` may be asked about them before
    that, and its answer is not used. The last token of a row is not read.
    """
    rows = torch.arange(len(hidden), device=hidden.device)  # numbers of the rows still in the batch
    tokens = torch.full((len(hidden), max_new_tokens), -1, device=hidden.device)
    ended = torch.zeros_like(rows, dtype=torch.bool)
    stopping = torch.tensor(list(stops), dtype=torch.long, device=hidden.device)
    for step in range(max_new_tokens):
        chosen = choose(context.logits(hidden), rows, step)
        running = ~ended[rows]
        tokens[rows[running], step] = chosen[running]
        ended[rows] |= torch.isin(chosen, stopping)
        if step + 1 == max_new_tokens or bool(ended.all()):
            break
        running = ~ended[rows]
        if int((~running).sum()) * SPARE >= len(rows):
            context.select(running.nonzero()[:, 0])
            rows, chosen = rows[running], chosen[running]
        hidden = context.read(chosen[:, None]).hidden[:, -1]
    return Decoded([[token for token in row if token >= 0] for row in tokens.tolist()], ended.tolist())
