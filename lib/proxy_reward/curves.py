"""Learning curves: an evaluator that is fitted again after every batch of expert labels that a strategy asked for.

Every strategy starts from the same random labels of a seed, which are counted; the comparison is paired by seed.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lib.proxy_reward.active import QueryPool, select
from lib.proxy_reward.ridge import RidgeHead, fit_ridge

Ask = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Fitted:
    """An evaluator at one point of its curve: the expert calls it cost, the items asked about, the head."""

    calls: int
    labelled: Int[Tensor, " labelled"]
    head: RidgeHead


def learning_curve(
    pool: QueryPool,
    ask: Ask,
    *,
    strategy: str,
    budgets: Sequence[int],
    seed_labels: int,
    generator: torch.Generator,
) -> list[Fitted]:
    """Evaluators at rising numbers of expert calls, `seed_labels` of which are random items.

    `ask` gives the expert's scores of items by index (and counts them). Raises ValueError where the budgets do not
    rise, or the seed labels are more than the first budget or too few to fit on.
    """
    if list(budgets) != sorted(set(budgets)) or not 3 <= seed_labels <= budgets[0]:
        raise ValueError(
            f"budgets {list(budgets)} with {seed_labels} seed labels make no curve: give rising budgets, and from 3 "
            "seed labels to the first budget"
        )
    labelled = select(pool, seed_labels, "random", generator=generator)
    scores, curve = ask(labelled), []
    for budget in budgets:
        if budget > len(labelled):
            head = fit_ridge(pool.ift[labelled], scores)
            more = select(
                pool, budget - len(labelled), strategy, labelled=labelled, evaluator=head, generator=generator
            )
            labelled, scores = torch.cat([labelled, more]), torch.cat([scores, ask(more)])
        curve.append(Fitted(budget, labelled, fit_ridge(pool.ift[labelled], scores)))
    return curve


def grouped(scores: Float[Tensor, " items"], k: int) -> Float[Tensor, "prompts k"]:
    """Scores of items that lie prompt by prompt, as [prompts, k]."""
    return scores.unflatten(0, (-1, k))
