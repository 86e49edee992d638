"""Heads on frozen features: ridge against scikit-learn and explicit leave-one-out, Bradley-Terry against scipy."""

import numpy as np
import pytest
import torch

from lib.proxy_reward.evaluators import STRENGTHS, fit_bradley_terry, fit_ridge


def problem(labels=20, width=30, seed=0):
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(labels, width, generator=g, dtype=torch.float64)
    return x, x[:, :3].sum(1) + 0.5 * torch.randn(labels, generator=g, dtype=torch.float64)


def test_ridge_equals_scikit_learns():
    from sklearn.linear_model import Ridge
    from sklearn.preprocessing import StandardScaler

    x, y = problem()
    head = fit_ridge(x, y)
    scaler = StandardScaler().fit(x)
    peer = Ridge(alpha=head.strength).fit(scaler.transform(x), y)
    new = problem(seed=1)[0]
    np.testing.assert_allclose(head.score(new), peer.predict(scaler.transform(new)), atol=1e-8)


@pytest.mark.parametrize("seed", range(3))
def test_the_strength_is_that_of_the_least_leave_one_out_error(seed):
    from sklearn.linear_model import Ridge
    from sklearn.model_selection import LeaveOneOut, cross_val_predict

    x, y = problem(seed=seed)
    head = fit_ridge(x, y)
    z = ((x - x.mean(0)) / x.std(0, correction=0)).numpy()
    unit = (z**2).sum() / len(z)
    errors = [
        float(np.mean((cross_val_predict(Ridge(alpha=unit * s), z, y.numpy(), cv=LeaveOneOut()) - y.numpy()) ** 2))
        for s in STRENGTHS
    ]
    assert head.strength == pytest.approx(unit * STRENGTHS[int(np.argmin(errors))])
    assert head.noise == pytest.approx(min(errors), rel=1e-6)


def test_variance_is_the_gaussian_posterior_and_falls_with_labels():
    x, y = problem(labels=12, width=4)
    head = fit_ridge(x, y)
    z = (x - head.location) / head.scale
    posterior = head.noise * torch.linalg.inv(z.T @ z + head.strength * torch.eye(4, dtype=torch.float64))
    torch.testing.assert_close(head.variance(x), ((z @ posterior) * z).sum(1), atol=1e-9, rtol=1e-6)
    far = x[:1] * 50
    assert head.variance(far) > head.variance(x[:1])


@pytest.mark.parametrize("penalty", [0.01, 1.0, 100.0])
@pytest.mark.parametrize("pairs", [1, 5, 40])
def test_bradley_terry_is_the_minimum_that_scipy_finds(penalty, pairs):
    from scipy.optimize import minimize

    x, y = problem(labels=2 * pairs, width=6)
    first, second = x[:pairs], x[pairs:]
    win = (y[:pairs] > y[pairs:])[:, None]
    chosen, rejected = torch.where(win, first, second), torch.where(win, second, first)
    head = fit_bradley_terry(chosen, rejected, penalty=penalty)
    d = ((chosen - rejected) / head.scale).numpy()
    ridge = penalty * (d**2).sum(1).mean() / pairs

    def loss(w):
        return np.logaddexp(0, -d @ w).mean() + ridge / 2 * w @ w

    best = minimize(loss, np.zeros(6), method="BFGS", options={"gtol": 1e-10})
    assert loss(head.weights.numpy()) <= best.fun + 1e-10
    np.testing.assert_allclose(head.weights, best.x, atol=1e-4)


def test_refusals():
    x, y = problem()
    with pytest.raises(ValueError, match="at least 3"):
        fit_ridge(x[:2], y[:2])
    y[0] = float("nan")
    with pytest.raises(ValueError, match="not finite"):
        fit_ridge(x, y)
    with pytest.raises(ValueError, match="no pair"):
        fit_bradley_terry(x[:0], x[:0])
