"""Window attention against a loop over queries and keys."""

import math

import pytest
import torch

from lib.seqboat import GatedAttentionUnit, window_attention
from lib.seqboat.attention import RelativeBias, rotate, weigh


def slow(q, k, v, *, mask, window, causal, function, bias=None):
    """Each query by itself, over the keys that it may see."""
    out = torch.zeros(*q.shape[:2], v.shape[-1])
    past = k.shape[1] - q.shape[1]
    for b in range(len(q)):
        for i in range(q.shape[1]):
            at = i + past
            keys = [
                j for j in range(k.shape[1])
                if mask[b, j] and (j <= at or not causal) and (window is None or abs(at - j) <= window)
            ]  # fmt: skip
            if not keys:
                continue
            s = k[b, keys] @ q[b, i]
            reach = len(keys) if window is None else window if causal else 2 * window
            s = s / math.sqrt(q.shape[-1]) if function == "softmax" else s / reach
            if bias is not None:
                s = s + bias(torch.tensor([at]), torch.tensor(keys))[0]
            if function == "softmax":
                w = s.softmax(0)
            elif function == "relu2":
                w = s.relu() ** 2
            else:
                w = 0.5 * (1 + torch.erf((s - 0.7071067811865476) / (0.28209479177387814 * math.sqrt(2))))
            out[b, i] = w @ v[b, keys]
    return out


@pytest.mark.parametrize("function", ["softmax", "relu2", "laplace"])
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize(("window", "count"), [(None, 9), (3, 17), (4, 16), (5, 4), (1, 6), (30, 20)])
def test_equals_the_loop(function, causal, window, count):
    torch.manual_seed(0)
    q, k, v = torch.randn(2, count, 6), torch.randn(2, count, 6), torch.randn(2, count, 5)
    mask = torch.arange(count) < torch.tensor([[count], [count - 2]])
    bias = RelativeBias(40)
    got = window_attention(q, k, v, mask=mask, window=window, causal=causal, function=function, bias=bias)
    expected = slow(q, k, v, mask=mask, window=window, causal=causal, function=function, bias=bias)
    real = mask.unsqueeze(-1)
    torch.testing.assert_close(got * real, expected * real, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("count", [1, 3, 11])
def test_goes_on_from_a_past(count):
    torch.manual_seed(0)
    window, past = 4, 4
    q, k, v = torch.randn(2, count, 6), torch.randn(2, past + count, 6), torch.randn(2, past + count, 5)
    mask = torch.ones(2, past + count, dtype=torch.bool)
    mask[1, :2] = False
    got = window_attention(q, k, v, mask=mask, window=window, causal=True)
    expected = slow(q, k, v, mask=mask, window=window, causal=True, function="softmax")
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("function", ["softmax", "relu2", "laplace"])
def test_masked_keys_have_no_weight_at_all(function):
    scores = torch.zeros(1, 2, 3)
    allowed = torch.tensor([[[True, False, True], [False, False, False]]])
    weights = weigh(scores, allowed, function)
    assert (weights[~allowed] == 0).all()
    assert torch.isfinite(weights).all()


def test_rotation_depends_on_distance_only():
    torch.manual_seed(0)
    q, k = torch.randn(1, 1, 8), torch.randn(1, 1, 8)
    products = [
        float((rotate(q, torch.tensor([[p]])) * rotate(k, torch.tensor([[p - 5]]))).sum()) for p in (5, 60, 1000)
    ]
    assert products[0] == pytest.approx(products[1], abs=1e-4)
    assert products[0] == pytest.approx(products[2], abs=1e-4)


def test_gradcheck():
    torch.manual_seed(0)
    parts = [torch.randn(1, 7, n, dtype=torch.float64, requires_grad=True) for n in (4, 4, 3)]
    mask = torch.ones(1, 7, dtype=torch.bool)

    def attend(q, k, v):
        return window_attention(q, k, v, mask=mask, window=2, causal=True)

    assert torch.autograd.gradcheck(attend, parts)


def test_bad_arguments():
    x, mask = torch.zeros(1, 3, 2), torch.ones(1, 3, dtype=torch.bool)
    with pytest.raises(ValueError, match="at least 1 key"):
        window_attention(x, x, x, mask=mask, window=0, causal=True)
    with pytest.raises(ValueError, match="function must be one of"):
        window_attention(x, x, x, mask=mask, window=2, causal=True, function="magic")
    with pytest.raises(ValueError, match="longer than the window"):
        window_attention(x[:, :1], x, x, mask=mask, window=1, causal=True)


def test_a_gated_unit_alone_with_a_token_is_its_gate_times_its_value():
    torch.manual_seed(0)
    unit = GatedAttentionUnit(6, value_width=5, key_width=4, window=2, causal=True)
    x = torch.randn(3, 1, 6)  # a single token has all of its own attention
    _, gate, value = torch.nn.functional.silu(unit.base(x)).split([4, 5, 5], dim=-1)
    found = unit(x, torch.zeros(3, 1, dtype=torch.long), torch.ones(3, 1, dtype=torch.bool))
    torch.testing.assert_close(found, unit.output(gate * value))
