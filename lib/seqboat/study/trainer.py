"""The paper's recipes and its training, through `transformers.Trainer` (and so `accelerate launch`).

Recipes are its hyper-parameters for each task (released scripts, as tabulated; sheet of arXiv:2306.11197);
`max_position_embeddings` is the task's length. Two sources disagree on Path-X's layers: the script's 4 is taken.
Training is AdamW with betas (.9, .98), clipped gradients, a warm-up (linear; Path-X: quadratic) and a linear decay to
0. Deviation: matrices decay (the moving averages' [width, N] and the scales of queries and keys among them), vectors do
not; the paper's training decays all parameters alike.
"""

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments

from lib.core.training import evaluating, parameter_groups
from lib.seqboat.configuration import SeqBoatConfig
from lib.seqboat.study.corpus import Examples


@dataclass(frozen=True)
class TrainingPlan:
    """Optimiser steps, rows a step on each of `devices`, peak learning rate and schedule of a run.

    The rate rises from `first_rate` by the `power` of the warm-up's share, then falls linearly to 0. Fewer devices than
    the plan's accumulate the rest of the batch; batch norm then sees a part of it at a time, where the paper's is over
    all devices. Raises ValueError for counts below 1, a warm-up as long as the run, or an unknown optimiser.
    """

    steps: int
    batch_size: int
    learning_rate: float
    warmup: int = 0
    weight_decay: float = 0.01
    clip: float = 1.0
    power: float = 1.0
    first_rate: float = 1e-7
    devices: int = 1
    optimizer: str = "adamw"

    def __post_init__(self) -> None:
        if min(self.steps, self.batch_size, self.devices) < 1 or not 0 <= self.warmup < self.steps:
            raise ValueError(
                f"steps, batch_size and devices must be at least 1, and the warm-up shorter than the run, got {self}"
            )
        if self.optimizer not in ("adamw", "radam"):
            raise ValueError(f"the optimizer must be adamw or radam, got {self.optimizer!r}")

    def rate(self, step: int) -> float:
        """Return the learning rate of a step, counted from 0."""
        if step < self.warmup:
            return self.first_rate + (self.learning_rate - self.first_rate) * (step / self.warmup) ** self.power
        return self.learning_rate * max(0.0, (self.steps - step) / (self.steps - self.warmup))


@dataclass(frozen=True)
class Recipe:
    """A model's configuration and how it is trained."""

    config: SeqBoatConfig
    plan: TrainingPlan


_POST: dict[str, Any] = {"norm": "scale", "prenorm": False, "dropout": 0.1, "attention_function": "softmax"}
_PRE: dict[str, Any] = {"norm": "batch", "prenorm": True, "attention_function": "relu2"}
_PIXELS: dict[str, Any] = {**_PRE, "inputs": "values", "positions": "relative", "absolute_positions": True}


def _sizes(layers: int, d: int, h: int, z: int) -> dict[str, Any]:
    return {"num_hidden_layers": layers, "hidden_size": d, "value_size": h, "key_size": z}


