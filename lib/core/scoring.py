"""Teacher-forced scoring: padding, batches of similar length, log-probabilities of given tokens, pooled hidden states.

Position i of a causal model says the law of token i + 1. Batches are padded on the right here: a position then sees
nothing of the padding behind it, so that no mask is needed and attention may take its causal kernel.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

HEAD_ROWS = 1024  # positions that go through the vocabulary head at once
CAPS = ("final_logit_softcapping", "logits_soft_cap", "output_logit_soft_cap")  # names of c in c tanh(z / c)


def padded(
    rows: Sequence[Any], *, side: str, value: int = 0, device: Any = None
) -> tuple[Int[Tensor, "rows longest"], Bool[Tensor, "rows longest"]]:
    """Pad token ids (lists or tensors) with `value` to the longest row; return them, and where they are a row's own.

    Raises ValueError for another side.
    """
    if side not in ("left", "right"):
        raise ValueError(f"side is {side!r}: pad on the 'left' (to generate) or on the 'right' (to score)")
    longest = max(map(len, rows))
    ids = torch.full((len(rows), longest), value)
    present = torch.zeros(len(rows), longest, dtype=torch.bool)
    for row, tokens in enumerate(rows):
        place = slice(longest - len(tokens), longest) if side == "left" else slice(0, len(tokens))
        ids[row, place], present[row, place] = torch.as_tensor(tokens, dtype=torch.long), True
    return ids.to(device), present.to(device)


def by_length(lengths: Sequence[int], *, rows: int | None = None, tokens: int | None = None) -> list[list[int]]:
    """Return batches of indices, shortest first, of at most so many rows, or so many tokens (padding included).

    A single row is a batch however long it is. Raises ValueError unless one of the limits is given, and at least 1.
    """
    if (rows is None) == (tokens is None) or (rows or tokens or 0) < 1:
        raise ValueError("give the most rows or the most tokens of a batch, at least 1")
    batches: list[list[int]] = []
    for index in sorted(range(len(lengths)), key=lengths.__getitem__):  # the newcomer is the longest
        size = len(batches[-1]) + 1 if batches else 0
        if size and (size <= rows if rows is not None else size * lengths[index] <= (tokens or 0)):
            batches[-1].append(index)
        else:
            batches.append([index])
    return batches


def decoder_of(model: Any) -> Any:
    """Return the network below a causal model's vocabulary head; of a PEFT model with its adapters in place."""
    model = model.get_base_model() if hasattr(model, "get_base_model") else model
    return model.get_decoder() if hasattr(model, "get_decoder") else model


def head_logits(model: Any, hidden: Float[Tensor, "*rows width"]) -> Float[Tensor, "*rows vocab"]:
    """Return logits of last hidden states in float32, with what the family does behind its head.

    That is a scale (Granite divides, Cohere, Falcon-H1 and HyperCLOVA X multiply) or a soft cap, c tanh(z / c) (Gemma,
    RecurrentGemma, xLSTM).
    """
    model = model.get_base_model() if hasattr(model, "get_base_model") else model
    config = model.config.get_text_config()
    # A view (the last position of each row) is copied: PyTorch on the CPU would multiply it row by row.
    logits = model.get_output_embeddings()(hidden.contiguous())
    factors = ["logit_scale", "lm_head_multiplier"]
    if config.model_type == "hyperclovax":  # it has Granite's name for the scale, and multiplies by it
        factors.append("logits_scaling")
    elif (divisor := getattr(config, "logits_scaling", None)) is not None:
        logits = logits / divisor
    for factor in factors:
        if (scale := getattr(config, factor, None)) is not None:
            logits = logits * scale
    for name in CAPS:
        if (cap := getattr(config, name, None)) is not None:
            logits = torch.tanh(logits / cap) * cap
    return logits.float()


@dataclass(frozen=True)
class ScoredBatch:
    """Sequences padded on the right, where they are (`present`), and which tokens count.

    `scored[b, i]`: token i + 1 of row b counts, so position i is asked. A row's scored tokens stand in order, one row
    after another, wherever they are one axis [scored].
    """

    ids: Int[Tensor, "rows length"]
    present: Bool[Tensor, "rows length"]
    scored: Bool[Tensor, "rows length"]

    @property
    def targets(self) -> Int[Tensor, " scored"]:
        """The tokens that count."""
        return self.ids.roll(-1, dims=1)[self.scored]

    @property
    def owners(self) -> Int[Tensor, " scored"]:
        """Row of each token that counts."""
        return self.scored.nonzero()[:, 0]

    def sums(self, values: Float[Tensor, " scored"]) -> Float[Tensor, " rows"]:
        """Sum values of scored tokens over each row, in float64 on the CPU."""
        total = torch.zeros(len(self.ids), dtype=torch.float64, device=values.device)
        return total.index_add(0, self.owners, values.double()).cpu()


def scored_batch(sequences: Sequence[Any], starts: Sequence[int], *, value: int = 0, device: Any = None) -> ScoredBatch:
    """Batch sequences of which the tokens from `starts` on count (never the first one: nothing comes before it)."""
    ids, present = padded(sequences, side="right", value=value)
    places, lengths = torch.arange(ids.shape[1]), present.sum(1, keepdim=True)
    first = torch.tensor(list(starts))[:, None]
    scored = (places >= first - 1) & (places < lengths - 1)
    return ScoredBatch(ids.to(device), present.to(device), scored.to(device))


def scored_states(model: Any, batch: ScoredBatch) -> Float[Tensor, "scored width"]:
    """Return the last hidden states at the positions that are asked, by one pass; with gradients where they are on."""
    hidden = decoder_of(model)(input_ids=batch.ids, use_cache=False).last_hidden_state
    return hidden[batch.scored]


def log_probs(
    model: Any, states: Float[Tensor, "scored width"], targets: Int[Tensor, " scored"]
) -> Float[Tensor, " scored"]:
    """Return log p of each target in nats after its state, in float32, a part of the positions at a time."""
    parts = []
    for part, wanted in zip(states.split(HEAD_ROWS), targets.split(HEAD_ROWS), strict=True):
        logits = head_logits(model, part)
        parts.append(logits.gather(-1, wanted[:, None]).squeeze(-1) - logits.logsumexp(-1))
    return torch.cat(parts)


def mean_pooled(
    hidden: Float[Tensor, "rows length width"], counted: Bool[Tensor, "rows length"] | Int[Tensor, "rows length"]
) -> Float[Tensor, "rows width"]:
    """Return the mean of each row's hidden states over the positions that count, in float32."""
    mask = counted.unsqueeze(-1)
    return (hidden.float() * mask).sum(1) / mask.sum(1)
