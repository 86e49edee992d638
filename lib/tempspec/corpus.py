"""Real prompts and texts: conversations (in domain), and tasks of other kinds (out of domain), as token ids."""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

import torch

from lib.tempspec.lessons import Example
from lib.zoo.chat import exchanges, prompt_ids

REASONING = (
    "algebra_word_problems", "arithmetical_puzzles", "counterfactual-reasoning", "formal_logic", "logic-statements",
    "linear_equations", "math_equations", "multi-step-equations", "probabilities-word-problems",
    "probability_questions", "solve-for-variable",
)  # fmt: skip
CODE = ("crontab", "python_list_comprehension", "regex-match", "syntax-check", "test_comp_sci")
DOMAINS: dict[str, tuple[str, ...]] = {"reasoning": REASONING, "code": CODE}


def chat_prompts(
    records: Iterable[Mapping[str, Any]], tokenizer: Any, *, limit: int, max_tokens: int = 64
) -> list[list[int]]:
    """Questions (of conversations: their opening ones) that take at most `max_tokens` as a chat, in order.

    Raises ValueError where there are fewer than `limit`, or for records of an unknown shape.
    """
    return _first(limit, max_tokens, (prompt_ids(tokenizer, question) for question, _ in exchanges(records)))


def task_prompts(
    rows: Iterable[Mapping[str, Any]], tokenizer: Any, domain: str, *, limit: int, max_tokens: int = 96
) -> list[list[int]]:
    """Prompts of an out-of-domain set, taken in turn from its tasks: rows `{task, instruction, input}` of `evals`."""
    if domain not in DOMAINS:
        raise ValueError(f"domain is {domain!r}: use one of {', '.join(DOMAINS)}")
    by_task: dict[str, list[Mapping[str, Any]]] = defaultdict(list)
    for row in rows:
        if row["task"] in DOMAINS[domain]:
            by_task[row["task"]].append(row)
    longest = max(map(len, by_task.values()), default=0)
    places = ((task, place) for place in range(longest) for task in sorted(by_task))
    in_turn = (by_task[task][place] for task, place in places if place < len(by_task[task]))
    prompts = (prompt_ids(tokenizer, row["input"], system=row["instruction"]) for row in in_turn)
    return _first(limit, max_tokens, prompts)


def _first(limit: int, max_tokens: int, prompts: Iterable[list[int]]) -> list[list[int]]:
    found: list[list[int]] = []
    for prompt in prompts:
        if len(prompt) <= max_tokens:
            found.append(prompt)
        if len(found) == limit:
            return found
    raise ValueError(f"only {len(found)} prompts have at most {max_tokens} tokens: lower limit or raise max_tokens")


def text_examples(
    records: Iterable[Mapping[str, Any]], tokenizer: Any, *, tokens: int, longest_prompt: int = 128, longest: int = 256
) -> list[Example]:
    """Questions with the answers that others gave, until they hold `tokens` tokens in all: off-policy text.

    Raises ValueError where the records hold fewer.
    """
    found, total = [], 0
    for question, reply in exchanges(records):
        prompt = prompt_ids(tokenizer, question)
        ids = prompt + tokenizer(reply, add_special_tokens=False).input_ids
        if len(prompt) > longest_prompt or len(ids) < len(prompt) + 16:
            continue
        found.append(Example(torch.tensor(ids[:longest]), len(prompt)))
        total += len(found[-1].tokens)
        if total >= tokens:
            return found
    raise ValueError(f"the records hold only {total} usable tokens, not {tokens}: lower `tokens` or read more of them")