_TABLE: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "listops": (
        {**_sizes(6, 80, 160, 64), **_POST, "norm": "layer", "positions": "relative", "truncation": 1024,
         "max_position_embeddings": 2000, "vocab_size": 16, "pad_token_id": 0, "num_labels": 10},
        {"learning_rate": 0.004, "weight_decay": 0.001, "batch_size": 64, "steps": 90_000, "warmup": 27_000},
    ),
    "text": (
        {**_sizes(4, 128, 256, 64), **_POST, "positions": "local", "vocab_size": 257, "pad_token_id": 0},
        {"learning_rate": 0.004, "weight_decay": 0.01, "batch_size": 50, "steps": 25_000, "warmup": 10_000},
    ),
    "retrieval": (
        {**_sizes(6, 128, 256, 64), **_POST, "positions": "relative", "vocab_size": 257, "pad_token_id": 0},
        {"learning_rate": 0.003, "weight_decay": 0.04, "batch_size": 8, "steps": 91_960, "warmup": 10_000,
         "devices": 8},
    ),
    "image": (
        {**_sizes(8, 160, 320, 96), **_PIXELS, "temperature_scale": 0.4, "max_position_embeddings": 1024,
         "num_labels": 10},
        {"learning_rate": 0.01, "weight_decay": 0.02, "batch_size": 50, "steps": 180_000, "warmup": 9_000},
    ),
    "pathfinder": (
        {**_sizes(6, 128, 256, 64), **_PIXELS, "temperature_scale": 1.0, "max_position_embeddings": 1024},
        {"learning_rate": 0.01, "weight_decay": 0.01, "batch_size": 128, "steps": 250_000, "warmup": 50_000},
    ),
    "pathx": (
        {**_sizes(4, 128, 256, 64), **_PIXELS, "temperature_scale": 1.0, "window": 256, "truncation": 16_384,
         "max_position_embeddings": 16_384},
        {"learning_rate": 0.01, "weight_decay": 0.01, "batch_size": 2, "steps": 125_000, "warmup": 25_000,
         "power": 2.0, "devices": 64},
    ),
    "speech": (
        {**_sizes(8, 60, 120, 30), **_PIXELS, "positions": "local", "temperature_scale": 1.0, "truncation": 4000,
         "max_position_embeddings": 16_000, "num_labels": 10},
        {"learning_rate": 0.01, "weight_decay": 0.01, "batch_size": 20, "steps": 250_000, "warmup": 10_000},
    ),
    "enwik8": (
        {**_sizes(14, 616, 1232, 128), "norm": "layer", "prenorm": True, "final_affine": False, "dropout": 0.15,
         "attention_function": "softmax", "positions": "rotary", "temperature_scale": 1.0, "window": 1024,
         "truncation": 2048, "max_position_embeddings": 8192, "vocab_size": 257, "pad_token_id": 0,
         "is_decoder": True},
        {"learning_rate": 0.005, "weight_decay": 0.1, "batch_size": 1, "steps": 400_000, "warmup": 24_000, "clip": 0.25,
         "first_rate": 0.002, "devices": 8, "optimizer": "radam"},
    ),
}  # fmt: skip
RECIPES = tuple(_TABLE)
# Not the paper's: the smallest model that learns to recall within a thousand steps. An unused unit sends no gradient,
# so what is skipped too early stays skipped: the bias starts it with nearly all tokens active, and keeps it so while
# keys are bound to values.
_OWN: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "recall": (
        {**_sizes(1, 48, 96, 24), "norm": "layer", "prenorm": True, "positions": "local", "temperature_scale": 0.3,
         "activation_bias": -4.0, "window": 12, "vocab_size": 13, "pad_token_id": 0, "is_decoder": True},
        {"learning_rate": 0.02, "weight_decay": 0.01, "batch_size": 64, "steps": 900, "warmup": 90},
    ),
}  # fmt: skip


def recipe(name: str, **changes: Any) -> Recipe:
    """Return the settings for a task (but for `recall` the paper's), with fields of the configuration changed.

    Raises ValueError for a name that is unknown.
    """
    known = _TABLE | _OWN
    if name not in known:
        raise ValueError(f"no recipe is named {name!r}: use one of {', '.join(known)}")
    fields, plan = known[name]
    return Recipe(SeqBoatConfig(**(fields | changes)), TrainingPlan(**plan))


