"""What a ranker is trained on: the list-wise objective of arXiv:2310.13127, and two ablations.

Symbols: s [rows, K] the metric of K candidates on one example; z its z-scores; p = softmax(z) the target;
q = softmax of the ranker's scores.
"""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional


def z_scores(metric: Float[Tensor, "rows candidates"]) -> Float[Tensor, "rows candidates"]:
    """Metric less its mean over its population standard deviation, row by row.

    Raises ValueError where all candidates of a row tie: such a row says nothing and has to be left out.
    """
    centred = metric - metric.mean(-1, keepdim=True)
    spread = centred.square().mean(-1, keepdim=True).sqrt()
    if bool((spread <= 1e-12 * metric.abs().amax(-1, keepdim=True)).any()):
        raise ValueError("all candidates of a row have the same score: leave such rows out (draw_rows does)")
    return centred / spread


def target_distribution(metric: Float[Tensor, "rows candidates"]) -> Float[Tensor, "rows candidates"]:
    """p = softmax(z-score of the metric over a row's candidates), at temperature 1."""
    return z_scores(metric).softmax(-1)


def listwise_kl(
    scores: Float[Tensor, "rows candidates"], metric: Float[Tensor, "rows candidates"]
) -> Float[Tensor, ""]:
    """KL(p || q) between the target and the softmax of the scores, a mean over rows, in nats."""
    return functional.kl_div(scores.log_softmax(-1), target_distribution(metric), reduction="batchmean")


def pointwise(scores: Float[Tensor, "rows candidates"], metric: Float[Tensor, "rows candidates"]) -> Float[Tensor, ""]:
    """Mean squared error of the scores to the metric's z-scores: each candidate by itself."""
    return functional.mse_loss(scores, z_scores(metric))


def binary(scores: Float[Tensor, "rows candidates"], metric: Float[Tensor, "rows candidates"]) -> Float[Tensor, ""]:
    """Cross-entropy of "is this instruction better than the row's mean": yes or no, each candidate by itself."""
    return functional.binary_cross_entropy_with_logits(scores, (z_scores(metric) > 0).to(scores.dtype))


OBJECTIVES = {"listwise": listwise_kl, "pointwise": pointwise, "binary": binary}


def chosen_objective(name: str):
    """Objective by name; raises ValueError for another one."""
    if name not in OBJECTIVES:
        raise ValueError(f"there is no objective {name!r}: use one of {', '.join(OBJECTIVES)}")
    return OBJECTIVES[name]


def top_one(scores: Float[Tensor, "rows candidates"], metric: Float[Tensor, "rows candidates"]) -> Float[Tensor, ""]:
    """Mean metric of each row's best-scored candidate: what a checkpoint is selected by."""
    return torch.gather(metric, -1, scores.argmax(-1, keepdim=True)).mean()
