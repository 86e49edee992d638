"""How well an evaluator agrees with the expert on responses it never saw, and how even a pool's scores are."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor


def pair_agreement(
    scores: Float[Tensor, "prompts k"], expert: Float[Tensor, "prompts k"], *, tie: float | int = 0.0
) -> Float[Tensor, " prompts"]:
    """Share of each prompt's pairs, ties of the expert aside, that the evaluator orders as the expert does.

    A tie of the evaluator counts one half; a prompt without any pair is NaN. Raises ValueError for k = 1.
    """
    if scores.shape[1] < 2:
        raise ValueError("agreement is over pairs of responses to one prompt: give at least two responses a prompt")
    first, second = torch.triu_indices(scores.shape[1], scores.shape[1], offset=1)
    said, true = scores[:, first] - scores[:, second], expert[:, first] - expert[:, second]
    counted = true.abs() > tie
    right = torch.where(said == 0, 0.5, (said.sign() == true.sign()).to(scores.dtype))
    return (right * counted).sum(1) / counted.sum(1)


def best_of_k_gain(scores: Float[Tensor, "prompts k"], expert: Float[Tensor, "prompts k"]) -> Float[Tensor, " prompts"]:
    """Share of what the expert's own best response gains over a random one that the evaluator's pick gains."""
    picked = expert.gather(1, scores.argmax(1, keepdim=True)).squeeze(1)
    mean = expert.mean(1)
    return (picked - mean) / (expert.amax(1) - mean).clamp(min=1e-9)


def rank_correlation(scores: Float[Tensor, " items"], expert: Float[Tensor, " items"]) -> float:
    """Spearman's correlation of all items' scores; 0 where one side is constant."""
    from scipy.stats import spearmanr

    if float(scores.std()) == 0 or float(expert.std()) == 0:
        return 0.0
    return float(spearmanr(scores.numpy(), expert.numpy()).statistic)


@dataclass(frozen=True)
class Imbalance:
    """How unevenly scores fill equally wide grades."""

    shares: Float[Tensor, " grades"]
    entropy: float
    largest: float
    deviation: float


def imbalance(scores: Float[Tensor, " items"], *, low: float, high: float, grades: int = 5) -> Imbalance:
    """Shares of `grades` equally wide classes of [low, high], their entropy over its maximum, and the spread.

    Raises ValueError for an empty range.
    """
    if not low < high:
        raise ValueError(f"the range [{low}, {high}] is empty: give the range of scores over all pools")
    places = ((scores - low) / (high - low) * grades).long().clamp(0, grades - 1)
    shares = torch.bincount(places, minlength=grades).float() / len(scores)
    entropy = float(torch.special.entr(shares).sum()) / float(torch.tensor(float(grades)).log())
    return Imbalance(shares, entropy, float(shares.max()), float(scores.std(correction=0)))
