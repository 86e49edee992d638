"""Teacher-forced log-probabilities and divergences against single forward passes and against enumeration."""

import copy

import pytest
import torch

from lib.preference import reference_divergence, response_log_probs, with_lora

PROMPTS = [(3, 2, 7), (4, 9), (11, 12, 13, 14)]
RESPONSES = [(5, 6), (8, 1, 10, 3), (9,)]


@pytest.fixture
def two_models(tiny):
    reference = tiny(16, scale=0.3)
    policy = copy.deepcopy(reference)
    for p in policy.parameters():
        p.data += 0.05 * torch.randn(p.shape, generator=torch.Generator().manual_seed(1))
    return policy, reference


def next_laws(model, prompt, response):
    with torch.no_grad():
        logits = model(torch.tensor([[*prompt, *response]])).logits[0, len(prompt) - 1 : -1]
    return logits.log_softmax(-1)


@pytest.mark.parametrize("batch_size", [1, 2, 16])
def test_log_probs_are_those_of_single_passes(two_models, batch_size):
    policy, _ = two_models
    found = response_log_probs(policy, PROMPTS, RESPONSES, batch_size=batch_size)
    for value, prompt, response in zip(found, PROMPTS, RESPONSES, strict=True):
        laws = next_laws(policy, prompt, response)
        assert float(value) == pytest.approx(float(laws.gather(-1, torch.tensor(response)[:, None]).sum()), abs=1e-4)


def test_divergence_sums_the_divergence_of_next_token_laws(two_models):
    policy, reference = two_models
    found = reference_divergence(policy, PROMPTS, RESPONSES, reference=reference, batch_size=2)
    for value, prompt, response in zip(found, PROMPTS, RESPONSES, strict=True):
        of, other = (next_laws(model, prompt, response) for model in (reference, policy))
        assert float(value) == pytest.approx(float((of.exp() * (of - other)).sum()), abs=1e-4)
        assert float(value) > 0
    assert float(reference_divergence(policy, PROMPTS, RESPONSES, reference=policy).abs().max()) < 1e-6


def test_a_peft_policys_reference_is_the_model_below(tiny):
    base = tiny(16, scale=0.3)
    policy = with_lora(copy.deepcopy(base), layers=1, rank=2, seed=0)
    assert float(reference_divergence(policy, PROMPTS, RESPONSES).abs().max()) < 1e-6
    for name, p in policy.named_parameters():
        if "lora_B" in name:
            p.data.normal_(std=0.2, generator=torch.Generator().manual_seed(2))
    apart = reference_divergence(policy, PROMPTS, RESPONSES, reference=base)
    assert torch.allclose(reference_divergence(policy, PROMPTS, RESPONSES), apart, atol=1e-5)
    assert float(apart.min()) > 1e-3


def test_what_has_no_divergence_is_refused(two_models):
    policy, _ = two_models
    with pytest.raises(ValueError, match="pass its reference"):
        reference_divergence(policy, PROMPTS, RESPONSES)
    with pytest.raises(ValueError, match="at least one token"):
        response_log_probs(policy, PROMPTS, [(1,), (), (2,)])
    with pytest.raises(ValueError, match="one response"):
        response_log_probs(policy, PROMPTS, RESPONSES[:2])
