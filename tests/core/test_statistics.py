"""Intervals cover what they say: simulated at three to twelve seeds, rows and pairs, beside closed forms."""

import numpy as np
import pytest
from scipy import stats

from lib import TenfoldError
from lib.core import statistics

RUNS = 4_000  # simulations of each case: a coverage of .93 is then known to .004
LEAST = 0.93


def coverage(interval, samples, truth=0.0):
    """Share of samples whose interval holds the truth, and the median half-width."""
    found = np.array([interval(sample).ci for sample in samples])
    assert (found[:, 0] <= found[:, 1]).all()
    return np.mean((found[:, 0] <= truth) & (truth <= found[:, 1])), np.median(found[:, 1] - found[:, 0]) / 2


def ideal(spread, rows):
    """Median half-width of Student's t interval of a mean of normal rows of a known spread."""
    freedom = rows - 1
    return stats.t.ppf(0.975, freedom) * spread * np.sqrt(stats.chi2.median(freedom) / freedom / rows)


# Standard deviations of the seed, of an item and of the rest, over 72 items.
SOURCES = {
    "seeds": (1.0, 0.1, 0.3),
    "items": (0.02, 2.0, 0.5),
    "equal spreads": (1.0, 1.0, 1.0),
    "equal shares of the variance": (1.0, "equal", 0.5),
    "the rest": (0.02, 0.02, 1.0),
    "seeds no more than the rest shows": (0.12, 0.1, 1.0),
}


@pytest.mark.parametrize("seeds", [3, 5, 8])
@pytest.mark.parametrize("source", SOURCES)
def test_crossed_covers_whatever_varies_most(seeds, source):
    rng, items = np.random.default_rng(seeds), 72
    of_seed, of_item, rest = SOURCES[source]
    of_item = of_seed * np.sqrt(items / seeds) if of_item == "equal" else of_item
    values = of_seed * rng.normal(size=(RUNS, seeds, 1)) + of_item * rng.normal(size=(RUNS, 1, items))
    covered, half = coverage(statistics.crossed, values + rest * rng.normal(size=(RUNS, seeds, items)))
    assert covered >= LEAST
    error = np.sqrt(of_seed**2 / seeds + of_item**2 / items + rest**2 / seeds / items)
    assert half < 1.1 * ideal(error * np.sqrt(seeds), seeds)  # as few as the seeds are, never much wider than their t
    if source == "items":
        assert half < 1.2 * 1.96 * error  # the seeds hardly differ: nearly as if all were known


def test_over_runs_is_over_both_from_three_runs_on_and_over_items_below():
    values = np.random.default_rng(0).normal(size=(3, 40))
    assert statistics.over_runs(values, items="questions") == statistics.crossed(values, unit="seeds x questions")
    for count, said in ((1, "40 questions"), (2, "40 questions, adapters fixed at 2")):
        few = statistics.over_runs(values[:count], runs="adapters", items="questions", seed=1)
        assert few == statistics.bootstrap(values[:count].mean(0), seed=1, unit=said.removeprefix("40 "))


def test_crossed_adds_the_squares_of_both_intervals_less_what_is_counted_twice():
    rng = np.random.default_rng(0)
    for _ in range(200):
        seeds, items = rng.integers(3, 9), rng.integers(3, 40)
        values = rng.normal(size=(seeds, items)) + rng.exponential() * rng.normal(size=(seeds, 1))
        both = statistics.crossed(values)
        for alone in (statistics.over_seeds(values.mean(1)), statistics.over_seeds(values.mean(0))):
            assert both.value == pytest.approx(alone.value)
            assert both.high >= alone.high - 1e-12
        of_seeds, of_items = (statistics.over_seeds(values.mean(axis)) for axis in (1, 0))
        centred = [np.eye(n) - 1 / n for n in (seeds, items)]
        rest = ((centred[0] @ values @ centred[1]) ** 2).sum() / (seeds - 1) / (items - 1) / seeds / items
        twice = min(
            min(stats.t.ppf(0.975, count - 1) ** 2 * rest, (alone.high - alone.value) ** 2)
            for count, alone in ((seeds, of_seeds), (items, of_items))
        )
        squares = sum((alone.high - alone.value) ** 2 for alone in (of_seeds, of_items))
        assert (both.high - both.value) ** 2 == pytest.approx(squares - twice)
    assert both.n == f"{seeds} x {items} seeds x items"
    with pytest.raises(TenfoldError, match="at least 3 seeds"):
        statistics.crossed(values[:2])


