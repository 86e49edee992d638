"""Embeddings of exchanges in a policy's own hidden states: the mean over a span of tokens, and the last token.

Neither layer nor pooling is public for arXiv:2407.02119: both poolings come out of one pass, at any depth. Tokens that
all sequences share at their start (an evaluation prompt's rubric) are read once, and their keys and values reused.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from tqdm import tqdm

from lib.core.generation import Context, common_length
from lib.core.scoring import by_length, mean_pooled, padded

SHORTEST_PREFIX = 8  # shared tokens that are worth a cache
LAYERS = ("layers", "h", "blocks")  # how decoders call the list of their layers
Pooling = Literal["mean", "last"]


@dataclass(frozen=True)
class Pooled:
    """Hidden states of each sequence, pooled in two ways, float32 on the CPU."""

    mean: Float[Tensor, "sequences width"]
    last: Float[Tensor, "sequences width"]

    def by(self, pooling: Pooling) -> Float[Tensor, "sequences width"]:
        """Return one of the two."""
        return {"mean": self.mean, "last": self.last}[pooling]


def pooled_states(
    model: Any,
    sequences: Sequence[Sequence[int]],
    *,
    starts: Sequence[int] | None = None,
    layers: int | None = None,
    batch_tokens: int = 4096,
    progress: bool = False,
) -> Pooled:
    """Return hidden states after `layers` decoder layers (all, where None) and the final norm, pooled over a sequence.

    The mean runs over tokens from `starts` on (of a response, say; from the first token after what all sequences share
    where None). Raises ValueError for an empty span, a sequence beyond the model's context, or an impossible depth.
    """
    shared = common_length(sequences)
    begins = [min(shared, len(s) - 1) for s in sequences] if starts is None else list(starts)
    _check(model, sequences, begins)
    prefix = min([shared if shared >= SHORTEST_PREFIX else 0, *begins])
    mean = torch.zeros(len(sequences), model.config.get_text_config().hidden_size)
    last, device = torch.zeros_like(mean), next(model.parameters()).device
    with shallow(model, layers) as base, torch.inference_mode():
        known = Context(base, 1)
        if prefix:
            known.read(torch.tensor([sequences[0][:prefix]], device=device))
        batches = by_length(list(map(len, sequences)), tokens=batch_tokens)
        for batch in tqdm(batches, desc="embed", unit="batch", disable=not progress, mininterval=1.0):
            ids, present = padded([sequences[i][prefix:] for i in batch], side="right", device=device)
            if prefix:
                context = known.fork()
                context.select(torch.zeros(len(batch), dtype=torch.long, device=device))
                states = context.read(ids, present).hidden
            else:  # without a mask: a causal model's states do not see the padding that follows
                states = base(input_ids=ids, use_cache=False).last_hidden_state
            firsts = torch.tensor([begins[i] - prefix for i in batch], device=device)
            span = present & (torch.arange(ids.shape[1], device=device) >= firsts[:, None])
            mean[batch] = mean_pooled(states, span).cpu()
            last[batch] = states[torch.arange(len(batch)), present.sum(1) - 1].float().cpu()
    return Pooled(mean, last)


def _check(model: Any, sequences: Sequence[Sequence[int]], begins: Sequence[int]) -> None:
    context = getattr(model.config, "max_position_embeddings", None)
    if any(isinstance(sequence, str) for sequence in sequences):
        raise ValueError("sequences are lists of token ids, and these hold texts: give tokenizer(texts).input_ids")
    for index, (sequence, begin) in enumerate(zip(sequences, begins, strict=True)):
        if not 0 <= begin < len(sequence):
            raise ValueError(f"sequence {index} has {len(sequence)} tokens and a span from {begin} on: it is empty")
        if context is not None and len(sequence) > context:
            raise ValueError(f"sequence {index} has {len(sequence)} tokens, the model reads {context}: shorten it")


@contextmanager
def shallow(model: Any, layers: int | None) -> Iterator[Any]:
    """Give a causal model's decoder with its first `layers` layers and its final norm; whole again afterwards."""
    base = model.get_decoder() if hasattr(model, "get_decoder") else model.model
    name = next((name for name in LAYERS if isinstance(getattr(base, name, None), nn.ModuleList)), None)
    if name is None:
        raise ValueError(f"{type(base).__name__} keeps its layers under none of the names {', '.join(LAYERS)}")
    whole, count = getattr(base, name), base.config.num_hidden_layers
    depth = count if layers is None else layers
    if not 1 <= depth <= count:
        raise ValueError(f"{depth} layers were asked for, and the model has {count}: ask for 1 to {count}")
    training = base.training
    try:
        setattr(base, name, whole[:depth])
        base.config.num_hidden_layers = depth
        yield base.eval()
    finally:
        setattr(base, name, whole)
        base.config.num_hidden_layers = count
        base.train(training)
