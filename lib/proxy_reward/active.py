"""Which items to ask the expert about, and learning curves of an evaluator that is fitted again after every batch.

Strategies of arXiv:2407.02119 and their controls: `random`; `coreset_ift` and `coreset_eft` (greedy k-centre on the
embeddings of the instruction-following text, or of the evaluation prompt); `uncertainty` (largest posterior variance
of the evaluator, a whole batch at once); `badge` (diverse gradient embeddings of the evaluator, BADGE).

BADGE (Ash et al., arXiv:1906.03671), for a judge that gives one of a few scores: the gradient of the log-loss at the
judge's own best guess, with respect to the last linear layer, is an outer product g = (p - e_guess) x phi. Its length
says how unsure the judge is, its direction what it would learn; k-means++ on the g's picks a batch that is both.
Distances between outer products come from their factors, so no g is ever formed.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lib.proxy_reward.covering import k_center
from lib.proxy_reward.evaluators import BradleyTerryHead, RidgeHead, fit_ridge

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
        """Predict the score of every item."""
        ...

    def variance(self, features: Tensor) -> Tensor:
        """Return the variance of every predicted score."""
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
        """Return the evaluator; raises ValueError where a strategy needs one and there is none."""
        if self.evaluator is None:
            raise ValueError(f"{strategy!r} needs an evaluator: fit one on a few random labels first, and pass it")
        return self.evaluator

    def free(self) -> Int[Tensor, " free"]:
        """Return the items without a label."""
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
    """Return indices of `budget` items to ask the expert about, none of them labelled already, in order of worth.

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
    """Return the chance of each of `bins` equally frequent classes of predicted scores, under N(score, variance)."""
    edges = scores.quantile(torch.linspace(0, 1, bins + 1, dtype=scores.dtype)[1:-1])
    deviation = variances.clamp(min=1e-12).sqrt().unsqueeze(1)
    below = torch.special.ndtr((edges - scores.unsqueeze(1)) / deviation)
    ends = torch.zeros(len(scores), 1, dtype=scores.dtype)
    return torch.cat([ends, below, ends + 1], dim=1).diff(dim=1)


@dataclass(frozen=True)
class GradientEmbeddings:
    """Factors of g = residual x features for every item."""

    residual: Float[Tensor, "items classes"]
    features: Float[Tensor, "items width"]

    def squared_distance(self, index: int) -> Float[Tensor, " items"]:
        """Return the squared distance of every g to one of them: <a x f, b x h> = <a, b> <f, h>."""
        inner = (self.residual @ self.residual[index]) * (self.features @ self.features[index])
        norms = self.squared_norm()
        return (norms - 2 * inner + norms[index]).clamp(min=0)

    def squared_norm(self) -> Float[Tensor, " items"]:
        """Return the squared length of every g."""
        return self.residual.square().sum(1) * self.features.square().sum(1)


def gradient_embeddings(
    probabilities: Float[Tensor, "items classes"], features: Float[Tensor, "items width"]
) -> GradientEmbeddings:
    """Return gradient embeddings at the judge's own best guess (Eq. 1 of arXiv:1906.03671)."""
    guess = torch.nn.functional.one_hot(probabilities.argmax(1), probabilities.shape[1])
    return GradientEmbeddings(probabilities - guess, features)


def badge(
    gradients: GradientEmbeddings,
    n: int,
    *,
    excluded: Int[Tensor, " excluded"] | None = None,
    generator: torch.Generator,
) -> Int[Tensor, " n"]:
    """Pick `n` items by k-means++: the longest gradient first, then by squared distance to the nearest pick.

    `excluded` are never picked. Where every item left coincides with a pick, the rest is drawn evenly. Raises
    ValueError where fewer than `n` items are left.
    """
    free = torch.ones(len(gradients.features), dtype=torch.bool)
    if excluded is not None:
        free[excluded] = False
    left = int(free.sum())
    if not 1 <= n <= left:
        raise ValueError(f"{n} items were asked for, and {left} are left: ask for 1 to {left}")
    picks = [int(gradients.squared_norm().masked_fill(~free, -1.0).argmax())]
    nearest = gradients.squared_distance(picks[0])
    free[picks[0]] = False
    while len(picks) < n:
        weights = (nearest * free).double()
        if float(weights.sum()) <= 0:
            weights = free.double()
        pick = int(torch.multinomial(weights, 1, generator=generator))
        picks.append(pick)
        free[pick] = False
        nearest = torch.minimum(nearest, gradients.squared_distance(pick))
    return torch.tensor(picks)


@dataclass(frozen=True)
class Fitted:
    """An evaluator at one point of its curve: the expert calls it cost, the items asked about, the head."""

    calls: int
    labelled: Int[Tensor, " labelled"]
    head: RidgeHead


def learning_curve(
    pool: QueryPool,
    ask: Callable[[Tensor], Tensor],
    *,
    strategy: str,
    budgets: Sequence[int],
    seed_labels: int,
    generator: torch.Generator,
) -> list[Fitted]:
    """Return evaluators at rising numbers of expert calls, `seed_labels` of which are random items.

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


PAIR_STRATEGIES = ("random", "infomax", "dts")


def select_pairs(
    features: Float[Tensor, "prompts k width"],
    budget: int,
    strategy: str,
    *,
    asked: Int[Tensor, " asked"],
    head: BradleyTerryHead | None = None,
    generator: torch.Generator,
) -> Int[Tensor, "3 budget"]:
    """Return `budget` comparisons to ask for, one a prompt: its row, and the places of the two responses.

    `infomax` takes the pairs whose outcome tells most of the evaluator, p (1 - p) times the variance of the difference;
    `dts` (double Thompson sampling) draws two evaluators from the posterior for each of some random prompts, and pairs
    the favourite of the one with that of the other (its second where they agree). Prompts in `asked` are left out.
    Raises ValueError for an unknown strategy, one that lacks its evaluator, or a budget that does not fit.
    """
    free = torch.ones(len(features), dtype=torch.bool)
    free[asked] = False
    rows = free.nonzero().squeeze(1)
    if strategy not in PAIR_STRATEGIES or (head is None and strategy != "random"):
        raise ValueError(f"{strategy!r} needs an evaluator, or is none of {', '.join(PAIR_STRATEGIES)}")
    if not 1 <= budget <= len(rows):
        raise ValueError(f"{budget} comparisons do not fit {len(rows)} prompts that are left: ask for one a prompt")
    k = features.shape[1]
    first, second = torch.triu_indices(k, k, offset=1)
    if strategy == "infomax":
        difference = features[rows][:, first] - features[rows][:, second]
        chance = torch.sigmoid(head.score(difference)).double()  # type: ignore[union-attr]
        gain, best = (chance * (1 - chance) * head.variance(difference)).max(1)  # type: ignore[union-attr]
        taken = gain.topk(budget).indices
        return torch.stack([rows[taken], first[best[taken]], second[best[taken]]])
    taken = rows[torch.randperm(len(rows), generator=generator)[:budget]]
    if strategy == "random":
        pair = torch.randint(len(first), (budget,), generator=generator)
        return torch.stack([taken, first[pair], second[pair]])
    drawn = head.draws(2 * budget, generator).view(2, budget, -1)  # type: ignore[union-attr]
    said = torch.einsum("pkw,dpw->dpk", features[taken].double() / head.scale, drawn)  # type: ignore[union-attr]
    one = said[0].argmax(1)
    return torch.stack([taken, one, said[1].scatter(1, one[:, None], -torch.inf).argmax(1)])
