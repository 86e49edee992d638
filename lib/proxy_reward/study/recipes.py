"""What DPO is trained on, by where the labels come from, each with the expert calls that it cost, and DPO on a pool.

At a budget of n calls and k responses a prompt: *direct* labels score all responses to n/k prompts and pair the best
with the worst; *comparisons* ask n times which of two responses is better; the *proxy* spends the n calls on an
evaluator, which pairs the best with the worst of nine times as many prompts as direct labels reach; the *oracle* is the
expert on those same prompts, at 9n calls; *SPIN* needs no expert.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lib.preference.ledger import Ledger
from lib.preference.losses import dpo_loss
from lib.preference.pool import Pool, PoolLogProbs, PoolPairs, fit
from lib.preference.sampling import Question, Response
from lib.proxy_reward.pseudo_labels import MULTIPLE, PairIndices, best_and_worst, pseudo_label


class KnownExpert:
    """An expert whose scores [prompts, k] are known already: each use is entered into a ledger as if it were asked now.

    Sweeps over strategies, budgets and seeds ask about the same responses again and again; every run of a sweep has a
    budget of its own. Items count prompt by prompt.
    """

    def __init__(self, scores: Float[Tensor, "prompts k"], budget: int) -> None:
        self.ledger = Ledger(budget)
        self._scores = scores
        self.prompts, self.k = scores.shape

    def items(self, items: Int[Tensor, " items"]) -> Float[Tensor, " items"]:
        """Score each item, at one call each."""
        self.ledger.spend(len(items), "score")
        return self._scores.flatten()[items]

    def all_of(self, prompts: Int[Tensor, " chosen"]) -> Float[Tensor, "chosen k"]:
        """Score all responses to some prompts, at k calls each."""
        self.ledger.spend(len(prompts) * self.k, "score")
        return self._scores[prompts]

    def comparisons(
        self, prompts: Int[Tensor, " pairs"], first: Int[Tensor, " pairs"], second: Int[Tensor, " pairs"]
    ) -> Int[Tensor, " pairs"]:
        """Return +1 where the first response is better, -1 where the second is, 0 for a tie: one call each."""
        self.ledger.spend(len(prompts), "compare")
        return torch.sign(self._scores[prompts, first] - self._scores[prompts, second]).long()


@dataclass(frozen=True)
class Recipe:
    """Pairs to train on, and what they cost."""

    pairs: PairIndices
    expert_calls: int


def direct(scores: Float[Tensor, "prompts k"], order: Tensor, *, budget: int) -> Recipe:
    """Let the expert score all responses to as many prompts as the budget pays for; raises ValueError for none."""
    expert = KnownExpert(scores, budget)
    count = budget // expert.k
    if count < 1:
        raise ValueError(f"{budget} expert calls do not score {expert.k} responses to one prompt: raise the budget")
    chosen = order[:count]
    return Recipe(_among(best_and_worst(expert.all_of(chosen)), chosen), expert.ledger.spent)


def comparisons(
    scores: Float[Tensor, "prompts k"], order: Tensor, *, budget: int, generator: torch.Generator
) -> Recipe:
    """Let the expert compare two random responses to each of `budget` prompts; ties are paid for and give no pair.

    Raises ValueError where there are fewer prompts than comparisons.
    """
    expert = KnownExpert(scores, budget)
    if not 1 <= budget <= expert.prompts:
        raise ValueError(f"{budget} comparisons were asked for, and there are {expert.prompts} prompts")
    chosen = order[:budget]
    two = torch.stack([torch.randperm(expert.k, generator=generator)[:2] for _ in range(budget)])
    won = expert.comparisons(chosen, two[:, 0], two[:, 1])
    better, worse = torch.where(won > 0, two.T, two.T.flip(0))
    kept = won != 0
    pairs = PairIndices(chosen[kept], better[kept], worse[kept], int((~kept).sum()))
    return Recipe(pairs, expert.ledger.spent)


def proxy(said: Float[Tensor, "prompts k"], order: Tensor, *, budget: int, multiple: float | int = MULTIPLE) -> Recipe:
    """Pair an evaluator's best with its worst response, for `multiple` times as many prompts as direct labels reach."""
    pairs = pseudo_label(said[order], direct_pairs=budget // said.shape[1], multiple=multiple)
    return Recipe(_among(pairs, order), budget)


def oracle(scores: Float[Tensor, "prompts k"], order: Tensor, *, pairs: int) -> Recipe:
    """Let the expert label as many pairs as the evaluator did: an upper bound, at its own cost."""
    return direct(scores, order, budget=pairs * scores.shape[1])


def _among(pairs: PairIndices, places: Tensor) -> PairIndices:
    """Return pairs whose prompts were counted among `places`, counted among all prompts."""
    return PairIndices(places[pairs.prompt], pairs.chosen, pairs.rejected, pairs.dropped)


def by_prompt(scores: Float[Tensor, " items"], k: int) -> Float[Tensor, "prompts k"]:
    """Return scores of items that lie prompt by prompt as [prompts, k]."""
    return scores.unflatten(0, (-1, k))


def self_play_rows(
    asked: Sequence[Question], drawn: Sequence[Sequence[Response]], tokenizer: Any, *, max_tokens: int
) -> list[dict[str, list[int]]]:
    """Return token ids of SPIN's pairs: each real answer, cut at `max_tokens` tokens, over the first own response.

    SPIN (arXiv:2401.01335) is a baseline of the paper; its loss is DPO's. Raises ValueError where a response equals
    the answer's tokens (such a pair says nothing).
    """
    rows = []
    for question, responses in zip(asked, drawn, strict=True):
        answer = tokenizer(question.answer, add_special_tokens=False).input_ids[:max_tokens]
        own = list(responses[0].tokens)
        if own == answer:
            raise ValueError(f"the policy repeats the real answer to {question.text[:60]!r}: leave that question out")
        rows.append({"prompt_ids": list(question.tokens), "chosen_ids": answer, "rejected_ids": own})
    return rows


def steps_of_epoch(pairs: PairIndices | Sequence, batch_size: int) -> int:
    """Return the optimiser steps that read every pair once."""
    return math.ceil(len(pairs) / batch_size)


def dpo_on_pool(
    pool: Pool, pairs: PairIndices, *, steps: Sequence[int], beta: float, learning_rate: float
) -> list[Float[Tensor, " width"]]:
    """Return the log-linear policy after each number of steps of DPO, from the law that the pool was drawn from."""

    def loss(policy: PoolLogProbs, reference: PoolLogProbs) -> Tensor:
        margin = policy.chosen - reference.chosen - policy.rejected + reference.rejected
        return dpo_loss(margin, beta=beta)

    start = torch.zeros(pool.features.shape[-1], dtype=torch.float64)
    taken = PoolPairs.of(pairs.prompt, pairs.chosen, pairs.rejected)
    return fit(pool, start, taken, loss, steps=steps, learning_rate=learning_rate)


def standardised(
    features: Float[Tensor, "items width"], like: Float[Tensor, "others width"], k: int
) -> Float[Tensor, "prompts k width"]:
    """Return features of mean 0 and of squared length 1 on average over `like`, prompt by prompt."""
    location, scale = like.mean(0), like.std(0, correction=0).clamp(min=1e-6)
    return ((features - location) / scale / features.shape[1] ** 0.5).double().unflatten(0, (-1, k))
