"""The gpu profile's plan: the paper's weights, and adapters of the size that its memory allows, on the meta device."""

import pytest

from lib import preference, zoo
from lib.lab import profiles
from lib.selm import SELMConfig


@pytest.fixture(scope="module")
def planned():
    return profiles.load("gpu").parameters("selm")


def test_the_effective_weight_is_zephyrs(planned):
    assert planned["alpha"] * planned["beta"] == pytest.approx(1e-5)
    assert planned["batch_size"] * planned["accumulation"] == 256
    assert planned["train_prompts"] <= 0.9 * 61_135  # of all, a tenth and more may be too long, too short or doubles
    assert planned["train_prompts"] % planned["rounds"] == 0


def test_the_policy_with_adapters_fits(planned):
    policy = preference.with_lora(zoo.meta_lm(planned["model"]), layers=planned["layers"], rank=planned["rank"])
    trained = sum(p.numel() for p in policy.parameters() if p.requires_grad)
    whole = sum(p.numel() for p in policy.parameters())
    # q and o: (4096 + 4096) r; k and v: (4096 + 1024) r; gate, up and down: (4096 + 14336) r
    assert trained == 32 * planned["rank"] * (2 * 8192 + 2 * 5120 + 3 * 18432)
    # weights in 16 bits; adapters, their gradients and two moments in 32
    gib = (2 * whole + (4 + 4 + 8) * trained) / 2**30
    assert gib < profiles.load("gpu").cost["selm"]["memory_gib"] / 2  # as much again for activations


def test_the_settings_are_ones_that_training_takes(planned, tmp_path):
    args = preference.config(
        tmp_path, cls=SELMConfig, alpha=planned["alpha"], beta=planned["beta"],
        learning_rate=planned["learning_rate"], per_device_train_batch_size=planned["batch_size"],
        gradient_accumulation_steps=planned["accumulation"],
    )  # fmt: skip
    assert (args.alpha, args.beta, args.optimism) == (0.001, 0.01, "sampled")
