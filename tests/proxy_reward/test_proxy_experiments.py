"""Sweeps over all seeds: what each asks, of which pool and at which budgets, against single runs."""

import pytest
import torch

from lib.preference.pool import Pool
from lib.proxy_reward.active import PAIR_STRATEGIES, STRATEGIES, QueryPool
from lib.proxy_reward.study import experiments
from lib.proxy_reward.study.recipes import standardised
from lib.proxy_reward.study.sweeps import KnownPool, PolicySweep

BUDGETS = [6, 12, 36]


def draws(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def own():
    features = torch.randn(120, 5, generator=draws(1))
    scores = (features[:, 0] + 0.3 * torch.randn(120, generator=draws(2))).unflatten(0, (-1, 4)).double()
    return KnownPool(QueryPool(features, features.flip(1)), scores, 6)


@pytest.fixture
def off():
    features = torch.randn(20, 5, generator=draws(3))
    return KnownPool(QueryPool(features, policy="off"), features[:, :1].double(), 6)


@pytest.fixture
def measured(own):
    features = torch.randn(40, 5, generator=draws(4))
    return {"seeds": 2, "features": features, "truth": features[:, 0].unflatten(0, (-1, 4)).double(), "progress": False}


def test_curves_are_of_every_strategy_at_the_budgets_that_it_can_pay(own, off, measured):
    found = experiments.curves(own, off, BUDGETS, **measured)
    paid = {name: sorted(part["calls"].unique()) for name, part in found.groupby("strategy")}
    expected = {name: BUDGETS for name in STRATEGIES} | {f"pairs, {name}": BUDGETS[:2] for name in PAIR_STRATEGIES}
    assert paid == expected | {"off-policy, random": BUDGETS[:2]}  # 20 answers, 30 questions to compare
    one = {name: value for name, value in measured.items() if name != "progress"}
    for name, alone in {
        "badge": own.agreement("badge", BUDGETS, **one),
        "off-policy, random": off.agreement("random", BUDGETS[:2], **one),
        "pairs, dts": own.agreement_by_comparisons("dts", BUDGETS[:2], **one),
    }.items():
        part = found[found["strategy"] == name].drop(columns="strategy")
        assert part.reset_index(drop=True).equals(alone.reset_index(drop=True)), name


def test_every_strategy_selects_in_every_pool(own, measured):
    found = experiments.by_pool(own, 3, BUDGETS[:2], **measured)
    assert set(found) == set(STRATEGIES)
    assert {len(values) for values in found.values()} == {3}
    one = {name: value for name, value in measured.items() if name != "progress"}
    alone = own.parts(3)[1].agreement("coreset_eft", BUDGETS[:2], **one)
    assert found["coreset_eft"][1] == pytest.approx(alone.groupby("question")["agreement"].mean().tolist())


def test_other_embeddings_are_measured_between_the_first_and_the_last_budget(own, measured):
    items = {"train_ift": own.pool.ift, "train_eft": own.pool.eft, "test_ift": measured["features"]}
    features = {f"{name}_mean": value for name, value in items.items()}
    features |= {f"{name}_last": 1 + value for name, value in items.items()}
    found = experiments.by_embedding(own, BUDGETS, **measured | {"features": features})
    assert len(found) == 2 * 3 * 4
    kinds = {"mean, raw", "mean, unit length", "last, raw", "last, unit length"}
    assert set(found["embedding"]) == kinds
    alone = own.agreement("coreset_ift", BUDGETS, seeds=2, features=measured["features"], truth=measured["truth"])
    middle = alone[alone["calls"] == BUDGETS[1]].groupby("seed")["agreement"].mean()
    kept = found[(found["embedding"] == "mean, raw") & (found["strategy"] == "coreset_ift")]
    assert kept["agreement"].tolist() == pytest.approx(middle.tolist())


def test_policies_of_every_seed_and_budget_and_more_steps_where_asked(own, off):
    pool = Pool.of(standardised(own.pool.ift, own.pool.ift, 4), own.scores)
    answers = torch.cat([pool.features, pool.features[:, :1]], 1), torch.cat([own.scores, own.scores[:, :1]], 1)
    sweep = PolicySweep(
        own=own, off_policy=off, train=pool, spin=Pool.of(*answers), final=pool, expert=pool, multiples=[1.0, 2.0],
        batch_size=4, beta=0.1, learning_rate=0.05,
    )  # fmt: skip
    found = experiments.policies(sweep, [8, 12], seeds=2, steps={12: [1, 3]}, progress=False)
    assert sorted(found["seed"].unique()) == [0, 1]
    schedules = {calls: set(part["schedule"]) for calls, part in found.groupby("calls")}
    assert schedules == {8: {"epoch", "equal"}, 12: {"epoch", "equal", "1", "3"}}
    one = [row for row in found.to_dict("records") if (row["seed"], row["calls"]) == (1, 12)]
    assert one == sweep.rows(1, 12, steps=[1, 3])
