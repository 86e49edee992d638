"""Questions of real conversations, and on-policy sampling: k responses of a causal language model to each prompt.

A prompt is read once and its cache is shared by its k rows. Every row has its own stream of uniform numbers, so what a
row says does not depend on the rows that share its batch (up to rounding of the forward pass).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from tqdm import tqdm

from lib import TenfoldError
from lib.core.generation import Context, decode, draw_logits
from lib.core.scoring import by_length, padded
from lib.core.training import evaluating
from lib.zoo.dialogues import exchanges, prompt_ids

Prompt = str | Sequence[int]


@dataclass(frozen=True)
class Question:
    """A question, the answer that a user once got to it, and its token ids up to where the assistant begins.

    `existing` are responses of the data set itself, such as its chosen and its rejected one: candidates beside the
    policy's own (Algorithm 1 of arXiv:2405.19332).
    """

    text: str
    answer: str
    tokens: tuple[int, ...]
    existing: tuple[str, ...] = ()


def questions(
    records: Any,
    tokenizer: Any,
    *,
    limit: int,
    max_tokens: int = 64,
    min_answer_words: int = 8,
    system: str | None = None,
) -> list[Question]:
    """Return the first `limit` distinct questions of at most `max_tokens` tokens (template included) with an answer.

    `system` is the system prompt, the template's own where None. The `chosen` and `rejected` response of a record that
    has them are kept beside its question. Raises TenfoldError where the records hold fewer.
    """
    kept: dict[str, Question] = {}
    for record in records:
        question, answer = next(exchanges([record]), ("", ""))
        text, answer = question.strip(), answer.strip()
        if not text or text in kept or len(answer.split()) < min_answer_words or len(text) > 8 * max_tokens:
            continue
        tokens = prompt_ids(tokenizer, text, system=system)
        if len(tokens) <= max_tokens:
            both = [record[side] for side in ("chosen", "rejected") if record.get(side)]
            existing = tuple(r if isinstance(r, str) else r[-1]["content"] for r in both)
            kept[text] = Question(text, answer, tuple(tokens), existing)
        if len(kept) == limit:
            return list(kept.values())
    raise TenfoldError(
        f"only {len(kept)} of {limit} questions of at most {max_tokens} tokens were found: read more records, or "
        "allow longer questions."
    )


def encoded(prompts: Sequence[Prompt], tokenizer: Any, *, context: int | None = None, room: int = 0) -> list[list[int]]:
    """Return token ids of prompts: of a question in the chat template, or the ids themselves.

    Raises ValueError for no prompts, an empty prompt, or one that leaves less than `room` tokens of the context.
    """
    if not len(prompts):
        raise ValueError("there are no prompts: give at least one question or list of token ids")
    encoded_prompts = []
    for index, prompt in enumerate(prompts):
        empty = not prompt.strip() if isinstance(prompt, str) else not len(prompt)
        if empty:
            raise ValueError(f"prompt {index} is empty: drop it, or give it some text")
        ids = prompt_ids(tokenizer, prompt) if isinstance(prompt, str) else [int(token) for token in prompt]
        if context is not None and len(ids) + room > context:
            raise ValueError(
                f"prompt {index} has {len(ids)} tokens and leaves less than {room} of the model's context of "
                f"{context}: shorten it, or ask for shorter responses"
            )
        encoded_prompts.append(ids)
    return encoded_prompts


@dataclass(frozen=True)
class Response:
    """What a policy said: token ids (with the end token where it said one), text, and log-probability in nats.

    `log_prob` is that of the law it was drawn from (at its temperature), as seen while decoding; in 16-bit numbers it
    differs from a teacher-forced one by some tenths of a nat. `finished`: whether it ended by itself.
    """

    tokens: tuple[int, ...]
    text: str
    log_prob: float
    finished: bool


def sample(
    policy: Any,
    tokenizer: Any,
    prompts: Sequence[Prompt],
    k: int = 1,
    *,
    max_new_tokens: int = 64,
    temperature: float | int = 1.0,
    batch_size: int = 96,
    seed: int = 0,
    only: Sequence[int] | None = None,
    progress: bool = True,
) -> list[list[Response]]:
    """Draw k responses to each prompt (a question, put into the chat template, or token ids); temperature 0 is greedy.

    `batch_size` counts rows (prompts x k). `only` names the prompts to answer (all, where None), with the same random
    numbers as if all were: processes that share the prompts say together what one would say. Raises ValueError for
    empty prompts, prompts that leave no room in the context, or settings that draw nothing.
    """
    if k < 1 or max_new_tokens < 1 or batch_size < 1 or not 0 <= temperature < float("inf"):
        raise ValueError(
            f"k = {k}, max_new_tokens = {max_new_tokens}, batch_size = {batch_size} and temperature = {temperature} "
            "draw nothing: the first three must be at least 1, the temperature 0 (greedy) or positive"
        )
    longest = getattr(policy.config, "max_position_embeddings", None)
    ids = encoded(prompts, tokenizer, context=longest, room=max_new_tokens)
    rows = 1 if temperature == 0 else k  # greedy responses are all the same
    # By prompt: the first prompts' numbers do not move when more prompts are added.
    generator = torch.Generator().manual_seed(seed)
    uniforms = torch.rand(len(ids), rows, max_new_tokens, dtype=torch.float64, generator=generator)
    said: dict[int, list[Response]] = {}
    wanted = list(range(len(ids))) if only is None else list(only)
    bar = tqdm(total=len(wanted) * rows, desc="sample", unit="row", disable=not progress, mininterval=1.0)
    with evaluating(policy), bar:
        for places in by_length([len(ids[i]) for i in wanted], rows=max(1, batch_size // rows)):
            batch = [wanted[place] for place in places]
            drawn = _draw(policy, tokenizer, [ids[i] for i in batch], uniforms[batch], temperature)
            said |= {index: drawn[i * rows : (i + 1) * rows] * (k // rows) for i, index in enumerate(batch)}
            bar.update(len(batch) * rows)
    return [said[index] for index in wanted]


@torch.inference_mode()
def _draw(
    policy: Any,
    tokenizer: Any,
    prompts: list[list[int]],
    uniforms: Float[torch.Tensor, "prompts k steps"],
    temperature: float | int,
) -> list[Response]:
    """Decode a batch: each prompt is read once, and its cache given to its k rows."""
    context = Context(policy, len(prompts))
    hidden = context.read(*padded(prompts, side="left", device=context.mask.device)).hidden[:, -1]
    prompt_of = torch.arange(len(prompts), device=hidden.device).repeat_interleave(uniforms.shape[1])
    context.select(prompt_of)
    levels = uniforms.flatten(0, 1).to(hidden.device)  # [rows, steps]
    log_probs = torch.zeros_like(levels)

    def choose(logits: torch.Tensor, rows: torch.Tensor, step: int) -> torch.Tensor:
        token, log_prob = draw_logits(logits, levels[rows, step], temperature=temperature)
        log_probs[rows, step] = log_prob.double()
        return token

    decoded = decode(
        context, hidden[prompt_of], max_new_tokens=levels.shape[1], stops=_stops(policy, tokenizer), choose=choose
    )
    texts = tokenizer.batch_decode(decoded.tokens, skip_special_tokens=True)
    rows = zip(decoded.tokens, texts, log_probs.tolist(), decoded.ended, strict=True)
    return [Response(tuple(ids), text, sum(each[: len(ids)]), ended) for ids, text, each, ended in rows]


def _stops(policy: Any, tokenizer: Any) -> list[int]:
    """Return the token ids that end a response: the generation config's, else the tokenizer's."""
    ends = getattr(getattr(policy, "generation_config", None), "eos_token_id", None)
    ends = tokenizer.eos_token_id if ends is None else ends
    return [ends] if isinstance(ends, int) else list(ends or [])
