"""Equation 4.2 by hand, its gradient at the reference, and the tabular identities behind it."""

import itertools
import math

import pytest
import torch

from lib import selm
from lib.preference import Pool, PoolLogProbs, online_pool, sample

BETA = 0.2


def log_probs(*values):
    chosen, rejected, third = (torch.tensor([v], dtype=torch.float64) for v in values)
    return PoolLogProbs(chosen, rejected, third, torch.zeros(1, 2, dtype=torch.float64))


def test_the_loss_is_the_hand_computed_one():
    policy, reference = log_probs(-3.0, -7.0, -4.0), log_probs(-3.5, -6.0, -4.5)
    margin = (-3.0 + 3.5) - (-7.0 + 6.0)
    dpo = -math.log(1 / (1 + math.exp(-BETA * margin)))
    for alpha in (0.0, 0.5, 2.0):
        found = selm.selm_loss(policy, reference, alpha=alpha, beta=BETA)
        assert float(found) == pytest.approx(dpo + alpha * BETA * 0.5, abs=1e-12)
    flipped = -math.log(1 / (1 + math.exp(BETA * margin)))
    smooth = selm.selm_loss(policy, reference, alpha=1.0, beta=BETA, label_smoothing=0.1)
    assert float(smooth) == pytest.approx(0.9 * dpo + 0.1 * flipped + BETA * 0.5, abs=1e-12)


def test_exact_optimism_takes_off_the_divergence_from_the_reference_to_the_policy():
    # pi_ref = (1/2, 1/2), pi = (1/4, 3/4): KL(pi_ref || pi) = log 2 - log(3) / 2, and the other way another number.
    law, ref_law = (torch.tensor([p], dtype=torch.float64).log() for p in ([0.25, 0.75], [0.5, 0.5]))
    none = torch.zeros(1, dtype=torch.float64)
    policy, reference = (PoolLogProbs(none, none, none, every) for every in (law, ref_law))
    found = selm.selm_loss(policy, reference, alpha=3.0, beta=BETA, optimism="exact")
    divergence = math.log(2) - math.log(3) / 2
    assert float(found) == pytest.approx(math.log(2) - 3 * BETA * divergence, abs=1e-12)


@pytest.mark.parametrize(("alpha", "beta"), [(0.3, 0.1), (1.0, 0.01), (0.001, 2.0)])
def test_the_weight_is_alpha_times_beta(alpha, beta):
    response = torch.tensor([-4.0, -9.0], requires_grad=True)
    term = selm.optimism_term(response, torch.tensor([-5.0, -5.0]), alpha=alpha, beta=beta)
    assert term.tolist() == pytest.approx([alpha * beta, -4 * alpha * beta], abs=1e-7)
    term.sum().backward()
    assert response.grad.tolist() == pytest.approx([alpha * beta] * 2)


def all_responses(steps=3, vocab=5):
    every = {t[: t.index(1) + 1] if 1 in t else t for t in itertools.product(range(vocab), repeat=steps)}
    return sorted(every)


def sequence_log_prob(model, prompt, response):
    logits = model(torch.tensor([[*prompt, *response]])).logits[0, len(prompt) - 1 : -1]
    return logits.log_softmax(-1).gather(-1, torch.tensor(response)[:, None]).sum()


def extra_gradient(model, prompt, responses, weights):
    """Gradient of the optimism term's expectation over responses, at π = π_ref."""
    model.zero_grad()
    for response, weight in zip(responses, weights, strict=True):
        of = sequence_log_prob(model, prompt, response)
        (weight * selm.optimism_term(of[None], of.detach()[None], alpha=1.0, beta=1.0)).sum().backward()
    return torch.cat([p.grad.flatten() for p in model.parameters()])


def test_extra_gradient_vanishes_for_sampled_responses_and_not_for_the_greedy_one(tiny):
    model, prompt = tiny(5, seed=3, scale=1.0).double(), (3, 2)
    responses = all_responses()
    law = [float(sequence_log_prob(model, prompt, r).exp()) for r in responses]
    assert sum(law) == pytest.approx(1, abs=1e-12)
    one = float(torch.stack([extra_gradient(model, prompt, [r], [1.0]).norm() for r in responses[:5]]).mean())
    expected = extra_gradient(model, prompt, responses, law)
    assert float(expected.norm()) < 1e-7 * one  # the layers norm in float32
    greedy = ()
    while len(greedy) < 3 and greedy[-1:] != (1,):
        greedy += (int(model(torch.tensor([[*prompt, *greedy]])).logits[0, -1].argmax()),)
    assert float(extra_gradient(model, prompt, [greedy], [1.0]).norm()) > 0.05 * one


