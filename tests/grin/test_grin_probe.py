"""The probes of a trained model agree with the model itself."""

import dataclasses

import pytest
import torch

from lib import grin
from lib.grin.study import probe
from lib.grin.study.corpus import Corpus


@pytest.fixture
def model():
    torch.manual_seed(0)
    config = grin.GrinConfig(
        vocab_size=61, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, num_local_experts=6, pad_token_id=None, initializer_range=0.3,
    )  # fmt: skip
    return grin.GrinForCausalLM(config).eval()


WINDOWS = torch.randint(0, 61, (6, 24), generator=torch.Generator().manual_seed(1))


def test_the_layers_loss_is_the_models_loss_at_the_models_output(model):
    problem = probe.last_layer_problem(model, WINDOWS, jitter_eps=0.5, most=10_000)
    assert ((problem.kept.sum(-1) > 1).all()) and len(problem.scores) > 20  # noqa: PT018
    everyone = probe.last_layer_problem(model, WINDOWS, jitter_eps=1e9, most=10_000)
    routing = model.routings()[-1]
    keep = (torch.arange(WINDOWS.numel()) % 24) < 23
    output = torch.einsum(
        "te,tew->tw",
        torch.zeros(keep.sum(), 6).scatter(-1, routing.indices[keep], routing.weights[keep]).double(),
        everyone.outputs,
    )
    expected = torch.nn.functional.cross_entropy(
        model(WINDOWS).logits[:, :-1].flatten(0, 1), WINDOWS[:, 1:].flatten(), reduction="none"
    )
    torch.testing.assert_close(everyone.loss(output).float(), expected, atol=1e-4, rtol=1e-4)


def test_radius_effect_leaves_the_model_as_it_was(model):
    before = model(WINDOWS).logits
    narrow, wide = (probe.radius_effect(model, WINDOWS, jitter_eps=radius) for radius in (0.0, 0.5))
    assert narrow == (0, pytest.approx(0, abs=1e-7))
    assert wide[0] > 0.5
    assert wide[1] > 1e-4
    assert not model.training
    assert torch.equal(model(WINDOWS).logits, before)


def test_profiles_similarity_and_specialisation(model):
    profile = probe.routing_profile(model, WINDOWS)
    torch.testing.assert_close(profile.sum(-1), torch.ones(2))
    apart = torch.eye(3).view(3, 1, 3)
    assert probe.specialisation(probe.profile_similarity(apart, apart)) == pytest.approx(1.0)
    same = profile.expand(3, -1, -1)
    assert probe.specialisation(probe.profile_similarity(same, same)) == pytest.approx(0.0, abs=1e-6)


def test_kinds_of_text_whose_halves_are_alike_are_most_like_themselves(model):
    text = WINDOWS[:4].repeat_interleave(2, 0)  # two documents of each kind, with the same words
    kinds = probe.similarity_of_kinds(model, Corpus(text, torch.arange(4).repeat_interleave(2), torch.arange(8)))
    torch.testing.assert_close(kinds.diagonal(), torch.ones(4))
    assert probe.specialisation(kinds) > 0


@pytest.mark.parametrize("skew", [0.0, 1e4])
def test_nothing_is_missing_at_any_skew(model, skew):
    assert probe.missing_share(model, WINDOWS, skew=skew).max() < 1e-5


def test_a_capacity_that_drops_tokens_is_seen(model, monkeypatch):
    experts, whole = model.model.layers[-1].mlp.experts, type(model.model.layers[-1].mlp.experts).forward

    def capped(hidden, routing, capacity=5):
        place = torch.nn.functional.one_hot(routing.indices.flatten(), len(experts.down_proj)).cumsum(0)
        late = place.gather(1, routing.indices.flatten()[:, None]).view_as(routing.indices) > capacity
        return whole(experts, hidden, dataclasses.replace(routing, weights=routing.weights.masked_fill(late, 0.0)))

    monkeypatch.setattr(experts, "forward", capped)
    missing = probe.missing_share(model, WINDOWS, skew=1e4)
    assert missing.max() > 0.5
    assert missing.min() < 1e-5


def test_a_problem_without_choice_is_refused(model):
    with pytest.raises(ValueError, match="no token has two surviving experts"):
        probe.last_layer_problem(model, WINDOWS, jitter_eps=0.0)
