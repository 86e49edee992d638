"""The language model behind planner and action: prompts, LoRA fine-tuning on (prompt, completion) pairs, generation.

Planning and action are two prompts of one adapter (a deviation from the paper's two models, for a laptop's memory).
"""

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from lib.sciagent.tools import Tool

END = "<end>"  # stands for the end of the text where rules are asked


def plan_prompt(question: str) -> str:
    """What the planner reads: `G = M_plan(q)`."""
    return f"Question: {question}\nPlan:"


def action_prompt(question: str, tools: Sequence[Tool], *, error: str = "", program: str = "") -> str:
    """What the action model reads: `M_act(q, F_k)`, and a program of its own that failed with the error."""
    shown = "\n".join(f"- {tool.shown()}" for tool in tools) or "none"
    failed = f"\nFailed program:\n{program}\nError: {error}" if error else ""
    return f"Functions:\n{shown}\n\nQuestion: {question}{failed}\nProgram:\n"


@dataclass(frozen=True)
class Pair:
    """A prompt and the text that should follow it."""

    prompt: str
    completion: str


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
        loss = completion_loss(adapted, batch, pad=tokenizer.pad_token_id)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad(set_to_none=True)
        bar.set_postfix_str(f"loss {float(loss.detach()):.3f}")
    return adapted.eval()


Encoded = tuple[list[int], list[int]]  # prompt ids, completion ids


def _encoded(tokenizer: Any, pair: Pair) -> Encoded:
    prompt = tokenizer(pair.prompt, add_special_tokens=False).input_ids
    return prompt, tokenizer(pair.completion + tokenizer.eos_token, add_special_tokens=False).input_ids


def _batches(rows: list[Encoded], recipe: Recipe, draw: random.Random) -> list[list[Encoded]]:
    """Batches of similar length (little padding), in random order."""
    found = []
    for _ in range(recipe.epochs):
        keyed = sorted(rows, key=lambda row: len(row[0]) + len(row[1]) + draw.random() * 40)
        batches = [keyed[i : i + recipe.batch_size] for i in range(0, len(keyed), recipe.batch_size)]
        draw.shuffle(batches)
        found += batches
    return found


def completion_loss(model: Any, rows: Sequence[Encoded], *, pad: int) -> torch.Tensor:
    """Mean cross-entropy of the completions' tokens; the vocabulary's logits are computed for those positions only."""
    longest = max(len(p) + len(c) for p, c in rows)
    ids = torch.full((len(rows), longest), pad)
    wanted = torch.full((len(rows), longest), -100)
    for i, (prompt, completion) in enumerate(rows):
        whole = torch.tensor(prompt + completion)
        ids[i, : len(whole)] = whole
        wanted[i, len(prompt) - 1 : len(whole) - 1] = whole[len(prompt) :]
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


Allows = Callable[[str], bool]  # whether a text can still become a program


@torch.inference_mode()
def generate(
    model: Any, tokenizer: Any, prompts: Sequence[str], *, max_new_tokens: int, allows: Sequence[Allows] | None = None,
    batch_size: int = 16, progress: bool = False,
) -> list[str]:  # fmt: skip
    """Greedy completions; with `allows`, the likeliest token that keeps the row's text a possible one.

    A row ends at the end token, or after `max_new_tokens`.
    """
    from tqdm import tqdm

    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    texts = [""] * len(prompts)
    batches = [order[i : i + batch_size] for i in range(0, len(order), batch_size)]
    for batch in tqdm(batches, desc="generate", disable=not progress):
        rules = None if allows is None else [allows[i] for i in batch]
        found = _generate(model, tokenizer, [prompts[i] for i in batch], max_new_tokens, rules)
        for i, text in zip(batch, found, strict=True):
            texts[i] = text
    return texts


TRIED = (8, 512)  # likeliest tokens that are tried against the rules


def _generate(model: Any, tokenizer: Any, prompts: list[str], limit: int, rules: list[Allows] | None) -> list[str]:
    from transformers import DynamicCache

    inputs = tokenizer(prompts, padding=True, add_special_tokens=False, return_tensors="pt").to(model.device)
    mask, ids, end = inputs.attention_mask, inputs.input_ids, tokenizer.eos_token_id
    positions = (mask.cumsum(1) - 1).clamp_min(0)
    cache = DynamicCache(config=model.config)
    written: list[list[int]] = [[] for _ in prompts]
    texts, open_rows = [""] * len(prompts), set(range(len(prompts)))
    for _ in range(limit):
        output = model(
            input_ids=ids, attention_mask=mask, position_ids=positions, cache=cache, use_cache=True, logits_to_keep=1
        )
        logits = output.logits[:, -1].float()
        chosen = []
        for row in range(len(prompts)):
            token = end
            if row in open_rows:
                token = _choose(logits[row], written[row], tokenizer, end, rules[row] if rules else None)
                if token == end:
                    open_rows.discard(row)
                else:
                    written[row].append(token)
                    texts[row] = tokenizer.decode(written[row])
            chosen.append(token)
        if not open_rows:
            break
        ids = torch.tensor(chosen, device=mask.device).unsqueeze(1)
        mask = torch.cat([mask, mask.new_ones(len(prompts), 1)], dim=1)
        positions = positions[:, -1:] + 1
    return texts


def _choose(logits: torch.Tensor, written: list[int], tokenizer: Any, end: int, allows: Allows | None) -> int:
    if allows is None:
        return int(logits.argmax())
    for number in TRIED:
        for token in logits.topk(min(number, len(logits))).indices.tolist():
            text = tokenizer.decode(written) if token == end else tokenizer.decode([*written, token])
            if allows(text + END if token == end else text):
                return token
    return end
