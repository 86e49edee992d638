import numpy as np
import pytest
from scipy import stats

from lib import TenfoldError
from lib.lab import statistics


def test_the_interval_of_a_mean_covers_it_about_as_often_as_it_says():
    rng = np.random.default_rng(0)
    hits = 0
    for seed in range(60):
        estimate = statistics.bootstrap(rng.normal(size=40), seed=seed)
        hits += estimate.low <= 0 <= estimate.high
    assert 50 <= hits <= 60


def test_the_same_seed_gives_the_same_interval_and_another_does_not():
    sample = np.random.default_rng(1).exponential(size=30)
    first, again, other = (statistics.bootstrap(sample, seed=seed) for seed in (3, 3, 4))
    assert first == again
    assert first.low != other.low


def test_it_agrees_with_scipy_called_directly():
    sample = np.random.default_rng(2).normal(size=25)
    direct = stats.bootstrap((sample,), np.mean, n_resamples=9_999, rng=np.random.default_rng(9)).confidence_interval
    ours = statistics.bootstrap(sample, seed=9)
    assert ours.low == pytest.approx(direct.low, abs=0.02)
    assert ours.high == pytest.approx(direct.high, abs=0.02)


@pytest.mark.parametrize("size", [2, 12, 300])
def test_a_statistic_with_an_axis_gives_the_interval_of_the_same_one_without(size):
    a, b = np.random.default_rng(3).normal(2, 1, size=(2, size))

    def ratio(x, y):
        return float(x.sum() / y.sum())

    assert statistics.ratio_of_sums(a, b, seed=5) == statistics.bootstrap(a, b, statistic=ratio, seed=5, unit="samples")
    assert statistics.bootstrap(a) == statistics.bootstrap(a, statistic=lambda x: float(np.mean(x)))
    assert statistics.bootstrap(np.stack([a, b], axis=1)).n == f"{size} samples"  # rows, not numbers, are drawn


def test_pairs_stay_paired():
    rng = np.random.default_rng(0)
    shared = rng.normal(scale=100, size=50)
    difference = statistics.paired_difference(shared + 1, shared + rng.normal(scale=0.01, size=50))
    assert difference.low > 0.9
    assert difference.high < 1.1
    assert difference.n == "50 pairs"


def test_a_ratio_of_sums_weighs_by_length():
    estimate = statistics.ratio_of_sums([10.0, 1.0], [10.0, 2.0])
    assert estimate.value == pytest.approx(11 / 12)


def test_constant_samples_have_a_degenerate_interval():
    estimate = statistics.bootstrap([2.0, 2.0, 2.0])
    assert estimate.ci == (2.0, 2.0)


def test_a_crossed_interval_covers_where_seeds_and_items_both_vary():
    rng = np.random.default_rng(0)
    hits, alone = 0, 0
    for seed in range(60):
        values = rng.normal(size=(8, 1)) + rng.normal(size=(1, 40)) + rng.normal(size=(8, 40))
        estimate = statistics.crossed(values, seed=seed)
        hits += estimate.low <= 0 <= estimate.high
        alone += bool(np.prod(statistics.bootstrap(values.mean(0), seed=seed).ci) <= 0)
    assert 51 <= hits <= 60
    assert alone < hits  # resampling the items alone takes the seeds at hand for all there are
    assert statistics.crossed(values, seed=3) == statistics.crossed(values, seed=3)
    assert estimate.n == "8 x 40 seeds x items"
    with pytest.raises(TenfoldError, match="at least 3 seeds"):
        statistics.crossed(values[:2])


def test_over_seeds_is_students_t():
    values = [1.0, 2.0, 4.0]
    estimate = statistics.over_seeds(values)
    low, high = stats.t.interval(0.95, 2, loc=np.mean(values), scale=stats.sem(values))
    assert estimate.ci == pytest.approx((low, high))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: statistics.bootstrap([1.0]), "at least 2"),
        (lambda: statistics.bootstrap([1.0, 2.0], [1.0]), "one length"),
        (lambda: statistics.bootstrap([1.0, float("nan")]), "NaN"),
        (lambda: statistics.over_seeds([1.0, 2.0]), "at least 3"),
    ],
)
def test_bad_samples_are_refused_in_one_sentence(call, message):
    with pytest.raises(TenfoldError, match=message):
        call()
