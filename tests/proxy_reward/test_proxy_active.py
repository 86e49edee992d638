"""Strategies: budgets, what is never picked, BADGE against explicit gradients, and refusals."""

import itertools

import pytest
import torch

from lib.proxy_reward.active import (
    PAIR_STRATEGIES,
    STRATEGIES,
    GradientEmbeddings,
    QueryPool,
    badge,
    gradient_embeddings,
    score_probabilities,
    select,
    select_pairs,
)
from lib.proxy_reward.covering import k_center
from lib.proxy_reward.evaluators import fit_bradley_terry, fit_ridge


def draws(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def pool():
    g = draws(5)
    return QueryPool(torch.randn(60, 8, generator=g), torch.randn(60, 10, generator=g))


@pytest.fixture
def head(pool):
    return fit_ridge(pool.ift[:10], pool.ift[:10, 0] + 0.1 * torch.randn(10, generator=draws()))


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("budget", [1, 7, 50])
def test_picks_as_many_as_asked_each_once_and_none_that_is_labelled(pool, head, strategy, budget):
    labelled = torch.arange(10)
    picks = select(pool, budget, strategy, labelled=labelled, evaluator=head, generator=draws())
    assert len(picks) == len(picks.unique()) == budget
    assert not set(picks.tolist()) & set(labelled.tolist())
    again = select(pool, budget, strategy, labelled=labelled, evaluator=head, generator=draws())
    assert picks.tolist() == again.tolist()


def test_coresets_are_k_centre_on_their_own_embeddings(pool):
    labelled = torch.tensor([1, 2])
    for strategy, points in {"coreset_ift": pool.ift, "coreset_eft": pool.eft}.items():
        picks = select(pool, 5, strategy, labelled=labelled, generator=draws())
        assert picks.tolist() == k_center(points, 5, labelled=labelled).chosen.tolist()


def test_uncertainty_takes_the_largest_variances(pool, head):
    labelled = torch.arange(10)
    picks = select(pool, 5, "uncertainty", labelled=labelled, evaluator=head, generator=draws())
    variance = head.variance(pool.ift)
    left = sorted(set(range(60)) - set(range(10)), key=lambda i: -float(variance[i]))
    assert picks.tolist() == left[:5]


def test_badge_distances_are_those_of_explicit_gradients(pool):
    probabilities = torch.randn(60, 4, generator=draws(1)).softmax(1)
    gradients = gradient_embeddings(probabilities, pool.ift)
    for row in (0, 17):
        # gradient of the log-loss at the best guess with respect to the last layer's weights
        weights = torch.zeros(4, 8, requires_grad=True)
        logits = probabilities[row].log() + weights @ pool.ift[row]
        torch.nn.functional.cross_entropy(logits[None], probabilities[row].argmax()[None]).backward()
        explicit = gradients.residual[row][:, None] * gradients.features[row][None]
        torch.testing.assert_close(weights.grad, explicit, atol=1e-6, rtol=1e-5)
    whole = (gradients.residual[:, :, None] * gradients.features[:, None, :]).flatten(1)
    torch.testing.assert_close(gradients.squared_distance(3), (whole - whole[3]).square().sum(1), atol=1e-4, rtol=1e-4)


def test_badge_starts_from_the_longest_gradient_and_spreads(pool):
    probabilities = torch.full((60, 2), 0.5)
    probabilities[11] = torch.tensor([0.6, 0.4])
    features = torch.zeros(60, 8)
    features[11] = 5.0
    features[30:] = torch.eye(8)[0]
    picks = badge(gradient_embeddings(probabilities, features), 3, generator=draws())
    assert picks[0] == 11
    assert any(p >= 30 for p in picks[1:].tolist())


def test_badge_never_draws_what_coincides_with_a_pick_while_others_are_left():
    three = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]]).repeat_interleave(2, dim=0)  # two items each
    gradients = GradientEmbeddings(torch.tensor([[1.0]]).expand(6, 1), three)
    for seed in range(30):
        picks = badge(gradients, 3, generator=torch.Generator().manual_seed(seed))
        assert sorted((picks // 2).tolist()) == [0, 1, 2]


def test_badge_fills_up_where_all_gradients_coincide():
    picks = badge(gradient_embeddings(torch.full((6, 2), 0.5), torch.ones(6, 3)), 6, generator=draws())
    assert sorted(picks.tolist()) == list(range(6))


def test_score_probabilities_sum_to_one_and_follow_the_score():
    scores = torch.arange(10.0)
    found = score_probabilities(scores, torch.full((10,), 0.01))
    torch.testing.assert_close(found.sum(1), torch.ones(10))
    assert found.argmax(1).tolist() == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]


def test_refusals_say_what_to_do(pool, head):
    with pytest.raises(ValueError, match="no strategy is called 'corset'"):
        select(pool, 3, "corset", generator=draws())
    with pytest.raises(ValueError, match="60 items left"):
        select(pool, 61, "random", generator=draws())
    with pytest.raises(ValueError, match="ask for 1 to"):
        select(pool, 0, "random", generator=draws())
    with pytest.raises(ValueError, match="needs an evaluator"):
        select(pool, 3, "badge", generator=draws())
    with pytest.raises(ValueError, match="pass `eft`"):
        select(QueryPool(pool.ift), 3, "coreset_eft", generator=draws())


@pytest.fixture
def compared():
    g = torch.Generator().manual_seed(0)
    x = torch.randn(60, 4, 5, generator=g)
    taste = torch.tensor([1.0, -1.0, 0.5, 0.0, 0.0])
    chosen, rejected = x[:20, 0].clone(), x[:20, 1].clone()
    wrong = (chosen @ taste) < (rejected @ taste)
    chosen[wrong], rejected[wrong] = rejected[wrong].clone(), chosen[wrong].clone()
    return x, fit_bradley_terry(chosen, rejected), chosen, rejected


def test_the_covariance_is_the_inverse_hessian_of_the_loss(compared):
    _, head, chosen, rejected = compared
    d = (chosen - rejected).double() / head.scale
    ridge = float(d.square().sum()) / len(d) / len(d)

    def loss(w):
        return torch.nn.functional.softplus(-d @ w).sum() + len(d) * ridge * w.square().sum() / 2

    # fitted: the minimum of the mean loss + ridge |w|^2 / 2
    gradient = torch.autograd.functional.jacobian(loss, head.weights)
    assert float(gradient.abs().max()) < 1e-4 * len(d)
    hessian = torch.autograd.functional.hessian(loss, head.weights)
    torch.testing.assert_close(head.covariance @ hessian, torch.eye(5, dtype=torch.float64), atol=1e-8, rtol=0)
    drawn = head.draws(20_000, torch.Generator().manual_seed(1))
    torch.testing.assert_close(drawn.T.cov(), head.covariance, atol=0.1 * float(head.covariance.max()), rtol=0)
    some = torch.randn(7, 5, generator=torch.Generator().manual_seed(2))
    torch.testing.assert_close(
        head.variance(some), ((drawn - head.weights) @ (some.double() / head.scale).T).var(0), rtol=0.1, atol=0
    )


@pytest.mark.parametrize("strategy", PAIR_STRATEGIES)
def test_comparisons_are_new_prompts_with_two_responses(compared, strategy):
    x, head, *_ = compared
    picked = select_pairs(
        x, 25, strategy, asked=torch.arange(20), head=head, generator=torch.Generator().manual_seed(0)
    )
    assert len(picked[0].unique()) == 25
    assert int(picked[0].min()) >= 20
    assert bool((picked[1] != picked[2]).all())
    with pytest.raises(ValueError, match="41 comparisons do not fit 40"):
        select_pairs(x, 41, strategy, asked=torch.arange(20), head=head, generator=torch.Generator())
    with pytest.raises(ValueError, match="is none of"):
        select_pairs(x, 3, "best", asked=torch.arange(20), head=head, generator=torch.Generator())


def test_infomax_takes_the_most_telling_pairs_and_dts_the_likely_best(compared):
    x, head, *_ = compared
    rows, first, second = select_pairs(x, 1, "infomax", asked=torch.arange(0), head=head, generator=torch.Generator())
    told = {}
    for r in range(60):
        for a, b in itertools.combinations(range(4), 2):
            p = float(torch.sigmoid(head.score(x[r, a]) - head.score(x[r, b])))
            told[r, a, b] = p * (1 - p) * float(head.variance(x[r, a] - x[r, b]))
    assert max(told, key=told.get) == (int(rows), int(first), int(second))
    rows, first, second = select_pairs(
        x, 60, "dts", asked=torch.arange(0), head=head, generator=torch.Generator().manual_seed(0)
    )
    score = head.score(x[rows])
    paired = score.gather(1, torch.stack([first, second], 1)).mean()
    assert float(paired) > float(score.mean()) + 0.3 * float(score.std())
