"""Attention over prompts that begin alike: the common part is encoded and read once a group, not once a row.

A group is one instruction (with its demonstrations, if any), its rows are the examples it is tried on. A row's query
attends to the group's prefix keys, of which there is one copy, and to the row's own keys; both parts share one softmax,
so the result is that of plain attention. Symbols: G groups of E rows, P prefix positions, S own positions.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers import DynamicCache
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

NAME = "tenfold_shared_prefix"
HIDDEN = torch.finfo(torch.float32).min


def attend(
    query: Float[Tensor, "rows heads new dim"],
    keys: Float[Tensor, "rows kv_heads own dim"],
    values: Float[Tensor, "rows kv_heads own dim"],
    prefix_keys: Float[Tensor, "groups kv_heads prefix dim"],
    prefix_values: Float[Tensor, "groups kv_heads prefix dim"],
    *,
    prefix_hidden: Bool[Tensor, "groups prefix"],
    own_hidden: Bool[Tensor, "rows new own"],
    scaling: float,
) -> Float[Tensor, "rows new heads dim"]:
    """Attend to a group's prefix and a row's own positions under one softmax, which is taken in float32."""
    (rows, heads, new, dim), groups = query.shape, len(prefix_keys)
    kv_heads, own = keys.shape[1:3]
    per_group = heads // kv_heads
    # [rows, kv_heads, per_group x new, d]: the queries that share a KV head are one matrix; and so for a whole group.
    own_query = (query * scaling).reshape(rows, kv_heads, per_group * new, dim)
    group_query = _by_group(own_query, groups)
    own_scores = (own_query @ keys.transpose(-1, -2)).float().view(rows, kv_heads, per_group, new, own)
    own_scores = own_scores.masked_fill(own_hidden[:, None, None], HIDDEN).view(rows, kv_heads, per_group * new, own)
    prefix_scores = (group_query @ prefix_keys.transpose(-1, -2)).float()
    prefix_scores = prefix_scores.masked_fill(prefix_hidden[:, None, None], HIDDEN)
    top = torch.maximum(_by_row(prefix_scores.amax(-1, keepdim=True), rows), own_scores.amax(-1, keepdim=True))
    own_weights = (own_scores - top).exp_()
    prefix_weights = (prefix_scores - _by_group(top, groups)).exp_()
    total = own_weights.sum(-1, keepdim=True) + _by_row(prefix_weights.sum(-1, keepdim=True), rows)
    own_weights /= total
    prefix_weights /= _by_group(total, groups)
    mixed = own_weights.to(values.dtype) @ values
    mixed = mixed + _by_row(prefix_weights.to(values.dtype) @ prefix_values, rows)
    return mixed.view(rows, heads, new, dim).transpose(1, 2)


def _by_group(rows_first: Tensor, groups: int) -> Tensor:
    """[G E, kv, m, d] -> [G, kv, E m, d]."""
    rows, kv_heads, count, dim = rows_first.shape
    each = rows // groups
    return rows_first.view(groups, each, kv_heads, count, dim).transpose(1, 2).reshape(groups, kv_heads, -1, dim)


def _by_row(groups_first: Tensor, rows: int) -> Tensor:
    """[G, kv, E m, d] -> [G E, kv, m, d]."""
    groups, kv_heads, count, dim = groups_first.shape
    each = rows // groups
    return (
        groups_first.view(groups, kv_heads, each, count // each, dim).transpose(1, 2).reshape(rows, kv_heads, -1, dim)
    )


def _interface(module: Any, query: Tensor, key: Tensor, value: Tensor, _mask: Any, *, scaling: float, **options: Any):
    """Attention function in transformers' form; the group's prefix and the masks travel in `shared`."""
    shared: SharedPrefixState = options["shared"]
    prefix_keys, prefix_values = shared.prefix[module.layer_idx]
    hidden = {"prefix_hidden": shared.prefix_hidden, "own_hidden": shared.own_hidden}
    return attend(query, key, value, prefix_keys, prefix_values, scaling=scaling, **hidden), None


ALL_ATTENTION_FUNCTIONS.register(NAME, _interface)


@contextmanager
def installed(model: Any) -> Iterator[None]:
    """Make the model use this attention inside a block."""
    config = model.config
    before = config._attn_implementation
    config._attn_implementation = NAME
    try:
        yield
    finally:
        config._attn_implementation = before


class SharedPrefixState:
    """What G groups of E rows have read so far: one prefix a group, and a buffer of own keys and values a row.

    It stands in for transformers' cache: `update` appends to the buffers and gives back the filled part.
    """

    def __init__(
        self,
        model: Any,
        prefixes: Sequence[Sequence[int]],
        *,
        rows_per_group: int,
        capacity: int,
    ) -> None:
        self.model, self.filled = model, 0
        self.rows_per_group, self.capacity = rows_per_group, capacity
        ids, hidden = padded_right(prefixes, device=model.device)
        self.prefix_hidden = hidden
        self.prefix_lengths = (~hidden).sum(-1)  # [groups]
        cache = DynamicCache(config=model.config)
        model.get_decoder()(input_ids=ids, attention_mask=(~hidden).long(), cache=cache, use_cache=True)
        self.prefix: list[tuple[Tensor, Tensor]] = [(layer.keys, layer.values) for layer in cache.layers]
        rows = len(prefixes) * rows_per_group
        self.own: list[tuple[Tensor, Tensor]] = []
        for keys, values in self.prefix:
            shapes = [(rows, state.shape[1], capacity, state.shape[3]) for state in (keys, values)]
            self.own.append((keys.new_zeros(shapes[0]), values.new_zeros(shapes[1])))
        self.own_absent = torch.ones(rows, capacity, dtype=torch.bool, device=model.device)  # padding, or not yet read
        self.own_hidden = self.own_absent[:, None]

    def update(self, keys: Tensor, values: Tensor, layer_idx: int, **_: Any) -> tuple[Tensor, Tensor]:
        """Append a layer's new keys and values; gives back the row's own, old and new."""
        end = self.filled + keys.shape[2]
        held_keys, held_values = self.own[layer_idx]
        held_keys[:, :, self.filled : end] = keys
        held_values[:, :, self.filled : end] = values
        return held_keys[:, :, :end], held_values[:, :, :end]

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Own positions read so far."""
        return self.filled

    def read(
        self, ids: Int[Tensor, "rows new"], present: Bool[Tensor, "rows new"], *, keep: bool = True
    ) -> Float[Tensor, "rows new hidden"]:
        """Read new tokens of every row and give their last hidden states; where not `keep`, forget them again.

        Tokens that are not `present` are padding: no later token sees them.
        """
        new, start = ids.shape[1], self.filled
        end = start + new
        self.own_absent[:, start:end] = ~present
        order = torch.arange(end, device=ids.device)
        later = order[None] > order[start:, None]  # [new, end]: causal
        self.own_hidden = self.own_absent[:, None, :end] | later
        seen = (~self.own_absent[:, :end]).cumsum(-1)[:, start:]
        positions = (seen - 1).clamp(min=0) + self.prefix_lengths.repeat_interleave(self.rows_per_group)[:, None]
        with installed(self.model):
            output = self.model.get_decoder()(
                input_ids=ids, position_ids=positions, attention_mask=None, cache=self, use_cache=True, shared=self
            )
        if keep:
            self.filled = end
        else:
            self.own_absent[:, start:end] = True
        return output.last_hidden_state

    def select(self, groups: Int[Tensor, " kept"], rows: Int[Tensor, "kept each"]) -> None:
        """Keep some groups, and of each as many rows (indices into all rows); the rest is dropped."""
        flat = rows.flatten()
        self.rows_per_group = rows.shape[1]
        self.prefix = [(keys[groups], values[groups]) for keys, values in self.prefix]
        self.own = [(keys[flat], values[flat]) for keys, values in self.own]
        self.prefix_hidden, self.prefix_lengths = self.prefix_hidden[groups], self.prefix_lengths[groups]
        self.own_absent = self.own_absent[flat]


def padded_right(
    sequences: Sequence[Sequence[int]], *, device: Any = None
) -> tuple[Int[Tensor, "rows longest"], Bool[Tensor, "rows longest"]]:
    """Token ids padded on the right with 0, and where the padding is."""
    return _padded(sequences, device, left=False)


def padded_left(
    sequences: Sequence[Sequence[int]], *, device: Any = None
) -> tuple[Int[Tensor, "rows longest"], Bool[Tensor, "rows longest"]]:
    """Token ids padded on the left with 0, and where the padding is."""
    return _padded(sequences, device, left=True)


def _padded(sequences: Sequence[Sequence[int]], device: Any, *, left: bool) -> tuple[Tensor, Tensor]:
    longest = max(map(len, sequences))
    ids = torch.zeros(len(sequences), longest, dtype=torch.long)
    padding = torch.ones(len(sequences), longest, dtype=torch.bool)
    for row, sequence in enumerate(sequences):
        place = slice(longest - len(sequence), longest) if left else slice(0, len(sequence))
        ids[row, place], padding[row, place] = torch.tensor(sequence, dtype=torch.long), False
    return ids.to(device), padding.to(device)
