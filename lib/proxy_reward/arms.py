"""What DPO is trained on, by where the labels come from, each with the expert calls that it cost.

At a budget of n calls and k responses a prompt: *direct* labels score all responses to n/k prompts and pair the best
with the worst; *comparisons* ask n times which of two responses is better; the *proxy* spends the n calls on an
evaluator, which pairs the best with the worst of nine times as many prompts as direct labels reach; the *oracle* is the
expert on those same prompts, at 9n calls.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from lib.preference.ledger import Ledger
from lib.proxy_reward.active import QueryPool
from lib.proxy_reward.curves import grouped, learning_curve
from lib.proxy_reward.pseudo_labels import MULTIPLE, PairIndices, best_and_worst, pseudo_label
from lib.proxy_reward.replay import Replay
from lib.proxy_reward.ridge import RidgeHead


@dataclass(frozen=True)
class Arm:
    """Pairs to train on, and what they cost."""

    name: str
    pairs: PairIndices
    expert_calls: int


def order_of_prompts(prompts: int, *, generator: torch.Generator) -> Tensor:
    """Random order in which prompts are taken, the same for all arms of a seed."""
    return torch.randperm(prompts, generator=generator)


def direct(scores: Float[Tensor, "prompts k"], order: Tensor, *, budget: int) -> Arm:
    """The expert scores all responses to as many prompts as the budget pays for.

    Raises ValueError where it pays for none.
    """
    replay = Replay(scores, Ledger(budget))
    count = budget // replay.k
    if count < 1:
        raise ValueError(f"{budget} expert calls do not score {replay.k} responses to one prompt: raise the budget")
    chosen = order[:count]
    return Arm("direct", _at(best_and_worst(replay.all_of(chosen)), chosen), replay.ledger.spent)


def comparisons(scores: Float[Tensor, "prompts k"], order: Tensor, *, budget: int, generator: torch.Generator) -> Arm:
    """The expert compares two random responses to each of `budget` prompts; ties are paid for and give no pair.

    Raises ValueError where there are fewer prompts than comparisons.
    """
    replay = Replay(scores, Ledger(budget))
    if not 1 <= budget <= replay.prompts:
        raise ValueError(f"{budget} comparisons were asked for, and there are {replay.prompts} prompts")
    chosen = order[:budget]
    two = torch.stack([torch.randperm(replay.k, generator=generator)[:2] for _ in range(budget)])
    won = replay.comparisons(chosen, two[:, 0], two[:, 1])
    better, worse = torch.where(won > 0, two.T, two.T.flip(0))
    kept = won != 0
    pairs = PairIndices(chosen[kept], better[kept], worse[kept], int((~kept).sum()))
    return Arm("comparisons", pairs, replay.ledger.spent)


def proxy(said: Float[Tensor, "prompts k"], order: Tensor, *, budget: int, multiple: float | int = MULTIPLE) -> Arm:
    """The evaluator's best against its worst response, for `multiple` times as many prompts as direct labels reach."""
    pairs = pseudo_label(said[order], direct_pairs=budget // said.shape[1], multiple=multiple)
    return Arm("proxy", _at(pairs, order), budget)


def oracle(scores: Float[Tensor, "prompts k"], order: Tensor, *, pairs: int) -> Arm:
    """The expert labels as many pairs as the evaluator did: an upper bound, at its own cost."""
    return Arm("oracle", direct(scores, order, budget=pairs * scores.shape[1]).pairs, pairs * scores.shape[1])


def evaluator(
    scores: Float[Tensor, "prompts k"],
    pool: QueryPool,
    *,
    budget: int,
    strategy: str,
    seed_labels: int,
    generator: torch.Generator,
) -> RidgeHead:
    """Evaluator for which the expert scored `budget` items of a pool, chosen by a strategy."""
    replay = Replay(scores, Ledger(budget))
    curve = learning_curve(
        pool, replay.items, strategy=strategy, budgets=[budget], seed_labels=seed_labels, generator=generator
    )
    return curve[-1].head


def scores_by(head: RidgeHead, features: Float[Tensor, "items width"], k: int) -> Float[Tensor, "prompts k"]:
    """An evaluator's scores of items that lie prompt by prompt."""
    return grouped(head.score(features), k)


def _at(pairs: PairIndices, places: Tensor) -> PairIndices:
    """Pairs whose prompts were counted among `places`, counted among all prompts."""
    return PairIndices(places[pairs.prompt], pairs.chosen, pairs.rejected, pairs.dropped)
