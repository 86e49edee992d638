"""Estimates with intervals: bootstrap over samples, paired differences, Student's t over a few seeds, both crossed."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from inspect import signature

import numpy as np
from scipy import stats

from lib import TenfoldError

CONFIDENCE = 0.95
RESAMPLES = 9_999


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
    """Bootstrap interval (BCa; percentile where BCa is undefined) of a statistic of one or more paired samples.

    All samples share their first axis: rows are drawn together, so ratios and differences stay paired. A statistic
    that takes `axis` (NumPy's do) is called once for all resamples, which is many times faster.
    Raises TenfoldError for fewer than two rows, unequal lengths or values that are not finite.
    """
    arrays = _paired(*samples)
    value = float(statistic(*arrays))
    low, high = _interval(arrays, statistic, seed)
    return Estimate(value, low, high, f"{len(arrays[0])} {unit}")


def _paired(*samples: Sequence[float] | np.ndarray) -> list[np.ndarray]:
    arrays = [np.asarray(sample, dtype=np.float64) for sample in samples]
    lengths = {len(array) for array in arrays}
    if len(lengths) != 1 or min(lengths) < 2:
        raise TenfoldError(f"a bootstrap needs paired samples of one length of at least 2, not {sorted(lengths)}.")
    if not all(np.isfinite(array).all() for array in arrays):
        raise TenfoldError(
            "a bootstrap needs finite values: a sample holds NaN or infinity; find out where it came from."
        )
    return arrays


def _interval(arrays: list[np.ndarray], statistic: Callable[..., float], seed: int) -> tuple[float, float]:
    """Interval over row indices, so that any statistic of paired rows can be resampled."""
    rows = (np.arange(len(arrays[0])),)
    at_once = all(array.ndim == 1 for array in arrays) and _takes_axis(statistic)

    def of_rows(index: np.ndarray, **axis: int):
        return statistic(*(array[index] for array in arrays), **axis)

    for method in ("BCa", "percentile"):
        with np.errstate(all="ignore"):
            result = _quiet_bootstrap(rows, of_rows, method, seed, at_once)
        low, high = float(result.low), float(result.high)
        if np.isfinite(low) and np.isfinite(high):
            return low, high
    raise TenfoldError(
        "the bootstrap statistic is not finite on resampled rows: use one that is defined on every sample."
    )


def _takes_axis(statistic: Callable[..., float]) -> bool:
    try:
        return "axis" in signature(statistic).parameters
    except ValueError:  # some functions written in C do not say
        return False


def _quiet_bootstrap(rows, of_rows, method: str, seed: int, at_once: bool):
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", stats.DegenerateDataWarning)
        return stats.bootstrap(
            rows, of_rows, vectorized=at_once, n_resamples=RESAMPLES, confidence_level=CONFIDENCE, method=method,
            rng=np.random.default_rng(seed),
        ).confidence_interval  # fmt: skip


def paired_difference(a, b, *, seed: int = 0, unit: str = "pairs") -> Estimate:
    """Mean of a − b over pairs, with its bootstrap interval."""
    first, second = _paired(a, b)
    return bootstrap(first - second, seed=seed, unit=unit)


def ratio_of_sums(numerator, denominator, *, seed: int = 0, unit: str = "samples") -> Estimate:
    """Σ numerator / Σ denominator over rows (nats per token of documents of unequal length), with its interval."""

    def ratio(x, y, axis=-1):
        return x.sum(axis=axis) / y.sum(axis=axis)

    return bootstrap(numerator, denominator, statistic=ratio, seed=seed, unit=unit)


def over_seeds(values: Sequence[float], *, unit: str = "seeds") -> Estimate:
    """Mean over independent seeds with Student's t interval; raises TenfoldError for fewer than three."""
    array = np.asarray(values, dtype=np.float64)
    if array.size < 3 or not np.isfinite(array).all():
        raise TenfoldError(f"an interval over seeds needs at least 3 finite values, not {array.tolist()}.")
    mean, error = float(array.mean()), float(stats.sem(array))
    half = float(stats.t.ppf(0.5 + CONFIDENCE / 2, array.size - 1)) * error
    return Estimate(mean, mean - half, mean + half, f"{array.size} {unit}")


def crossed(values, *, seed: int = 0, unit: str = "seeds x items") -> Estimate:
    """Mean of values [seeds, items] where every seed is scored on the same items; both are resampled.

    The interval counts that other seeds would have drawn otherwise and that other items would have been held out
    (percentile interval of Owen's pigeonhole bootstrap, arXiv:0712.1111, which errs on the wide side). Raises
    TenfoldError for fewer than three seeds or items, or values that are not finite.
    """
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 2 or min(array.shape) < 3 or not np.isfinite(array).all():
        raise TenfoldError(
            f"a crossed interval needs finite values of at least 3 seeds and 3 items, not those of {list(array.shape)}."
        )
    rng = np.random.default_rng(seed)
    rows, columns = (rng.multinomial(n, np.full(n, 1 / n), size=RESAMPLES) / n for n in array.shape)
    means = np.einsum("rs,sp,rp->r", rows, array, columns, optimize=True)
    low, high = np.quantile(means, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return Estimate(float(array.mean()), float(low), float(high), f"{array.shape[0]} x {array.shape[1]} {unit}")
