"""The language model over a pool of its own responses: its numbers are the whole model's, and it learns."""

import pytest
import torch

from lib import preference, selm
from lib.preference import response_log_probs, with_lora
from lib.preference.pool import draw_pairs, log_probs_of, portions_and_draws
from lib.selm.study.language import LanguagePlan, PooledModel, online_language, sharpened

BETA = 0.1


@pytest.fixture
def pooled(tiny):
    generator = torch.Generator().manual_seed(0)

    def ids(low, high):
        length = int(torch.randint(low, high, (1,), generator=generator))
        return torch.randint(3, 60, (length,), generator=generator).tolist()

    prompts = [ids(1, 5) for _ in range(14)]
    responses = [[ids(1, 6) for _ in range(3)] for _ in prompts]
    policy = with_lora(tiny(60, scale=0.4), layers=1, rank=4, seed=0)
    return policy, prompts, responses, PooledModel(policy, prompts, responses, layers=1, batch=4)


def whole(policy, prompts, responses):
    every = [(p, r) for p, group in zip(prompts, responses, strict=True) for r in group]
    return response_log_probs(policy, *zip(*every, strict=True)).view(len(prompts), -1)


def test_log_probabilities_are_those_of_the_whole_model(pooled):
    policy, prompts, responses, model = pooled
    torch.testing.assert_close(model.initial, whole(policy, prompts, responses), atol=1e-4, rtol=0)
    for name, weight in policy.named_parameters():
        if "lora_B" in name:
            weight.data += 0.3 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(1))
    expected = whole(policy, prompts, responses)
    assert float((expected - model.initial).abs().max()) > 0.05
    torch.testing.assert_close(model.log_probs(range(14)), expected, atol=1e-4, rtol=0)
    asked = torch.tensor([[True, False, True], [False, True, False]])
    some = model.of([5, 2], asked)
    torch.testing.assert_close(some.double(), expected[[5, 2]] * asked, atol=1e-4, rtol=0)
    some.sum().backward()
    assert all(p.grad is not None for n, p in policy.named_parameters() if "lora_" in n)


def test_rounds_learn_their_pairs_and_repeat(pooled):
    policy, prompts, responses, model = pooled
    scores = torch.rand(14, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    start, dpo = preference.weights(policy), selm.pool_loss(0.0, beta=BETA)
    plan = LanguagePlan(training=10, rounds=2, draws=3, learning_rate=1e-2, epochs=4)
    runs = {}
    for name in ("first", "again"):
        preference.set_weights(policy, start)
        runs[name] = online_language(model, scores, selm.pool_loss(0.0, beta=BETA), dpo, plan=plan, seed=0)
    first, again = runs["first"], runs["again"]
    assert all(loss < 0.69 for loss in first.own_loss)
    torch.testing.assert_close(first.held_out, model.log_probs(range(10, 14)), atol=1e-6, rtol=0)
    torch.testing.assert_close(first.held_out, again.held_out, atol=1e-6, rtol=0)
    law = model.law(range(10, 14), first.held_out)
    torch.testing.assert_close(law.exp(), (first.held_out - model.initial[10:]).softmax(1))


def test_a_sharpened_law_is_as_far_as_asked():
    log_probs = torch.randn(50, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    law = sharpened(log_probs, 0.2)
    uniform = torch.full((50, 4), 0.25, dtype=torch.float64)
    apart = (uniform * (uniform / law).log()).sum(1).mean()
    torch.testing.assert_close(apart, torch.tensor(0.2, dtype=torch.float64))
    assert law.argmax(1).equal(log_probs.argmax(1))
    torch.testing.assert_close(sharpened(log_probs, 99.0), log_probs.softmax(1))  # the first power at most


def test_optimism_lowers_the_implicit_reward_of_the_third_responses(pooled):
    """Descent on αβ (log π(y) − log π_ref(y)) lowers it: runs that differ in α alone share their first pairs."""
    policy, prompts, responses, model = pooled
    scores = torch.rand(14, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    start, dpo = preference.weights(policy), selm.pool_loss(0.0, beta=BETA)
    plan = LanguagePlan(training=10, rounds=1, draws=3, learning_rate=1e-2, epochs=4)
    ((portion, uniforms),) = portions_and_draws(10, 1, 3, seed=0)
    law = torch.full((10, 3), 1 / 3, dtype=torch.float64).log()  # of a policy that is the initial one
    pairs = draw_pairs(law, scores[portion], uniforms)
    rewards = []
    for alpha in (0.0, 1.0, 3.0):
        preference.set_weights(policy, start)
        online_language(model, scores, selm.pool_loss(alpha, beta=BETA), dpo, plan=plan, seed=0)
        moved = log_probs_of(model.log_probs(portion.tolist()), pairs).third
        before = log_probs_of(model.initial[portion], pairs).third
        rewards.append(float((BETA * (moved - before))[pairs.kept].mean()))
    none, some, more = rewards
    assert more < some < none
    assert more < 0
