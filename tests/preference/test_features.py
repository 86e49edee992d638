"""Features of responses: means of hidden states at the positions that predict them, and their principal components."""

import pytest
import torch

from lib import preference
from lib.preference import principal, response_features

PROMPTS = [(3, 2, 7), (4, 9), (11, 12, 13, 14)]
RESPONSES = [(5, 6), (8, 1, 10, 3), (9,)]


@pytest.mark.parametrize("batch_size", [1, 3])
def test_features_are_means_over_the_predicting_positions(tiny_policy, batch_size):
    found = response_features(tiny_policy, PROMPTS, RESPONSES, batch_size=batch_size)
    for row, prompt, response in zip(found, PROMPTS, RESPONSES, strict=True):
        with torch.no_grad():
            hidden = tiny_policy.get_decoder()(torch.tensor([[*prompt, *response]])).last_hidden_state[0]
        assert torch.allclose(row, hidden[len(prompt) - 1 : -1].mean(0), atol=1e-5)


def test_principal_components_are_uncorrelated_of_unit_variance_and_blind_to_the_prompt():
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(30, 4, 6, generator=generator) * torch.tensor([5.0, 3, 2, 1, 0.5, 0.1])
    found = principal(features + 7 * torch.randn(30, 1, 6, generator=generator), width=3, train=20)
    same = principal(features, width=3, train=20)
    assert torch.allclose(found, same, atol=1e-4)
    flat = same[:20].flatten(0, 1)
    assert torch.allclose(flat.T @ flat / len(flat), torch.eye(3, dtype=torch.float64), atol=1e-6)
    assert torch.allclose(same.mean(1), torch.zeros(30, 3, dtype=torch.float64), atol=1e-6)


def test_the_second_arm_adopts_the_first_rounds_samples(tmp_path):
    source, target = tmp_path / "a", tmp_path / "b"
    (source / "round-1").mkdir(parents=True)
    for name in ("settings.json", "round-1/samples.json", "round-1/scores.json"):
        (source / name).write_text(name)
    preference.adopt_samples(source, target)
    assert (target / "round-1" / "scores.json").read_text() == "round-1/scores.json"
    assert not (target / "round-1" / "round.json").exists()