def test_what_our_sampler_draws_has_no_extra_gradient_either(tiny):
    model, prompt = tiny(5, seed=3, scale=1.0), (3, 2)
    model.generation_config.eos_token_id = 1

    class Words:
        eos_token_id = 1

        def batch_decode(self, rows, skip_special_tokens=True):
            return ["" for _ in rows]

    draws = sample(model, Words(), [prompt], 4000, max_new_tokens=3, batch_size=4000, seed=0, progress=False)[0]
    counts = {r: 0 for r in all_responses()}
    for r in draws:
        counts[r.tokens] += 1
    model = model.double()
    every = [extra_gradient(model, prompt, [r], [1.0]).clone() for r in counts]
    law = torch.tensor([c / 4000 for c in counts.values()], dtype=torch.float64)
    stacked = torch.stack(every)
    mean = law @ stacked
    spread = (law @ (stacked - mean).square().sum(1)).sqrt()
    assert float(mean.norm()) < 3 * float(spread) / 4000**0.5


def random_law(*shape, seed):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)).softmax(-1)


@pytest.mark.parametrize("seed", range(5))
def test_theorem_5_1_the_self_exploring_policy_is_the_reference(seed):
    reference, rho = random_law(4, 7, seed=seed), random_law(4, 7, seed=seed + 100)
    found = selm.self_exploring_policy(rho, reference, beta=0.3)
    assert float((found - reference).abs().max()) < 1e-10


def test_theorem_5_1_by_numerical_minimisation():
    reference, rho, beta = random_law(6, seed=1), random_law(6, seed=2), 0.7
    reward = selm.implicit_reward(rho, reference, beta=beta)
    logits = torch.zeros(6, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([logits], lr=1, max_iter=500, tolerance_grad=1e-14, tolerance_change=1e-18)

    def closure():
        optimizer.zero_grad()
        law = logits.softmax(-1)
        value = (law * reward).sum() + beta * (law * (law / rho).log()).sum()
        value.backward()
        return value

    for _ in range(5):
        optimizer.step(closure)
    assert float((logits.softmax(-1) - reference).abs().max()) < 1e-7


def test_the_inner_level_is_solved_by_the_tilted_policy_and_leaves_the_divergence():
    reference, beta = random_law(3, 6, seed=4), 0.4
    reward = torch.randn(3, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    best = selm.tilted(reference, reward, beta=beta)
    top = selm.inner_value(best, reference, reward, beta=beta)
    for seed in range(20):
        assert bool((selm.inner_value(random_law(3, 6, seed=seed), reference, reward, beta=beta) <= top).all())
    # Eq. 4.2: with the reward written as its policy's implicit one, what is left is β KL(π_ref || π_r).
    divergence = (reference * (reference / best).log()).sum(-1)
    implicit = selm.implicit_reward(best, reference, beta=beta)
    assert torch.allclose(selm.inner_value(best, reference, implicit, beta=beta), beta * divergence, atol=1e-12)


def test_alpha_zero_on_the_pool_is_dpo_and_exact_optimism_has_no_gradient_at_the_start():
    generator = torch.Generator().manual_seed(0)
    pool = Pool.of(torch.randn(30, 4, 3, generator=generator), torch.randn(30, 4, generator=generator))
    runs = {
        (alpha, kind): online_pool(
            pool, selm.pool_loss(alpha, beta=0.1, optimism=kind), rounds=2, draws=2, seed=0, greedy=kind == "greedy"
        )[-1]
        for alpha in (0.0, 0.3)
        for kind in ("exact", "sampled", "greedy")
    }
    assert torch.equal(runs[0.0, "exact"], runs[0.0, "sampled"])
    assert all(not torch.equal(runs[0.3, kind], runs[0.0, kind]) for kind in ("exact", "sampled", "greedy"))
    of = pool.log_probs(torch.zeros(3, dtype=torch.float64))
    theta = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    part = pool.log_probs(theta)
    exact = PoolLogProbs(part[:, 0], part[:, 0], part[:, 0], part)
    start = PoolLogProbs(of[:, 0], of[:, 0], of[:, 0], of)
    selm.selm_loss(exact, start, alpha=1.0, beta=1.0, optimism="exact").mean().backward()
    assert float(theta.grad.abs().max()) < 1e-12
    with pytest.raises(ValueError, match="make no objective"):
        selm.pool_loss(-1, beta=0.1)
