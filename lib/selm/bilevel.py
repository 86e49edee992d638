"""The bilevel problem behind SELM in tables: what the inner level solves, and the identity of Theorem 5.1.

Symbols (arXiv:2405.19332): r̂(x, y) = β (log π(y|x) − log π_ref(y|x)) is the implicit reward of a policy π; the inner
level maximises E_π[r] − E_π_ref[r] − β KL(π || π_ref), solved by π_r ∝ π_ref exp(r / β). All in float64.
"""

import torch
from jaxtyping import Float
from torch import Tensor


def implicit_reward(
    policy: Float[Tensor, "*rows responses"], reference: Float[Tensor, "*rows responses"], *, beta: float
) -> Float[Tensor, "*rows responses"]:
    """r̂ = β (log π − log π_ref) of every response, from probabilities."""
    return beta * (policy.log() - reference.log())


def tilted(
    prior: Float[Tensor, "*rows responses"], reward: Float[Tensor, "*rows responses"], *, beta: float
) -> Float[Tensor, "*rows responses"]:
    """π ∝ prior · exp(reward / β): the maximiser of E_π[reward] − β KL(π || prior)."""
    return (prior.log() + reward / beta).softmax(-1)


def inner_value(
    policy: Float[Tensor, "*rows responses"],
    reference: Float[Tensor, "*rows responses"],
    reward: Float[Tensor, "*rows responses"],
    *,
    beta: float,
) -> Float[Tensor, "*rows"]:
    """E_{y~π, y'~π_ref}[r(y) − r(y')] − β KL(π || π_ref): what the outer level is optimistic about."""
    gain = ((policy - reference) * reward).sum(-1)
    return gain - beta * torch.special.xlogy(policy, policy / reference).sum(-1)


def self_exploring_policy(
    policy: Float[Tensor, "*rows responses"], reference: Float[Tensor, "*rows responses"], *, beta: float
) -> Float[Tensor, "*rows responses"]:
    """argmin_π E_π[r̂_ρ] + β KL(π || π_ρ) for a policy π_ρ: Theorem 5.1 says that it is π_ref, whatever π_ρ."""
    return tilted(policy, -implicit_reward(policy, reference, beta=beta), beta=beta)
