"""The SELM objective (arXiv:2405.19332, Eq. 4.2) and the bilevel problem that it comes from.

max_θ −L_DPO(θ; D_t) − αβ E_{y~π_ref}[log π_θ(y|x)], that is: minimise L_DPO + αβ (log π_θ(y) − log π_ref(y)), whose
expectation over y is L_DPO − αβ KL(π_ref || π_θ). The paper's Algorithm 1 prints α for the weight; Eq. 4.2 has αβ.

In tables of probabilities: r̂(x, y) = β (log π(y|x) − log π_ref(y|x)) is the implicit reward of a policy π; the inner
level maximises E_π[r] − E_π_ref[r] − β KL(π || π_ref), solved by π_r ∝ π_ref exp(r / β).
"""

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from lib.preference.losses import dpo_loss
from lib.preference.pool import Loss, PoolLogProbs

Optimism = Literal["exact", "sampled", "greedy"]


def optimism_term(
    response: Float[Tensor, "*rows"], ref_response: Float[Tensor, "*rows"], *, alpha: float | int, beta: float
) -> Float[Tensor, "*rows"]:
    """Return αβ (log π_θ(y) − log π_ref(y)) of each third response, from sums over its tokens (Eq. 4.2)."""
    return alpha * beta * (response - ref_response)


def selm_loss(
    policy: PoolLogProbs,
    reference: PoolLogProbs,
    *,
    alpha: float | int,
    beta: float,
    label_smoothing: float | int = 0.0,
    optimism: Optimism = "sampled",
) -> Float[Tensor, "*runs pairs"]:
    """Return Eq. (4.2) of each pair, on log-probabilities.

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
    return loss + optimism_term(response, ref_response, alpha=alpha, beta=beta)


def pool_loss(alpha: float | int, *, beta: float, optimism: Optimism = "sampled") -> Loss:
    """Return the loss of `lib.preference.online_pool` at one α; 0 is DPO. Raises ValueError for negative α or β."""
    if alpha < 0 or beta <= 0:
        raise ValueError(f"alpha = {alpha} and beta = {beta} make no objective: give alpha >= 0 and beta > 0")
    return lambda policy, reference: selm_loss(policy, reference, alpha=alpha, beta=beta, optimism=optimism)


def implicit_reward(
    policy: Float[Tensor, "*rows responses"], reference: Float[Tensor, "*rows responses"], *, beta: float
) -> Float[Tensor, "*rows responses"]:
    """Return r̂ = β (log π − log π_ref) of every response, from probabilities."""
    return beta * (policy.log() - reference.log())


def tilted(
    prior: Float[Tensor, "*rows responses"], reward: Float[Tensor, "*rows responses"], *, beta: float
) -> Float[Tensor, "*rows responses"]:
    """Return π ∝ prior · exp(reward / β): the maximiser of E_π[reward] − β KL(π || prior)."""
    return (prior.log() + reward / beta).softmax(-1)


def inner_value(
    policy: Float[Tensor, "*rows responses"],
    reference: Float[Tensor, "*rows responses"],
    reward: Float[Tensor, "*rows responses"],
    *,
    beta: float,
) -> Float[Tensor, "*rows"]:
    """Return E_{y~π, y'~π_ref}[r(y) − r(y')] − β KL(π || π_ref): what the outer level is optimistic about."""
    gain = ((policy - reference) * reward).sum(-1)
    return gain - beta * torch.special.xlogy(policy, policy / reference).sum(-1)


def self_exploring_policy(
    policy: Float[Tensor, "*rows responses"], reference: Float[Tensor, "*rows responses"], *, beta: float
) -> Float[Tensor, "*rows responses"]:
    """Return argmin_π E_π[r̂_ρ] + β KL(π || π_ρ) for a policy π_ρ: Theorem 5.1 says that it is π_ref, whatever π_ρ."""
    return tilted(policy, -implicit_reward(policy, reference, beta=beta), beta=beta)
