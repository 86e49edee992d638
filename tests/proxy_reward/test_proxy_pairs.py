"""Pseudo-labels, direct labels, agreement and imbalance against hand values."""

import pytest
import torch

from lib.preference.sampling import Question, Response
from lib.proxy_reward.evaluators import imbalance, pair_agreement
from lib.proxy_reward.pseudo_labels import best_and_worst, pseudo_label, token_rows

SCORES = torch.tensor([[3.0, 1.0, 2.0, 3.0], [1.0, 1.0, 1.0, 1.0], [0.0, 0.2, 0.1, 0.0], [4.0, 2.0, 5.0, 1.0]])


def test_best_against_worst_with_ties_dropped():
    pairs = best_and_worst(SCORES)
    assert pairs.prompt.tolist() == [0, 2, 3]
    assert pairs.chosen.tolist() == [0, 1, 2]  # the first of two equal bests
    assert pairs.rejected.tolist() == [1, 0, 3]
    assert pairs.dropped == 1
    assert best_and_worst(SCORES, tie=0.5).prompt.tolist() == [0, 3]


def test_nine_times_as_many_pairs():
    scores = torch.rand(30, 4, generator=torch.Generator().manual_seed(0))
    assert len(pseudo_label(scores, direct_pairs=3)) == 27
    assert len(pseudo_label(scores, direct_pairs=4, multiple=2.5)) == 10
    with pytest.raises(ValueError, match="36 pairs"):
        pseudo_label(scores, direct_pairs=4)


def test_bad_scores_are_refused():
    with pytest.raises(ValueError, match="all 2 prompts tie"):
        best_and_worst(torch.ones(2, 3))
    with pytest.raises(ValueError, match="needs two responses"):
        best_and_worst(torch.ones(2, 1))
    with pytest.raises(ValueError, match="not finite"):
        best_and_worst(torch.tensor([[0.0, float("nan")]]))


def test_agreement_counts_pairs_of_one_prompt():
    expert = torch.tensor([[1.0, 2.0, 3.0], [1.0, 1.0, 2.0], [1.0, 1.0, 1.0]])
    said = torch.tensor([[1.0, 3.0, 2.0], [0.0, 5.0, 5.0], [1.0, 2.0, 3.0]])
    found = pair_agreement(said, expert)
    assert found[:2].tolist() == pytest.approx([2 / 3, 0.75])
    assert found[2].isnan()
    assert pair_agreement(expert, expert)[:2].tolist() == [1, 1]
    with pytest.raises(ValueError, match="at least two responses"):
        pair_agreement(said[:, :1], expert[:, :1])


def test_imbalance_of_even_and_of_crowded_scores():
    even = imbalance(torch.linspace(0, 0.999, 500), low=0.0, high=1.0)
    assert even.entropy == pytest.approx(1, abs=1e-3)
    assert even.largest == pytest.approx(0.2, abs=0.01)
    crowded = imbalance(torch.full((10,), 0.95), low=0.0, high=1.0)
    assert crowded.shares.tolist() == [0, 0, 0, 0, 1]
    assert crowded.entropy == 0
    with pytest.raises(ValueError, match="empty"):
        imbalance(torch.ones(3), low=1.0, high=1.0)


def test_rows_hold_the_tokens_that_the_policy_said():
    asked = [Question(f"q{i}", "a", (i, i + 1)) for i in range(4)]
    drawn = [[Response((10 * i + j,), "", -1.0, False) for j in range(4)] for i in range(4)]
    rows = token_rows(best_and_worst(SCORES), asked, drawn)
    assert rows[1] == {"prompt_ids": [2, 3], "chosen_ids": [21], "rejected_ids": [20]}
    assert len(rows) == 3
