"""DPO of a log-linear policy over the pool on an arm's pairs: exact, in milliseconds, so that many seeds can run."""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from lib.preference.losses import dpo_loss
from lib.preference.pool import Pool, PoolLogProbs, PoolPairs, fit_path
from lib.proxy_reward.pseudo_labels import PairIndices


def steps_of_epoch(pairs: PairIndices, batch_size: int) -> int:
    """Optimiser steps that read every pair once."""
    return math.ceil(len(pairs) / batch_size)


def dpo_on_pool(
    pool: Pool, pairs: PairIndices, *, steps: Sequence[int], beta: float, learning_rate: float
) -> list[Float[Tensor, " width"]]:
    """Parameters of the policy after each number of steps of DPO, from the law that the pool was drawn from."""

    def loss(policy: PoolLogProbs, reference: PoolLogProbs) -> Tensor:
        margin = policy.chosen - reference.chosen - policy.rejected + reference.rejected
        return dpo_loss(margin, beta=beta).mean()

    start = torch.zeros(pool.features.shape[-1], dtype=torch.float64)
    taken = PoolPairs(pairs.prompt, pairs.chosen, pairs.rejected, third=pairs.chosen)
    return fit_path(pool, start, taken, loss, steps=steps, learning_rate=learning_rate)


def standardised(
    features: Float[Tensor, "items width"], like: Float[Tensor, "others width"], k: int
) -> Float[Tensor, "prompts k width"]:
    """Features of mean 0 and of squared length 1 on average over `like`, prompt by prompt."""
    location, scale = like.mean(0), like.std(0, correction=0).clamp(min=1e-6)
    return ((features - location) / scale / features.shape[1] ** 0.5).double().unflatten(0, (-1, k))
