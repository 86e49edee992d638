"""Sweeps over strategies, budgets and seeds, on responses whose expert scores are known: curves, recipes, policies."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from lib.preference.pool import Pool
from lib.proxy_reward.active import QueryPool, learning_curve, select_pairs
from lib.proxy_reward.evaluators import RidgeHead, fit_bradley_terry, pair_agreement
from lib.proxy_reward.pseudo_labels import MULTIPLE, PairIndices
from lib.proxy_reward.study.recipes import (
    KnownExpert,
    Recipe,
    by_prompt,
    comparisons,
    direct,
    dpo_on_pool,
    oracle,
    proxy,
    steps_of_epoch,
)


@dataclass(frozen=True)
class KnownPool:
    """Items of a pool with the expert's scores of them, and the seed of all that is drawn.

    Runs of one number are paired: every strategy and every recipe draws from generators of the same seed.
    """

    pool: QueryPool
    scores: Float[Tensor, "prompts k"]
    seed_labels: int
    seed: int = 0

    def draws(self, number: int, purpose: int = 0) -> torch.Generator:
        """Return the generator of one run: for selections (0), the order of prompts (1) or comparisons (2)."""
        return torch.Generator().manual_seed(100_000 * self.seed + 1000 * purpose + number)

    def evaluator(self, number: int, budget: int, strategy: str = "random") -> RidgeHead:
        """Fit an evaluator for which the expert scored `budget` items, chosen by a strategy."""
        return self._curve(number, strategy, [budget])[0].head

    def agreement(
        self,
        strategy: str,
        budgets: Sequence[int],
        *,
        seeds: int,
        features: Float[Tensor, "items width"],
        truth: Float[Tensor, "questions k"],
    ) -> pd.DataFrame:
        """Return a learning curve of every seed: seed, calls, question, agreement with the expert on held-out ones."""
        rows = []
        for number in range(seeds):
            for point in self._curve(number, strategy, budgets):
                said = by_prompt(point.head.score(features), truth.shape[1]).double()
                rows += [[number, point.calls, q, a] for q, a in enumerate(pair_agreement(said, truth).tolist())]
        return pd.DataFrame(rows, columns=["seed", "calls", "question", "agreement"]).dropna()

    def parts(self, count: int) -> list["KnownPool"]:
        """Return so many pools of one size without a question in common: what holds for one may not for another."""
        (prompts, k), size = self.scores.shape, len(self.scores) // count
        order = torch.randperm(prompts, generator=self.draws(0, 3))[: size * count]
        made = []
        for rows in order.split(size):
            items = (rows[:, None] * k + torch.arange(k)).flatten()
            eft = None if self.pool.eft is None else self.pool.eft[items]
            pool = QueryPool(self.pool.ift[items], eft, self.pool.policy)
            made.append(KnownPool(pool, self.scores[rows], self.seed_labels, self.seed))
        return made

    def agreement_by_comparisons(
        self,
        strategy: str,
        budgets: Sequence[int],
        *,
        seeds: int,
        features: Float[Tensor, "items width"],
        truth: Float[Tensor, "questions k"],
    ) -> pd.DataFrame:
        """Return `agreement` of a Bradley-Terry head: the expert compares pairs, a call each, the first at random."""
        rows, shaped = [], self.pool.ift.unflatten(0, (-1, self.scores.shape[1]))
        for number in range(seeds):
            generator, expert = self.draws(number, 4), KnownExpert(self.scores, budgets[-1])
            asked, head = torch.empty(3, 0, dtype=torch.long), None
            won = torch.empty(0, dtype=torch.long)
            for budget in budgets:
                options = {"asked": asked[0], "head": head, "generator": generator}
                how = "random" if head is None else strategy
                more = select_pairs(shaped, budget - len(won), how, **options)
                asked, won = torch.cat([asked, more], 1), torch.cat([won, expert.comparisons(*more)])
                prompts, first, second = asked[:, won != 0]
                better, worse = torch.where(
                    won[won != 0] > 0, torch.stack([first, second]), torch.stack([second, first])
                )
                head = fit_bradley_terry(shaped[prompts, better], shaped[prompts, worse])
                said = by_prompt(head.score(features), truth.shape[1]).double()
                rows += [[number, budget, q, a] for q, a in enumerate(pair_agreement(said, truth).tolist())]
        return pd.DataFrame(rows, columns=["seed", "calls", "question", "agreement"]).dropna()

    def recipes(
        self, number: int, budget: int, head: RidgeHead, *, multiple: float | int = MULTIPLE
    ) -> dict[str, Recipe]:
        """Return what each recipe trains on at a budget; all take the prompts in one order."""
        order = self.order(number)
        said = by_prompt(head.score(self.pool.ift), self.scores.shape[1])
        labelled = proxy(said, order, budget=budget, multiple=multiple)
        return {
            "direct": direct(self.scores, order, budget=budget),
            "comparisons": comparisons(self.scores, order, budget=budget, generator=self.draws(number, 2)),
            "proxy": labelled,
            "oracle": oracle(self.scores, order, pairs=len(labelled.pairs)),
        }

    def order(self, number: int) -> Tensor:
        """Return the random order in which a run takes the prompts."""
        return torch.randperm(len(self.scores), generator=self.draws(number, 1))

    def _curve(self, number: int, strategy: str, budgets: Sequence[int]) -> list:
        return learning_curve(
            self.pool,
            KnownExpert(self.scores, budgets[-1]).items,
            strategy=strategy,
            budgets=budgets,
            seed_labels=min(self.seed_labels, budgets[0]),
            generator=self.draws(number),
        )


@dataclass(frozen=True)
class PolicySweep:
    """DPO of log-linear policies on the pairs of every recipe, measured by the final judge and by the expert.

    `spin` is the pool with the real answer as a further response to each prompt; `off_policy` are items that an
    evaluator may have been fitted on instead.
    """

    own: KnownPool
    off_policy: KnownPool
    train: Pool
    spin: Pool
    final: Pool
    expert: Pool
    multiples: Sequence[float]
    batch_size: int
    beta: float
    learning_rate: float

    def pairs(self, number: int, budget: int) -> dict[str, tuple[Pool, PairIndices]]:
        """Return the pool and the pairs of every recipe of a seed at a budget."""
        head, most = self.own.evaluator(number, budget), self.multiples[-1]
        recipes = self.own.recipes(number, budget, head, multiple=most)
        pairs = {name: recipe.pairs for name, recipe in recipes.items()}
        others = {
            "proxy, coresetEFT": self.own.evaluator(number, budget, "coreset_eft"),
            "proxy, off-policy": self.off_policy.evaluator(number, budget),
        }
        for name, other in others.items():
            pairs[name] = self.own.recipes(number, budget, other, multiple=most)["proxy"].pairs
        for multiple in self.multiples[:-1]:
            pairs[f"proxy x{multiple:g}"] = self.own.recipes(number, budget, head, multiple=multiple)["proxy"].pairs
        count, answer = len(pairs["proxy"]), self.train.scores.shape[1]  # place of the real answer
        chosen = torch.full((count,), answer)
        self_play = PairIndices(self.own.order(number)[:count], chosen, torch.zeros_like(chosen))
        return {name: (self.train, taken) for name, taken in pairs.items()} | {"spin": (self.spin, self_play)}

    def rows(self, number: int, budget: int, *, steps: Sequence[int] = ()) -> list[dict]:
        """Train on every recipe for one epoch, for as many steps as the proxy's epoch has, and for some `steps`."""
        rows, pairs = [], self.pairs(number, budget)
        equal = steps_of_epoch(pairs["proxy"][1], self.batch_size)
        for recipe, (pool, taken) in pairs.items():
            schedules = {"epoch": steps_of_epoch(taken, self.batch_size), "equal": equal} | {str(s): s for s in steps}
            thetas = dpo_on_pool(
                pool, taken, steps=list(schedules.values()), beta=self.beta, learning_rate=self.learning_rate
            )
            for (schedule, count), theta in zip(schedules.items(), thetas, strict=True):
                rows.append({"arm": recipe, "seed": number, "calls": budget, "schedule": schedule, "steps": count})
                rows[-1] |= self._measured(theta)
        return rows

    def _measured(self, theta: Float[Tensor, " width"]) -> dict:
        return {
            "nats": float(self.final.divergence(theta, torch.zeros_like(theta)).mean()),
            "expert": float(self.expert.expected_scores(theta).mean()),
            "final": self.final.expected_scores(theta).tolist(),
        }


def final_gain(
    table: pd.DataFrame, before: Float[Tensor, " questions"], *, arm: str, calls: int, schedule: str
) -> Float[np.ndarray, "seeds questions"]:
    """Return the gain of the expected final score over the initial policy's."""
    kept = (table["arm"] == arm) & (table["calls"] == calls) & (table["schedule"] == schedule)
    return np.stack(table.loc[kept].sort_values(by="seed")["final"].to_list()) - before.numpy()
