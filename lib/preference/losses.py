"""Losses on sequence log-probabilities, the same for a language model and for the log-linear policy over a pool."""

from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import logsigmoid


def dpo_loss(
    margin: Float[Tensor, "*pairs"], *, beta: float, label_smoothing: float | int = 0.0
) -> Float[Tensor, "*pairs"]:
    """DPO loss of each pair, Eq. (7) of arXiv:2305.18290, with labels flipped at the rate of `label_smoothing`.

    `margin` is (log π(y_w) - log π_ref(y_w)) - (log π(y_l) - log π_ref(y_l)), in nats.
    """
    kept = -logsigmoid(beta * margin)
    if not label_smoothing:
        return kept
    return (1 - label_smoothing) * kept - label_smoothing * logsigmoid(-beta * margin)
