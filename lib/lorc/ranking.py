"""Downstream measure for a compressed model: does it still rank the right answer of a real task above wrong ones?

An item is one row of an instruction task with its own answer and the answers of other rows of the same task, so that
form and style give nothing away. Chance is 1 / candidates.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool
from torch import Tensor, nn
from tqdm import tqdm

from lib.lorc.perplexity import Document, token_log_likelihoods


@dataclass(frozen=True)
class RankingItem:
    """One question as a document per candidate answer; the right one is at `right`."""

    task: str
    candidates: tuple[Document, ...]
    right: int


def ranking_items(
    rows: Iterable[Mapping[str, Any]],
    tokenizer: Any,
    *,
    limit: int,
    candidates: int = 4,
    max_tokens: int = 160,
    longest_answer: int = 40,
    seed: int = 0,
) -> list[RankingItem]:
    """Make up to `limit` items, one a task in turn, from rows `{task, instruction, input, ideals}`.

    Answers are single lines of at most `longest_answer` characters, prompts with their answer at most `max_tokens`
    tokens. Raises ValueError where no task has as many different answers as there are candidates.
    """
    tasks: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        answer = row["ideals"][0].strip() if row["ideals"] else ""
        if answer and len(answer) <= longest_answer and "\n" not in answer:
            tasks.setdefault(row["task"], []).append(row)
    rng = np.random.default_rng(seed)
    found: list[RankingItem] = []
    for turn in range(max(map(len, tasks.values()), default=0)):
        for members in tasks.values():
            if turn < len(members) and len(found) < limit:
                item = _item(members[turn], members, tokenizer, candidates, max_tokens, rng)
                found += [item] if item else []
    if not found:
        raise ValueError(f"no task has {candidates} different short answers and a prompt of {max_tokens} tokens")
    return found


def _item(row, members, tokenizer, candidates: int, max_tokens: int, rng: np.random.Generator) -> RankingItem | None:
    right = row["ideals"][0].strip()
    accepted = {answer.strip() for answer in row["ideals"]}
    others = sorted({member["ideals"][0].strip() for member in members} - accepted)
    if len(others) < candidates - 1:
        return None
    answers = [right, *(others[i] for i in rng.permutation(len(others))[: candidates - 1])]
    order = rng.permutation(candidates)
    messages = [{"role": "system", "content": row["instruction"]}, {"role": "user", "content": row["input"]}]
    prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    documents = tuple(_document(prompt, answers[i], tokenizer) for i in order)
    if max(len(document.tokens) for document in documents) > max_tokens:
        return None
    return RankingItem(row["task"], documents, int(np.flatnonzero(order == 0)[0]))


def _document(prompt: str, answer: str, tokenizer: Any) -> Document:
    context = tokenizer(prompt, add_special_tokens=False).input_ids
    reply = tokenizer(answer, add_special_tokens=False).input_ids
    tokens = torch.tensor(context + reply)
    return Document(tokens=tokens, scored=torch.arange(len(tokens)) >= len(context))


def ranking_hits(
    model: nn.Module, items: Sequence[RankingItem], *, batch_items: int = 8, progress: bool = True
) -> Bool[Tensor, " items"]:
    """Say for each item whether its right answer has the highest mean log-likelihood per token.

    Raises ValueError where there is no item.
    """
    if not items:
        raise ValueError("there is no item to rank: make some with ranking_items")
    hits = torch.zeros(len(items), dtype=torch.bool)
    order = sorted(range(len(items)), key=lambda i: len(items[i].candidates[0].tokens))
    for start in tqdm(range(0, len(order), batch_items), desc="ranking", disable=not progress, leave=False):
        chosen = order[start : start + batch_items]
        values = token_log_likelihoods(model, [document for i in chosen for document in items[i].candidates])
        means = torch.stack([each.double().mean() for each in values])
        offset = 0
        for i in chosen:
            count = len(items[i].candidates)
            hits[i] = int(means[offset : offset + count].argmax()) == items[i].right
            offset += count
    return hits
