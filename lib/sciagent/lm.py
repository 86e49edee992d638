"""The language model behind planner and action: prompts, and LoRA fine-tuning on what they should be followed by.

Planning and action are two prompts of one adapter (a deviation from the paper's two models, for a laptop's memory).
"""

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from lib.sciagent.tools import Tool

TOKENS_AT_ONCE = 1024  # tokens, padding counted, that gradients are taken of at once: memory for activations


def plan_prompt(question: str) -> str:
    """What the planner reads: `G = M_plan(q)`."""
    return f"Question: {question}\nPlan:"


def action_prompt(
    question: str, tools: Sequence[Tool], *, instruction: str = "", error: str = "", program: str = ""
) -> str:  # fmt: skip
    """What the action model reads: `M_act(q, F_k)`, after an instruction, if any, and with a program that failed."""
    shown = "\n".join(f"- {tool.brief()}" for tool in tools) or "none"
    failed = f"\nFailed program:\n{program}\nError: {error}" if error else ""
    told = f"{instruction}\n\n" if instruction else ""
    return f"{told}Functions:\n{shown}\n\nQuestion: {question}{failed}\nProgram:\n"


@dataclass(frozen=True)
class Pair:
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
class Recipe:
    """Fine-tuning by LoRA: `layers` counts from the top (0: all); fewer cost less, since nothing below is trained."""

    rank: int = 16
    layers: int = 0
    learning_rate: float = 1e-3
    batch_size: int = 4
    epochs: int = 1
    warmup: float = 0.1


def with_adapter(model: Any, recipe: Recipe) -> Any:
    """The model with fresh LoRA adapters on all linear maps of its top layers (float32, whatever the model is in)."""
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
    model: Any, tokenizer: Any, pairs: Sequence[Pair], recipe: Recipe, *, seed: int, progress: bool = False
) -> Any:
    """Fine-tune a model's adapter on pairs, loss on completions only; returns the adapted model in eval mode.

    Raises ValueError for no pairs.
    """
    from tqdm import tqdm

    if not pairs:
        raise ValueError("there are no pairs to train on: build a corpus first")
    torch.manual_seed(seed)
    adapted = with_adapter(model, recipe).train()
    parameters = [p for p in adapted.parameters() if p.requires_grad]
    batches = _batches([_encoded(tokenizer, pair) for pair in pairs], recipe, random.Random(seed))
    optimizer = torch.optim.AdamW(parameters, lr=recipe.learning_rate, weight_decay=0.0)
    warm = max(1, round(recipe.warmup * len(batches)))

    def rate(step: int) -> float:
        return min(1.0, (step + 1) / warm) * 0.5 * (1 + math.cos(math.pi * step / len(batches)))

    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, rate)
    bar = tqdm(batches, desc="fine-tune", disable=not progress)
    for batch in bar:
        loss = add_gradients(adapted, batch, pad=tokenizer.pad_token_id)
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad(set_to_none=True)
        bar.set_postfix_str(f"loss {loss:.3f}")
    return adapted.eval()


Encoded = tuple[list[int], list[int], list[bool]]  # prompt ids, completion ids, which of these are learned


def _encoded(tokenizer: Any, pair: Pair) -> Encoded:
    prompt = tokenizer(pair.prompt, add_special_tokens=False).input_ids
    ids, learned = [], []
    for text, options in (*pair.parts, (tokenizer.eos_token, ())):
        part = tokenizer(text, add_special_tokens=False).input_ids
        others = [tokenizer(other, add_special_tokens=False).input_ids for other in options]
        ids += part
        learned += [_undecided(part, others, i) for i in range(len(part))]
    learned[-1] = not pair.parts[-1][1]  # a program's end follows from its form
    return prompt, ids, learned


def _undecided(part: list[int], options: list[list[int]], at: int) -> bool:
    """Whether the options that begin with the part's first `at` tokens go on in more than one way."""
    return not options or len({other[at] for other in options if other[:at] == part[:at]}) > 1


def _batches(rows: list[Encoded], recipe: Recipe, draw: random.Random) -> list[list[Encoded]]:
    """Batches of similar length (little padding), in random order."""
    found = []
    for _ in range(recipe.epochs):
        keyed = sorted(rows, key=lambda row: len(row[0]) + len(row[1]) + draw.random() * 40)
        batches = [keyed[i : i + recipe.batch_size] for i in range(0, len(keyed), recipe.batch_size)]
        draw.shuffle(batches)
        found += batches
    return found


def add_gradients(model: Any, batch: Sequence[Encoded], *, pad: int, tokens_at_once: int = TOKENS_AT_ONCE) -> float:
    """Add the gradients of a batch's `completion_loss`, part by part; returns the loss in nats per learned token.

    Rows of which nothing is learned are left out.
    """
    batch = [row for row in batch if any(row[2])]
    learned, loss = sum(sum(use) for _, _, use in batch), 0.0
    for part in in_parts(batch, tokens_at_once):
        share = completion_loss(model, part, pad=pad) * (sum(sum(use) for _, _, use in part) / learned)
        share.backward()
        loss += float(share.detach())
    return loss


def in_parts(batch: Sequence[Encoded], tokens_at_once: int) -> list[list[Encoded]]:
    """Rows of similar length together, in parts of at most so many tokens when padded (or of one row)."""
    parts: list[list[Encoded]] = []
    for row in sorted(batch, key=lambda row: len(row[0]) + len(row[1])):
        length = len(row[0]) + len(row[1])
        if parts and (len(parts[-1]) + 1) * length <= tokens_at_once:
            parts[-1].append(row)
        else:
            parts.append([row])
    return parts


def completion_loss(model: Any, rows: Sequence[Encoded], *, pad: int) -> torch.Tensor:
    """Mean cross-entropy of the learned tokens; the vocabulary's logits are computed for their positions only."""
    longest = max(len(p) + len(c) for p, c, _ in rows)
    ids = torch.full((len(rows), longest), pad)
    wanted = torch.full((len(rows), longest), -100)
    for i, (prompt, completion, learned) in enumerate(rows):
        whole = torch.tensor(prompt + completion)
        ids[i, : len(whole)] = whole
        kept = torch.tensor([t if use else -100 for t, use in zip(completion, learned, strict=True)])
        wanted[i, len(prompt) - 1 : len(whole) - 1] = kept
    ids, wanted = ids.to(model.device), wanted.to(model.device)
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    # Padding is on the right and attention causal, so that no mask is needed.
    hidden = base.model(input_ids=ids).last_hidden_state[wanted != -100]
    return torch.nn.functional.cross_entropy(base.lm_head(hidden).float(), wanted[wanted != -100])


def save(adapted: Any, folder: Path) -> None:
    """Write the adapter's weights to a folder."""
    adapted.save_pretrained(folder)


def load(model: Any, folder: Path) -> Any:
    """The model with an adapter that `save` wrote, merged into its weights, in eval mode; `model` itself is changed."""
    from peft import PeftModel

    return PeftModel.from_pretrained(model, folder).merge_and_unload().eval()
