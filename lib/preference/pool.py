"""A log-linear policy over a fixed pool of scored responses: everything about it is exact and takes milliseconds.

Each prompt has k responses with features φ and scores. π_θ(y|x) is proportional to π_0(y|x) exp(φ(x, y)·θ) over the
pool, where π_0 is the law that the pool was drawn from: 1/k each for independent draws of a language model. Losses are
those of the language model and expectations are sums. Many runs (seeds, say) go at once: θ is then [runs, width], and
since losses add up over runs and Adam moves each number on its own, each run is what it would be alone.
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

    features: Float[Tensor, "*runs prompts k width"]
    scores: Float[Tensor, "*runs prompts k"]
    base: Float[Tensor, "*runs prompts k"]

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
        return self.scores.shape[-2]

    def select(self, rows: Tensor | slice) -> "Pool":
        """Return the pool of some prompts; rows [runs, prompts] give every run its own."""
        return Pool(self.features[rows], self.scores[rows], self.base[rows])

    def log_probs(self, theta: Float[Tensor, "*runs width"]) -> Float[Tensor, "*runs prompts k"]:
        """Return log π_θ over the pool."""
        tilt = torch.einsum("...pkw,...w->...pk", self.features, theta)
        return (self.base + tilt).log_softmax(-1)

    def expected_scores(self, theta: Float[Tensor, "*runs width"]) -> Float[Tensor, "*runs prompts"]:
        """Return the expected score of π_θ at each prompt, exactly."""
        return (self.log_probs(theta).exp() * self.scores).sum(-1)

    def win_rates(
        self, theta: Float[Tensor, "*runs width"], other: Float[Tensor, "*runs width"]
    ) -> Float[Tensor, "*runs prompts"]:
        """Return the chance that a response of π_θ scores above one of the other policy (ties half), at each prompt."""
        return win_chances(self.log_probs(theta).exp(), self.log_probs(other).exp(), self.scores)

    def divergence(
        self, reference: Float[Tensor, "*runs width"], theta: Float[Tensor, "*runs width"]
    ) -> Float[Tensor, "*runs prompts"]:
        """Return KL(π_reference || π_θ) at each prompt, in nats."""
        of = self.log_probs(reference)
        return (of.exp() * (of - self.log_probs(theta))).sum(-1)


def win_chances(
    ours: Float[Tensor, "*runs prompts k"], theirs: Float[Tensor, "*runs prompts k"], scores: Float[Tensor, "prompts k"]
) -> Float[Tensor, "*runs prompts"]:
    """Return the chance that a response drawn from one law scores above one from another (ties half), exactly."""
    better = (scores[..., :, None] > scores[..., None, :]).to(ours.dtype)
    better += 0.5 * (scores[..., :, None] == scores[..., None, :]).to(ours.dtype)
    return torch.einsum("...pi,pij,...pj->...p", ours, better, theirs)


@dataclass(frozen=True)
class PoolPairs:
    """Pairs out of a pool: row of the pool, and places of the chosen, the rejected and a further response."""

    rows: Int[Tensor, "*runs pairs"]
    chosen: Int[Tensor, "*runs pairs"]
    rejected: Int[Tensor, "*runs pairs"]
    third: Int[Tensor, "*runs pairs"]
    kept: Bool[Tensor, "*runs pairs"]  # False: a tie, which is no pair

    @classmethod
    def of(cls, rows: Tensor, chosen: Tensor, rejected: Tensor) -> "PoolPairs":
        """Return pairs without a further response."""
        return cls(rows, chosen, rejected, chosen, torch.ones_like(rows, dtype=torch.bool))


@dataclass(frozen=True)
class PoolLogProbs:
    """Log-probabilities that a loss needs: of the pairs' responses, and of all responses of the pairs' prompts."""

    chosen: Float[Tensor, "*runs pairs"]
    rejected: Float[Tensor, "*runs pairs"]
    third: Float[Tensor, "*runs pairs"]
    all: Float[Tensor, "*runs pairs k"]


Loss = Callable[[PoolLogProbs, PoolLogProbs], Float[Tensor, "*runs pairs"]]


def draw_pairs(
    log_probs: Float[Tensor, "*runs prompts k"],
    scores: Float[Tensor, "*runs prompts k"],
    uniforms: Float[Tensor, "*runs prompts draws"],
    *,
    greedy: bool = False,
    refuse: bool = True,
) -> PoolPairs:
    """Draw responses of a law at every prompt and pair the best with the worst of them; ties are not kept.

    The third response is the first draw or, where `greedy`, the most likely response, which then is a candidate too.
    Draws invert the law at the given uniform numbers, so that laws that are close draw alike. Raises AllTie where every
    prompt of a run ties, unless told not to `refuse`.
    """
    steps = log_probs.exp().cumsum(-1)
    drawn = (uniforms[..., None] > steps[..., None, :]).sum(-1).clamp(max=log_probs.shape[-1] - 1)
    third = log_probs.argmax(-1) if greedy else drawn[..., 0]
    candidates = torch.cat([drawn, third[..., None]], dim=-1)
    given = scores.expand(log_probs.shape).gather(-1, candidates)
    chosen = candidates.gather(-1, given.argmax(-1, keepdim=True)).squeeze(-1)
    rejected = candidates.gather(-1, given.argmin(-1, keepdim=True)).squeeze(-1)
    kept = given.amax(-1) > given.amin(-1)
    if refuse and not bool(kept.any(-1).all()):
        raise AllTie("every prompt of the pool ties: draw more responses, or score them more finely")
    return PoolPairs(torch.arange(kept.shape[-1]).expand(kept.shape), chosen, rejected, third, kept)


def log_probs_of(law: Float[Tensor, "*runs prompts k"], pairs: PoolPairs) -> PoolLogProbs:
    """Return log-probabilities that a loss needs, of a policy's log-probabilities over the pool."""
    of = law.gather(-2, pairs.rows[..., None].expand(*pairs.rows.shape, law.shape[-1]))
    places = (pairs.chosen, pairs.rejected, pairs.third)
    chosen, rejected, third = (of.gather(-1, place[..., None]).squeeze(-1) for place in places)
    return PoolLogProbs(chosen, rejected, third, of)


