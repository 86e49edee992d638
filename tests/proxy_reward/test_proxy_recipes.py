"""Recipes of DPO: what each costs, that each takes the expert's word, and the log-linear policy trained on them."""

import pandas as pd
import pytest
import torch

from lib.preference.ledger import BudgetExceeded
from lib.preference.pool import Pool
from lib.proxy_reward.active import QueryPool
from lib.proxy_reward.study import recipes
from lib.proxy_reward.study.recipes import KnownExpert, by_prompt, dpo_on_pool, standardised, steps_of_epoch
from lib.proxy_reward.study.sweeps import KnownPool, PolicySweep, final_gain


def draws(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def problem():
    features = torch.randn(120, 6, generator=draws(3))
    scores = (features[:, 0] + 0.3 * torch.randn(120, generator=draws(4))).unflatten(0, (-1, 4)).double()
    return features, scores, torch.randperm(30, generator=draws())


def test_direct_labels_cost_k_calls_a_pair_and_are_the_experts(problem):
    _, scores, order = problem
    arm = recipes.direct(scores, order, budget=14)
    assert arm.expert_calls == 12
    assert arm.pairs.prompt.tolist() == order[:3].tolist()
    rows = scores[arm.pairs.prompt]
    assert torch.equal(rows.gather(1, arm.pairs.chosen[:, None])[:, 0], rows.amax(1))
    assert torch.equal(rows.gather(1, arm.pairs.rejected[:, None])[:, 0], rows.amin(1))
    with pytest.raises(ValueError, match="do not score 4 responses"):
        recipes.direct(scores, order, budget=3)


def test_comparisons_cost_one_call_each_and_ties_are_paid(problem):
    _, scores, order = problem
    scores = scores.clone()
    scores[order[0]] = 1.0
    arm = recipes.comparisons(scores, order, budget=20, generator=draws())
    assert arm.expert_calls == 20
    assert (len(arm.pairs), arm.pairs.dropped) == (19, 1)
    assert len(arm.pairs.prompt.unique()) == 19
    won = scores[arm.pairs.prompt, arm.pairs.chosen] > scores[arm.pairs.prompt, arm.pairs.rejected]
    assert won.all()
    with pytest.raises(ValueError, match="there are 30 prompts"):
        recipes.comparisons(scores, order, budget=31, generator=draws())


def test_the_proxy_labels_nine_times_as_many_and_the_oracle_pays_for_them(problem):
    features, scores, order = problem
    head = KnownPool(QueryPool(features), scores, 6).evaluator(0, 12)
    said = by_prompt(head.score(features), 4)
    assert said.shape == (30, 4)
    arm, direct = recipes.proxy(said, order, budget=12), recipes.direct(scores, order, budget=12)
    assert (len(arm.pairs), arm.expert_calls) == (27, 12)
    assert arm.pairs.prompt[:3].tolist() == direct.pairs.prompt.tolist()
    bound = recipes.oracle(scores, order, pairs=len(arm.pairs))
    assert (len(bound.pairs), bound.expert_calls) == (27, 108)
    with pytest.raises(ValueError, match="36 pairs"):
        recipes.proxy(said, order, budget=16)


def test_a_known_expert_counts_and_refuses(problem):
    _, scores, _ = problem
    known = KnownExpert(scores, 9)
    assert known.items(torch.tensor([5])).item() == scores[1, 1]
    known.all_of(torch.tensor([0]))
    sign = known.comparisons(torch.tensor([0, 0]), torch.tensor([0, 1]), torch.tensor([1, 0]))
    assert sign[0] == -sign[1] != 0
    assert known.ledger.spent == 7
    with pytest.raises(BudgetExceeded):
        known.items(torch.arange(3))


def test_dpo_on_the_pool_raises_the_chosen_over_the_rejected(problem):
    features, scores, order = problem
    pool = Pool.of(standardised(features, features, 4), scores)
    settings = {"beta": 0.1, "learning_rate": 0.05}
    few = recipes.direct(scores, order, budget=8).pairs
    many = recipes.oracle(scores, order, pairs=30).pairs
    assert (steps_of_epoch(few, 8), steps_of_epoch(many, 8)) == (1, 4)
    nothing = pool.expected_scores(dpo_on_pool(pool, few, steps=[0], **settings)[0]).mean()
    assert nothing == pytest.approx(scores.mean())
    for pairs in (few, many):
        moved = pool.log_probs(dpo_on_pool(pool, pairs, steps=[30], **settings)[0])
        margin = moved[pairs.prompt, pairs.chosen] - moved[pairs.prompt, pairs.rejected]
        assert margin.mean() > 0
        assert (margin > 0).all() or pairs is many  # thirty pairs in six dimensions cannot all be met
        assert (moved.exp() * scores).sum(1).mean() > nothing


def test_standardised_features_have_unit_length_on_average():
    features = 5 + 3 * torch.randn(80, 7, generator=draws())
    found = standardised(features, features, 4)
    assert found.shape == (20, 4, 7)
    assert found.square().sum(-1).mean().item() == pytest.approx(1, abs=1e-5)


def test_a_sweep_trains_on_every_recipe_and_measures_the_gain(problem):
    features, scores, _ = problem
    pool = Pool.of(standardised(features, features, 4), scores)
    answers = torch.cat([pool.features, pool.features[:, :1]], dim=1), torch.cat([scores, scores[:, :1]], dim=1)
    own = KnownPool(QueryPool(features, features), scores, 6)
    off = KnownPool(QueryPool(features[::4]), scores[:, :1], 6)
    sweep = PolicySweep(
        own=own, off_policy=off, train=pool, spin=Pool.of(*answers), final=pool, expert=pool, multiples=[1.0, 4.0],
        batch_size=2, beta=0.1, learning_rate=0.05,
    )  # fmt: skip
    pairs = {name: taken for name, (_, taken) in sweep.pairs(0, 16).items()}
    assert (len(pairs["direct"]), len(pairs["proxy x1"]), len(pairs["proxy"])) == (4, 4, 16)
    assert pairs["spin"].chosen.tolist() == [4] * 16  # the real answer is the last response
    assert pairs["oracle"].prompt.tolist() == pairs["spin"].prompt.tolist() == own.order(0)[:16].tolist()
    rows = pd.DataFrame(sweep.rows(0, 16, steps=[0, 3]) + sweep.rows(1, 16))
    epoch = rows[(rows["seed"] == 0) & (rows["schedule"] == "epoch")].set_index("arm")["steps"]
    assert (epoch["direct"], epoch["proxy"]) == (2, 8)
    before = pool.expected_scores(torch.zeros(6, dtype=torch.float64))
    assert final_gain(rows, before, arm="oracle", calls=16, schedule="equal").mean() > 0.1
    assert abs(final_gain(rows, before, arm="direct", calls=16, schedule="0")).max() < 1e-12


def test_parts_are_pools_without_a_question_in_common(problem):
    features, scores, _ = problem
    whole = KnownPool(QueryPool(features, features + 1), scores, 6)
    parts = whole.parts(4)
    assert [len(part.scores) for part in parts] == [7] * 4
    seen = {tuple(row) for part in parts for row in part.scores.tolist()}
    assert len(seen) == 28
    assert seen <= {tuple(row) for row in scores.tolist()}
    for part in parts:
        row = scores.tolist().index(part.scores[3].tolist())
        assert torch.equal(part.pool.ift[12:16], features[4 * row : 4 * row + 4])
        assert torch.equal(part.pool.eft, part.pool.ift + 1)


@pytest.mark.parametrize("strategy", ["random", "infomax", "dts"])
def test_an_evaluator_learns_from_comparisons_and_pays_one_call_each(problem, strategy):
    features, scores, _ = problem
    known = KnownPool(QueryPool(features), scores, 6)
    options = {"seeds": 2, "features": features, "truth": scores}
    curve = known.agreement_by_comparisons(strategy, [6, 25], **options)
    assert sorted(curve["calls"].unique()) == [6, 25]
    assert curve[curve["calls"] == 25]["agreement"].mean() > 0.6
    with pytest.raises(ValueError, match="comparisons do not fit"):
        known.agreement_by_comparisons(strategy, [6, 31], **options)
