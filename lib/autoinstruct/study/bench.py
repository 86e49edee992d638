"""Benchmarks: labelling against `model.generate` without shared prefixes, its cost by candidates, and ranking.

Real tasks, the real model in the notebook's number format; both sides decode the same prompts greedily.
"""

from collections.abc import Iterator, Sequence
from functools import cache, partial
from typing import Any

import torch

from lib.autoinstruct.candidates import variants
from lib.autoinstruct.decoding import answer_groups, prompt_ids, stop_tokens
from lib.autoinstruct.modeling import CrossEncoder, FrozenHead
from lib.autoinstruct.tasks import Rule, Task, make_tasks
from lib.core.scoring import padded
from lib.zoo import load_dataset, load_encoder, load_lm

MODEL = "smollm2-135m-instruct"
NEW = 8  # tokens generated at most
RANKED = (1000, 22)  # examples and candidates
TIMED_PAIRS = 220  # of the pairs that are ranked, scaled up


def cases(*, quick: bool = False) -> Iterator[dict[str, Any]]:
    """Yield the cases: labelling at 0 and 5 demonstrations, by number of candidates, and ranking 1,000 x 22."""
    examples, instructions = (2, 2) if quick else (6, 2)
    for shots, goal in ((5, 0.5), (0, None)):
        groups = _groups(shots, instructions, examples)
        yield {
            "name": f"decode {instructions * examples} pairs, {shots} demonstrations",
            "unit": "s",
            "ours": partial(_ours, groups),
            "peer": partial(_plain, groups),
            "peer_name": "model.generate",
            "goal": goal,
        }
    for count in (2,) if quick else (4,):
        groups = _groups(5, count, examples)
        yield {
            "name": f"label {examples} examples with {count} candidates, against 1",
            "unit": "s",
            "ours": partial(_ours, groups),
            "peer": partial(_ours, groups[:1]),
            "peer_name": "one candidate",
            "goal": float(count),
        }
    yield {
        "name": f"rank {RANKED[0]} x {RANKED[1]} candidates with the frozen head",
        "unit": "s (scaled)",
        "ours": partial(_rank, "head"),
        "peer": partial(_rank, "cross"),
        "peer_name": "cross-encoder",
        "goal": 1.0,
    }


@cache
def _model() -> tuple[Any, Any]:
    return load_lm(MODEL, dtype="bfloat16")


@cache
def _task() -> Task:
    """The first task whose inputs fill a few dozen tokens and whose answers are words."""
    tasks, _ = make_tasks(load_dataset("evals", split="all").to_list(), Rule(screening=0, examples=20))
    return next(task for task in tasks if task.name == "guess_the_singer")


def _groups(shots: int, instructions: int, examples: int) -> list[list[list[int]]]:
    task, (_, tokenizer) = _task(), _model()
    texts = [task.instruction, *(c.text for c in variants(task.instruction, task.demonstrations))][:instructions]
    shown = task.demonstrations[:shots]
    return [
        [prompt_ids(tokenizer, text, example.input, demonstrations=shown) for example in task.examples[:examples]]
        for text in texts
    ]


def _ours(groups: Sequence[Sequence[Sequence[int]]]) -> None:
    model, tokenizer = _model()
    answer_groups(model, groups, stops=stop_tokens(tokenizer), max_new_tokens=NEW)


@torch.inference_mode()
def _plain(groups: Sequence[Sequence[Sequence[int]]]) -> None:
    model, tokenizer = _model()
    ids, present = padded([prompt for group in groups for prompt in group], side="left")
    stops = list(stop_tokens(tokenizer))
    model.generate(
        ids, attention_mask=present.long(), do_sample=False, max_new_tokens=NEW, eos_token_id=stops,
        pad_token_id=tokenizer.eos_token_id,
    )  # fmt: skip


@torch.inference_mode()
def _rank(kind: str) -> float:
    """Seconds to rank 1,000 x 22 pairs from texts; the cross-encoder's time is scaled up from a part of them."""
    import time

    encoder = load_encoder()
    inputs = [example.input for example in _task().examples]
    texts = [c.text for c in variants(_task().instruction, _task().demonstrations)]
    total = RANKED[0] * RANKED[1]
    made = [
        (f"{inputs[i % len(inputs)]} {i}", f"{texts[k % len(texts)]} ({k})")
        for i in range(RANKED[0])
        for k in range(RANKED[1])
    ]
    if kind == "head":
        scorer, pairs = FrozenHead(encoder).eval(), made
    else:
        scorer, pairs = CrossEncoder(encoder.model, encoder.tokenizer).eval(), made[:TIMED_PAIRS]
    began = time.perf_counter()
    prepared = scorer.prepare(pairs)
    for start in range(0, len(pairs), 512):
        scorer(*(tensor[start : start + 512] for tensor in prepared))
    return (time.perf_counter() - began) * total / len(pairs)
