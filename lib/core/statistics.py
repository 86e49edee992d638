"""Estimates with intervals that cover what they should even over three seeds, eight rows or seven timings.

A resampled percentile interval over few rows is too narrow (over three seeds it covers 75 % where it says 95 %). So few
rows get Student's t on what a jackknife says of each row, many rows the BCa bootstrap, seeds crossed with items both
their spreads, and ratios of times a rank interval. `tests/core/test_statistics.py` simulates the coverage of each.
"""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from inspect import signature

import numpy as np
from jaxtyping import Float, Int
from scipy import stats
from scipy.special import ndtr, stdtrit

from lib import TenfoldError

CONFIDENCE = 0.95
TAILS = ((1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2)
RESAMPLES = 9_999
FEW = 20  # rows below which resampling them covers too rarely, and a jackknife with Student's t is used
SKEWED = 8  # rows from which their skewness can be told, and widens the interval on its side
RANKED = 6  # rows from which an interval by ranks reaches 95 %: below, its widest covers 1 − 2^(1 − n)


@dataclass(frozen=True)
class Estimate:
    """A point estimate, its 95 % interval and what it was taken over (such as `24 documents`)."""

    value: float
    low: float
    high: float
    n: str

    @property
    def ci(self) -> tuple[float, float]:
        """Interval as (low, high)."""
        return self.low, self.high

    def as_claim(self) -> dict:
        """Keyword arguments of `run.claim`."""
        return {"estimate": self.value, "ci": self.ci, "n": self.n}

    def __str__(self) -> str:
        return f"{self.value:.4g} [{self.low:.4g}, {self.high:.4g}] ({self.n})"


def bootstrap(
    *samples: Sequence[float] | np.ndarray,
    statistic: Callable[..., float] = np.mean,
    seed: int = 0,
    unit: str = "samples",
) -> Estimate:
    """Interval of a statistic of one or more paired samples: resampled over many rows, a jackknife's over few.

    All samples share their first axis: rows are drawn together, so ratios and differences stay paired. A statistic
    that takes `axis` (NumPy's do) is called once for all resamples, which is many times faster. From 20 rows on the
    interval is BCa (percentile where BCa is undefined), its level raised to that of Student's t; below it is a
    jackknife's t interval, which needs no seed and of a mean is Student's, widened for skewness from 8 rows on.
    `np.median` has its own interval, by order statistics.

    Raises TenfoldError for fewer than two rows, unequal lengths or values that are not finite, and over few rows for a
    statistic that single rows hardly move, such as a quantile or a maximum.
    """
    arrays = _paired(*samples)
    value, count = float(statistic(*arrays)), len(arrays[0])
    if statistic is np.median and len(arrays) == 1 and arrays[0].ndim == 1:
        low, high = _of_median(arrays[0])
    elif count < FEW:
        low, high = _of_few(arrays, statistic, value)
    else:
        low, high = _resampled(arrays, statistic, seed)
    if not np.isfinite([value, low, high]).all():
        raise TenfoldError(
            "the bootstrap statistic is not finite on resampled rows: use one that is defined on every sample."
        )
    return Estimate(value, low, high, f"{count} {unit}")


def _paired(*samples: Sequence[float] | np.ndarray) -> list[np.ndarray]:
    arrays = [np.asarray(sample, dtype=np.float64) for sample in samples]
    lengths = {len(array) for array in arrays}
    if len(lengths) != 1 or min(lengths) < 2:
        raise TenfoldError(f"an interval needs paired samples of one length of at least 2, not {sorted(lengths)}.")
    if not all(np.isfinite(array).all() for array in arrays):
        raise TenfoldError(
            "an interval needs finite values: a sample holds NaN or infinity; find out where it came from."
        )
    return arrays


def _t(freedom: int) -> float:
    """Quantile of Student's t that leaves half of what is not covered above it."""
    return float(stdtrit(freedom, TAILS[1]))


def _of_median(values: Float[np.ndarray, "rows"]) -> tuple[float, float]:
    """Order statistics that hold the median with at least 95 %; over fewer than six values, which have none, t."""
    if len(values) < RANKED:
        return _student(values)
    place, ordered = int(stats.binom.ppf(TAILS[0], len(values), 0.5)), np.sort(values)
    return float(ordered[place - 1]), float(ordered[-place])


def _student(values: Float[np.ndarray, "rows"]) -> tuple[float, float]:
    mean, error = values.mean(), values.std(ddof=1) / np.sqrt(len(values))
    half = _t(len(values) - 1) * error
    return float(mean - half), float(mean + half)


def _of_few(arrays: list[np.ndarray], statistic: Callable[..., float], value: float) -> tuple[float, float]:
    """Jackknife with Student's t; from eight rows on with Hall's correction for skewness where that is wider."""
    count = len(arrays[0])
    others = np.nonzero(~np.eye(count, dtype=bool))[1].reshape(count, count - 1)
    with np.errstate(all="ignore"):
        left_out = _on_rows(arrays, statistic, others)
        _refuse_unsmooth(arrays, statistic, left_out)
    parts = count * value - (count - 1) * left_out  # pseudo-values: what each row says of the statistic
    spread, reach = float(parts.std(ddof=1)), _t(count - 1) / np.sqrt(count)
    low, high = value - reach * spread, value + reach * spread
    skew = 0.0
    if count >= SKEWED and spread > 1e-12 * abs(value):
        centred = parts - parts.mean()
        skew = float((centred**3).mean() / (centred**2).mean() ** 1.5)
    if abs(skew) > 1e-6:
        # Hall (1992): g(T) = T + γT²/3 + γ²T³/27 + γ/6n is nearly symmetric; the interval inverts it.
        below, above = (3 / skew * (np.cbrt(1 + skew * (u - skew / (6 * count))) - 1) for u in (reach, -reach))
        low, high = min(low, value - spread * below), max(high, value - spread * above)
    return float(low), float(high)


def _on_rows(arrays: list[np.ndarray], statistic: Callable[..., float], index: Int[np.ndarray, "sets rows"]):
    """Statistic of each set of rows [sets]."""
    if all(array.ndim == 1 for array in arrays) and _takes_axis(statistic):
        return np.asarray(statistic(*(array[index] for array in arrays), axis=-1))
    return np.array([float(statistic(*(array[rows] for array in arrays))) for rows in index])


def _refuse_unsmooth(arrays: list[np.ndarray], statistic: Callable[..., float], left_out: np.ndarray) -> None:
    """Refuse a statistic whose values without one row do not tell how it varies: a quantile takes at most three.

    It is refused too where leaving out a row changes nothing although resamples differ (a maximum that two rows share).
    """
    count, span = len(left_out), float(np.ptp(left_out))
    if span > 1e-12 * np.abs(left_out).max():
        if len(set(np.round((left_out - left_out.min()) / span, 9))) > 3:
            return
        rows = np.concatenate([array.reshape(count, -1) for array in arrays], axis=1)
        unsmooth = len(np.unique(rows, axis=0)) > 4
    else:
        drawn = _on_rows(arrays, statistic, np.random.default_rng(0).integers(count, size=(100, count)))
        unsmooth = float(np.ptp(drawn)) > 1e-9 * np.abs(drawn).max()
    if unsmooth:
        raise TenfoldError(
            f"a statistic that single rows hardly move (a quantile, a maximum, a count) has no interval over "
            f"{count} rows: take np.median, the mean of a value per row, or at least {FEW} rows."
        )


def _resampled(arrays: list[np.ndarray], statistic: Callable[..., float], seed: int) -> tuple[float, float]:
    """Interval over row indices, so that any statistic of paired rows can be resampled.

    Resampled rows spread by √(1 − 1/n) too little and by the normal law: the level is raised as the t of a mean asks.
    """
    count = len(arrays[0])
    rows = (np.arange(count),)
    at_once = all(array.ndim == 1 for array in arrays) and _takes_axis(statistic)
    level = float(2 * ndtr(_t(count - 1) * np.sqrt(count / (count - 1))) - 1)

    def of_rows(index: np.ndarray, **axis: int):
        return statistic(*(array[index] for array in arrays), **axis)

    low = high = np.nan
    for method in ("BCa", "percentile"):
        with np.errstate(all="ignore"), warnings.catch_warnings():
            warnings.simplefilter("ignore", stats.DegenerateDataWarning)
            found = stats.bootstrap(
                rows, of_rows, vectorized=at_once, n_resamples=RESAMPLES, confidence_level=level, method=method,
                rng=np.random.default_rng(seed),
            ).confidence_interval  # fmt: skip
        low, high = float(found.low), float(found.high)
        if np.isfinite([low, high]).all():
            break
    return low, high


def _takes_axis(statistic: Callable[..., float]) -> bool:
    try:
        return "axis" in signature(statistic).parameters
    except ValueError:  # some functions written in C do not say
        return False


def paired_difference(a, b, *, seed: int = 0, unit: str = "pairs") -> Estimate:
    """Mean of a − b over pairs, with the interval of `bootstrap`."""
    first, second = _paired(a, b)
    return bootstrap(first - second, seed=seed, unit=unit)


def independent_difference(first: Estimate, second: Estimate) -> Estimate:
    """Difference of two estimates over rows that are not paired, such as other prompts, with its interval from theirs.

    By square and add (Zou and Donner 2008): each end takes the distances to those ends that would move it there.
    """
    value = first.value - second.value
    low = value - np.hypot(first.value - first.low, second.high - second.value)
    high = value + np.hypot(first.high - first.value, second.value - second.low)
    return Estimate(value, float(low), float(high), f"{first.n}; {second.n}")


def ratio_of_sums(numerator, denominator, *, seed: int = 0, unit: str = "samples") -> Estimate:
    """Σ numerator / Σ denominator over rows (nats per token of documents of unequal length), with its interval."""
    return bootstrap(numerator, denominator, statistic=_ratio, seed=seed, unit=unit)


def _ratio(x: np.ndarray, y: np.ndarray, axis: int = -1):
    return x.sum(axis=axis) / y.sum(axis=axis)


def ratio_of_pairs(numerator, denominator, *, unit: str = "pairs") -> Estimate:
    """Typical ratio of positive values measured in pairs, such as times taken in turn.

    From six pairs on the Hodges–Lehmann estimate of the logarithm with its exact signed-rank interval, which one slow
    run does not move; below six, which ranks cannot bound, the geometric mean with Student's t.
    Raises TenfoldError for fewer than two pairs or values that are not positive.
    """
    above, below = _paired(numerator, denominator)
    if min(above.min(), below.min()) <= 0:
        raise TenfoldError("a ratio of pairs needs positive values: a time or a size of 0 says that nothing was done.")
    logs, count = np.log(above / below), len(above)
    if count < RANKED:
        value, (low, high) = float(logs.mean()), _student(logs)
    else:
        walsh = np.sort(np.add.outer(logs, logs)[np.triu_indices(count)] / 2)
        outside = _signed_rank_outside(count)
        value, low, high = float(np.median(walsh)), walsh[outside], walsh[-1 - outside]
    return Estimate(float(np.exp(value)), float(np.exp(low)), float(np.exp(high)), f"{count} {unit}")


@cache
def _signed_rank_outside(count: int) -> int:
    """Number of Walsh averages that a 95 % interval leaves out at each end: the largest k with P(W ≤ k) ≤ .025."""
    ways = np.ones(1)
    for rank in range(1, count + 1):  # sets of ranks by their sum: each rank is in or out
        ways = (np.pad(ways, (0, rank)) + np.pad(ways, (rank, 0))) / 2  # as shares: 2^1024 sets are no float64
    return int(np.searchsorted(np.cumsum(ways / ways.sum()), TAILS[0], side="right")) - 1


def over_seeds(values: Sequence[float] | np.ndarray, *, unit: str = "seeds") -> Estimate:
    """Mean over independent seeds with Student's t interval; raises TenfoldError for fewer than three."""
    array = np.asarray(values, dtype=np.float64)
    if array.size < 3 or not np.isfinite(array).all():
        raise TenfoldError(f"an interval over seeds needs at least 3 finite values, not {array.tolist()}.")
    return Estimate(float(array.mean()), *_student(array), f"{array.size} {unit}")


def crossed(values, *, seed: int = 0, unit: str = "seeds x items") -> Estimate:
    """Mean of values [seeds, items] where every seed is scored on the same items, and both would differ in a rerun.

    Of the two-way random-effects model y = μ + seed + item + rest, with mean squares M of S seeds and I items, Var(ȳ)
    = (M_seed + M_item − M_rest) / SI. Satterthwaite's degrees of freedom for that sum cover 92 % at three seeds; here
    the squares of the t intervals over seeds and over items add up, each at its own degrees of freedom, less the rest
    that one of them counts twice (the smaller reduction is taken, none below zero). So the interval is never narrower
    than that over the seeds' means or over the items' means. Nothing is drawn: `seed` changes nothing.
    Raises TenfoldError for fewer than three seeds or items, or values that are not finite.
    """
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 2 or min(array.shape) < 3 or not np.isfinite(array).all():
        raise TenfoldError(
            f"a crossed interval needs finite values of at least 3 seeds and 3 items, not those of {list(array.shape)}."
        )
    seeds, items = array.shape
    mean, by_seed, by_item = array.mean(), array.mean(axis=1), array.mean(axis=0)
    of_seeds, of_items = items * by_seed.var(ddof=1), seeds * by_item.var(ddof=1)
    rest = ((array - by_seed[:, None] - by_item + mean) ** 2).sum() / ((seeds - 1) * (items - 1))
    wide_seeds, wide_items = _t(seeds - 1) ** 2, _t(items - 1) ** 2
    squared = max(
        wide_seeds * of_seeds + wide_items * max(of_items - rest, 0.0),
        wide_seeds * max(of_seeds - rest, 0.0) + wide_items * of_items,
    )
    half = np.sqrt(squared / array.size)
    return Estimate(float(mean), float(mean - half), float(mean + half), f"{seeds} x {items} {unit}")


def over_runs(values, *, runs: str = "seeds", items: str = "items", seed: int = 0) -> Estimate:
    """Mean of values [runs, items]: `crossed` from three runs on, else over items alone, the runs taken as fixed."""
    array = np.asarray(values, dtype=np.float64)
    if len(array) >= 3:
        return crossed(array, unit=f"{runs} x {items}")
    fixed = f", {runs} fixed at {len(array)}" if len(array) > 1 else ""
    return bootstrap(array.mean(0), seed=seed, unit=f"{items}{fixed}")


def jackknife(left_out: Sequence[float] | np.ndarray, whole: float) -> tuple[float, float]:
    """95 % interval of `whole` from the statistic's values with one group of items left out at a time.

    For statistics that repeated items would distort, such as a number of distinct labels. Raises TenfoldError for
    fewer than three groups.
    """
    values = np.asarray(left_out, dtype=np.float64)
    if values.size < 3:
        raise TenfoldError("a jackknife needs at least three groups to leave out.")
    half = _t(values.size - 1) * np.sqrt((values.size - 1) * values.var())
    return float(whole - half), float(whole + half)


def bootstrap_weights(
    groups: Sequence[str], *, resamples: int = 2_000, seed: int = 0
) -> Float[np.ndarray, "resamples items"]:
    """Weights of items in resamples of whole groups (threads, families), each row summing to 1 [resamples, items].

    Of G groups G − 1 are drawn, so that a mean's draws vary as the mean does (G draws vary by √(1 − 1/G) too little).
    For tens of groups or more. Raises TenfoldError for fewer than two.
    """
    names, member = np.unique(np.asarray(groups), return_inverse=True)
    if len(names) < 2:
        raise TenfoldError("a bootstrap needs at least two independent groups (threads, families).")
    rng = np.random.default_rng(seed)
    counts = rng.multinomial(len(names) - 1, np.full(len(names), 1 / len(names)), size=resamples)
    weights = counts[:, member].astype(np.float64)
    return weights / weights.sum(axis=1, keepdims=True)


def percentiles(draws: Float[np.ndarray, "resamples"]) -> tuple[float, float]:
    """95 % percentile interval of resampled values."""
    low, high = np.quantile(draws, TAILS)
    return float(low), float(high)


def recentred(draws: Float[np.ndarray, "resamples"], value: float) -> Float[np.ndarray, "resamples"]:
    """Draws moved by their bias, so that their mean is the value that they resample."""
    return draws - (draws.mean() - value)
