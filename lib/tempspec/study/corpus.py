"""Real prompts and texts: conversations (in domain), and tasks of other kinds (out of domain), as token ids."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch

from lib.tempspec.answers import Example
from lib.zoo.dialogues import exchanges, prompt_ids

REASONING = (
    "algebra_word_problems", "arithmetical_puzzles", "counterfactual-reasoning", "formal_logic", "logic-statements",
    "linear_equations", "math_equations", "multi-step-equations", "probabilities-word-problems",
    "probability_questions", "solve-for-variable",
)  # fmt: skip
CODE = ("crontab", "python_list_comprehension", "regex-match", "syntax-check", "test_comp_sci")
DOMAINS: dict[str, tuple[str, ...]] = {"reasoning": REASONING, "code": CODE}
# The task classes of Spec-Bench (arXiv:2401.07851) but for conversations, each rebuilt from tasks of `evals`.
SPEC_BENCH: dict[str, tuple[str, ...]] = {
    "translation": ("belarusian_russian_translation", "iqbal-poetry-translation", "urdu-transliteration"),
    "summarisation": ("consensus_summary",),
    "question answering": ("cissp-study-questions", "medmcqa", "map-electronic-component-part-to-fact"),
    "mathematical reasoning": ("jee-math", "math_equations", "tricky-word-problems", "multistep-word-problems"),
    "questions on a passage": ("logiqa", "logiqa-logical-reasoning-plus"),
}


def chat_prompts(
    records: Iterable[Mapping[str, Any]], tokenizer: Any, *, limit: int, max_tokens: int = 64
) -> list[list[int]]:
    """Return questions (of conversations: their opening ones) that take at most `max_tokens` as a chat, in order.

    Raises ValueError where there are fewer than `limit`, or for records of an unknown shape.
    """
    return _first(limit, max_tokens, (prompt_ids(tokenizer, question) for question, _ in exchanges(records)))


def task_prompts(
    rows: Iterable[Mapping[str, Any]], tokenizer: Any, domain: str, *, limit: int, max_tokens: int = 96
) -> list[list[int]]:
    """Return prompts out of domain, in turn from the tasks of one: rows `{task, instruction, input}` of `evals`."""
    if domain not in (known := DOMAINS | SPEC_BENCH):
        raise ValueError(f"domain is {domain!r}: use one of {', '.join(known)}")
    by_task: dict[str, list[Mapping[str, Any]]] = defaultdict(list)
    for row in rows:
        if row["task"] in known[domain]:
            by_task[row["task"]].append(row)
    longest = max(map(len, by_task.values()), default=0)
    places = ((task, place) for place in range(longest) for task in sorted(by_task))
    in_turn = (by_task[task][place] for task, place in places if place < len(by_task[task]))
    prompts = (prompt_ids(tokenizer, row["input"], system=row["instruction"]) for row in in_turn)
    return _first(limit, max_tokens, prompts)


def _first(limit: int, max_tokens: int, prompts: Iterable[list[int]]) -> list[list[int]]:
    short: list[list[int]] = []
    for prompt in prompts:
        if len(prompt) <= max_tokens:
            short.append(prompt)
        if len(short) == limit:
            return short
    raise ValueError(f"only {len(short)} prompts have at most {max_tokens} tokens: lower limit or raise max_tokens")


def text_examples(
    records: Iterable[Mapping[str, Any]], tokenizer: Any, *, tokens: int, longest_prompt: int = 128, longest: int = 256
) -> list[Example]:
    """Return questions with the answers that others gave, until they hold `tokens` tokens in all: off-policy text.

    Raises ValueError where the records hold fewer.
    """
    examples, total = [], 0
    for question, reply in exchanges(records):
        prompt = prompt_ids(tokenizer, question)
        ids = prompt + tokenizer(reply, add_special_tokens=False).input_ids
        if len(prompt) > longest_prompt or len(ids) < len(prompt) + 16:
            continue
        examples.append(Example(torch.tensor(ids[:longest]), len(prompt)))
        total += len(examples[-1].tokens)
        if total >= tokens:
            return examples
    raise ValueError(f"the records hold only {total} usable tokens, not {tokens}: lower `tokens` or read more of them")


def packed(examples: Sequence[Example]) -> dict[str, torch.Tensor]:
    """Lay examples out as three tensors, which a stage's cache can hold; `unpacked` reads them back."""
    return {
        "tokens": torch.cat([example.tokens for example in examples]),
        "lengths": torch.tensor([len(example.tokens) for example in examples]),
        "starts": torch.tensor([example.start for example in examples]),
    }


def unpacked(tensors: Mapping[str, torch.Tensor], temperature: float) -> list[Example]:
    """Read what `packed` made of examples of one temperature."""
    parts = tensors["tokens"].split(tensors["lengths"].tolist())
    return [Example(part, int(start), temperature) for part, start in zip(parts, tensors["starts"], strict=True)]
