"""Score heads on frozen features, fitted on an expert's scores or comparisons, and how well they agree with the expert.

M_eval of arXiv:2407.02119 in its lightest form. Symbols: `features` = phi(x, y), `scores` = the expert's judgements.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from sklearn.linear_model import LogisticRegression, RidgeCV
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
        """Predict the score of every item."""
        return (self._standard(features) @ self.weights + self.offset).to(features.dtype)

    def variance(self, features: Float[Tensor, "items width"]) -> Float[Tensor, " items"]:
        """Return the posterior variance of every item's mean score (Gaussian prior and noise), in squared scores."""
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
    """Fit ridge regression; its strength is the one of `strengths` with the least leave-one-out error.

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
    unit = max(float(x.square().sum()) / len(y), 1e-12)
    fitted: Any = RidgeCV([unit * strength for strength in strengths]).fit(x.cpu().numpy(), y.cpu().numpy())
    weights, noise = torch.from_numpy(fitted.coef_).to(x), -float(fitted.best_score_)  # squared leave-one-out error
    return RidgeHead(location, scale, weights, float(fitted.intercept_), float(fitted.alpha_), noise, x)


@dataclass(frozen=True)
class BradleyTerryHead:
    """Fitted head: score(phi) = (phi / scale) · weights, defined up to a constant; with its posterior's covariance."""

    scale: Float[Tensor, " width"]
    weights: Float[Tensor, " width"]
    covariance: Float[Tensor, "width width"]

    def score(self, features: Float[Tensor, "*items width"]) -> Float[Tensor, "*items"]:
        """Score every item, in log-odds."""
        return ((features.double() / self.scale) @ self.weights).to(features.dtype)

    def variance(self, difference: Float[Tensor, "*pairs width"]) -> Float[Tensor, "*pairs"]:
        """Return the posterior variance (Laplace's) of the difference of two scores, from that of their features."""
        d = difference.double() / self.scale
        return ((d @ self.covariance) * d).sum(-1)

    def draws(self, count: int, generator: torch.Generator) -> Float[Tensor, "count width"]:
        """Draw weights from the posterior."""
        root = torch.linalg.cholesky(self.covariance)
        noise = torch.randn(count, len(root), dtype=root.dtype, generator=generator)
        return self.weights + noise @ root.T


def fit_bradley_terry(
    chosen: Float[Tensor, "pairs width"], rejected: Float[Tensor, "pairs width"], *, penalty: float = 1.0
) -> BradleyTerryHead:
    """Fit P(a beats b) = sigmoid(w · (phi_a - phi_b)) to an expert's comparisons.

    It minimises mean log(1 + exp(-w · d)) + penalty · mean|d|² / (2 pairs) · |w|², with d = phi_chosen - phi_rejected.
    Raises ValueError where there is no pair, or a feature is not finite.
    """
    if len(chosen) == 0:
        raise ValueError("no pair was given: a Bradley-Terry head needs at least one comparison that is no tie")
    if not (torch.isfinite(chosen).all() and torch.isfinite(rejected).all()):
        raise ValueError("a feature is not finite: leave that pair out (its expert call stays counted)")
    scale = torch.cat([chosen, rejected]).double().std(0, correction=0).clamp(min=1e-6)
    d = ((chosen - rejected).double() / scale).cpu().numpy()
    ridge = penalty * max(float((d**2).sum()) / len(d), 1e-12) / len(d)
    # scikit-learn minimises C sum(loss) + |w|²/2, here over each pair both ways round: C · 2 pairs = 1 / ridge.
    regression = LogisticRegression(C=1 / (2 * ridge * len(d)), fit_intercept=False, solver="newton-cholesky", tol=1e-9)
    fitted = regression.fit(np.concatenate([d, -d]), np.repeat([1, 0], len(d)))
    weights, pairs = torch.from_numpy(fitted.coef_[0]).to(scale), torch.from_numpy(d).to(scale)
    # Laplace: the Hessian of the sum of losses at its minimum, Σ p (1 - p) d dᵀ + pairs · ridge · 1
    chance = torch.sigmoid(pairs @ weights)
    hessian = (pairs.T * (chance * (1 - chance))) @ pairs + len(d) * ridge * torch.eye(len(scale)).to(scale)
    return BradleyTerryHead(scale, weights, torch.cholesky_inverse(torch.linalg.cholesky(hessian)))


def pair_agreement(
    scores: Float[Tensor, "prompts k"], expert: Float[Tensor, "prompts k"], *, tie: float | int = 0.0
) -> Float[Tensor, " prompts"]:
    """Return the share of each prompt's pairs, ties of the expert aside, that the evaluator orders as the expert does.

    A tie of the evaluator counts one half; a prompt without any pair is NaN. Raises ValueError for k = 1.
    """
    if scores.shape[1] < 2:
        raise ValueError("agreement is over pairs of responses to one prompt: give at least two responses a prompt")
    first, second = torch.triu_indices(scores.shape[1], scores.shape[1], offset=1)
    said, true = scores[:, first] - scores[:, second], expert[:, first] - expert[:, second]
    counted = true.abs() > tie
    right = torch.where(said == 0, 0.5, (said.sign() == true.sign()).to(scores.dtype))
    return (right * counted).sum(1) / counted.sum(1)


@dataclass(frozen=True)
class Imbalance:
    """How unevenly scores fill equally wide grades."""

    shares: Float[Tensor, " grades"]
    entropy: float
    largest: float
    deviation: float


def imbalance(scores: Float[Tensor, " items"], *, low: float, high: float, grades: int = 5) -> Imbalance:
    """Return the shares of `grades` equally wide classes of [low, high], their entropy over its maximum, the spread.

    Raises ValueError for an empty range.
    """
    if not low < high:
        raise ValueError(f"the range [{low}, {high}] is empty: give the range of scores over all pools")
    places = ((scores - low) / (high - low) * grades).long().clamp(0, grades - 1)
    shares = torch.bincount(places, minlength=grades).float() / len(scores)
    entropy = float(torch.special.entr(shares).sum()) / float(torch.tensor(float(grades)).log())
    return Imbalance(shares, entropy, float(shares.max()), float(scores.std(correction=0)))
