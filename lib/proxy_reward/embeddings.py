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
from torch import Tensor
from tqdm import tqdm

SHORTEST_PREFIX = 8  # shared tokens that are worth a cache
Pooling = Literal["mean", "last"]


@dataclass(frozen=True)
class Pooled:
    """Hidden states of each sequence, pooled in two ways, float32 on the CPU."""

    mean: Float[Tensor, "sequences width"]
    last: Float[Tensor, "sequences width"]

    def by(self, pooling: Pooling) -> Float[Tensor, "sequences width"]:
        """One of the two."""
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
    """Hidden states after `layers` decoder layers (all, where None) and the final norm, pooled over each sequence.

    The mean runs over tokens from `starts` on (of a response, say; from the first token after what all sequences share
    where None). Raises ValueError for an empty span, a sequence beyond the model's context, or an impossible depth.
    """
    shared = shared_prefix(sequences)
    prefix = shared if shared >= SHORTEST_PREFIX else 0
    begins = [min(shared, len(s) - 1) for s in sequences] if starts is None else list(starts)
    _check(model, sequences, begins)
    prefix = min([prefix, *begins])
    order = sorted(range(len(sequences)), key=lambda i: len(sequences[i]))
    width = model.config.hidden_size
    mean, last = torch.zeros(len(sequences), width), torch.zeros(len(sequences), width)
    with shallow(model, layers) as base, torch.inference_mode():
        known = base(input_ids=_ids([sequences[0][:prefix]], base), use_cache=True).cache if prefix else None
        batches = list(_batches(order, sequences, batch_tokens))
        for batch in tqdm(batches, desc="embed", unit="batch", disable=not progress, mininterval=1.0):
            rows = [sequences[i][prefix:] for i in batch]
            states = _states(base, rows, known, prefix)
            lengths = torch.tensor([len(r) for r in rows], device=states.device)
            firsts = torch.tensor([begins[i] - prefix for i in batch], device=states.device)
            places = torch.arange(states.shape[1], device=states.device)
            span = (places >= firsts[:, None]) & (places < lengths[:, None])
            mean[batch] = (torch.einsum("btw,bt->bw", states, span.to(states)) / span.sum(1, keepdim=True)).cpu()
            last[batch] = states[torch.arange(len(rows), device=states.device), lengths - 1].cpu()
    return Pooled(mean, last)


def shared_prefix(sequences: Sequence[Sequence[int]]) -> int:
    """Number of tokens that all sequences begin with, at least one short of the shortest of them."""
    if not sequences or not all(len(s) for s in sequences):
        raise ValueError("there is nothing to embed: give at least one sequence, and at least one token in each")
    first, shortest = sequences[0], min(map(len, sequences))
    for place in range(shortest - 1):
        if any(s[place] != first[place] for s in sequences):
            return place
    return shortest - 1


def _check(model: Any, sequences: Sequence[Sequence[int]], begins: Sequence[int]) -> None:
    context = getattr(model.config, "max_position_embeddings", None)
    for index, (sequence, begin) in enumerate(zip(sequences, begins, strict=True)):
        if not 0 <= begin < len(sequence):
            raise ValueError(f"sequence {index} has {len(sequence)} tokens and a span from {begin} on: it is empty")
        if context is not None and len(sequence) > context:
            raise ValueError(f"sequence {index} has {len(sequence)} tokens, the model reads {context}: shorten it")


@contextmanager
def shallow(model: Any, layers: int | None) -> Iterator[Any]:
    """Give a causal model's decoder with its first `layers` layers and its final norm; whole again afterwards."""
    base = model.get_decoder() if hasattr(model, "get_decoder") else model.model
    whole, count = base.layers, base.config.num_hidden_layers
    depth = count if layers is None else layers
    if not 1 <= depth <= count:
        raise ValueError(f"{depth} layers were asked for, and the model has {count}: ask for 1 to {count}")
    training = base.training
    try:
        base.layers, base.config.num_hidden_layers = whole[:depth], depth
        yield base.eval()
    finally:
        base.layers, base.config.num_hidden_layers = whole, count
        base.train(training)


def _batches(order: list[int], sequences: Sequence[Sequence[int]], budget: int) -> Iterator[list[int]]:
    """Indices in batches of similar length, at most `budget` tokens each (padding included)."""
    batch: list[int] = []
    for index in order:  # ascending length: the newcomer is the longest
        if batch and (len(batch) + 1) * len(sequences[index]) > budget:
            yield batch
            batch = []
        batch.append(index)
    yield batch


def _ids(rows: Sequence[Sequence[int]], base: Any) -> Tensor:
    return torch.tensor([list(r) for r in rows], device=next(base.parameters()).device)


def _states(base: Any, rows: Sequence[Sequence[int]], known: Any, prefix: int) -> Float[Tensor, "rows tokens width"]:
    """Hidden states of rows, padded on the right (a causal model's states do not see what follows)."""
    longest = max(map(len, rows))
    ids = _ids([list(r) + [0] * (longest - len(r)) for r in rows], base)
    if known is None:
        return base(input_ids=ids, use_cache=False).last_hidden_state.float()
    return base(input_ids=ids, cache=_repeated(known, len(rows)), use_cache=True).last_hidden_state.float()


def _repeated(known: Any, times: int) -> Any:
    """Return a cache of the shared prefix for `times` rows; the one that is kept stays as it is."""
    from transformers import DynamicCache

    layers = [(layer.keys, layer.values) for layer in known.layers]
    return DynamicCache(tuple((k.expand(times, -1, -1, -1), v.expand(times, -1, -1, -1)) for k, v in layers))