def train(
    model: nn.Module,
    examples: Examples,
    plan: TrainingPlan,
    *,
    seed: int = 0,
    measure: Callable[[nn.Module], Any] | None = None,
    measure_at: Sequence[int] = (),
    progress: bool = True,
) -> dict[int, Any]:
    """Train a model in place, in an order that only the seed decides; return what `measure` gave after chosen steps.

    Raises ValueError where the examples do not fill a batch, or the plan's devices are no multiple of those at hand.
    """
    if len(examples) < plan.batch_size * plan.devices:
        raise ValueError(f"{len(examples)} examples do not fill one batch of {plan.batch_size * plan.devices}")
    callback = _Measuring(measure, measure_at)
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder, max_steps=plan.steps, per_device_train_batch_size=plan.batch_size,
            learning_rate=plan.learning_rate, max_grad_norm=plan.clip, seed=seed, data_seed=seed,
            dataloader_drop_last=True, remove_unused_columns=False, logging_strategy="no", save_strategy="no",
            report_to=[], disable_tqdm=not progress, use_cpu=not torch.cuda.is_available(),
        )  # fmt: skip
        at_hand = arguments.world_size * max(1, arguments.n_gpu)
        if plan.devices > 1:  # a plan for one device leaves it to the launcher how many repeat it
            if plan.devices % at_hand:
                raise ValueError(f"a batch over {plan.devices} devices cannot be shared evenly by {at_hand}")
            arguments.gradient_accumulation_steps = plan.devices // at_hand
        optimizer = _optimizer(model, plan)
        trainer = Trainer(
            model=model,  # pyright: ignore[reportArgumentType]
            args=arguments,
            train_dataset=examples,  # pyright: ignore[reportArgumentType]
            # `Examples.__getitems__` has made a batch of it already.
            data_collator=lambda batch: batch,  # pyright: ignore[reportArgumentType]
            optimizers=(optimizer, LambdaLR(optimizer, lambda step: plan.rate(step) / plan.learning_rate)),
            callbacks=[callback],
        )
        trainer.remove_callback(PrinterCallback)  # its summary is nobody's progress
        trainer.train()
    model.eval()
    return callback.measured


def _optimizer(model: nn.Module, plan: TrainingPlan) -> torch.optim.Optimizer:
    groups = parameter_groups(model, plan.weight_decay)
    options: dict[str, Any] = {"lr": plan.learning_rate, "betas": (0.9, 0.98), "eps": 1e-8}
    if plan.optimizer == "radam":
        return torch.optim.RAdam(groups, decoupled_weight_decay=True, **options)
    return torch.optim.AdamW(groups, **options)


class _Measuring(TrainerCallback):
    """Calls a function with the model in evaluation mode after chosen steps."""

    def __init__(self, measure: Callable[[nn.Module], Any] | None, steps: Sequence[int]) -> None:
        self.measure, self.steps = measure, set(steps)
        self.measured: dict[int, Any] = {}

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        if self.measure is not None and state.global_step in self.steps:
            model.eval()
            self.measured[state.global_step] = self.measure(model)
            model.train()


@dataclass(frozen=True)
class Scores:
    """A model on held-out rows: loss of each in nats (a token asked for, where tokens are labelled), whether it was
    classified right (there the share of tokens), and the share of tokens that each layer activated."""

    losses: np.ndarray
    right: np.ndarray
    rates: np.ndarray


@torch.inference_mode()
def score(model: Any, examples: Examples, *, batch_size: int = 64) -> Scores:
    """Return how a model does on examples, in evaluation mode."""
    device, columns = next(model.parameters()).device, []
    with evaluating(model):
        for rows in torch.arange(len(examples)).split(batch_size):
            batch = {name: part.to(device) for name, part in examples.batch(rows).items()}
            labels = batch.pop("labels")
            output = model(**batch)
            logits = output.logits.float()
            if labels.ndim == 2:  # a loss and a share of right answers for each row, over the tokens asked for
                targets, asked = labels[:, 1:], labels[:, 1:] != -100
                each = nn.functional.cross_entropy(logits[:, :-1].transpose(1, 2), targets, reduction="none")
                losses = each.sum(1) / asked.sum(1)
                right = ((logits[:, :-1].argmax(-1) == targets) & asked).sum(1) / asked.sum(1)
            else:
                losses = nn.functional.cross_entropy(logits, labels, reduction="none")
                right = (logits.argmax(-1) == labels).float()
            rates = torch.stack([a.rate for a in output.activations] or [torch.ones(len(rows))], dim=1)
            columns.append((losses, right, rates))
    return Scores(*(torch.cat(parts).cpu().numpy() for parts in zip(*columns, strict=True)))