@pytest.mark.parametrize("rows", [3, 5, 8, 12])
def test_means_differences_and_seeds_cover(rows):
    rng = np.random.default_rng(rows)
    normal = rng.normal(size=(RUNS, rows))
    for interval in (statistics.bootstrap, statistics.over_seeds):
        covered, half = coverage(interval, normal)
        assert covered >= LEAST
        assert half < 1.2 * ideal(1.0, rows)
    shared = 10 * rng.normal(size=rows)
    pairs = statistics.paired_difference(normal[0] + shared, shared)
    assert pairs.ci == pytest.approx(statistics.bootstrap(normal[0]).ci)


@pytest.mark.parametrize(
    ("rows", "least", "most"),
    [
        # Fewer than eight rows do not show that they are skewed: the interval covers 88 % of the time there, not 95 %.
        (3, 0.87, 0.91),
        (5, 0.86, 0.90),
        (8, LEAST, 1.0),
        (12, LEAST, 1.0),
        (19, LEAST, 1.0),
    ],
)
def test_a_skewed_law_is_covered_from_eight_rows_on(rows, least, most):
    sample = np.random.default_rng(rows).exponential(size=(RUNS, rows))
    covered, half = coverage(statistics.bootstrap, sample, truth=1.0)
    assert least <= covered <= most
    assert half < 1.4 * ideal(1.0, rows)


@pytest.mark.parametrize(("rows", "others"), [(3, 16), (8, 8), (16, 64)])
def test_a_difference_of_unpaired_rows_covers(rows, others):
    rng = np.random.default_rng(rows)
    samples = [(rng.normal(1.0, 1.0, rows), rng.normal(0.0, 3.0, others)) for _ in range(RUNS)]
    covered, half = coverage(
        lambda pair: statistics.independent_difference(*map(statistics.over_seeds, pair)), samples, truth=1.0
    )
    assert covered >= LEAST
    assert half < 1.1 * np.hypot(ideal(1.0, rows), ideal(3.0, others))


def test_a_difference_of_unpaired_rows_keeps_the_skewness_of_each():
    found = statistics.independent_difference(
        statistics.Estimate(5.0, 4.0, 9.0, "a"), statistics.Estimate(1.0, -2.0, 4.0, "b")
    )
    assert found.value == 4.0
    assert found.ci == pytest.approx((4 - np.hypot(1, 3), 4 + np.hypot(4, 3)))
    assert found.n == "a; b"


@pytest.mark.parametrize("rows", [3, 5, 8, 12])
def test_a_ratio_of_sums_covers(rows):
    rng = np.random.default_rng(rows)
    lengths = rng.integers(50, 400, size=(RUNS, rows)).astype(float)
    nats = lengths * (2.0 + 0.3 * rng.normal(size=(RUNS, rows)))
    covered, half = coverage(lambda pair: statistics.ratio_of_sums(*pair), np.stack([nats, lengths], axis=1), truth=2.0)
    assert covered >= LEAST
    error = 0.3 * np.sqrt((lengths**2).sum(1)).mean() / lengths.sum(1).mean()
    assert half < 1.3 * ideal(error * np.sqrt(rows), rows)


