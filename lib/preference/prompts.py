"""Prompts with a reference answer out of real conversations, and their token ids in a model's own chat template."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from lib import TenfoldError
from lib.zoo.chat import exchanges, prompt_ids

Prompt = str | Sequence[int]


@dataclass(frozen=True)
class Question:
    """A question, the answer that a user once got to it, and its token ids up to where the assistant begins."""

    text: str
    answer: str
    tokens: tuple[int, ...]


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

    `system` is the system prompt, the template's own where None. Raises TenfoldError where the records hold fewer.
    """
    found: dict[str, Question] = {}
    for question, answer in exchanges(records):
        text, answer = question.strip(), answer.strip()
        if not text or text in found or len(answer.split()) < min_answer_words or len(text) > 8 * max_tokens:
            continue
        tokens = prompt_ids(tokenizer, text, system=system)
        if len(tokens) <= max_tokens:
            found[text] = Question(text, answer, tuple(tokens))
        if len(found) == limit:
            return list(found.values())
    raise TenfoldError(
        f"only {len(found)} of {limit} questions of at most {max_tokens} tokens were found: read more records, or "
        "allow longer questions."
    )


def encoded(prompts: Sequence[Prompt], tokenizer: Any, *, context: int | None = None, room: int = 0) -> list[list[int]]:
    """Token ids of prompts: of a question in the chat template, or the ids themselves.

    Raises TenfoldError for no prompts, an empty prompt, or one that leaves less than `room` tokens of the context.
    """
    if not len(prompts):
        raise TenfoldError("there are no prompts: give at least one question or list of token ids.")
    found = []
    for index, prompt in enumerate(prompts):
        empty = not prompt.strip() if isinstance(prompt, str) else not len(prompt)
        if empty:
            raise TenfoldError(f"prompt {index} is empty: drop it, or give it some text.")
        ids = prompt_ids(tokenizer, prompt) if isinstance(prompt, str) else [int(token) for token in prompt]
        if context is not None and len(ids) + room > context:
            raise TenfoldError(
                f"prompt {index} has {len(ids)} tokens and leaves less than {room} of the model's context of "
                f"{context}: shorten it, or ask for shorter responses."
            )
        found.append(ids)
    return found
