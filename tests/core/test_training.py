"""The loop is AdamW written out; rates are the rooms' formulas; modes and precision are left as they were."""

import math

import pytest
import torch
from torch import nn

from lib.core.training import (
    cosine_rate,
    evaluating,
    launched_accelerator,
    linear_rate,
    parameter_groups,
    train,
)


def test_matrices_decay_and_vectors_do_not():
    module = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Linear(4, 2))
    module[2].weight.requires_grad_(False)
    decayed, kept = parameter_groups(module, 0.1)
    assert [w.shape for w in decayed["params"]] == [(4, 3)]
    assert [w.shape for w in kept["params"]] == [(4,), (4,), (4,), (2,)]
    assert (decayed["weight_decay"], kept["weight_decay"]) == (0.1, 0.0)


def test_rates_have_their_hand_values():
    assert [linear_rate(s, 4) for s in range(6)] == [1.0, 0.75, 0.5, 0.25, 0.0, 0.0]
    assert [linear_rate(s, 10, warmup=4) for s in range(4)] == pytest.approx([0.25, 0.45, 0.6, 0.7])
    # Both at once, and the fall only from where it is warm, to a tenth.
    assert [cosine_rate(s, 8, warmup=2) for s in (0, 1, 4, 8)] == pytest.approx(
        [0.5, (1 + math.cos(math.pi / 8)) / 2, 0.5, 0.0]
    )
    options = {"warmup": 2, "begin": 2, "floor": 0.1}
    assert [cosine_rate(s, 8, **options) for s in (0, 1, 2, 5, 8)] == pytest.approx([0.5, 1.0, 1.0, 0.55, 0.1])


def batches_and_model():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 1))
    model[0].bias.requires_grad_(False)
    data = torch.randn(6, 5, 3)
    return list(data), model


def error(model, batch):
    return (model(batch)[:, 0] - batch.sum(1)).square().mean() * 10


def test_the_loop_is_adamw_with_clipped_gradients_and_the_rate():
    batches, model = batches_and_model()
    losses = train(
        model, batches, lambda b: error(model, b), steps=6, learning_rate=0.05, weight_decay=0.1, clip=0.5,
        rate=lambda step, steps: cosine_rate(step, steps, warmup=2), progress=False,
    )  # fmt: skip
    _, twin = batches_and_model()
    weights = [w for w in twin.parameters() if w.requires_grad]
    optimizer, wanted = torch.optim.AdamW(weights, lr=0.05, weight_decay=0.1), []
    for step, batch in enumerate(batches):
        optimizer.param_groups[0]["lr"] = 0.05 * min(1, (step + 1) / 2) * (1 + math.cos(math.pi * step / 6)) / 2
        loss = error(twin, batch)
        twin.zero_grad()
        loss.backward()
        norm = torch.stack([w.grad.norm() for w in weights]).norm()
        for weight in weights:
            weight.grad *= min(1.0, 0.5 / float(norm))
        optimizer.step()
        wanted.append(float(loss.detach()))
    assert losses == pytest.approx(wanted, rel=1e-4)
    for ours, theirs in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    assert not model.training


def test_a_loss_in_parts_is_the_loss():
    batches, whole = batches_and_model()
    options = {"steps": 6, "learning_rate": 0.05, "progress": False}
    losses = train(whole, batches, lambda b: error(whole, b), **options)
    _, parted = batches_and_model()

    def parts(batch):
        for rows in (batch[:2], batch[2:]):
            assert parted.training
            yield error(parted, rows) * len(rows) / len(batch)

    assert train(parted, batches, parts, **options) == pytest.approx(losses, rel=1e-4)
    for one, other in zip(whole.parameters(), parted.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("before", [True, False])
def test_evaluation_ends_in_the_mode_before_it(before):
    module = nn.Linear(1, 1).train(before)
    with evaluating(module):
        assert not module.training
    assert module.training is before
    with pytest.raises(RuntimeError), evaluating(module):
        raise RuntimeError
    assert module.training is before


def test_precision_is_what_was_launched_whatever_came_before(monkeypatch):
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState

    monkeypatch.delenv("ACCELERATE_MIXED_PRECISION", raising=False)
    AcceleratorState._reset_state()
    assert launched_accelerator(cpu=True).mixed_precision == "no"
    AcceleratorState._reset_state()
    Accelerator(cpu=True, mixed_precision="bf16")
    with pytest.raises(ValueError, match="mixed_precision"):
        launched_accelerator(cpu=True)
    AcceleratorState._reset_state()
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    assert launched_accelerator(cpu=True).mixed_precision == "bf16"
    AcceleratorState._reset_state()
