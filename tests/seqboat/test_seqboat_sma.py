"""Sparse modular activation: compression, the router's gradient, and what it never depends on."""

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from torch import nn

from lib.seqboat import Activation, Compression, LatentConfigurator, SparseModularActivation


class Pointwise(nn.Module):
    """A module without memory."""

    def __init__(self, width):
        super().__init__()
        self.linear = nn.Linear(width, width)

    def forward(self, values, positions, mask):
        return torch.tanh(self.linear(values))


@settings(deadline=None, max_examples=30)
@given(st.lists(st.lists(st.booleans(), min_size=9, max_size=9), min_size=1, max_size=4))
def test_compress_and_extract_are_inverse_at_active_tokens(rows):
    active = torch.tensor(rows)
    x = torch.randn(*active.shape, 3)
    packed = Compression.of(active)
    short = packed.compress(x)
    assert short.shape[1] == max(1, int(active.sum(1).max()))
    for row in range(len(rows)):
        kept = x[row][active[row]]
        assert torch.equal(short[row][: len(kept)], kept)
        assert not short[row][len(kept) :].any()
    assert torch.equal(packed.extract(short), x * active.unsqueeze(-1))


def test_pointwise_module_equals_masked_dense():  # B1
    torch.manual_seed(0)
    modules = [Pointwise(6), Pointwise(6)]
    sma = SparseModularActivation(6, modules)
    state = torch.randn(3, 20, 6)
    out, activations = sma(state)
    dense = sum(
        m(state, None, None) * (a.confidence * a.active).unsqueeze(-1)
        for m, a in zip(modules, activations, strict=True)
    )
    torch.testing.assert_close(out, dense)


def test_modules_get_original_positions():
    seen = []

    class Spy(nn.Module):
        def forward(self, values, positions, mask):
            seen.append(positions[mask])
            return values

    sma = SparseModularActivation(4, [Spy()])
    _, (activation,) = sma(torch.randn(1, 30, 4))
    assert torch.equal(seen[0], activation.active[0].nonzero().squeeze(1))


def test_router_gradient_is_zero_exactly_at_inactive_tokens():  # B5
    torch.manual_seed(0)
    sma = SparseModularActivation(6, [Pointwise(6)])
    state = torch.randn(2, 25, 6)
    kept = {}
    sma.configurator.scores.register_forward_hook(lambda m, i, o: (o.retain_grad(), kept.update(scores=o))[1])
    out, (activation,) = sma(state)
    out.square().sum().backward()
    gradient = kept["scores"].grad.abs().sum(-1)
    assert (gradient[~activation.active] == 0).all()
    assert (gradient[activation.active] > 0).all()


def test_confidence_and_start():  # B6
    torch.manual_seed(0)
    configurator = LatentConfigurator(64, temperature_scale=0.3)
    assert configurator.temperature == pytest.approx(0.3 * 8)
    (activation,) = configurator(torch.randn(4, 500, 64))
    assert 0.4 < float(activation.rate.mean()) < 0.6
    assert activation.confidence.min() >= 0.5
    assert activation.confidence.max() <= 1.0


def test_bias_lowers_activation_monotonically():  # B7
    torch.manual_seed(0)
    configurator = LatentConfigurator(16)
    state = torch.randn(2, 300, 16)
    rates = []
    for bias in (-2.0, -0.5, 0.0, 0.5, 2.0):
        configurator.activation_bias = bias
        rates.append(float(configurator(state)[0].rate.mean()))
    assert rates == sorted(rates, reverse=True)
    assert rates[0] > rates[-1]


def test_padding_is_never_active_and_rate_counts_real_tokens():
    real = torch.arange(10).unsqueeze(0) < torch.tensor([[4], [10]])
    configurator = LatentConfigurator(8, always_active=True)
    (activation,) = configurator(torch.randn(2, 10, 8), real)
    assert torch.equal(activation.active, real)
    assert activation.rate.tolist() == [1.0, 1.0]
    assert not (LatentConfigurator(8)(torch.randn(2, 10, 8), real)[0].active & ~real).any()


def test_nothing_active_is_finite():
    sma = SparseModularActivation(4, [Pointwise(4)], activation_bias=1e4)
    state = torch.randn(2, 5, 4, requires_grad=True)
    out, (activation,) = sma(state)
    assert not activation.active.any()
    assert not out.any()
    out.sum().backward()
    assert torch.isfinite(state.grad).all()


def test_gradcheck():
    torch.manual_seed(1)
    sma = SparseModularActivation(3, [Pointwise(3)]).double()
    # the configurator decides in float32: compare in double only what lies behind its decision
    active = torch.tensor([[True, False, True, True], [False, True, False, True]])
    fixed = Activation(active, torch.full((2, 4), 0.75, dtype=torch.float64), torch.ones_like(active))

    def behind(state):
        return sma._run(sma.experts[0], fixed, state, torch.arange(4).expand(2, 4), {})

    assert torch.autograd.gradcheck(behind, torch.randn(2, 4, 3, dtype=torch.float64, requires_grad=True))


def test_bad_arguments():
    with pytest.raises(ValueError, match="at least one module"):
        SparseModularActivation(4, [])
    with pytest.raises(ValueError, match="must be positive"):
        LatentConfigurator(4, temperature_scale=0.0)
