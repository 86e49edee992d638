"""Fine-tuning of the language model behind planner and action: LoRA on prompts and what they should be followed by.

Planning and action are two prompts of one adapter (a deviation from the paper's two models, for a laptop's memory).
"""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from lib.core import training
from lib.core.scoring import ScoredBatch, by_length, head_logits, padded, scored_states

TOKENS_AT_ONCE = 1024  # tokens, padding counted, that gradients are taken of at once: memory for activations


@dataclass(frozen=True)
class PromptCompletion:
    """A prompt and the text that should follow it, in parts: each with the options it is one of, or none if free.

    Tokens that no other option shares a beginning with follow by themselves, and are not learned.
    """

    prompt: str
    parts: tuple[tuple[str, tuple[str, ...]], ...]

    @property
    def completion(self) -> str:
        """The text that should follow."""
        return "".join(text for text, _ in self.parts)


@dataclass(frozen=True, kw_only=True)
class LoraRecipe:
    """Fine-tuning by LoRA: `layers` counts from the top (0: all); fewer cost less, since nothing below is trained."""

    rank: int = 16
    layers: int = 0
    learning_rate: float = 1e-3
    batch_size: int = 4
    epochs: int = 1
    warmup: float = 0.1


def with_adapter(model: Any, recipe: LoraRecipe) -> Any:
    """Put fresh LoRA adapters on all linear maps of a model's top layers (float32, whatever the model is in)."""
    from peft import LoraConfig, get_peft_model

    depth = model.config.num_hidden_layers
    chosen = list(range(depth - recipe.layers, depth)) if recipe.layers else None
    linear = {name.rpartition(".")[2] for name, m in model.model.named_modules() if isinstance(m, torch.nn.Linear)}
    config = LoraConfig(
        r=recipe.rank, lora_alpha=2 * recipe.rank, target_modules=sorted(linear), layers_to_transform=chosen,
        task_type="CAUSAL_LM",
    )  # fmt: skip
    return get_peft_model(model, config)


def train(
    model: Any, tokenizer: Any, pairs: Sequence[PromptCompletion], recipe: LoraRecipe, *, seed: int,
    progress: bool = False,
) -> Any:  # fmt: skip
    """Fine-tune a model's adapter on pairs, loss on completions only; returns the adapted model in eval mode.

    Raises ValueError for no pairs.
    """
    if not pairs:
        raise ValueError("there are no pairs to train on: build a corpus first")
    torch.manual_seed(seed)
    adapted = with_adapter(model, recipe)
    batches = _batches([_encoded(tokenizer, pair) for pair in pairs], recipe, random.Random(seed))
    warmup = max(1, round(recipe.warmup * len(batches)))
    training.train(
        adapted, batches, lambda batch: loss_parts(adapted, batch, pad=tokenizer.pad_token_id), steps=len(batches),
        learning_rate=recipe.learning_rate, rate=partial(training.cosine_rate, warmup=warmup), label="fine-tune",
        progress=progress,
    )  # fmt: skip
    return adapted


Encoded = tuple[list[int], list[int], list[bool]]  # prompt ids, completion ids, which of these are learned


def _encoded(tokenizer: Any, pair: PromptCompletion) -> Encoded:
    prompt = tokenizer(pair.prompt, add_special_tokens=False).input_ids
    ids, learned = [], []
    for text, options in (*pair.parts, (tokenizer.eos_token, ())):
        part = tokenizer(text, add_special_tokens=False).input_ids
        others = [tokenizer(other, add_special_tokens=False).input_ids for other in options]
        ids += part
        learned += [_undecided(part, others, i) for i in range(len(part))]
    learned[-1] = not pair.parts[-1][1]  # a program's end follows from its grammar
    return prompt, ids, learned


def _undecided(part: list[int], options: list[list[int]], at: int) -> bool:
    """Whether the options that begin with the part's first `at` tokens go on in more than one way."""
    return not options or len({other[at] for other in options if other[:at] == part[:at]}) > 1


def _batches(rows: list[Encoded], recipe: LoraRecipe, draw: random.Random) -> list[list[Encoded]]:
    """Batches of similar length (little padding), in random order."""
    order = []
    for _ in range(recipe.epochs):
        keyed = sorted(rows, key=lambda row: len(row[0]) + len(row[1]) + draw.random() * 40)
        batches = [keyed[i : i + recipe.batch_size] for i in range(0, len(keyed), recipe.batch_size)]
        draw.shuffle(batches)
        order += batches
    return order


def loss_parts(
    model: Any, batch: Sequence[Encoded], *, pad: int, tokens_at_once: int = TOKENS_AT_ONCE
) -> Iterator[Float[Tensor, ""]]:
    """Yield parts of a batch's `completion_loss`, which add up to it, each of rows of similar length.

    Rows of which nothing is learned are left out.
    """
    batch = [row for row in batch if any(row[2])]
    learned = sum(sum(use) for _, _, use in batch)
    for indices in by_length([len(p) + len(c) for p, c, _ in batch], tokens=tokens_at_once):
        part = [batch[i] for i in indices]
        yield completion_loss(model, part, pad=pad) * (sum(sum(use) for _, _, use in part) / learned)


def completion_loss(model: Any, rows: Sequence[Encoded], *, pad: int) -> Float[Tensor, ""]:
    """Return the mean cross-entropy of the learned tokens; only their positions go through the vocabulary's head."""
    ids, present = padded([p + c for p, c, _ in rows], side="right", value=pad, device=model.device)
    # Position i says the law of token i + 1.
    learned = [[0] * (len(p) - 1) + [int(use) for use in u] + [0] for p, _, u in rows]
    batch = ScoredBatch(ids, present, padded(learned, side="right", device=model.device)[0].bool())
    return torch.nn.functional.cross_entropy(head_logits(model, scored_states(model, batch)), batch.targets)


def save(adapted: Any, folder: Path) -> None:
    """Write the adapter's weights to a folder."""
    adapted.save_pretrained(folder)


def load(model: Any, folder: Path) -> Any:
    """Merge an adapter that `save` wrote into a model, which is changed, and return it in eval mode."""
    from peft import PeftModel

    return PeftModel.from_pretrained(model, folder).merge_and_unload().eval()