def mean_of_kept(losses: Float[Tensor, "*runs pairs"], kept: Bool[Tensor, "*runs pairs"]) -> Float[Tensor, "*runs"]:
    """Return the mean over the pairs that are no ties; 0 where there is none."""
    return (losses * kept).sum(-1) / kept.sum(-1).clamp(min=1)


def fit(
    pool: Pool,
    theta: Float[Tensor, "*runs width"],
    pairs: PoolPairs,
    loss: Loss,
    *,
    steps: Sequence[int] = (40,),
    learning_rate: float = 0.05,
) -> list[Float[Tensor, "*runs width"]]:
    """Return θ after each of these numbers of full-batch Adam steps on loss(policy, reference) in one training.

    The given θ is the start and the reference.
    """
    with torch.no_grad():
        reference = log_probs_of(pool.log_probs(theta), pairs)
    moved = theta.clone().requires_grad_()
    optimizer = torch.optim.Adam([moved], lr=learning_rate)
    at = {0: theta.clone()}
    for step in range(1, max(steps, default=0) + 1):
        optimizer.zero_grad()
        losses = loss(log_probs_of(pool.log_probs(moved), pairs), reference)
        mean_of_kept(losses, pairs.kept).sum().backward()
        optimizer.step()
        if step in steps:
            at[step] = moved.detach().clone()
    return [at[step] for step in steps]


def portions_and_draws(prompts: int, rounds: int, draws: int, seed: int) -> list[tuple[Tensor, Tensor]]:
    """Return each round's prompts and uniform numbers [prompts, draws]; they depend on the seed alone.

    So runs of two losses with one seed see the same questions and draw with the same numbers: they are paired.
    """
    generator = torch.Generator().manual_seed(seed)
    portions = torch.randperm(prompts, generator=generator).tensor_split(rounds)
    return [(p, torch.rand(len(p), draws, dtype=torch.float64, generator=generator)) for p in portions]


def online_pool(
    pool: Pool,
    loss: Loss,
    *,
    rounds: int,
    draws: int,
    seed: int | Sequence[int],
    greedy: bool = False,
    steps: int = 40,
    learning_rate: float = 0.05,
) -> list[Float[Tensor, "*runs width"]]:
    """Run rounds of draw, pair, train, reset reference over equal portions of the prompts; return θ before and after.

    Several seeds run at once and give θ [seeds, width]. A policy that has collapsed onto one response a prompt has
    nothing to compare and stays what it is. Raises AllTie where the first round's prompts all tie.
    """
    seeds = [seed] if isinstance(seed, int) else list(seed)
    planned = zip(*(portions_and_draws(len(pool), rounds, draws, s) for s in seeds), strict=True)
    thetas = [torch.zeros(len(seeds), pool.features.shape[-1], dtype=torch.float64)]
    for parts in planned:
        rows, uniforms = (torch.stack(values) for values in zip(*parts, strict=True))
        part, theta = pool.select(rows), thetas[-1]
        first = len(thetas) == 1
        pairs = draw_pairs(part.log_probs(theta), part.scores, uniforms, greedy=greedy, refuse=first)
        thetas += fit(part, theta, pairs, loss, steps=[steps], learning_rate=learning_rate)
    return [theta[0] for theta in thetas] if isinstance(seed, int) else thetas
