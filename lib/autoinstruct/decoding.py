"""Prompts that put an instruction before an example, their greedy answers, and log-probabilities of given replies.

The instruction is the system turn, a demonstration a user and an assistant turn, the example the last user turn.
Deviation: the paper's completion model got `instruction, demonstrations, Input:, Output:` as plain text; so does a
model here whose tokenizer has no chat template.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from jaxtyping import Float
from jinja2 import TemplateError
from torch import Tensor

from lib.autoinstruct.tasks import Demonstration
from lib.core.generation import Context, decode, read_groups
from lib.core.scoring import log_probs, padded


def prompt_ids(
    tokenizer: Any, instruction: str, example: str, *, demonstrations: Sequence[Demonstration] = ()
) -> list[int]:
    """Encode a prompt up to where the model's answer begins; an empty instruction leaves the system turn empty.

    Raises ValueError where the chat template refuses a system turn.
    """
    if getattr(tokenizer, "chat_template", None) is None:
        parts = [instruction] if instruction else []
        parts += [f"Input: {demo.input}\nOutput: {demo.output}" for demo in demonstrations]
        return tokenizer("\n\n".join([*parts, f"Input: {example}\nOutput:"])).input_ids
    messages = messages_of(instruction, example, demonstrations)
    try:
        text = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    except TemplateError as error:
        raise ValueError(
            f"the chat template refuses an instruction as the system turn ({error}): give the tokenizer one that takes "
            "it"
        ) from None
    return tokenizer(text, add_special_tokens=False).input_ids


def messages_of(instruction: str, example: str, demonstrations: Sequence[Demonstration] = ()) -> list[dict[str, str]]:
    """Lay out a prompt as a dialogue: instruction, demonstrations, example."""
    messages = [{"role": "system", "content": instruction}]
    for demo in demonstrations:
        messages += [{"role": "user", "content": demo.input}, {"role": "assistant", "content": demo.output}]
    return [*messages, {"role": "user", "content": example}]


def answer_ids(tokenizer: Any, answer: str) -> list[int]:
    """Encode a whole reply: the answer and the token that ends it, so that a longer reply is another reply."""
    plain = getattr(tokenizer, "chat_template", None) is None
    ids = tokenizer((" " if plain else "") + answer, add_special_tokens=False).input_ids
    return [*ids, tokenizer.eos_token_id]


@lru_cache(maxsize=8)
def stop_tokens(tokenizer: Any) -> tuple[int, ...]:
    """List the tokens that end a single-line answer: the end of turn, and every token with a line break in it."""
    texts = tokenizer.batch_decode([[i] for i in range(len(tokenizer))])
    return tuple(sorted({tokenizer.eos_token_id} | {i for i, text in enumerate(texts) if "\n" in text}))


@dataclass(frozen=True)
class Answers:
    """Of each prompt: tokens generated (without the stop), and each given reply's log-probability in nats."""

    tokens: list[list[int]]
    log_probs: list[list[float]]


@torch.inference_mode()
def answer_groups(
    model: Any,
    groups: Sequence[Sequence[Sequence[int]]],
    *,
    replies: Sequence[Sequence[Sequence[int]]] = (),
    stops: Sequence[int],
    max_new_tokens: int,
) -> Answers:
    """Answer groups of prompts (token ids); what the prompts of a group begin with is read once.

    `replies[i]` are token ids whose log-probability is wanted after prompt i (one group after another; equally many
    each). With `max_new_tokens = 0` nothing is generated. Raises ValueError for a group without a prompt.
    """
    context, last = read_groups(model, groups)
    scored = _reply_log_probs(context, last, replies) if replies else [[] for _ in last]
    decoded = decode(context, last, max_new_tokens=max_new_tokens, stops=stops)
    tokens = [row[:-1] if ended else row for row, ended in zip(decoded.tokens, decoded.ended, strict=True)]
    return Answers(tokens, scored)


def _reply_log_probs(
    context: Context, last: Float[Tensor, "rows width"], replies: Sequence[Sequence[Sequence[int]]]
) -> list[list[float]]:
    columns = []
    for column in zip(*replies, strict=True):
        ids, present = padded(column, side="right", device=last.device)
        hidden = last[:, None]
        if ids.shape[1] > 1:
            hidden = torch.cat([hidden, context.read(ids[:, :-1], present[:, :-1]).hidden], dim=1)
            context.rollback(present[:, :-1].sum(1))
        values = torch.zeros(ids.shape, device=ids.device)
        values[present] = log_probs(context.model, hidden[present], ids[present])
        columns.append(values.sum(-1).tolist())
    return [list(row) for row in zip(*columns, strict=True)]
