"""The EMA's three ways agree with each other and with the recurrence written out."""

import pytest
import torch

from lib.seqboat import DampedEMA, MultiDimensionalEMA, fft_convolve


def written_out(ema, x, state=None):
    """h_t = q h_{t-1} + p β x_t, y_t = Σ_n γ N^{-½} h_t, one number at a time in float64."""
    p, a = torch.sigmoid(ema.delta.double()), torch.sigmoid(ema.alpha.double())
    q, read = 1 - p * a, ema.gamma.double() / ema.dimension**0.5
    h = torch.zeros(len(x), *q.shape, dtype=torch.float64) if state is None else state.double()
    rows = []
    for t in range(x.shape[1]):
        h = q * h + p * ema.beta.double() * x[:, t].double().unsqueeze(-1)
        rows.append((h * read).sum(-1))
    return torch.stack(rows, 1), h


@pytest.mark.parametrize("tokens", [1, 7, 64, 65, 200])
def test_scan_fft_and_recurrence_agree(tokens):
    torch.manual_seed(tokens)
    ema, x = DampedEMA(5, dimension=4), torch.randn(2, tokens, 5)
    exact, last = written_out(ema, x)
    scanned, state = ema.scan(x)
    torch.testing.assert_close(ema.convolve(x).double(), exact, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(scanned.double(), exact, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(state.double(), last, atol=1e-5, rtol=1e-5)


def test_scan_and_steps_go_on_from_a_state():
    torch.manual_seed(0)
    ema, x = DampedEMA(3), torch.randn(2, 150, 3)
    whole, last = ema.scan(x)
    first, state = ema.scan(x[:, :71])
    second, state = ema.scan(x[:, 71:149], state)
    third, state = ema.step(x[:, 149], state)
    torch.testing.assert_close(torch.cat([first, second, third.unsqueeze(1)], 1), whole, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(state, last, atol=1e-5, rtol=1e-5)


def test_strong_decay_stays_finite():
    ema = DampedEMA(2)
    with torch.no_grad():
        ema.delta.fill_(12.0), ema.alpha.fill_(12.0)
    y, state = ema.scan(torch.ones(1, 300, 2), torch.ones(1, 2, 16))
    assert torch.isfinite(y).all()
    assert torch.isfinite(state).all()


@pytest.mark.parametrize("causal", [True, False])
def test_layer_adds_residual_and_counts_lag_zero_in_both_directions(causal):
    torch.manual_seed(0)
    ema, x = MultiDimensionalEMA(4, causal=causal, method="fft"), torch.randn(2, 40, 4)
    expected = written_out(ema.forward_ema, x)[0] + ema.omega.double() * x.double()
    if not causal:
        expected = expected + written_out(ema.backward_ema, x.flip(1))[0].flip(1)
    torch.testing.assert_close(ema(x).double(), expected, atol=1e-5, rtol=1e-5)
    ema.method = "scan"
    torch.testing.assert_close(ema(x).double(), expected, atol=1e-5, rtol=1e-5)


def test_padding_counts_as_zero():
    torch.manual_seed(0)
    ema, x = MultiDimensionalEMA(4, causal=False), torch.randn(1, 30, 4)
    mask = torch.arange(50).unsqueeze(0) < 30
    longer = torch.cat([x, torch.randn(1, 20, 4)], 1)
    torch.testing.assert_close(ema(longer, mask)[:, :30], ema(x), atol=1e-5, rtol=1e-5)


def test_truncated_kernel_forgets():
    torch.manual_seed(0)
    ema, x = MultiDimensionalEMA(3, causal=True, truncation=5), torch.randn(1, 40, 3)
    changed = x.clone()
    changed[:, 10] += 1
    difference = (ema(x) - ema(changed)).abs().amax((0, 2))
    assert (difference[10:15] > 1e-4).all()
    assert difference[15:].max() < 1e-5


def test_initial_values_are_megas():
    torch.manual_seed(0)
    ema = DampedEMA(400, dimension=16)
    assert ema.delta.abs().max() <= 0.4
    assert ema.gamma.abs().max() <= 2.0
    torch.testing.assert_close(ema.beta.mean(0), torch.tensor([1.0, -1.0] * 8), atol=0.01, rtol=0)


def test_gradients():
    torch.manual_seed(0)
    x, kernel = torch.randn(1, 6, 2, dtype=torch.float64), torch.randn(2, 4, dtype=torch.float64)
    assert torch.autograd.gradcheck(fft_convolve, (x.requires_grad_(), kernel.requires_grad_()))
    ema, text = DampedEMA(3), torch.randn(2, 130, 3)
    gradients = []
    for way in (ema.convolve, lambda t: ema.scan(t)[0]):
        ema.zero_grad()
        way(text).square().sum().backward()
        gradients.append([p.grad.clone() for p in ema.parameters()])
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b, atol=1e-3, rtol=1e-3)


def test_bad_arguments():
    with pytest.raises(ValueError, match="method must be one of"):
        MultiDimensionalEMA(2, causal=True, method="magic")
    with pytest.raises(ValueError, match="truncated kernel"):
        MultiDimensionalEMA(2, causal=True, method="scan", truncation=4)
    with pytest.raises(ValueError, match="cannot go on from a state"):
        MultiDimensionalEMA(2, causal=False).continue_from(torch.zeros(1, 3, 2), None)
