"""A score head on frozen features: ridge regression on an expert's scores, its strength chosen by leave-one-out.

M_eval of arXiv:2407.02119 in its lightest form. Symbols: `features` = phi(x, y), `scores` = the expert's judgements.
Solved in the dual, since labels are far fewer than dimensions.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

STRENGTHS = tuple(10.0**power for power in range(-3, 5))


@dataclass(frozen=True)
class RidgeHead:
    """Fitted head: score(phi) = mean score + (phi standardised) · weights; with the posterior's variance."""

    location: Float[Tensor, " width"]
    scale: Float[Tensor, " width"]
    weights: Float[Tensor, " width"]
    offset: float
    strength: float
    noise: float
    labelled: Float[Tensor, "labels width"]

    def score(self, features: Float[Tensor, "items width"]) -> Float[Tensor, " items"]:
        """Predicted score of every item."""
        return (self._standard(features) @ self.weights + self.offset).to(features.dtype)

    def variance(self, features: Float[Tensor, "items width"]) -> Float[Tensor, " items"]:
        """Posterior variance of every item's mean score (Gaussian prior and noise), in units of the squared score."""
        phi, known = self._standard(features), self.labelled
        gram = known @ known.T + self.strength * torch.eye(len(known), dtype=known.dtype)
        cross = torch.linalg.solve(gram, known @ phi.T)
        left = phi.square().sum(1) - ((phi @ known.T) * cross.T).sum(1)
        return (self.noise * left.clamp(min=0) / self.strength).to(features.dtype)

    def _standard(self, features: Tensor) -> Tensor:
        return (features.double() - self.location) / self.scale


def fit_ridge(
    features: Float[Tensor, "labels width"],
    scores: Float[Tensor, " labels"],
    *,
    strengths: tuple[float, ...] = STRENGTHS,
) -> RidgeHead:
    """Fit a head; its strength is the one of `strengths` with the least leave-one-out error.

    Strengths are relative to the mean squared length of a standardised feature vector. Raises ValueError for fewer
    than three labels, or a label that is not finite.
    """
    if len(scores) < 3:
        raise ValueError(f"{len(scores)} labels cannot fit a head and choose its strength: give at least 3")
    if not torch.isfinite(scores).all() or not torch.isfinite(features).all():
        raise ValueError("a label or a feature is not finite: leave that item out (its expert call stays counted)")
    x, y = features.double(), scores.double()
    location, scale = x.mean(0), x.std(0, correction=0).clamp(min=1e-6)
    x = (x - location) / scale
    offset = float(y.mean())
    values, vectors = torch.linalg.eigh(x @ x.T)
    values, along = values.clamp(min=0), vectors.T @ (y - offset)
    unit = float(values.sum()) / len(y)
    errors = [_leave_one_out(values, vectors, along, unit * s) for s in strengths]
    best = min(range(len(strengths)), key=errors.__getitem__)
    strength = max(unit * strengths[best], 1e-12)
    weights = x.T @ (vectors @ (along / (values + strength)))
    return RidgeHead(location, scale, weights, offset, strength, errors[best], x)


def _leave_one_out(values: Tensor, vectors: Tensor, along: Tensor, strength: float) -> float:
    """Mean squared error of predicting each label from the others.

    Residual over one minus leverage; the 1/n is the mean's own leverage, since the offset is fitted too.
    """
    kept = strength / (values + max(strength, 1e-12))
    residual = vectors @ (kept * along)
    leverage = 1 - (vectors.square() @ kept) + 1 / len(along)
    return float((residual / (1 - leverage).clamp(min=1e-6)).square().mean())
