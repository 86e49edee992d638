"""A feature drafter's start without gradients: its maps by ridge regression on the target's own hidden states.

The drafter's layer is the target's last one. What that layer reads in the target at token i, h_i, is known from one
pass; the map of lag k is the linear one that best says it from the embedding of token i and the features at i - k.
"""

from collections.abc import Iterable
from typing import cast

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from tqdm.auto import tqdm

from lib.tempspec.feature import FeatureModel, older
from lib.tempspec.lessons import Batch

DAMPING = 1e-3  # of the mean of the inputs' second moments


@torch.no_grad()
def fit_maps(model: FeatureModel, batches: Iterable[Batch], *, wanted: int, tokens: int = 60_000) -> list[float]:
    """Set the maps of a feature model, in place; return the share of the wanted states' variance each explains.

    `wanted` is the layer among `model.layers` whose hidden states are to be said: the input of the target's last layer.
    Reads `tokens` tokens at most. Raises ValueError where the model does not see that layer.
    """
    if wanted not in model.layers:
        raise ValueError(f"the drafter sees layers {list(model.layers)}, not {wanted}: add it to them")
    place, sums = model.layers.index(wanted), [_Sums() for _ in range(model.longest_lag)]
    for batch in tqdm(batches, desc="ridge regression", unit="batch", leave=False, mininterval=5):
        assert batch.features is not None
        states = batch.features.chunk(len(model.layers), dim=-1)[place].float()
        for lag, kept in enumerate(sums, start=1):
            known = real_positions(batch, first=lag + 1)
            kept.add(model.joined(batch.tokens, older(batch.features, lag))[known].float(), states[known])
        if sums[0].count >= tokens:
            break
    for linear, kept in zip(model.maps, sums, strict=True):
        cast(nn.Linear, linear).weight.copy_(kept.solution().T)
    return [kept.explained() for kept in sums]


def real_positions(batch: Batch, *, first: int) -> Bool[Tensor, "batch length"]:
    """Positions from `first` to a row's last scored one: the first token's states are unlike all others."""
    places = torch.arange(batch.tokens.shape[1], device=batch.tokens.device)
    last = torch.where(batch.scored, places, 0).amax(dim=1, keepdim=True)
    return (places >= first) & (places <= last)


class _Sums:
    """Second moments of inputs x and outputs y, and the ridge regression of y on x."""

    def __init__(self) -> None:
        self.count, self.inputs, self.cross, self.outputs = 0, torch.tensor(0.0), torch.tensor(0.0), torch.tensor(0.0)

    def add(self, x: Float[Tensor, "rows in"], y: Float[Tensor, "rows out"]) -> None:
        """Add rows."""
        self.count += len(x)
        self.inputs = self.inputs + (x.T @ x).cpu()
        self.cross = self.cross + (x.T @ y).cpu()
        self.outputs = self.outputs + y.square().sum(0).cpu()

    def solution(self) -> Float[Tensor, "in out"]:
        """Weights W that minimise |x W - y|^2 + damping |W|^2."""
        damped = self.inputs.double()
        damped.diagonal().add_(DAMPING * damped.diagonal().mean())
        return torch.linalg.solve(damped, self.cross.double()).float()

    def explained(self) -> float:
        """Share of the outputs' second moment that the solution explains."""
        weights = self.solution()
        left = self.outputs - 2 * (weights * self.cross).sum(0) + ((self.inputs @ weights) * weights).sum(0)
        return 1 - float(left.sum() / self.outputs.sum())
