"""How much to draft: the rule of chains and what it learns from a block, and the shapes of trees, by hand."""

import pytest
import torch

from lib.tempspec import AutoGamma, AutoTree, DynamicTree, StaticTree
from lib.tempspec.shape import could_follow, depths, places


def sure_gamma(**known):
    """A rule that has gained 2 tokens a block at 2 plain steps and trusts a confidence of .95 wholly."""
    rule = AutoGamma(spent=2.0, gained=2.0, recent=1.0, **known)
    rule.accepted[9] = rule.tested[9] = 4.0
    return rule


def observe(rule, accepted, *, confidence=(0.95, 0.95)):
    parents, path = torch.arange(len(confidence))[None], torch.arange(len(confidence))[None] < accepted
    rule.observe(torch.tensor([confidence]), parents, torch.ones_like(path), path)


def test_the_next_token_is_drafted_where_its_chance_times_a_tokens_worth_exceeds_its_cost():
    rule = sure_gamma(draft_cost=0.5, token_cost=0.4)  # a token is worth 1 step
    assert rule.begin() == 8
    assert rule.keep_going([0.95])
    rule.accepted[9] = 3.8  # 1 x .95 against .9
    assert rule.keep_going([0.95])
    assert rule.keep_going([0.95, 0.95])  # .9025 against .9
    assert not rule.keep_going([0.95] * 3)  # .857
    assert not sure_gamma(draft_cost=0.5, token_cost=0.6).keep_going([])


def test_a_token_is_tried_after_eight_blocks_without_drafting():
    rule = sure_gamma(draft_cost=9.0)
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
    rule = AutoGamma(draft_cost=0.1, token_cost=0.05)
    observe(rule, accepted=2)
    assert rule.gained == pytest.approx(3.0)  # two drafted tokens and the one after them
    assert rule.spent == pytest.approx(1 + 2 * 0.15)
    observe(rule, accepted=0, confidence=(0.95,))
    assert rule.gained == pytest.approx(0.95 * 3 + 0.05 * 1)
    assert rule.spent == pytest.approx(0.95 * 1.3 + 0.05 * 1.15)


def test_a_static_tree_gives_every_node_the_children_of_its_path():
    tree = StaticTree([(0,), (1,), (0, 0), (1, 0), (1, 1), (1, 1, 0)])
    assert (tree.begin(), tree.width) == (3, 2)
    counts = [tree.branch(depth, torch.ones(1, nodes), torch.ones(1, nodes, 2)).tolist() for depth, nodes in
              ((0, 1), (1, 2), (2, 3))]  # fmt: skip
    assert counts == [[[2]], [[1, 2]], [[0, 0, 1]]]
    for broken in ([(0, 0)], [(1,)], [(0,), (0, 1)]):
        with pytest.raises(ValueError, match="no tree"):
            StaticTree(broken)


def test_a_dynamic_tree_takes_the_likeliest_places_of_all_nodes_together():
    tree = DynamicTree(width=3, depth=2, floor=0.05)
    reach, likely = torch.tensor([[0.9, 0.1]]), torch.tensor([[[0.5, 0.3, 0.1], [0.9, 0.05, 0.05]]])
    # .45, .27, .09 of the first node and .09, .005, .005 of the second: three places, ties either way.
    assert tree.branch(1, reach, likely).sum() == 3
    assert tree.branch(1, reach, likely)[0, 0] >= 2
    assert DynamicTree(width=3, floor=0.2).branch(1, reach, likely).tolist() == [[2, 0]]
    with pytest.raises(ValueError, match="give at least 1"):
        DynamicTree(width=0)


def test_places_are_laid_out_node_after_node():
    node, rank, valid = places(torch.tensor([[2, 0, 1], [0, 1, 0]]))
    assert node[0].tolist() == [0, 0, 2]
    assert rank[0].tolist() == [0, 1, 0]
    assert valid.tolist() == [[True] * 3, [True, False, False]]
    assert (int(node[1, 0]), int(rank[1, 0])) == (1, 0)


# A tree of five: two children of the text (slots 1, 2), two of the first (3, 4), one of the last (5).
PARENTS, PATH = torch.tensor([[0, 0, 1, 1, 4]]), torch.tensor([[True, False, False, True, False]])


def test_depths_and_what_could_be_accepted_follow_the_parents():
    assert depths(PARENTS, torch.ones_like(PATH)).tolist() == [[0, 0, 1, 1, 2]]
    assert depths(PARENTS, PARENTS != 4).tolist() == [[0, 0, 1, 1, -1]]
    assert could_follow(PARENTS, torch.ones_like(PATH), PATH).tolist() == [[True] * 5]
    refused = torch.tensor([[False, True, False, False, False]])
    assert could_follow(PARENTS, torch.ones_like(PATH), refused).tolist() == [[True, True, False, False, False]]


def test_an_auto_tree_counts_what_was_accepted_by_rank_and_draft_probability():
    tree = AutoTree(width=2, draft_cost=0.1, token_cost=0.02)
    tree.observe(torch.tensor([[0.5, 0.3, 0.5, 0.3, 0.5]]), PARENTS, torch.ones_like(PATH), PATH)
    # Bins are of the root: .5 is in the eighth (middle .5625), .3 in the sixth (.3025).
    first, second = tree.chances(torch.tensor([[[0.5, 0.3]]]))[0, 0].tolist()
    assert first == pytest.approx((4 * 0.5625 + 1) / (4 + 3))
    assert second == pytest.approx((4 * 0.3025 + 1) / (4 + 2))
    assert tree.gained == 3
    assert tree.spent == pytest.approx(1 + 3 * 0.1 + 5 * 0.02)
    assert tree.recent == pytest.approx(0.95 * 0.5 + 0.05 * 2 / 3)


def test_an_auto_tree_drafts_the_places_and_levels_that_pay():
    tree = AutoTree(width=3, draft_cost=0.2, token_cost=0.1, spent=1.5, gained=1.5, recent=0.5)  # a token is worth 1
    reach, chances = torch.tensor([[0.8, 0.1]]), torch.tensor([[[0.5, 0.2, 0.1], [0.9, 0.5, 0.1]]])
    assert tree.branch(1, reach, chances).tolist() == [[2, 0]]  # .4, .16, .08 and .09 against .1
    assert tree.keep_going([0.7])  # .7 x .5 against .3
    assert not tree.keep_going([0.7, 0.8])
    with pytest.raises(ValueError, match="give at least 1"):
        AutoTree(width=0)
