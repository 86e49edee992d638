"""Routers: Algorithms 1-3, the mask, the sampling, the scales, and equality with transformers' PhiMoE router."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.models.phimoe.modeling_phimoe import sparsemixer

from lib import grin
from lib.grin.routing import HEUN, HEUN_CONSISTENT, MIDPOINT, gumbel_sample, masked_softmax, surviving

MIXERS = ["sparsemixer_v2", "sparsemixer_v2_consistent", "sparsemixer_v1"]
RULES = {"sparsemixer_v2": HEUN, "sparsemixer_v2_consistent": HEUN_CONSISTENT, "sparsemixer_v1": MIDPOINT}


def scores(tokens=400, experts=8, seed=0, dtype=torch.float32):
    return torch.randn(tokens, experts, generator=torch.Generator().manual_seed(seed), dtype=dtype)


@pytest.mark.parametrize("jitter_eps", [0.0, 0.01, 0.1, 0.4])
def test_evaluation_equals_transformers_phimoe_router(jitter_eps):
    z = scores(experts=16)
    weights, indices = sparsemixer(z, jitter_eps, False)
    found = grin.sparsemixer_v2(z, top_k=2, jitter_eps=jitter_eps, training=False)
    assert torch.equal(found.indices, indices)
    assert torch.equal(found.weights, weights)


@pytest.mark.parametrize("jitter_eps", [0.01, 0.1, 0.4])
def test_training_equals_transformers_phimoe_router_draw_for_draw(jitter_eps):
    ours, theirs = (scores(experts=16).requires_grad_() for _ in range(2))
    torch.manual_seed(3)
    weights, indices = sparsemixer(theirs, jitter_eps, True)
    torch.manual_seed(3)
    found = grin.sparsemixer_v2(ours, top_k=2, jitter_eps=jitter_eps, training=True)
    assert torch.equal(found.indices, indices)
    # the peer draws its second B twice, so only the first expert's scale is the same draw; its 1/3 is 0.3333
    torch.testing.assert_close(found.weights[:, 0], weights[:, 0], atol=5e-5, rtol=0)
    upstream = scores(experts=2, seed=9)
    found.weights.backward(upstream)
    weights.backward(upstream)
    torch.testing.assert_close(ours.grad, theirs.grad, atol=1e-6, rtol=1e-5)


def test_the_mask_agrees_with_the_papers_rule_and_keeps_the_best():
    z, r = scores(20_000, 16), 0.1
    best = z.max(-1, keepdim=True).values
    papers = best - z <= r * (z.abs() + best.abs())
    ours = surviving(z, jitter_eps=r)
    assert (papers == ours).float().mean() > 0.99
    assert ours.gather(-1, z.argmax(-1, keepdim=True)).all()
    assert surviving(torch.zeros(3, 4), jitter_eps=0.1).all()


def test_the_published_radius_leaves_almost_no_choice():
    z = scores(20_000, 16)
    alive = {r: float((surviving(z, jitter_eps=r).sum(-1) > 1).float().mean()) for r in (0.01, 0.1)}
    assert alive[0.01] < 0.07
    assert 0.4 < alive[0.1] < 0.5


def test_gumbel_frequencies_are_the_masked_softmax():
    z = torch.tensor([[1.0, 0.9, 0.7, 0.2, -1.0]])
    kept = surviving(z, jitter_eps=0.2)
    many = gumbel_sample(z.expand(200_000, -1), kept.expand(200_000, -1), generator=torch.Generator().manual_seed(0))
    frequencies = torch.bincount(many.flatten(), minlength=5) / len(many)
    torch.testing.assert_close(frequencies, masked_softmax(z, kept)[0], atol=5e-3, rtol=0)
    assert frequencies[~kept[0]].sum() == 0


@pytest.mark.parametrize("name", MIXERS)
def test_a_drawn_expert_that_is_not_the_argmax_is_scaled_as_the_rule_says(name):
    z, rule = scores(50_000, 8), RULES[name]
    found = grin.ROUTES[name](z, top_k=1, jitter_eps=0.5, training=True, generator=torch.Generator().manual_seed(1))
    scale = found.weights / found.probs[:, 0].gather(-1, found.indices)
    at_best = found.indices == found.probs[:, 0].argmax(-1, keepdim=True)
    torch.testing.assert_close(scale[at_best], torch.ones_like(scale[at_best]))
    rest = scale[~at_best]
    assert len(rest) > 10_000
    whole = torch.isclose(rest, torch.ones(()))
    assert torch.isclose(rest[~whole], torch.tensor(rule.shrunk)).all()
    assert abs(float(whole.float().mean()) - rule.full) < 0.015


@pytest.mark.parametrize("name", MIXERS)
@pytest.mark.parametrize("top_k", [1, 2, 3])
def test_the_backward_pass_is_the_softmax_jacobian_of_the_unscaled_weight(name, top_k):
    z = scores(64, 6, dtype=torch.float64).requires_grad_()
    found = grin.ROUTES[name](z, top_k=top_k, jitter_eps=0.5, training=True)
    upstream = scores(64, top_k, seed=5, dtype=torch.float64)
    found.weights.backward(upstream)
    probs = found.probs.detach()
    picked = probs.gather(-1, found.indices.unsqueeze(-1))
    jacobian = picked * (torch.nn.functional.one_hot(found.indices, 6) - probs)  # d p_D / d s of each choice
    expected = RULES[name].gradient / RULES[name].temperature * (upstream.unsqueeze(-1) * jacobian).sum(1)
    torch.testing.assert_close(z.grad, expected)


@pytest.mark.parametrize("name", MIXERS)
def test_the_gradient_passes_gradcheck_once_the_draws_are_fixed(name):
    z = scores(5, 4, dtype=torch.float64).requires_grad_()
    rule = RULES[name]

    def surrogate(z):  # the value whose derivative the estimator claims to be: coefficient x p_D
        found = grin.ROUTES[name](
            z, top_k=2, jitter_eps=0.5, training=True, expert_gradient="algorithm",
            generator=torch.Generator().manual_seed(7),
        )  # fmt: skip
        return found.weights

    assert torch.autograd.gradcheck(surrogate, z)
    assert surrogate(z).max() <= rule.gradient


def test_evaluation_is_the_argmax_without_noise_for_every_route():
    z = scores()
    for name, route in grin.ROUTES.items():
        found = route(z, top_k=2, jitter_eps=0.1, training=False)
        assert torch.equal(found.indices, z.topk(2).indices)
        again = route(z, top_k=2, jitter_eps=0.1, training=False)
        assert torch.equal(found.weights, again.weights)
        gates = found.probs.gather(-1, found.indices.unsqueeze(-1)).squeeze(-1)
        whole = gates.sum(-1, keepdim=True) if name == "gshard_normalized" else 1
        torch.testing.assert_close(found.weights, gates / whole)


def test_normalized_gates_are_mixtrals():
    """A softmax over the chosen alone, which Mixtral's router takes, is the softmax over all, divided by its sum."""
    from transformers import MixtralConfig
    from transformers.models.mixtral.modeling_mixtral import MixtralTopKRouter

    theirs = MixtralTopKRouter(MixtralConfig(hidden_size=16, num_local_experts=8, num_experts_per_tok=2))
    torch.nn.init.normal_(theirs.weight, generator=torch.Generator().manual_seed(1))
    hidden = scores(experts=16)
    with torch.no_grad():
        _, weights, indices = theirs(hidden)
    z = (hidden @ theirs.weight.T).detach().requires_grad_()
    found = grin.ROUTES["gshard_normalized"](z, top_k=2, jitter_eps=0.0, training=True)
    assert torch.equal(found.indices, indices)
    torch.testing.assert_close(found.weights, weights)
    upstream = scores(experts=2, seed=9)
    found.weights.backward(upstream)
    ours, z.grad = z.grad, None
    z.gather(-1, indices).softmax(-1).backward(upstream)
    torch.testing.assert_close(ours, z.grad)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 5), st.floats(0.0, 2.0), st.sampled_from(sorted(grin.ROUTES)))