# The last case covers 94 % in 3,000 runs of 1,999 resamples; as few runs as are made here know it to .008 only.
@pytest.mark.parametrize(("law", "least"), [("normal", LEAST), ("exponential", 0.915)])
def test_resampled_rows_cover_with_the_level_of_t(monkeypatch, law, least):
    monkeypatch.setattr(statistics, "RESAMPLES", 999)
    rng, rows = np.random.default_rng(0), 20
    sample = rng.normal(size=(1_000, rows)) if law == "normal" else rng.exponential(size=(1_000, rows)) - 1
    covered, half = coverage(statistics.bootstrap, sample)
    assert covered >= least
    assert 0.95 * ideal(1.0, rows) < half < 1.2 * ideal(1.0, rows)


@pytest.mark.parametrize("rows", [3, 5, 6, 7, 9, 40])
def test_the_median_is_covered_by_order_statistics(rows):
    sample = np.random.default_rng(rows).standard_t(3, size=(RUNS, rows))
    covered, _ = coverage(lambda values: statistics.bootstrap(values, statistic=np.median), sample)
    assert covered >= LEAST
    ours = statistics.bootstrap(sample[0], statistic=np.median)
    if rows >= 6:
        assert ours.ci == tuple(stats.quantile_test(sample[0], p=0.5).confidence_interval())


@pytest.mark.parametrize("pairs", [3, 5, 6, 7, 9])
@pytest.mark.parametrize("noise", ["lognormal", "a slow run in ten"])
def test_a_ratio_of_times_covers_whatever_disturbs_the_clock(pairs, noise):
    rng = np.random.default_rng(pairs)
    times = np.exp(0.05 * rng.normal(size=(RUNS, 2, pairs)))
    if noise != "lognormal":
        times *= np.where(rng.random(times.shape) < 0.1, 1 + rng.exponential(0.5, size=times.shape), 1.0)
    times[:, 0] *= 0.8
    covered, half = coverage(lambda pair: statistics.ratio_of_pairs(*pair), times, truth=0.8)
    assert covered >= LEAST
    if noise == "lognormal":
        assert half < 1.3 * 0.8 * ideal(0.05 * np.sqrt(2), pairs)  # over six pairs ranks cover 97 %


def test_the_signed_rank_interval_leaves_out_what_the_tables_say():
    # Hollander & Wolfe, table A.4: the largest k with P(W ≤ k) ≤ .025.
    assert [statistics._signed_rank_outside(n) for n in (6, 7, 8, 9, 10, 15, 20)] == [0, 2, 3, 5, 8, 25, 52]


def test_the_signed_rank_interval_of_a_thousand_pairs_and_more_is_that_of_the_normal_law():
    for count in (1000, 1024, 1100):  # 2^1024 sets of ranks are more than a float64 holds
        mean, variance = count * (count + 1) / 4, count * (count + 1) * (2 * count + 1) / 24
        wanted = mean - stats.norm.ppf(0.975) * np.sqrt(variance)
        assert statistics._signed_rank_outside(count) == pytest.approx(wanted, rel=1e-4)


def test_one_slow_run_does_not_move_a_ratio_of_times():
    steady = np.array([1.0, 1.01, 0.99, 1.02, 1.0, 0.98, 1.01])
    slow = steady.copy()
    slow[3] = 30.0
    assert statistics.ratio_of_pairs(slow, steady).value == pytest.approx(1.0, abs=0.02)
    assert statistics.ratio_of_pairs([2.0, 8.0], [1.0, 2.0]).value == pytest.approx(8**0.5)  # geometric mean


def test_the_same_seed_gives_the_same_interval_and_another_does_not():
    sample = np.random.default_rng(1).exponential(size=30)
    first, again, other = (statistics.bootstrap(sample, seed=seed) for seed in (3, 3, 4))
    assert first == again
    assert first.low != other.low


def test_many_rows_agree_with_scipy_called_directly():
    sample = np.random.default_rng(2).normal(size=400)
    direct = stats.bootstrap((sample,), np.mean, n_resamples=9_999, rng=np.random.default_rng(9)).confidence_interval
    ours = statistics.bootstrap(sample, seed=9)
    assert ours.low == pytest.approx(direct.low, abs=0.002)
    assert ours.high == pytest.approx(direct.high, abs=0.002)


