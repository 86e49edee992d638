"""A Bradley-Terry head on frozen features: P(a beats b) = sigmoid(w · (phi_a - phi_b)), from an expert's comparisons.

Fitted exactly by Newton's method in the span of the differences, since pairs are far fewer than dimensions.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

NEWTON_STEPS = 60
TOLERANCE = 1e-9


@dataclass(frozen=True)
class BradleyTerryHead:
    """Fitted head: score(phi) = (phi / scale) · weights, defined up to a constant."""

    scale: Float[Tensor, " width"]
    weights: Float[Tensor, " width"]

    def score(self, features: Float[Tensor, "items width"]) -> Float[Tensor, " items"]:
        """Score of every item, in log-odds."""
        return ((features.double() / self.scale) @ self.weights).to(features.dtype)


def fit_bradley_terry(
    chosen: Float[Tensor, "pairs width"], rejected: Float[Tensor, "pairs width"], *, penalty: float = 1.0
) -> BradleyTerryHead:
    """Minimise mean log(1 + exp(-w · d)) + penalty · mean|d|² / (2 pairs) · |w|², with d = phi_chosen - phi_rejected.

    Raises ValueError where there is no pair, or a feature is not finite.
    """
    if len(chosen) == 0:
        raise ValueError("no pair was given: a Bradley-Terry head needs at least one comparison that is no tie")
    if not (torch.isfinite(chosen).all() and torch.isfinite(rejected).all()):
        raise ValueError("a feature is not finite: leave that pair out (its expert call stays counted)")
    scale = torch.cat([chosen, rejected]).double().std(0, correction=0).clamp(min=1e-6)
    differences = (chosen - rejected).double() / scale
    gram = differences @ differences.T
    ridge = penalty * max(float(gram.diagonal().mean()), 1e-12) / len(chosen)
    return BradleyTerryHead(scale, differences.T @ _newton(gram, ridge))


def _newton(gram: Float[Tensor, "pairs pairs"], ridge: float) -> Float[Tensor, " pairs"]:
    """Dual coefficients a with w = sum a_i d_i: stationary where ridge · a = sigmoid(-gram a) / pairs."""
    pairs = len(gram)
    a = torch.zeros(pairs, dtype=gram.dtype)
    identity = torch.eye(pairs, dtype=gram.dtype)
    for _ in range(NEWTON_STEPS):
        losing = torch.sigmoid(-(gram @ a))
        wrong = ridge * a - losing / pairs
        if float(wrong.abs().max()) < TOLERANCE * ridge:
            break
        curvature = (losing * (1 - losing)).unsqueeze(1) * gram / pairs + ridge * identity
        a = a - torch.linalg.solve(curvature, wrong)
    return a
