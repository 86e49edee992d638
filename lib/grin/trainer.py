"""Training a language model on token windows through accelerate, with a balance loss that is global over a whole step.

Under `accelerate launch` each worker takes its share of every batch; the optimiser is AdamW, the schedule a linear
warm-up and a cosine to a tenth. The paper gives neither learning rate nor batch size.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator, notebook_launcher
from jaxtyping import Float, Int
from torch import Tensor, nn
from tqdm import tqdm

from lib.core.training import cosine_rate, evaluating, launched_accelerator, parameter_groups
from lib.grin.balance import dispatch_counts, over_workers
from lib.grin.modeling import GrinForCausalLM


@dataclass(frozen=True)
class TrainingPlan:
    """How to train: optimiser steps, windows a step (over all workers), micro-batches a step, and the schedule.

    Raises ValueError for counts below 1 or a batch that its micro-batches do not divide.
    """

    steps: int
    batch_size: int
    learning_rate: float
    warmup: int = 0
    accumulation: int = 1
    weight_decay: float = 0.1
    clip: float = 1.0

    def __post_init__(self) -> None:
        if min(self.steps, self.batch_size, self.accumulation) < 1 or self.batch_size % self.accumulation:
            raise ValueError(
                f"steps, batch_size and accumulation must be at least 1, and the last divide the batch, got {self}"
            )

    def rate(self, step: int) -> float:
        """Return the learning rate of a step, counted from 0."""
        return self.learning_rate * cosine_rate(step, self.steps, warmup=self.warmup, begin=self.warmup, floor=0.1)


@dataclass(frozen=True)
class Point:
    """A point of a training curve: tokens seen, training loss in nats per token, and what `measure` returned."""

    step: int
    tokens: int
    loss: float
    measured: Any


def train(
    model: GrinForCausalLM,
    windows: Int[Tensor, "windows length"],
    plan: TrainingPlan,
    *,
    seed: int = 0,
    measure: Callable[[GrinForCausalLM], Any] | None = None,
    measure_at: Sequence[int] = (),
    progress: bool = True,
) -> list[Point]:
    """Train a model in place on windows drawn in an order that only the seed decides; return its curve.

    `measure` is called with the model in evaluation mode after each number of steps in `measure_at`. The same seed
    gives every model the same batches. Raises ValueError for a batch that the windows do not fill or the workers do
    not divide.
    """
    if len(windows) < plan.batch_size:
        raise ValueError(f"{len(windows)} windows do not fill one batch of {plan.batch_size}")
    accelerator = launched_accelerator()
    workers, each = accelerator.num_processes, plan.batch_size // plan.accumulation
    if each % workers:
        raise ValueError(f"micro-batches of {each} windows cannot be shared by {workers} workers")
    if workers > 1:  # they must not draw the same noise for different tokens
        torch.manual_seed(seed * workers + accelerator.process_index)
    optimizer = torch.optim.AdamW(parameter_groups(model, plan.weight_decay), lr=plan.learning_rate, betas=(0.9, 0.95))
    wrapped, optimizer = accelerator.prepare(model, optimizer)
    order = batches(len(windows), plan, seed=seed)
    points = []
    for step in tqdm(range(plan.steps), desc="train", disable=not progress, mininterval=5.0):
        for group in optimizer.param_groups:
            group["lr"] = plan.rate(step)
        mine = order[step].view(plan.accumulation, -1)[:, accelerator.process_index :: workers]
        micro = [windows[rows].to(accelerator.device) for rows in mine]
        loss = _step(wrapped, accelerator, optimizer, micro, plan.clip)
        if measure is not None and step + 1 in measure_at:
            model.eval()
            points.append(Point(step + 1, (step + 1) * plan.batch_size * windows.shape[1], loss, measure(model)))
    model.eval()
    return points


def launched(function: Callable[..., None], *arguments: Any, processes: int = 1) -> None:
    """Call a function that trains: here, or in so many processes, a GPU each, by accelerate's launcher.

    There the main process (`accelerate.PartialState().is_main_process`) must leave results in files, and nothing may
    have touched a GPU before.
    """
    if processes == 1:
        function(*arguments)
    else:
        notebook_launcher(function, arguments, num_processes=processes)


def _step(model: Any, accelerator: Accelerator, optimizer: Any, micro: list[Tensor], clip: float) -> float:
    """Take one optimiser step over all micro-batches; return the mean loss."""
    model.train()
    counts = step_counts(model, micro) if len(micro) > 1 else None
    total = 0.0
    for rows in micro:
        loss = model(input_ids=rows, labels=rows, balance_counts=counts).loss / len(micro)
        accelerator.backward(loss)
        total += float(loss.detach())
    accelerator.clip_grad_norm_(model.parameters(), clip)
    optimizer.step()
    optimizer.zero_grad()
    return total


@torch.no_grad()
def step_counts(model: Any, micro: Sequence[Tensor]) -> list[Int[Tensor, "experts"]]:
    """Return each layer's dispatches over all micro-batches and workers of a step, before its first backward pass.

    Costs one forward pass more; the generator is put back, so that the training pass draws the same experts.
    """
    totals: list[Tensor] = []
    with torch.random.fork_rng():
        for rows in micro:
            model(input_ids=rows)
            unwrapped = getattr(model, "module", model)
            counts = [dispatch_counts(routing) for routing in unwrapped.routings()]
            totals = [a + b for a, b in zip(totals, counts, strict=True)] if totals else counts
    return [over_workers(count) for count in totals]


def batches(windows: int, plan: TrainingPlan, *, seed: int) -> Int[Tensor, "steps batch"]:
    """Return the windows of each step: whole passes over a shuffled order, as many as needed."""
    generator = torch.Generator().manual_seed(seed)
    passes = math.ceil(plan.steps * plan.batch_size / windows)
    order = torch.cat([torch.randperm(windows, generator=generator) for _ in range(passes)])
    return order[: plan.steps * plan.batch_size].view(plan.steps, plan.batch_size)


@torch.inference_mode()
def window_losses(
    model: nn.Module, windows: Int[Tensor, "windows length"], *, batch_size: int = 32
) -> Float[Tensor, "windows"]:
    """Return the mean loss of each window in nats per token, in evaluation mode: no noise, no auxiliary loss."""
    device, losses = next(model.parameters()).device, []
    with evaluating(model):
        for rows in windows.split(batch_size):
            logits = model(input_ids=rows.to(device)).logits[:, :-1].float()
            targets = rows[:, 1:].flatten().to(device)
            loss = nn.functional.cross_entropy(logits.flatten(0, 1), targets, reduction="none")
            losses.append(loss.view(len(rows), -1).mean(1).cpu())
    return torch.cat(losses)
