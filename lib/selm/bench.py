"""Benchmarks on the real model: a SELM step against trl's DPO step, and our sampling against `generate`.

The step is a whole optimiser step (reference pass, policy pass, backward, AdamW) of LoRA on the top layers, on pairs
that the model itself sampled; third responses are drawn as in training. Both trainers see the same batch.
"""

import tempfile
from collections.abc import Iterator
from functools import cache as memoised
from typing import Any

import datasets
import torch

from lib.preference import Response, TokenDPOTrainer, config, questions, sample, with_lora
from lib.selm.configuration import SELMConfig
from lib.selm.trainer import SELMTrainer
from lib.zoo import load_dataset, load_lm

MODEL = "smollm2-135m-instruct"
STEP_GOAL, SAMPLING_GOAL = 1.35, 1.0
BATCH, TOP_LAYERS = 4, 10


def cases(*, quick: bool = False) -> Iterator[dict[str, Any]]:
    """Yield the cases: step time with third responses as drawn and with all their own, and time to sample."""
    tokens = 8 if quick else 32
    for share, name in ((2 / 3, "one of k = 3 samples"), (0.0, "always a third sequence")):
        ours, peer = _trainers(tokens, share)
        yield {
            "name": f"training step of {BATCH} pairs, {tokens} tokens, y {name}",
            "unit": "s",
            "ours": lambda t=ours: _step(t),
            "peer": lambda t=peer: _step(t),
            "peer_name": "trl's DPO step",
            "goal": STEP_GOAL,
        }
    prompts, k = (2, 2) if quick else (24, 4)
    yield {
        "name": f"sample {prompts * k} responses of {tokens} tokens",
        "unit": "s",
        "ours": lambda: _sampled(prompts, k, tokens),
        "peer": lambda: _generated(prompts, k, tokens),
        "peer_name": "model.generate, same rows in one batch",
        "goal": SAMPLING_GOAL,
    }


@memoised
def _model() -> tuple[Any, Any]:
    model, tokenizer = load_lm(MODEL, dtype=torch.bfloat16)
    return model, tokenizer


@memoised
def _prompts(count: int) -> list[list[int]]:
    records = load_dataset("sharegpt", split="test", limit=40 * count)
    return [list(q.tokens) for q in questions(records, _model()[1], limit=count)]


@memoised
def _responses(tokens: int) -> list[list[Response]]:
    model, tokenizer = _model()
    return sample(model, tokenizer, _prompts(BATCH), 3, max_new_tokens=tokens, progress=False)


def _trainers(tokens: int, share: float) -> tuple[SELMTrainer, TokenDPOTrainer]:
    """A SELM and a DPO trainer on one batch; `share` of the third responses are the chosen or the rejected one."""
    rows = []
    for index, (prompt, drawn) in enumerate(zip(_prompts(BATCH), _responses(tokens), strict=True)):
        third = drawn[2] if index >= round(share * BATCH) else drawn[index % 2]
        chosen, rejected, response = (list(r.tokens) for r in (drawn[0], drawn[1], third))
        rows.append({"prompt_ids": prompt, "chosen_ids": chosen, "rejected_ids": rejected, "response_ids": response})
    data = datasets.Dataset.from_list(rows)
    made = []
    for trainer, cls, extra in ((SELMTrainer, SELMConfig, {"alpha": 0.03}), (TokenDPOTrainer, None, {})):
        model, tokenizer = load_lm(MODEL, dtype=torch.bfloat16)
        settings = {"per_device_train_batch_size": BATCH, "max_steps": 1000, "learning_rate": 1e-4} | extra
        args = config(tempfile.gettempdir(), **settings, **({"cls": cls} if cls else {}))
        policy = with_lora(model, layers=TOP_LAYERS)
        one = trainer(policy, args=args, train_dataset=data, processing_class=tokenizer)
        one.create_optimizer_and_scheduler(1000)
        made.append(one)
    return made[0], made[1]


def _step(trainer: TokenDPOTrainer) -> None:
    model: Any = trainer.model
    model.train()
    batch = trainer._prepare_inputs(next(iter(trainer.get_train_dataloader())))
    trainer.compute_loss(model, batch).backward()
    optimizer: Any = trainer.optimizer
    optimizer.step()
    optimizer.zero_grad()


def _sampled(prompts: int, k: int, tokens: int) -> None:
    model, tokenizer = _model()
    sample(model, tokenizer, _prompts(prompts), k, max_new_tokens=tokens, batch_size=prompts * k, progress=False)


def _generated(prompts: int, k: int, tokens: int) -> None:
    model, tokenizer = _model()
    inputs = tokenizer.pad({"input_ids": _prompts(prompts)}, padding=True, return_tensors="pt")
    torch.manual_seed(0)
    model.generate(**inputs, do_sample=True, top_k=0, num_return_sequences=k, max_new_tokens=tokens, pad_token_id=0)
