"""How many tokens to draft: the rule, and what it learns from a block, by hand."""

import pytest
import torch

from lib.tempspec.block_length import AutoGamma


def sure_gamma(**known):
    """A rule that has seen a block of 2 tokens in 2 seconds and trusts a confidence of .95 wholly."""
    rule = AutoGamma(block_seconds=2.0, gained=2.0, recent=1.0, draft_seconds=0.1, **known)
    rule.accepted[9] = rule.tested[9] = 4.0
    return rule


def observe(rule, accepted, *, confidence=(0.95, 0.95), draft_seconds=0.2, target_seconds=1.0):
    drafted = len(confidence)
    rule.observe(
        confidence=torch.tensor([confidence]), lengths=torch.tensor([drafted]), accepted=torch.tensor([accepted]),
        draft_seconds=draft_seconds, target_seconds=target_seconds,
    )  # fmt: skip


def test_the_next_token_is_drafted_where_its_chance_times_a_tokens_worth_exceeds_its_cost():
    # A token is worth 1 s. The target reads n + 1 tokens after n drafted ones; its third token costs 4 s more.
    rule = sure_gamma(target_seconds={1: 1.0, 2: 1.0, 3: 5.0})
    assert rule.begin() == 8
    assert rule.keep_going([])
    assert not rule.keep_going([0.95])
    # A free target: the chance decides alone, 1 s x 4/4 against .1 s, and 1 s x .05 against .1 s.
    rule = sure_gamma(target_seconds={1: 1.0, 2: 1.0, 3: 1.0})
    assert rule.keep_going([0.95])
    rule.accepted[9] = 0.2
    assert not rule.keep_going([0.95])


def test_a_token_is_tried_after_eight_blocks_without_drafting():
    rule = sure_gamma(target_seconds={1: 1.0, 2: 9.0})
    assert [rule.begin() for _ in range(18)] == [0] * 8 + [1] + [0] * 8 + [1]


def test_chances_are_the_share_of_tested_tokens_that_were_accepted():
    rule = AutoGamma()
    observe(rule, accepted=1)  # the second token was tested and refused
    # A bin starts as if 4 tokens had been accepted as often as it is confident: (4 x .95 + 1) / (4 + 2).
    assert float(rule.accepted[9] / rule.tested[9]) == pytest.approx(0.8)
    assert rule.recent == pytest.approx(0.95 * 0.5 + 0.05 * 0.5)
    rule = AutoGamma()
    observe(rule, accepted=0, confidence=(0.95, 0.45))  # the second token was never tested
    assert float(rule.tested[9]) == 5
    assert float(rule.tested[4]) == 4


def test_running_means_keep_95_percent_a_block():
    rule = AutoGamma()
    observe(rule, accepted=2)
    assert rule.gained == pytest.approx(3.0)  # two drafted tokens and the one after them
    assert rule.draft_seconds == pytest.approx(0.1)
    assert rule.block_seconds == pytest.approx(2 * 0.1 + 1.0)
    observe(rule, accepted=0, draft_seconds=0.4, target_seconds=2.0)
    assert rule.gained == pytest.approx(0.95 * 3 + 0.05 * 1)
    assert rule.draft_seconds == pytest.approx(0.95 * 0.1 + 0.05 * 0.2)
    assert rule.target_seconds == {3: pytest.approx(1.01)}  # the smallest seen, grown by 1 %
    assert rule.block_seconds == pytest.approx(0.95 * 1.2 + 0.05 * (2 * 0.105 + 1.01))
