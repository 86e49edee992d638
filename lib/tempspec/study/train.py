"""The shipped feature drafter of the 135M model: `make train PAPER=tempspec` makes it again.

It learns from far more text than a notebook has time for: conversations that others wrote, and the target's own answers
at several temperatures. Answers are kept as they come and every epoch leaves a checkpoint, so that a training that was
cut off goes on where it was.
"""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from lib import cache_dir, zoo
from lib.tempspec.answers import Example, answer
from lib.tempspec.feature import save_feature_model
from lib.tempspec.modeling import frequent_tokens
from lib.tempspec.study import corpus, recipes

NAME = "feature"  # of the file
MODEL = "smollm2-135m-instruct"


@dataclass(frozen=True)
class Sizes:
    """How much is learned; the defaults make what is shipped, within 12 MiB."""

    layers: tuple[int, ...] = (10, 20, 29)
    vocabulary: int = 8192
    longest_lag: int = 2
    text_tokens: int = 400_000
    questions: int = 4_000  # in equal shares at the temperatures
    temperatures: tuple[float, ...] = (0.0, 0.7, 1.0, 1.15)
    answer_tokens: int = 96
    text_epochs: int = 1
    answer_epochs: int = 2
    learning_rate: float = 1e-3


def train(folder: Path, *, seed: int = 0, **sizes: Any) -> dict[str, dict[str, Any]]:
    """Write the drafter into a folder; return facts for its card. `sizes` are those of `Sizes`."""
    size, began = Sizes(**sizes), time.process_time()
    work = cache_dir() / "tempspec" / "shipped"
    target, tokenizer = zoo.load_lm(MODEL, dtype=torch.bfloat16)
    records: Any = zoo.load_dataset("sharegpt", split="train")
    texts = corpus.text_examples(records, tokenizer, tokens=size.text_tokens)
    answers = _answers(target, corpus.chat_prompts(records, tokenizer, limit=size.questions), work, size, seed)
    kept = frequent_tokens([e.tokens for e in [*texts, *answers]], size.vocabulary, target.config.vocab_size)
    network = recipes.feature_drafter(
        target, texts, answers, layers=size.layers, token_ids=kept, text_epochs=size.text_epochs,
        answer_epochs=size.answer_epochs, learning_rate=size.learning_rate, seed=seed, checkpoints=work,
        longest_lag=size.longest_lag, own_head=False,
    )  # fmt: skip
    save_feature_model(network, folder / f"{NAME}.safetensors", dtype=torch.bfloat16)
    tokens = sum(len(e.tokens) for e in [*texts, *answers])
    return {
        NAME: {"target": MODEL, "tokens": tokens, "processor_minutes": round((time.process_time() - began) / 60, 1)}
    }


def _answers(target: Any, questions: list[list[int]], work: Path, size: Sizes, seed: int) -> list[Example]:
    """Let the target answer each share of the questions at its temperature; a share that is kept is read."""
    answers: list[Example] = []
    for share, temperature in enumerate(size.temperatures):
        file = work / f"answers-{len(questions)}-{size.answer_tokens}-{temperature:g}-{seed}.safetensors"
        if not file.exists():
            noise = torch.Generator().manual_seed(1000 * seed + share)
            part = questions[share :: len(size.temperatures)]
            made = answer(target, part, temperature, max_new_tokens=size.answer_tokens, generator=noise)
            work.mkdir(parents=True, exist_ok=True)
            save_file(corpus.packed(made), file.with_suffix(".part"))
            file.with_suffix(".part").replace(file)
        answers += corpus.unpacked(load_file(file), temperature)
    return answers