@pytest.mark.parametrize("size", [2, 12, 300])
def test_a_statistic_with_an_axis_gives_the_interval_of_the_same_one_without(size):
    a, b = np.random.default_rng(3).normal(2, 1, size=(2, size))

    def ratio(x, y):
        return float(x.sum() / y.sum())

    ours, plain = statistics.ratio_of_sums(a, b, seed=5), statistics.bootstrap(a, b, statistic=ratio, seed=5)
    assert (ours.value, *ours.ci) == pytest.approx((plain.value, *plain.ci))
    ours, plain = statistics.bootstrap(a), statistics.bootstrap(a, statistic=lambda x: float(np.mean(x)))
    assert (ours.value, *ours.ci) == pytest.approx((plain.value, *plain.ci))
    assert statistics.bootstrap(np.stack([a, b], axis=1)).n == f"{size} samples"  # rows, not numbers, are drawn


def test_few_rows_of_a_mean_are_students_t():
    values = [1.0, 2.0, 4.0]
    expected = stats.t.interval(0.95, 2, loc=np.mean(values), scale=stats.sem(values))
    assert statistics.over_seeds(values).ci == pytest.approx(expected)
    assert statistics.bootstrap(values).ci == pytest.approx(expected)
    assert statistics.bootstrap(values, statistic=lambda x: float(np.mean(x))).ci == pytest.approx(expected)


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


@pytest.mark.parametrize("rows", [3, 12, 30])
def test_constant_samples_have_a_degenerate_interval(rows):
    assert statistics.bootstrap([2.0] * rows).ci == (2.0, 2.0)
    lengths = np.arange(1.0, rows + 1)
    assert statistics.ratio_of_sums(0.3 * lengths, lengths).ci == pytest.approx((0.3, 0.3))


def test_a_quantile_of_few_rows_is_refused_and_whatever_rows_move_is_not():
    rng = np.random.default_rng(0)
    values, right = rng.normal(size=12), (rng.random(12) < 0.5).astype(float)
    for unsmooth in (np.max, lambda x: float(np.quantile(x, 0.9))):
        with pytest.raises(TenfoldError, match="take np.median"):
            statistics.bootstrap(values, statistic=unsmooth)
    with pytest.raises(TenfoldError, match="take np.median"):
        statistics.bootstrap(np.repeat(values[:6], 2), statistic=np.max)  # two rows share the maximum
    statistics.bootstrap(right)  # a share of two values
    statistics.paired_difference(right, right[::-1])
    statistics.bootstrap(values, statistic=np.std)
    statistics.bootstrap(rng.normal(size=30), statistic=np.max)  # resampled


def test_resampled_groups_vary_as_their_mean_does():
    values = np.random.default_rng(0).normal(size=12)
    draws = statistics.bootstrap_weights([str(i) for i in range(12)], resamples=20_000) @ values
    assert draws.std() == pytest.approx(stats.sem(values), rel=0.02)
    assert statistics.percentiles(draws) == pytest.approx(tuple(np.quantile(draws, [0.025, 0.975])))
    moved = statistics.recentred(draws**2, 3.0)
    assert moved.mean() == pytest.approx(3.0)
    assert moved.std() == pytest.approx((draws**2).std())


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: statistics.bootstrap([1.0]), "at least 2"),
        (lambda: statistics.bootstrap([1.0, 2.0], [1.0]), "one length"),
        (lambda: statistics.bootstrap([1.0, float("nan")]), "NaN"),
        (lambda: statistics.bootstrap([1.0, -1.0, 2.0], statistic=lambda x: float(np.log(x.min()))), "not finite"),
        (lambda: statistics.over_seeds([1.0, 2.0]), "at least 3"),
        (lambda: statistics.ratio_of_pairs([1.0, 0.0], [1.0, 1.0]), "positive"),
        (lambda: statistics.ratio_of_pairs([1.0], [1.0]), "at least 2"),
    ],
)
def test_bad_samples_are_refused_in_one_sentence(call, message):
    with np.errstate(invalid="ignore"), pytest.raises(TenfoldError, match=message):
        call()
