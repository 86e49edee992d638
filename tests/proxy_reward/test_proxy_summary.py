"""What the notebook starts from and how it sums up: contradictions are refused, every table against hand values."""

import numpy as np
import pandas as pd
import pytest
import torch

from lib import TenfoldError
from lib.lab import profiles
from lib.preference.sampling import Response
from lib.proxy_reward.active import QueryPool
from lib.proxy_reward.study import setting, summary
from lib.proxy_reward.study.sweeps import KnownPool


def draws(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def pools():
    features = torch.randn(96, 5, generator=draws(1))
    scores = (features[:, 0] + 0.3 * torch.randn(96, generator=draws(2))).unflatten(0, (-1, 4)).double()
    existing = torch.randn(30, 5, generator=draws(3))
    off = KnownPool(QueryPool(existing, policy="off"), existing[:, :1].double(), 6)
    return KnownPool(QueryPool(features), scores, 6), off


@pytest.mark.parametrize("profile", profiles.names())
def test_the_profiles_hold_no_contradiction(profile):
    setting.refuse_contradictions(profiles.load(profile).values["proxy_reward"])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"lm_arms": ["proxy", "oracle"]}, "lm_arms must hold direct-equal"),
        ({"lm_budget": 17}, "lm_budget must be one of arm_budgets"),
        ({"budgets": [400, 500, 600]}, "the first of budgets must be at most seed_answers"),
        ({"budgets": [12, 24, 961]}, "the last of budgets must be at most train_prompts x responses"),
        ({"pools": 20}, "the middle one of budgets must fit a pool"),
        ({"seed_labels": 193}, "5 x seed_labels must be at most train_prompts x responses"),
        ({"multiples": [1.0, 16.0]}, "more pairs than there are train_prompts"),
    ],
)
def test_a_contradiction_is_named(change, words):
    given = profiles.load("cpu").values["proxy_reward"]
    with pytest.raises(TenfoldError, match=words):
        setting.refuse_contradictions(given | change)


def test_responses_come_back_question_by_question():
    names = ["split", "question", "tokens", "text", "log_prob", "finished"]
    rows = [[s, q, [q, r], f"{s}{q}{r}", -1.0 * r, r == 1] for s in ("train", "test") for q in (0, 1) for r in (0, 1)]
    drawn = setting.responses_of(pd.DataFrame(rows, columns=names))
    assert {split: [len(group) for group in groups] for split, groups in drawn.items()} == {
        "train": [2, 2],
        "test": [2, 2],
    }
    assert drawn["test"][1][1] == Response((1, 1), "test11", -1.0, True)


def test_the_pools_of_a_sweep_share_one_scale(pools):
    own, off = pools
    held_out, final = torch.randn(40, 5, generator=draws(4)), torch.rand(10, 4, generator=draws(5))
    options = {"multiples": [1.0, 2.0], "batch_size": 4, "beta": 0.1, "learning_rate": 0.05}
    sweep = setting.policy_sweep(own, off, held_out, final=final, expert=-final, **options)
    assert sweep.train.features.mean((0, 1)).abs().max() < 1e-6
    assert torch.equal(sweep.spin.features[:, :4], sweep.train.features)
    assert torch.equal(sweep.spin.scores[:, 4], off.scores[:24, 0])
    assert torch.equal(sweep.final.features, sweep.expert.features)
    assert torch.equal(sweep.final.scores, -sweep.expert.scores)


def test_grades_and_their_entropy():
    even, one = torch.tensor([[0.1, 0.3], [0.5, 0.7], [0.9, 0.95]]), torch.tensor([[-2.0], [0.0], [0.19]])
    table = summary.grade_shares({"even": even, "one": one})
    assert table["share"].tolist() == pytest.approx([1 / 6, 1 / 6, 1 / 6, 1 / 6, 1 / 3, 1, 0, 0, 0, 0])
    assert table["from"].tolist()[:3] == pytest.approx([0, 0.2, 0.4])
    assert table["to"].tolist()[-1] == 1.0
    gap = summary.entropy_gap(even.repeat(10, 1), one.repeat(10, 1))
    assert gap.value == pytest.approx(summary.graded(even).entropy)
    assert (gap.n, gap.low < gap.value < gap.high) == ("30 questions", True)


