"""Multiple choice by likelihood: does a model still prefer the right answer of a real task?

A choice item is one row of an instruction task with the first token of its own answer and those of answers to other
rows of the same task, all different, so that form and style give nothing away. Chance is 1 / candidates.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool
from torch import Tensor, nn

from lib.core.scoring import ScoredBatch, by_length, head_logits, padded, scored_states
from lib.zoo.dialogues import prompt_ids


@dataclass(frozen=True)
class ChoiceItem:
    """One question, the first token of each candidate answer, and which candidate is right."""

    task: str
    prompt: tuple[int, ...]
    options: tuple[int, ...]
    right: int


def choice_items(
    rows: Iterable[Mapping[str, Any]],
    tokenizer: Any,
    *,
    limit: int,
    candidates: int = 4,
    max_tokens: int = 96,
    longest_answer: int = 40,
    seed: int = 0,
) -> list[ChoiceItem]:
    """Make up to `limit` items, one a task in turn, from rows `{task, instruction, input, ideals}`.

    Answers are single lines of at most `longest_answer` characters, prompts at most `max_tokens` tokens. Raises
    ValueError where no task has as many answers that begin differently as there are candidates.
    """
    tasks: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        answer = row["ideals"][0].strip() if row["ideals"] else ""
        if answer and len(answer) <= longest_answer and "\n" not in answer:
            tasks.setdefault(row["task"], []).append(row)
    rng = np.random.default_rng(seed)
    items: list[ChoiceItem] = []
    firsts: dict[str, int] = {}  # each answer is tokenized once
    for place in range(max(map(len, tasks.values()), default=0)):
        for members in tasks.values():
            if place < len(members) and len(items) < limit:
                item = _item(members[place], members, tokenizer, candidates, max_tokens, rng, firsts)
                items += [item] if item else []
    if not items:
        raise ValueError(f"no task has {candidates} short answers that begin differently")
    return items


def _item(
    row, members, tokenizer, candidates: int, max_tokens: int, rng: np.random.Generator, firsts: dict[str, int]
) -> ChoiceItem | None:
    def first(answer: str) -> int:
        if answer not in firsts:
            firsts[answer] = tokenizer(answer, add_special_tokens=False).input_ids[0]
        return firsts[answer]

    accepted = {first(answer.strip()) for answer in row["ideals"] if answer.strip()}
    right = first(row["ideals"][0].strip())
    answers = sorted({member["ideals"][0].strip() for member in members})
    others = sorted({first(answer) for answer in answers} - accepted)
    if len(others) < candidates - 1:
        return None
    options = [right, *(others[i] for i in rng.permutation(len(others))[: candidates - 1])]
    order = rng.permutation(candidates)
    prompt = prompt_ids(tokenizer, row["input"], system=row["instruction"])
    if len(prompt) > max_tokens:
        return None
    return ChoiceItem(row["task"], tuple(prompt), tuple(options[i] for i in order), int(np.flatnonzero(order == 0)[0]))


@torch.inference_mode()
def choice_hits(model: nn.Module, items: Sequence[ChoiceItem], *, batch_size: int = 16) -> Bool[Tensor, " items"]:
    """Say for each item whether its right answer's first token is the likeliest of the candidates'.

    Raises ValueError where there is no item.
    """
    if not items:
        raise ValueError("there is no item to choose in: make some with choice_items")
    device, hits = next(model.parameters()).device, torch.zeros(len(items), dtype=torch.bool)
    for chosen in by_length([len(item.prompt) for item in items], rows=batch_size):
        ids, present = padded([items[i].prompt for i in chosen], side="right", device=device)
        last = torch.arange(ids.shape[1], device=device) == present.long().sum(-1, keepdim=True) - 1
        logits = head_logits(model, scored_states(model, ScoredBatch(ids, present, last)))
        options = torch.tensor([items[i].options for i in chosen], device=device)
        best = logits.gather(-1, options).argmax(-1).cpu()
        hits[chosen] = best == torch.tensor([items[i].right for i in chosen])
    return hits
