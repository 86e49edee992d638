"""The log-linear policy: exact quantities against enumeration, pairs by rule, learning that raises the score."""

import pytest
import torch

from lib.preference import Pool, dpo_loss, draw_pairs, online_pool
from lib.preference.pool import fit, log_probs_of, mean_of_kept


def random_pool(prompts=40, k=5, width=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(prompts, k, width, generator=generator)
    scores = features @ torch.tensor([1.0, -0.5, 0.2]) + 0.1 * torch.randn(prompts, k, generator=generator)
    return Pool.of(features, scores)


def dpo(policy, reference, beta=0.1):
    return dpo_loss((policy.chosen - reference.chosen) - (policy.rejected - reference.rejected), beta=beta)


def drawn(pool, theta, **options):
    uniforms = torch.rand(len(pool), 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    return draw_pairs(pool.log_probs(theta), pool.scores, uniforms, **options)


def test_many_seeds_at_once_are_what_each_is_alone():
    pool = random_pool(30)
    together = online_pool(pool, dpo, rounds=3, draws=2, seed=range(5), steps=9)
    assert together[0].shape == (5, 3)
    for seed in range(5):
        alone = online_pool(pool, dpo, rounds=3, draws=2, seed=seed, steps=9)
        for a, b in zip(alone, together, strict=True):
            torch.testing.assert_close(b[seed], a, rtol=0, atol=1e-12)
    rates = pool.win_rates(together[1], together[2])
    torch.testing.assert_close(rates[3], pool.win_rates(together[1][3], together[2][3]))


def test_draws_follow_the_law():
    law = torch.tensor([0.1, 0.6, 0.3], dtype=torch.float64)
    uniforms = (torch.arange(1000, dtype=torch.float64)[:, None] + 0.5) / 1000
    pairs = draw_pairs(law.log().expand(1000, 3), torch.rand(1000, 3, dtype=torch.float64), uniforms, refuse=False)
    assert pairs.third.bincount().tolist() == [100, 600, 300]


def test_exact_quantities_equal_enumeration():
    pool, theta = random_pool(prompts=2, k=3), torch.tensor([0.3, -1.0, 0.5], dtype=torch.float64)
    other = torch.zeros(3, dtype=torch.float64)
    for row in range(2):
        weight = [(pool.features[row, j] @ theta).exp().item() for j in range(3)]
        p = [w / sum(weight) for w in weight]
        s = pool.scores[row].tolist()
        assert pool.expected_scores(theta)[row].item() == pytest.approx(sum(a * b for a, b in zip(p, s, strict=True)))
        wins = sum(p[i] / 3 * (0.5 if i == j else float(s[i] > s[j])) for i in range(3) for j in range(3))
        assert pool.win_rates(theta, other)[row].item() == pytest.approx(wins)
        kl = sum(1 / 3 * (torch.tensor(1 / 3).log() - torch.tensor(q).log()).item() for q in p)
        assert pool.divergence(other, theta)[row].item() == pytest.approx(kl, abs=1e-6)
    assert pool.win_rates(theta, theta).tolist() == pytest.approx([0.5, 0.5])


def test_a_base_law_that_is_not_uniform_is_where_the_policy_starts():
    base = torch.tensor([[0.7, 0.2, 0.1]]).log()
    pool = Pool.of(torch.randn(1, 3, 2), torch.tensor([[1.0, 2.0, 3.0]]), base)
    assert pool.log_probs(torch.zeros(2, dtype=torch.float64)).exp()[0].tolist() == pytest.approx([0.7, 0.2, 0.1])


def test_pairs_are_best_and_worst_of_what_was_drawn():
    pool, zero = random_pool(), torch.zeros(3, dtype=torch.float64)
    pairs = drawn(pool, zero)
    of = pool.scores[pairs.rows]
    assert pairs.kept.any()
    tied = pairs.chosen == pairs.rejected
    assert torch.equal(tied, ~pairs.kept)
    chosen, rejected, third = (of.gather(1, i[:, None]).squeeze(1) for i in (pairs.chosen, pairs.rejected, pairs.third))
    assert bool((chosen > rejected)[pairs.kept].all())
    assert bool(((third <= chosen) & (third >= rejected)).all())
    greedy = drawn(pool, torch.ones(3, dtype=torch.float64), greedy=True)
    likely = pool.log_probs(torch.ones(3, dtype=torch.float64)).argmax(1)
    assert torch.equal(greedy.third, likely[greedy.rows])


def test_dpo_raises_the_expected_score_and_starts_at_log_two():
    pool = random_pool(200)
    held_out = random_pool(100, seed=1)
    thetas = online_pool(pool, dpo, rounds=3, draws=3, seed=0)
    gains = [float(held_out.expected_scores(t).mean()) for t in thetas]
    assert gains[0] < gains[1] < gains[2] < gains[3]
    pairs = drawn(pool, thetas[1])
    start = log_probs_of(pool.log_probs(thetas[1]), pairs)
    assert float(mean_of_kept(dpo(start, start), pairs.kept)) == pytest.approx(
        0.693147, abs=1e-6
    )  # the reference is reset to the policy
    assert torch.equal(fit(pool, thetas[1], pairs, dpo, steps=[0])[0], thetas[1])


def test_two_losses_with_one_seed_see_the_same_first_pairs():
    pool, seen = random_pool(30), []

    def spy(policy, reference):
        seen.append(reference.chosen)
        return dpo(policy, reference)

    for _ in range(2):
        online_pool(pool, spy, rounds=1, draws=2, seed=4, steps=1)
    assert torch.equal(seen[0], seen[1])


def test_smoothing_is_a_mixture_of_both_labels():
    margin = torch.tensor([0.3, -2.0], dtype=torch.float64)
    mixed = 0.8 * dpo_loss(margin, beta=0.5) + 0.2 * dpo_loss(-margin, beta=0.5)
    assert torch.allclose(dpo_loss(margin, beta=0.5, label_smoothing=0.2), mixed)


def test_bad_pools():
    with pytest.raises(ValueError, match="k of at least 2"):
        Pool.of(torch.zeros(3, 1, 2), torch.zeros(3, 1))
    with pytest.raises(ValueError, match="finite"):
        Pool.of(torch.zeros(3, 2, 2), torch.full((3, 2), torch.nan))
    flat = Pool.of(torch.randn(3, 2, 2), torch.zeros(3, 2))
    with pytest.raises(ValueError, match="every prompt of the pool ties"):
        drawn(flat, torch.zeros(2, dtype=torch.float64))


def test_a_collapsed_policy_stays_what_it_is_and_a_flat_pool_is_refused():
    one = Pool.of(torch.eye(3)[None].repeat(6, 1, 1) * 1e4, torch.tensor([[0.0, 1.0, 2.0]]).repeat(6, 1))

    def onto_the_last(policy, reference):
        return -policy.all[..., 2]

    thetas = online_pool(one, onto_the_last, rounds=3, draws=4, seed=0, steps=20, learning_rate=1.0)
    assert float(one.log_probs(thetas[1])[0, 2].exp()) == pytest.approx(1)
    assert torch.equal(thetas[3], thetas[1])
    flat = Pool.of(torch.randn(4, 3, 2), torch.zeros(4, 3))
    with pytest.raises(ValueError, match="every prompt of the pool ties"):
        online_pool(flat, dpo, rounds=2, draws=2, seed=0)


def test_a_path_is_as_many_trainings():
    pool, zero = random_pool(), torch.zeros(3, dtype=torch.float64)
    pairs = drawn(pool, zero)
    path = fit(pool, zero, pairs, dpo, steps=[7, 0, 3])
    for steps, found in zip([7, 0, 3], path, strict=True):
        assert torch.equal(found, fit(pool, zero, pairs, dpo, steps=[steps])[0])


def test_a_tie_counts_for_nothing():
    losses, kept = torch.tensor([[1.0, 5.0, 3.0], [1.0, 2.0, 3.0]]), torch.tensor([[True, False, True], [False] * 3])
    assert mean_of_kept(losses, kept).tolist() == [2.0, 0.0]
