"""Quadrature rules on polynomials, and every estimator against the exact gradient of an enumerable problem."""

import pytest
import torch

from lib import grin
from lib.grin.routing import HEUN, HEUN_CONSISTENT, MIDPOINT, masked_softmax, surviving
from lib.grin.study import estimators


def problem(tokens=200, experts=6, width=4, kind="smooth", seed=0, size=1.0):
    generator = torch.Generator().manual_seed(seed)
    z = torch.randn(tokens, experts, generator=generator, dtype=torch.float64)
    outputs = size * torch.randn(tokens, experts, width, generator=generator, dtype=torch.float64)
    target = torch.randn(tokens, width, generator=generator, dtype=torch.float64)

    def loss(y):
        ray = (y * target).sum(-1)
        powers = {"linear": ray, "quadratic": ray + ray**2, "cubic": ray - ray**2 + ray**3}
        return powers[kind] if kind in powers else torch.nn.functional.softplus(3 * ray) + (y - target).pow(4).mean(-1)

    return estimators.EnumerableProblem(z, outputs, loss, torch.ones_like(z, dtype=torch.bool))


@pytest.mark.parametrize(("rule", "degree"), [(HEUN, 3), (MIDPOINT, 2)])
def test_a_rule_is_exact_up_to_its_degree_and_not_beyond(rule, degree):
    first = rule if rule is HEUN else type(rule)(shrunk=rule.shrunk, full=0.0)  # the mid-point alone, without the gate

    def integral(power):
        """The rule's estimate of x^power from 0 to 1, by the derivative at its two nodes."""
        return first.full * power + (1 - first.full) * power * first.shrunk ** (power - 1)

    assert [integral(power) for power in range(1, degree + 1)] == pytest.approx([1.0] * degree)
    assert integral(degree + 1) != pytest.approx(1.0, abs=1e-3)


@pytest.mark.parametrize("kind", ["linear", "quadratic", "cubic"])
def test_all_heun_estimators_are_unbiased_for_cubic_losses(kind):
    p = problem(kind=kind)
    moments = p.all_estimators()
    torch.testing.assert_close(moments["v2*, all Heun"].mean, p.exact())
    torch.testing.assert_close(p.sparsemixer(HEUN, euler_at_argmax=False).mean, p.exact(detached_gate=True))


def test_the_mid_point_is_unbiased_for_quadratic_losses_and_euler_for_linear_ones():
    p = problem(kind="quadratic")
    torch.testing.assert_close(p.sparsemixer(MIDPOINT, euler_at_argmax=False).mean, p.exact())
    line = problem(kind="linear")
    for name in ("v1", "v2*"):
        torch.testing.assert_close(line.all_estimators()[name].mean, line.exact())


def test_mixers_are_closer_to_the_exact_gradient_than_gating_and_straight_through():
    p = problem()
    exact, moments = p.exact(), p.all_estimators()
    bias = {name: float(estimators.relative_bias(m.mean, exact).median()) for name, m in moments.items()}
    assert bias["v2*, all Heun"] < 0.5 * min(bias["gating (GShard)"], bias["sampled gating"], bias["straight-through"])
    assert bias["v2*"] < min(bias["gating (GShard)"], bias["sampled gating"], bias["straight-through"])
    detached = p.exact(detached_gate=True)
    of_v2 = float(estimators.relative_bias(moments["v2"].mean, detached).median())
    assert of_v2 < float(estimators.relative_bias(moments["gating (GShard)"].mean, detached).median())
    assert float(moments["gating (GShard)"].variance.abs().max()) < 1e-20
    assert (moments["v2*"].variance > 0).all()


@pytest.mark.parametrize(
    ("name", "rule"),
    [("sparsemixer_v2", HEUN), ("sparsemixer_v2_consistent", HEUN_CONSISTENT), ("sparsemixer_v1", MIDPOINT)],
)
def test_the_real_routers_gradient_has_the_enumerated_mean_and_variance(name, rule):
    draws, experts = 200_000, 4
    z = torch.tensor([[0.5, 0.3, 0.1, -0.4]], dtype=torch.float64)
    one = problem(tokens=1, experts=experts)
    kept = surviving(z, jitter_eps=1.0)
    tempered = z / rule.temperature
    p = estimators.EnumerableProblem(tempered, one.outputs, one.loss, kept)
    many = z.expand(draws, -1).clone().requires_grad_()
    found = grin.ROUTES[name](many, top_k=1, jitter_eps=1.0, training=True, generator=torch.Generator().manual_seed(2))
    torch.testing.assert_close(found.probs[0, 0], masked_softmax(tempered, kept)[0])
    outputs = found.weights * one.outputs[0][found.indices[:, 0]]
    one.loss(outputs).sum().backward()
    gradients = many.grad * rule.temperature
    moments = p.sparsemixer(rule)
    error = gradients.std(0) / draws**0.5
    assert ((gradients.mean(0) - moments.mean[0]).abs() < 5 * error + 1e-9).all()
    torch.testing.assert_close(gradients.var(0).sum(), moments.variance[0], rtol=0.03, atol=1e-9)
