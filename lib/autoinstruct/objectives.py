"""What a ranker is trained on: the list-wise objective of arXiv:2310.13127, and two ablations.

Symbols: s [rows, K] the metric of K candidates on one example; z its z-scores; p = softmax(z) the target;
q = softmax of the ranker's scores.
"""

from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

Rows = Float[Tensor, "rows candidates"]


def z_scores(metric: Rows) -> Rows:
    """Take a metric less its mean over its population standard deviation, row by row.

    Raises ValueError where all candidates of a row tie: such a row says nothing and has to be left out.
    """
    centred = metric - metric.mean(-1, keepdim=True)
    spread = centred.square().mean(-1, keepdim=True).sqrt()
    if bool((spread <= 1e-12 * metric.abs().amax(-1, keepdim=True)).any()):
        raise ValueError("all candidates of a row have the same score: leave such rows out (draw_rows does)")
    return centred / spread


def target_distribution(metric: Rows) -> Rows:
    """Give p = softmax(z-score of the metric over a row's candidates), at temperature 1."""
    return z_scores(metric).softmax(-1)


def listwise_kl(scores: Rows, metric: Rows) -> Float[Tensor, ""]:
    """Give KL(p || q) between the target and the softmax of the scores, a mean over rows, in nats."""
    return functional.kl_div(scores.log_softmax(-1), target_distribution(metric), reduction="batchmean")


def pointwise(scores: Rows, metric: Rows) -> Float[Tensor, ""]:
    """Give the mean squared error of the scores to the metric's z-scores: each candidate by itself."""
    return functional.mse_loss(scores, z_scores(metric))


def binary(scores: Rows, metric: Rows) -> Float[Tensor, ""]:
    """Give the cross-entropy of "is this instruction better than the row's mean": yes or no, each by itself."""
    return functional.binary_cross_entropy_with_logits(scores, (z_scores(metric) > 0).to(scores.dtype))


OBJECTIVES = {"listwise": listwise_kl, "pointwise": pointwise, "binary": binary}
