"""Which items to ask the expert about: one `select` for every strategy, on- and off-policy pools alike.

Strategies of arXiv:2407.02119 and their controls: `random`; `coreset_ift` and `coreset_eft` (greedy k-centre on the
embeddings of the instruction-following text, or of the evaluation prompt); `uncertainty` (largest posterior variance
of the evaluator, a whole batch at once); `badge` (diverse gradient embeddings of the evaluator).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lib.proxy_reward.badge import badge, gradient_embeddings
from lib.proxy_reward.covering import k_center

BINS = 5  # points of the additive judgement that the paper's expert gives


@dataclass(frozen=True)
class QueryPool:
    """Items (x, y) that an expert can be asked about, by their embeddings in the policy's hidden states.

    `policy` says whose responses they are: the policy's own fresh ones ("on") or ones that lay there ("off").
    """

    ift: Float[Tensor, "items width"]
    eft: Float[Tensor, "items eft_width"] | None = None
    policy: Literal["on", "off"] = "on"

    def __len__(self) -> int:
        return len(self.ift)


@runtime_checkable
class Evaluator(Protocol):
    """What a strategy may ask of an evaluator that was fitted on the labels so far."""

    def score(self, features: Tensor) -> Tensor:
        """Predicted score of every item."""
        ...

    def variance(self, features: Tensor) -> Tensor:
        """Variance of every predicted score."""
        ...


@dataclass(frozen=True)
class Query:
    """What a strategy sees: the pool, how many items to pick, what is labelled, the evaluator, and the draws."""

    pool: QueryPool
    budget: int
    labelled: Int[Tensor, " labelled"]
    evaluator: Evaluator | None
    generator: torch.Generator

    def fitted(self, strategy: str) -> Evaluator:
        """The evaluator; raises ValueError where a strategy needs one and there is none."""
        if self.evaluator is None:
            raise ValueError(f"{strategy!r} needs an evaluator: fit one on a few random labels first, and pass it")
        return self.evaluator

    def free(self) -> Int[Tensor, " free"]:
        """Items without a label."""
        left = torch.ones(len(self.pool), dtype=torch.bool)
        left[self.labelled] = False
        return left.nonzero().squeeze(1)


def _random(query: Query) -> Tensor:
    free = query.free()
    return free[torch.randperm(len(free), generator=query.generator)[: query.budget]]


def _coreset_ift(query: Query) -> Tensor:
    return k_center(query.pool.ift, query.budget, labelled=query.labelled, generator=query.generator).chosen


def _coreset_eft(query: Query) -> Tensor:
    if query.pool.eft is None:
        raise ValueError("'coreset_eft' needs embeddings of the evaluation prompts: pass `eft` to the pool")
    return k_center(query.pool.eft, query.budget, labelled=query.labelled, generator=query.generator).chosen


def _uncertainty(query: Query) -> Tensor:
    free = query.free()
    return free[query.fitted("uncertainty").variance(query.pool.ift[free]).topk(query.budget).indices]


def _badge(query: Query) -> Tensor:
    evaluator = query.fitted("badge")
    probabilities = score_probabilities(evaluator.score(query.pool.ift), evaluator.variance(query.pool.ift))
    # Features are centred: a mean shared by all items would make all gradients of one sign alike.
    gradients = gradient_embeddings(probabilities, query.pool.ift - query.pool.ift.mean(0))
    return badge(gradients, query.budget, excluded=query.labelled, generator=query.generator)


STRATEGIES: dict[str, Callable[[Query], Tensor]] = {
    "random": _random,
    "uncertainty": _uncertainty,
    "coreset_ift": _coreset_ift,
    "coreset_eft": _coreset_eft,
    "badge": _badge,
}


def select(
    pool: QueryPool,
    budget: int,
    strategy: str,
    *,
    labelled: Int[Tensor, " labelled"] | None = None,
    evaluator: Evaluator | None = None,
    generator: torch.Generator,
) -> Int[Tensor, " budget"]:
    """Indices of `budget` items of the pool to ask the expert about, none of them labelled already, in order of worth.

    Raises ValueError for an unknown strategy, a budget that the pool cannot fill, or a strategy that lacks what it
    needs (an evaluator, or embeddings of the evaluation prompts).
    """
    if strategy not in STRATEGIES:
        raise ValueError(f"no strategy is called {strategy!r}: use one of {', '.join(STRATEGIES)}")
    labelled = torch.empty(0, dtype=torch.long) if labelled is None else labelled
    left = len(pool) - len(labelled.unique())
    if not 1 <= budget <= left:
        raise ValueError(
            f"a budget of {budget} does not fit the pool, which has {left} items left: ask for 1 to {left}"
        )
    return STRATEGIES[strategy](Query(pool, budget, labelled, evaluator, generator))


def score_probabilities(
    scores: Float[Tensor, " items"], variances: Float[Tensor, " items"], *, bins: int = BINS
) -> Float[Tensor, "items bins"]:
    """Probability of each of `bins` equally frequent classes of the predicted scores, under N(score, variance)."""
    edges = scores.quantile(torch.linspace(0, 1, bins + 1, dtype=scores.dtype)[1:-1])
    deviation = variances.clamp(min=1e-12).sqrt().unsqueeze(1)
    below = torch.special.ndtr((edges - scores.unsqueeze(1)) / deviation)
    ends = torch.zeros(len(scores), 1, dtype=scores.dtype)
    return torch.cat([ends, below, ends + 1], dim=1).diff(dim=1)