def test_agreements_stand_by_strategy_and_calls():
    rows = [["b", c, s, q, c + s + q / 10] for s in (1, 0) for c in (4, 8) for q in (2, 0)]
    rows += [["a", 4, 0, 0, 0.5]]
    found = summary.agreements(pd.DataFrame(rows, columns=["strategy", "calls", "seed", "question", "agreement"]))
    assert list(found) == [("b", 4), ("b", 8), ("a", 4)]
    assert found["b", 8].tolist() == [[8, 8.2], [9, 9.2]]


def test_the_gap_of_two_strategies_is_over_the_budgets_that_both_have():
    agreement = {("a", 4): [[0.9, 0.9]], ("a", 8): [[0.6, 0.8]], ("a", 16): [[0.9, 0.9]], ("b", 8): [[0.5, 0.9]]}
    agreement = {key: np.array(values) for key, values in (agreement | {("b", 4): [[0.7, 0.5]]}).items()}
    assert summary.agreement_gap(agreement, "a", "b") == pytest.approx(np.array([[0.15, 0.15]]))
    assert summary.agreement_gap(agreement, "a", "b", skip=1) == pytest.approx(np.array([[0.1, -0.1]]))


def test_three_kinds_of_evaluator(pools):
    own, _ = pools
    features = torch.randn(24, 5, generator=draws(6))
    truth = features[:, 0].unflatten(0, (-1, 4)).double()
    truth[2] = 0  # a question whose responses all tie
    laws = {"before": torch.eye(5)[[0] * 24], "after": torch.eye(5)[features[:, 0].argsort().argsort() * 5 // 24]}
    table = summary.evaluators(own, laws, calls=12, seeds=3, features=features, truth=truth)
    assert table["seeds"].tolist() == [3, 3, 1, 1, 1]
    agreement = dict(zip(table["evaluator"], table["agreement"], strict=True))
    assert min(agreement["ridge on scores"], agreement["Bradley-Terry on comparisons"]) > 0.6
    assert agreement["generative judge, untrained"] == 0.5  # one grade for all
    assert agreement["generative judge, expected grade"] == agreement["generative judge, most likely grade"] > 0.8


def test_gains_and_paths_of_policies():
    rows = [
        {"arm": arm, "seed": seed, "calls": 8, "schedule": schedule, "steps": steps, "nats": 0.5, "expert": 1.0,
         "final": [1.0 + seed, 2.0]}
        for arm in ("proxy", "direct") for seed in (1, 0) for schedule, steps in (("epoch", 3), ("5", 5))
    ]  # fmt: skip
    before = torch.tensor([0.5, 1.0], dtype=torch.float64)
    found = summary.gains(pd.DataFrame(rows), before)
    assert set(found) == {(s, a, 8) for s in ("epoch", "5") for a in ("proxy", "direct")}
    assert found["epoch", "proxy", 8].tolist() == [[0.5, 1.0], [1.5, 1.0]]
    paths = summary.paths(pd.DataFrame(rows), before, steps=[5])
    assert paths.to_dict("records")[0] == {"arm": "direct", "steps": 5, "gain": 1.0, "nats": 0.5, "expert": 1.0}
    assert len(paths) == 2


def test_cooling_sharpens_towards_the_likely():
    drawn = [[Response((1,), "", np.log(law), True) for law in (0.5, 0.25, 0.25)]]
    table = summary.cooled(drawn, torch.tensor([[1.0, 0.0, 0.0]]).double(), [0.0, 1.0, 60.0])
    assert table["gain"].tolist() == pytest.approx([0, 0.5 - 1 / 3, 2 / 3])
    assert table["nats"].tolist() == pytest.approx([0, np.log(3) - 1.5 * np.log(2), np.log(3)])


def test_the_table_of_language_models():
    texts = {name: pd.DataFrame({"text": ["one two", words]}) for name, words in (("initial", "a"), ("proxy", "a b c"))}
    final = pd.DataFrame({"initial": [0.1, 0.3, 0.2], "proxy": [0.2, 0.5, 0.3]})
    plans = {"proxy": ([{}, {}], 7), "direct": ([{}], 1)}
    table = summary.language_models(texts, plans, final=final, expert=final, losses={"proxy": 0.25})
    first, second = table.to_dict("records")
    assert (first["policy"], first["pairs"], first["steps"], first["gain"], first["words"]) == ("initial", 0, 0, 0, 1.5)
    assert np.isnan(first["loss on its pairs"])
    assert (second["pairs"], second["steps"], second["loss on its pairs"], second["words"]) == (2, 7, 0.25, 2.5)
    assert second["gain"] == pytest.approx(0.4 / 3)
    assert second["low"] < second["gain"] < second["high"]
