"""Training through `transformers.Trainer` (and so `accelerate launch`) with the paper's optimiser and schedule.

AdamW with betas (.9, .98), clipped gradients, a linear warm-up and a linear (Path-X: quadratic) decay to 0.
"""

import math
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments

from lib.seqboat.tasks import Examples


@dataclass(frozen=True)
class TrainingPlan:
    """Optimiser steps, rows a step (a device), peak learning rate and schedule of a run; `power` shapes the decay.

    Raises ValueError for counts below 1, a warm-up as long as the run, or an unknown optimiser.
    """

    steps: int
    batch_size: int
    learning_rate: float
    warmup: int = 0
    weight_decay: float = 0.01
    clip: float = 1.0
    power: float = 1.0
    optimizer: str = "adamw"

    def __post_init__(self) -> None:
        if min(self.steps, self.batch_size) < 1 or not 0 <= self.warmup < self.steps:
            raise ValueError(
                f"steps and batch_size must be at least 1, and the warm-up shorter than the run, got {self}"
            )
        if self.optimizer not in ("adamw", "radam"):
            raise ValueError(f"the optimizer must be adamw or radam, got {self.optimizer!r}")


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

    Raises ValueError where the examples do not fill a batch.
    """
    if len(examples) < plan.batch_size:
        raise ValueError(f"{len(examples)} examples do not fill one batch of {plan.batch_size}")
    callback = _Measuring(measure, measure_at)
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(
            model=model,  # pyright: ignore[reportArgumentType]
            args=_arguments(plan, folder, seed, progress),
            train_dataset=examples,  # pyright: ignore[reportArgumentType]
            data_collator=_as_fetched,
            optimizers=(_optimizer(model, plan), None),
            callbacks=[callback],
        )
        trainer.remove_callback(PrinterCallback)  # its summary is nobody's progress
        trainer.train()
    model.eval()
    return callback.found


def _as_fetched(batch: Any) -> Any:
    """Return a batch as `Examples.__getitems__` made it."""
    return batch


def _arguments(plan: TrainingPlan, folder: str, seed: int, progress: bool) -> TrainingArguments:
    return TrainingArguments(
        output_dir=folder,
        max_steps=plan.steps,
        per_device_train_batch_size=plan.batch_size,
        learning_rate=plan.learning_rate,
        warmup_steps=plan.warmup,
        lr_scheduler_type="polynomial",
        lr_scheduler_kwargs={"lr_end": 0.0, "power": plan.power},
        max_grad_norm=plan.clip,
        seed=seed,
        data_seed=seed,
        dataloader_drop_last=True,
        remove_unused_columns=False,
        logging_strategy="no",
        save_strategy="no",
        report_to=[],
        disable_tqdm=not progress,
        use_cpu=not torch.cuda.is_available(),
    )


def _optimizer(model: nn.Module, plan: TrainingPlan) -> torch.optim.Optimizer:
    """Return the optimiser; matrices decay, vectors (norms, biases, temperatures) do not."""
    weights = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in weights if p.ndim > 1], "weight_decay": plan.weight_decay},
        {"params": [p for p in weights if p.ndim <= 1], "weight_decay": 0.0},
    ]
    options: dict[str, Any] = {"lr": plan.learning_rate, "betas": (0.9, 0.98), "eps": 1e-8}
    if plan.optimizer == "radam":
        return torch.optim.RAdam(groups, decoupled_weight_decay=True, **options)
    return torch.optim.AdamW(groups, **options)


class _Measuring(TrainerCallback):
    """Calls a function with the model in evaluation mode after chosen steps."""

    def __init__(self, measure: Callable[[nn.Module], Any] | None, steps: Sequence[int]) -> None:
        self.measure, self.steps = measure, set(steps)
        self.found: dict[int, Any] = {}

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        if self.measure is not None and state.global_step in self.steps:
            model.eval()
            self.found[state.global_step] = self.measure(model)
            model.train()


@dataclass(frozen=True)
class Scores:
    """A model on held-out rows: loss of each in nats (a token, for language models), whether it was classified right
    (NaN for language models), and the share of tokens that each layer activated."""

    losses: np.ndarray
    right: np.ndarray
    rates: np.ndarray

    @property
    def accuracy(self) -> float:
        """Share of rows classified right."""
        return float(self.right.mean())

    @property
    def bits_per_token(self) -> float:
        """Mean loss in bits."""
        return float(self.losses.mean()) / math.log(2)


@torch.inference_mode()
def score(model: Any, examples: Examples, *, batch_size: int = 64) -> Scores:
    """Return how a model does on examples, in evaluation mode."""
    was_training, device = model.training, next(model.parameters()).device
    model.eval()
    losses, right, rates = [], [], []
    for rows in torch.arange(len(examples)).split(batch_size):
        batch = {name: part.to(device) for name, part in examples.batch(rows).items()}
        labels = batch.pop("labels")
        output = model(**batch)
        logits = output.logits.float()
        if examples.labels is None:
            each = nn.functional.cross_entropy(logits[:, :-1].transpose(1, 2), labels[:, 1:], reduction="none")
            losses.append(each.sum(1) / (labels[:, 1:] != -100).sum(1))
            right.append(torch.full((len(rows),), torch.nan))
        else:
            losses.append(nn.functional.cross_entropy(logits, labels, reduction="none"))
            right.append((logits.argmax(-1) == labels).float())
        rates.append(torch.stack([a.rate for a in output.activations] or [torch.ones(len(rows))], dim=1))
    model.train(was_training)
    joined = (torch.cat(part).cpu().numpy() for part in (losses, right, rates))
    return Scores(*joined)
