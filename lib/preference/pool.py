"""A log-linear policy over a fixed pool of scored responses: everything about it is exact and takes milliseconds.

Each prompt has k responses with features φ and scores. π_θ(y|x) is proportional to π_0(y|x) exp(φ(x, y)·θ) over the
pool, where π_0 is the law that the pool was drawn from: 1/k each for independent draws of a language model. Losses are
those of the language model, expectations are sums, and a sweep of hundreds of runs takes seconds.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from lib.preference.pairing import AllTie


@dataclass(frozen=True)
class Pool:
    """Features and scores of k responses to each prompt; `base` is log π_0, uniform where not given."""

    features: Float[Tensor, "prompts k width"]
    scores: Float[Tensor, "prompts k"]
    base: Float[Tensor, "prompts k"]

    @classmethod
    def of(cls, features: Tensor, scores: Tensor, base: Tensor | None = None) -> "Pool":
        """Return a pool in float64; raises ValueError for shapes that differ, k = 1, or values that are not finite."""
        prompts, k = scores.shape
        if features.shape[:2] != (prompts, k) or (base is not None and base.shape != scores.shape) or k < 2:
            raise ValueError(
                f"a pool needs features [prompts, k, width] and scores [prompts, k] with k of at least 2, not "
                f"{list(features.shape)} and {list(scores.shape)}"
            )
        if not (features.isfinite().all() and scores.isfinite().all()):
            raise ValueError("a pool needs finite features and scores: find out where NaN or infinity came from")
        base = torch.zeros(prompts, k) if base is None else base
        return cls(features.double(), scores.double(), base.double().log_softmax(-1))

    def __len__(self) -> int:
        return len(self.scores)

    def select(self, rows: Tensor | slice) -> "Pool":
        """Return the pool of some prompts."""
        return Pool(self.features[rows], self.scores[rows], self.base[rows])

    def log_probs(self, theta: Float[Tensor, " width"]) -> Float[Tensor, "prompts k"]:
        """Return log π_θ over the pool."""
        return (self.base + self.features @ theta).log_softmax(-1)

    def expected_scores(self, theta: Float[Tensor, " width"]) -> Float[Tensor, " prompts"]:
        """Return the expected score of π_θ at each prompt, exactly."""
        return (self.log_probs(theta).exp() * self.scores).sum(-1)

    def win_rates(self, theta: Float[Tensor, " width"], other: Float[Tensor, " width"]) -> Float[Tensor, " prompts"]:
        """Return the chance that a response of π_θ scores above one of the other policy (ties half), at each prompt."""
        better = (self.scores[:, :, None] > self.scores[:, None, :]).double()
        better += 0.5 * (self.scores[:, :, None] == self.scores[:, None, :]).double()
        return torch.einsum("pi,pij,pj->p", self.log_probs(theta).exp(), better, self.log_probs(other).exp())

    def divergence(
        self, reference: Float[Tensor, " width"], theta: Float[Tensor, " width"]
    ) -> Float[Tensor, " prompts"]:
        """Return KL(π_reference || π_θ) at each prompt, in nats."""
        of = self.log_probs(reference)
        return (of.exp() * (of - self.log_probs(theta))).sum(-1)


@dataclass(frozen=True)
class PoolPairs:
    """Pairs drawn from a pool: row of the pool, and places of the chosen, the rejected and a further response."""

    rows: Int[Tensor, " pairs"]
    chosen: Int[Tensor, " pairs"]
    rejected: Int[Tensor, " pairs"]
    third: Int[Tensor, " pairs"]


@dataclass(frozen=True)
class PoolLogProbs:
    """Log-probabilities that a loss needs: of the pairs' responses, and of all responses of the pairs' prompts."""

    chosen: Float[Tensor, " pairs"]
    rejected: Float[Tensor, " pairs"]
    third: Float[Tensor, " pairs"]
    all: Float[Tensor, "pairs k"]


Loss = Callable[[PoolLogProbs, PoolLogProbs], Float[Tensor, ""]]


def draw_pairs(
    pool: Pool,
    theta: Float[Tensor, " width"],
    *,
    draws: int,
    generator: torch.Generator,
    greedy: bool = False,
) -> PoolPairs:
    """Draw responses of π_θ at every prompt and pair the best with the worst of them; ties give no pair.

    The third response is the first draw or, where `greedy`, the most likely response, which then is a candidate too.
    Raises AllTie where every prompt ties.
    """
    drawn = torch.multinomial(pool.log_probs(theta).exp(), draws, replacement=True, generator=generator)
    third = pool.log_probs(theta).argmax(-1) if greedy else drawn[:, 0]
    candidates = torch.cat([drawn, third[:, None]], dim=1)
    scores = pool.scores.gather(1, candidates)
    chosen = candidates.gather(1, scores.argmax(1, keepdim=True)).squeeze(1)
    rejected = candidates.gather(1, scores.argmin(1, keepdim=True)).squeeze(1)
    kept: Bool[Tensor, " prompts"] = scores.amax(1) > scores.amin(1)
    if not bool(kept.any()):
        raise AllTie("every prompt of the pool ties: draw more responses, or score them more finely")
    rows = kept.nonzero().squeeze(-1)
    return PoolPairs(rows, chosen[rows], rejected[rows], third[rows])


def log_probs_of(asked: Pool, theta: Float[Tensor, " width"], pairs: PoolPairs) -> PoolLogProbs:
    """Return log-probabilities of π_θ that a loss needs; `asked` is `pool.select(pairs.rows)`."""
    of = asked.log_probs(theta)
    chosen, rejected, third = (
        of.gather(1, places[:, None]).squeeze(1) for places in (pairs.chosen, pairs.rejected, pairs.third)
    )
    return PoolLogProbs(chosen, rejected, third, of)


def fit(
    pool: Pool,
    theta: Float[Tensor, " width"],
    pairs: PoolPairs,
    loss: Loss,
    *,
    steps: Sequence[int] = (40,),
    learning_rate: float = 0.05,
) -> list[Float[Tensor, " width"]]:
    """Return θ after each of these numbers of full-batch Adam steps on loss(policy, reference) in one training.

    The given θ is the start and the reference.
    """
    asked = pool.select(pairs.rows)
    with torch.no_grad():
        reference = log_probs_of(asked, theta, pairs)
    moved = theta.clone().requires_grad_()
    optimizer = torch.optim.Adam([moved], lr=learning_rate)
    at = {0: theta.clone()}
    for step in range(1, max(steps, default=0) + 1):
        optimizer.zero_grad()
        loss(log_probs_of(asked, moved, pairs), reference).backward()
        optimizer.step()
        if step in steps:
            at[step] = moved.detach().clone()
    return [at[step] for step in steps]


def online_pool(
    pool: Pool,
    loss: Loss,
    *,
    rounds: int,
    draws: int,
    seed: int,
    greedy: bool = False,
    steps: int = 40,
    learning_rate: float = 0.05,
) -> list[Float[Tensor, " width"]]:
    """Run rounds of draw, pair, train, reset reference over equal portions of the prompts; return θ before and after.

    The seed decides which prompts fall into which portion and what is drawn, not what the loss makes of it: runs of two
    losses with one seed are paired. A policy that has collapsed onto one response a prompt has nothing to compare and
    stays what it is. Raises AllTie where even the first round's prompts all tie.
    """
    generator = torch.Generator().manual_seed(seed)
    portions = torch.randperm(len(pool), generator=generator).chunk(rounds)
    thetas = [torch.zeros(pool.features.shape[-1], dtype=torch.float64)]
    for portion in portions:
        part = pool.select(portion)
        try:
            pairs = draw_pairs(part, thetas[-1], draws=draws, generator=generator, greedy=greedy)
            thetas += fit(part, thetas[-1], pairs, loss, steps=[steps], learning_rate=learning_rate)
        except AllTie:
            if len(thetas) == 1:
                raise
            thetas.append(thetas[-1])
    return thetas
