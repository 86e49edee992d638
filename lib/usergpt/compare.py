"""Users against benchmarks: shares with intervals over conversations, and how far two distributions are apart.

Shares of users come from an annotator that errs. `rectified` corrects them by what it does on labelled conversations
(prediction-powered inference, arXiv:2301.09633, with the power tuning of arXiv:2311.01453): unbiased whatever the
annotator is worth, and narrower than the labels alone the better it is. Resampling is over threads, not their parts.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from jaxtyping import Float
from scipy.special import rel_entr

from lib.core.statistics import bootstrap_weights, percentiles, recentred
from lib.usergpt.similarity import indicator
from lib.usergpt.taxonomy import GoldLabel, Kind

RESAMPLES = 2_000


@dataclass(frozen=True)
class Population:
    """Shares of labels in a population: point [labels], bootstrap draws [resamples, labels], and what they rest on."""

    codes: tuple[str, ...]
    point: np.ndarray
    draws: np.ndarray
    n: str

    def of(self, codes: Sequence[str]) -> tuple[float, float, float]:
        """Sum of some labels' shares with its 95 % interval."""
        columns = [self.codes.index(code) for code in codes]
        return float(self.point[columns].sum()), *percentiles(self.draws[:, columns].sum(axis=1))


def labelled(
    labels: Float[np.ndarray, "items labels"], groups: Sequence[str], codes: Sequence[str], *, unit: str, seed: int = 0
) -> Population:
    """Give the shares of labels that are known for a sample, one row an item."""
    draws = bootstrap_weights(groups, seed=seed) @ labels
    return Population(tuple(codes), labels.mean(axis=0), draws, f"{len(labels)} {unit}")


def balanced(populations: Sequence[Population]) -> Population:
    """Average populations of the same labels with equal weight, so that the largest collection is not all there is."""
    point = np.mean([population.point for population in populations], axis=0)
    draws = np.mean([population.draws for population in populations], axis=0)
    return Population(populations[0].codes, point, draws, " and ".join(population.n for population in populations))


def rectified(
    predicted: Float[np.ndarray, "all labels"],
    groups: Sequence[str],
    gold: Float[np.ndarray, "some labels"],
    gold_predicted: Float[np.ndarray, "some labels"],
    gold_groups: Sequence[str],
    codes: Sequence[str],
    *,
    seed: int = 0,
) -> Population:
    """Give shares from an annotator's predictions on many items, corrected by its errors on few labelled ones.

    `gold_predicted` must come from a fit that did not see the item. The weight of the predictions is tuned for each
    label to the least variance (0: labels alone).
    """
    power = _power(gold, gold_predicted, len(predicted))
    point = gold.mean(axis=0) + power * (predicted.mean(axis=0) - gold_predicted.mean(axis=0))
    many = bootstrap_weights(groups, seed=seed) @ predicted
    few = bootstrap_weights(gold_groups, seed=seed + 1)
    draws = few @ gold + power * (many - few @ gold_predicted)
    return Population(tuple(codes), point, draws, f"{len(gold)} labelled, {len(predicted)} predicted conversations")


def _power(gold: np.ndarray, predicted: np.ndarray, many: int) -> np.ndarray:
    centred = predicted - predicted.mean(axis=0)
    shared = (centred * (gold - gold.mean(axis=0))).mean(axis=0)
    spread = (centred**2).mean(axis=0) * (1 + len(gold) / many)
    return np.clip(np.divide(shared, spread, out=np.zeros_like(shared), where=spread > 0), 0.0, 1.0)


def distribution(labels: Float[np.ndarray, "items labels"]) -> Float[np.ndarray, "items labels"]:
    """Take each item's labels as equal parts of one (none stays none), so that shares add up to one."""
    total = labels.sum(axis=1, keepdims=True)
    return np.divide(labels, total, out=np.zeros_like(labels), where=total > 0)


def of_collections(
    collections: Mapping[str, Sequence[GoldLabel]],
    kind: Kind,
    codes: Sequence[str],
    *,
    each=distribution,
    seed: int = 0,
) -> Population:
    """Give benchmarks' shares: each collection with equal weight, and its families within it."""
    parts = [
        labelled(each(indicator(rows, codes, kind)), [r.id for r in rows], codes, unit=f"families of {name}", seed=seed)
        for name, rows in collections.items()
    ]
    return balanced(parts)


def jensen_shannon(p: np.ndarray, q: np.ndarray) -> np.ndarray:
    """Give the Jensen–Shannon divergence in bits (0: equal, 1: disjoint) of distributions along the last axis.

    Negative shares, which a correction can give, count as none; both are brought to sum 1.
    """
    p, q = (np.clip(x, 0.0, None) for x in (p, q))
    p, q = (x / x.sum(axis=-1, keepdims=True) for x in (p, q))
    nats = (rel_entr(p, (p + q) / 2) + rel_entr(q, (p + q) / 2)).sum(axis=-1) / 2
    return np.asarray(np.clip(nats / np.log(2), 0.0, 1.0))


@dataclass(frozen=True)
class Divergence:
    """A divergence in bits, its bootstrap draws, and its 95 % interval."""

    value: float
    draws: np.ndarray

    @property
    def ci(self) -> tuple[float, float]:
        """95 % interval."""
        return percentiles(self.draws)


def divergence(first: Population, second: Population) -> Divergence:
    """Give the Jensen–Shannon divergence of two populations of `distribution` shares, with its interval.

    Sampling inflates a divergence (it cannot fall below 0), and resampling does so again: the draws are moved by that
    second bias, so that the interval is about what samples of these sizes show on average. That is above the divergence
    of the populations themselves: compare it with `resampling_null`, or with samples of like sizes, and not with 0.
    """
    value = float(jensen_shannon(first.point, second.point))
    count = min(len(first.draws), len(second.draws))
    draws = jensen_shannon(first.draws[:count], second.draws[:count])
    return Divergence(value, recentred(draws, value))


def resampling_null(
    first: Float[np.ndarray, "some labels"],
    second: Float[np.ndarray, "others labels"],
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Float[np.ndarray, "resamples"]:
    """Give divergences between two random parts of the pooled items, of the sizes of the two samples [resamples]."""
    pooled, size = np.concatenate([first, second]), len(first)
    rng = np.random.default_rng(seed)
    values = np.empty(resamples)
    for i in range(resamples):
        order = rng.permutation(len(pooled))
        values[i] = jensen_shannon(pooled[order[:size]].mean(axis=0), pooled[order[size:]].mean(axis=0))
    return values


def share_table(
    users: Population, benchmarks: Population, names: dict[str, str], paper: dict[str, float]
) -> pd.DataFrame:
    """Lay out users' and benchmarks' shares and their difference, with intervals, beside the paper's shares."""
    count = min(len(users.draws), len(benchmarks.draws))
    rows = []
    for place, code in enumerate(users.codes):
        value, low, high = users.of([code])
        other, other_low, other_high = benchmarks.of([code])
        gap = users.draws[:count, place] - benchmarks.draws[:count, benchmarks.codes.index(code)]
        gap_low, gap_high = percentiles(gap)
        rows.append(
            {
                "code": code, "name": names[code], "users": value, "low": low, "high": high,
                "benchmarks": other, "benchmarks_low": other_low, "benchmarks_high": other_high,
                "difference": value - other, "difference_low": gap_low, "difference_high": gap_high,
                "paper": paper.get(code, np.nan),
            }
        )  # fmt: skip
    return pd.DataFrame(rows)
