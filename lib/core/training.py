"""One training loop for what needs no more: AdamW, one step a batch, a rate that warms up and falls.

Larger trainings go through transformers' `Trainer` or accelerate; they share the groups, the rates and the precision.
"""

import math
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from tqdm import tqdm

Batch = TypeVar("Batch")
Rate = Callable[[int, int], float]  # factor of the learning rate at a step, counted from 0, of so many


def parameter_groups(module: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Return an optimiser's groups of what is trained: matrices decay, vectors (norms, biases) do not."""
    weights = [weight for weight in module.parameters() if weight.requires_grad]
    return [
        {"params": [weight for weight in weights if weight.ndim > 1], "weight_decay": weight_decay},
        {"params": [weight for weight in weights if weight.ndim <= 1], "weight_decay": 0.0},
    ]


def linear_rate(step: int, steps: int, *, warmup: int = 0) -> float:
    """Return the factor of a rate that falls linearly to 0, times a linear warm-up."""
    return _warm(step, warmup) * max(0.0, 1 - step / steps)


def cosine_rate(step: int, steps: int, *, warmup: int = 0, begin: int = 0, floor: float = 0.0) -> float:
    """Return the factor of a rate that falls to `floor` by half a cosine from step `begin` on, times a linear warm-up.

    With `begin = warmup` it falls only once it is warm.
    """
    done = max(0, step - begin) / max(1, steps - begin)
    return _warm(step, warmup) * ((1 + floor) / 2 + (1 - floor) / 2 * math.cos(math.pi * done))


def _warm(step: int, warmup: int) -> float:
    return min(1.0, (step + 1) / max(1, warmup))


def train(
    module: nn.Module,
    batches: Iterable[Batch],
    loss: Callable[[Batch], Tensor | Iterable[Tensor]],
    *,
    steps: int,
    learning_rate: float,
    rate: Rate = linear_rate,
    weight_decay: float = 0.0,
    clip: float = 1.0,
    label: str = "training",
    progress: bool = True,
) -> list[float]:
    """Train the module's weights that take a gradient, one AdamW step a batch; return the loss of each step.

    `steps` is the number of batches. Where `loss` yields several parts, which add up to the loss, the gradients of each
    are taken before the next is computed: memory for one. The module is in training mode meanwhile, and in evaluation
    mode afterwards.
    """
    weights = [weight for weight in module.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=learning_rate, weight_decay=weight_decay)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: rate(step, steps))
    losses = []
    module.train()
    bar = tqdm(batches, total=steps, desc=label, disable=not progress)
    for batch in bar:
        optimizer.zero_grad(set_to_none=True)
        total, given = 0.0, loss(batch)
        for part in [given] if isinstance(given, Tensor) else given:
            part.backward()
            total += float(part.detach())
        nn.utils.clip_grad_norm_(weights, clip)
        optimizer.step()
        schedule.step()
        losses.append(total)
        bar.set_postfix_str(f"loss {total:.3f}", refresh=False)
    module.eval()
    return losses


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Put a module into evaluation mode inside a block, and back into the mode it was in."""
    before = module.training
    module.eval()
    try:
        yield
    finally:
        module.train(before)


def launched_accelerator(*, cpu: bool = False) -> Any:
    """Return accelerate's accelerator of all workers, in the precision that was launched, float32 where none was.

    Accelerate keeps one state for the whole process: without a stated precision, a `Trainer` that ran before in
    bfloat16 would silently make this training bfloat16 as well. Stated, accelerate refuses the change.
    """
    from accelerate import Accelerator

    return Accelerator(cpu=cpu, mixed_precision=os.environ.get("ACCELERATE_MIXED_PRECISION", "no"))


def bits_of(weights: Iterable[tuple[str, Tensor]]) -> dict[str, int]:
    """Return the sum of each weight's bits by name: what tells trained weights apart.

    As integers, whose sum no order of summation and so no number of threads changes.
    """
    kinds = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    return {
        name: int(weight.detach().contiguous().view(kinds[weight.element_size()]).sum(dtype=torch.int64))
        for name, weight in weights
    }
