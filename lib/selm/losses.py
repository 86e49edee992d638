"""The SELM objective (Eq. 4.2 of arXiv:2405.19332): DPO, and a term that lowers log π(y) of what the reference says.

max_θ −L_DPO(θ; D_t) − αβ E_{y~π_ref}[log π_θ(y|x)], that is: minimise L_DPO + αβ (log π_θ(y) − log π_ref(y)), whose
expectation over y is L_DPO − αβ KL(π_ref || π_θ). The paper's Algorithm 1 prints α for the weight; Eq. 4.2 has αβ.
"""

from typing import Literal

from jaxtyping import Float
from torch import Tensor

from lib import TenfoldError
from lib.preference import PoolLogProbs, dpo_loss
from lib.preference.pool import Loss

Optimism = Literal["exact", "sampled", "greedy"]


def optimism_term(
    response: Float[Tensor, " rows"], ref_response: Float[Tensor, " rows"], *, alpha: float | int, beta: float
) -> Float[Tensor, " rows"]:
    """αβ (log π_θ(y) − log π_ref(y)) of each third response, log-probabilities summed over its tokens (Eq. 4.2)."""
    return alpha * beta * (response - ref_response)


def selm_loss(
    policy: PoolLogProbs,
    reference: PoolLogProbs,
    *,
    alpha: float | int,
    beta: float,
    label_smoothing: float | int = 0.0,
    optimism: Optimism = "sampled",
) -> Float[Tensor, ""]:
    """Eq. (4.2) on log-probabilities, mean over pairs.

    `optimism` says whose y lowers its probability: the third response (`sampled`, `greedy`: as it was drawn), or the
    expectation over all responses of the prompt (`exact`), which a language model cannot enumerate.
    """
    margin = (policy.chosen - reference.chosen) - (policy.rejected - reference.rejected)
    loss = dpo_loss(margin, beta=beta, label_smoothing=label_smoothing)
    if optimism == "exact":
        law = reference.all.exp()
        response, ref_response = (law * policy.all).sum(-1), (law * reference.all).sum(-1)
    else:
        response, ref_response = policy.third, reference.third
    return (loss + optimism_term(response, ref_response, alpha=alpha, beta=beta)).mean()


def pool_loss(alpha: float | int, *, beta: float, optimism: Optimism = "sampled") -> Loss:
    """Loss of `lib.preference.online_pool` at one α; α = 0 is DPO. Raises TenfoldError for negative α or β."""
    if alpha < 0 or beta <= 0:
        raise TenfoldError(f"alpha = {alpha} and beta = {beta} make no objective: give alpha >= 0 and beta > 0.")
    return lambda policy, reference: selm_loss(policy, reference, alpha=alpha, beta=beta, optimism=optimism)
