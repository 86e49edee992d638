"""Greedy answers and gold log-probabilities of prompts that share prefixes, a batch of groups at a time."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from os.path import commonprefix
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from lib.autoinstruct.shared_prefix import SharedPrefixState, padded_left, padded_right


@dataclass(frozen=True)
class Decoded:
    """Of each row: the tokens generated (without the one that stopped it) and the log-probability of each gold reply.

    A gold reply's log-probability is a mean over its tokens, in nats.
    """

    tokens: list[list[int]]
    log_probs: list[list[float]]


@lru_cache(maxsize=8)
def stop_tokens(tokenizer: Any) -> tuple[int, ...]:
    """Tokens that end a single-line answer: the end of turn, and every token with a line break in it."""
    texts = tokenizer.batch_decode([[i] for i in range(len(tokenizer))])
    return tuple(sorted({tokenizer.eos_token_id} | {i for i, text in enumerate(texts) if "\n" in text}))


def shared_length(prompts: Sequence[Sequence[int]]) -> int:
    """Tokens that all prompts begin with; each keeps at least one of its own."""
    return min(len(commonprefix([list(p) for p in prompts])), min(map(len, prompts)) - 1)


@torch.inference_mode()
def decode_groups(
    model: Any,
    groups: Sequence[Sequence[Sequence[int]]],
    *,
    gold: Sequence[Sequence[Sequence[Sequence[int]]]] | None = None,
    stops: Sequence[int],
    max_new_tokens: int,
) -> Decoded:
    """Decode groups of prompts (token ids), each encoding what its rows share once.

    `gold[g][e]` are the replies whose log-probability is wanted after prompt e of group g. Groups of unequal size are
    filled up. With `max_new_tokens = 0` nothing is generated. Raises ValueError for a group without a prompt.
    """
    if not groups or not all(groups):
        raise ValueError("each group needs at least one prompt: leave out the empty ones")
    each = max(map(len, groups))
    filled = [[*group, *[group[-1]] * (each - len(group))] for group in groups]
    shared = [shared_length(group) for group in groups]
    suffixes = [p[n:] for group, n in zip(filled, shared, strict=True) for p in group]
    ids, padding = padded_left(suffixes, device=model.device)
    wanted = [[*g, *[g[-1]] * (each - len(g))] for g in gold] if gold is not None else []
    replies = [r for group in wanted for r in group]
    longest = max((len(reply) for row in replies for reply in row), default=0)
    prefixes = [group[0][:n] for group, n in zip(filled, shared, strict=True)]
    if not all(shared):  # nothing in common (a bare completion prompt): a group of one position that nobody sees
        prefixes = [prefix or [0] for prefix in prefixes]
    capacity = ids.shape[1] + max(max_new_tokens, longest)
    state = SharedPrefixState(model, prefixes, rows_per_group=each, capacity=capacity)
    _hide_empty(state, shared)
    last = state.read(ids, ~padding)[:, -1]
    kept = [g * each + e for g, group in enumerate(groups) for e in range(len(group))]
    log_probs = _score(model, state, last, replies) if replies else [[] for _ in filled for _ in range(each)]
    tokens = _generate(model, state, last, stops=stops, max_new_tokens=max_new_tokens)
    return Decoded([tokens[row] for row in kept], [log_probs[row] for row in kept])


def _hide_empty(state: SharedPrefixState, shared: Sequence[int]) -> None:
    for group, length in enumerate(shared):
        if length == 0:
            state.prefix_hidden[group] = True
            state.prefix_lengths[group] = 0


def _score(
    model: Any, state: SharedPrefixState, last: Float[Tensor, "rows hidden"], replies: Sequence[Sequence[Sequence[int]]]
) -> list[list[float]]:
    """Mean log-probability per token of each row's replies; rows have equally many."""
    found: list[list[float]] = [[] for _ in replies]
    for index in range(len(replies[0])):
        ids, padding = padded_right([row[index] for row in replies], device=last.device)
        hidden = last[:, None]
        if ids.shape[1] > 1:
            hidden = torch.cat([hidden, state.read(ids[:, :-1], ~padding[:, :-1], keep=False)], dim=1)
        logits = model.get_output_embeddings()(hidden[~padding]).float()
        values = torch.zeros(ids.shape, dtype=torch.float32, device=ids.device)
        picked = logits.gather(-1, ids[~padding][:, None])[:, 0] - logits.logsumexp(-1)
        values[~padding] = picked
        for row, value in enumerate((values.sum(-1) / (~padding).sum(-1)).tolist()):
            found[row].append(value)
    return found


def _generate(
    model: Any,
    state: SharedPrefixState,
    last: Float[Tensor, "rows hidden"],
    *,
    stops: Sequence[int],
    max_new_tokens: int,
) -> list[list[int]]:
    """Greedy continuation of every row, until a stop token; rows that have stopped are dropped as soon as it pays."""
    tokens: list[list[int]] = [[] for _ in range(len(last))]
    stopping = torch.tensor(stops, device=last.device)
    origin = torch.arange(len(last), device=last.device)  # row of `tokens` that a row of `state` is
    alive = torch.ones_like(origin, dtype=torch.bool)
    for step in range(max_new_tokens):
        new = model.get_output_embeddings()(last).argmax(-1)
        alive &= ~torch.isin(new, stopping)
        for row in alive.nonzero()[:, 0].tolist():
            tokens[int(origin[row])].append(int(new[row]))
        if step + 1 == max_new_tokens or not alive.any():
            break
        kept = _worth_keeping(alive, state.rows_per_group)
        if kept is not None:
            groups, rows, real = kept
            state.select(groups, rows)
            flat = rows.flatten()
            origin, new, alive = origin[flat], new[flat], real.flatten()
        last = state.read(new[:, None], torch.ones_like(new, dtype=torch.bool)[:, None])[:, -1]
    return tokens


def _worth_keeping(
    alive: Bool[Tensor, " rows"], each: int
) -> tuple[Int[Tensor, " kept"], Int[Tensor, "kept fewer"], Bool[Tensor, "kept fewer"]] | None:
    """Groups and rows that still run, filled up to a rectangle, where that is at most three quarters of all rows."""
    by_group = alive.view(-1, each)
    groups = by_group.any(-1).nonzero()[:, 0]
    fewer = int(by_group.sum(-1).max())
    if len(groups) * fewer > 0.75 * len(alive):
        return None
    order = (~by_group[groups]).to(torch.uint8).argsort(dim=-1, stable=True)[:, :fewer]
    return groups, groups[:, None] * each + order, by_group[groups].gather(1, order)
