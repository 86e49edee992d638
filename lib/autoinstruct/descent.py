"""The one training loop of this room: AdamW at a rate that falls linearly to zero, gradients clipped to norm 1."""

from collections.abc import Callable, Iterable
from typing import TypeVar

import torch
from torch import Tensor, nn
from tqdm import tqdm

Batch = TypeVar("Batch")


def descend(
    module: nn.Module,
    batches: Iterable[Batch],
    loss_of: Callable[[Batch], Tensor],
    *,
    steps: int,
    lr: float,
    weight_decay: float = 0.0,
    label: str = "training",
    progress: bool = True,
) -> list[float]:
    """Train the module's weights that require a gradient, one step a batch; gives the loss of each step.

    `steps` is the number of batches. The module is in training mode meanwhile, and in evaluation mode afterwards.
    """
    weights = [weight for weight in module.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=lr, weight_decay=weight_decay)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: max(0.0, 1 - step / steps))
    losses = []
    module.train()
    for batch in tqdm(batches, total=steps, desc=label, disable=not progress):
        loss = loss_of(batch)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        schedule.step()
        losses.append(float(loss.detach()))
    module.eval()
    return losses
