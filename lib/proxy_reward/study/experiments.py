"""Experiments over all seeds: curves of every strategy, in pools apart, on other embeddings, and policies at a cost."""

import dataclasses
import itertools
from collections.abc import Mapping, Sequence

import pandas as pd
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import normalize
from tqdm import tqdm

from lib.proxy_reward.active import PAIR_STRATEGIES, STRATEGIES, QueryPool
from lib.proxy_reward.study.sweeps import KnownPool, PolicySweep

OFF_POLICY = "off-policy, random"  # random labels of existing answers


def curves(
    own: KnownPool,
    off: KnownPool,
    budgets: Sequence[int],
    *,
    seeds: int,
    features: Float[Tensor, "items width"],
    truth: Float[Tensor, "questions k"],
    progress: bool = True,
) -> pd.DataFrame:
    """Return learning curves of every strategy: strategy, seed, calls, question, agreement on held-out responses.

    Strategies that score items choose among own responses; `off-policy, random` scores existing answers; `pairs, …`
    compare two own responses, one pair a question. The last two take the budgets that their pool can pay for.
    """
    options = {"seeds": seeds, "features": features, "truth": truth}
    scored = {name: (own, name, list(budgets)) for name in STRATEGIES}
    scored[OFF_POLICY] = (off, "random", [b for b in budgets if b <= len(off.pool)])
    found = []
    for name, (pool, strategy, paid) in tqdm(scored.items(), "scores", disable=not progress, mininterval=1.0):
        found.append(pool.agreement(strategy, paid, **options).assign(strategy=name))
    paid = [b for b in budgets if b <= len(own.scores)]
    for name in tqdm(PAIR_STRATEGIES, "comparisons", disable=not progress, mininterval=1.0):
        found.append(own.agreement_by_comparisons(name, paid, **options).assign(strategy=f"pairs, {name}"))
    return pd.concat(found, ignore_index=True)


def by_pool(
    own: KnownPool,
    pools: int,
    budgets: Sequence[int],
    *,
    seeds: int,
    features: Float[Tensor, "items width"],
    truth: Float[Tensor, "questions k"],
    progress: bool = True,
) -> dict[str, list[list[float]]]:
    """Return agreement [pools, held-out questions] by strategy, mean over seeds and budgets.

    Own responses are split into so many pools without a question in common; every strategy selects in each of them.
    """
    parts, found = own.parts(pools), {}
    strategies = ("random", "coreset_ift", "coreset_eft", "badge", "uncertainty")
    for strategy in tqdm(strategies, "pools", disable=not progress, mininterval=1.0):
        curves = [part.agreement(strategy, budgets, seeds=seeds, features=features, truth=truth) for part in parts]
        found[strategy] = [curve.groupby("question")["agreement"].mean().to_list() for curve in curves]
    return found


def by_embedding(
    own: KnownPool,
    budgets: Sequence[int],
    *,
    seeds: int,
    features: Mapping[str, Tensor],
    truth: Float[Tensor, "questions k"],
    progress: bool = True,
) -> pd.DataFrame:
    """Return agreement of random labels and of coresets for other poolings and scales: seed, strategy, embedding.

    `features` holds `<items>_<pooling>` of the items train_ift, train_eft and test_ift, as `mean` and `last`. Agreement
    is the mean over held-out questions and over the budgets between the first and the last; a coreset and its random
    control share the evaluator's features.
    """
    kinds = list(itertools.product(("mean", "last"), ("raw", "unit length")))
    tables = []
    for pooling, scale in tqdm(kinds, "embeddings", disable=not progress, mininterval=1.0):
        parts = [features[f"{items}_{pooling}"] for items in ("train_ift", "train_eft", "test_ift")]
        ift, eft, test = (normalize(part, dim=1) if scale == "unit length" else part for part in parts)
        source = dataclasses.replace(own, pool=QueryPool(ift, eft))
        for strategy in ("random", "coreset_ift", "coreset_eft"):
            curve = source.agreement(strategy, budgets, seeds=seeds, features=test, truth=truth)
            between = curve[curve["calls"].isin(budgets[1:-1])]
            means = between.groupby("seed", as_index=False)["agreement"].mean()
            tables.append(means.assign(strategy=strategy, embedding=f"{pooling}, {scale}"))
    return pd.concat(tables, ignore_index=True)


def policies(
    sweep: PolicySweep,
    budgets: Sequence[int],
    *,
    seeds: int,
    steps: Mapping[int, Sequence[int]],
    progress: bool = True,
) -> pd.DataFrame:
    """Return a row for every policy: each recipe at each budget from each seed, as `PolicySweep.rows` measures it.

    `steps` adds, for some budgets, policies after other numbers of optimiser steps.
    """
    rows = []
    jobs = list(itertools.product(range(seeds), budgets))
    for number, budget in tqdm(jobs, "policies", disable=not progress, mininterval=1.0):
        rows += sweep.rows(number, budget, steps=steps.get(budget, ()))
    return pd.DataFrame(rows)