def test_no_expert_is_chosen_twice_and_no_token_is_dropped(seed, top_k, jitter_eps, name):
    z = scores(60, 5, seed=seed) * 3
    found = grin.ROUTES[name](z, top_k=top_k, jitter_eps=jitter_eps, training=True)
    assert (found.indices.sort(-1).values.diff(dim=-1) > 0).all()
    assert int(grin.tokens_per_expert(found.indices, 5).sum()) == top_k * 60
    torch.testing.assert_close(found.probs.sum(-1), torch.ones(60, top_k))
    assert torch.isfinite(found.weights).all()


def test_a_generator_makes_the_draws_repeatable():
    z = scores()
    a, b = (
        grin.sparsemixer_v2(z, top_k=2, jitter_eps=0.3, training=True, generator=torch.Generator().manual_seed(4))
        for _ in range(2)
    )
    assert torch.equal(a.indices, b.indices)
    assert torch.equal(a.weights, b.weights)


def test_router_scores_are_float32_whatever_the_model_is():
    router = grin.Router(16, 4).bfloat16()
    found = router(torch.randn(7, 16, dtype=torch.bfloat16))
    assert found.weights.dtype == found.scores.dtype == torch.float32
    router.eval()
    assert torch.equal(router(torch.ones(2, 16)).indices[0], router(torch.ones(2, 16)).indices[1])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: grin.sparsemixer_v2(scores(), top_k=9, jitter_eps=0.1, training=True), "top_k must be between 1 and"),
        (lambda: grin.gshard(scores(), top_k=0, jitter_eps=0.1, training=True), "top_k must be between 1 and"),
        (lambda: grin.sparsemixer_v1(scores(), top_k=1, jitter_eps=-1.0, training=True), "must not be negative"),
        (lambda: grin.route_named("topk"), "router must be one of"),
        (lambda: grin.route_named("gshard", expert_gradient="paper"), "expert_gradient must be"),
        (lambda: grin.Router(8, 2, top_k=3), "top_k must be between 1 and"),
    ],
)
def test_bad_input_is_one_sentence(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_v2_star_draws_from_the_softmax_at_temperature_two_among_the_survivors_of_the_plain_scores():
    z = torch.tensor([[1.0, 0.9, 0.7, 0.2, -1.0]])
    kept = surviving(z, jitter_eps=0.2)  # Algorithm 2 halves the scores after the mask, which is taken of z itself
    expected = (z / 2).masked_fill(~kept, float("-inf")).softmax(-1)
    options = {"top_k": 1, "jitter_eps": 0.2}
    weight = grin.sparsemixer_v2_consistent(z, training=False, **options).weights
    torch.testing.assert_close(weight, expected.max(-1, keepdim=True).values)
    many = z.expand(200_000, -1)
    generator = torch.Generator().manual_seed(0)
    found = grin.sparsemixer_v2_consistent(many, training=True, generator=generator, **options)
    frequencies = torch.bincount(found.indices.flatten(), minlength=5) / len(many)
    torch.testing.assert_close(frequencies, expected[0], atol=5e-3, rtol=0)
