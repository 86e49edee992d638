"""How many dimensions each layer keeps (the rank budgets of arXiv:2410.03111).

Symbols: `ranks_k[l]`, `ranks_v[l]` = d_c^l; `width` = m, the full rank; `keep` = the mean of d_c^l / m over layers.
The progressive strategy is d_c^l = d_max [1 - t_l (1 - d_min / d_max)], where t_l in [0, 1] is how far the log
cumulative condition number of layer l has fallen from the largest to the smallest.
"""

from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from lib.lorc.architecture import MATRICES, Matrix, check_matrices
from lib.lorc.spectra import Spectra, cumulative_log_condition


@dataclass(frozen=True)
class Plan:
    """Ranks to keep per layer; a rank equal to `width` leaves that projection as it is.

    Every rank is the number of values that one token caches for that layer and matrix. Raises ValueError for ranks
    outside 1..width, for lists of different length, or ranks that are not multiples of `step`.
    """

    ranks_k: tuple[int, ...]
    ranks_v: tuple[int, ...]
    width: int
    step: int = 1

    def __post_init__(self) -> None:
        """Check the ranks."""
        counts = len(self.ranks_k), len(self.ranks_v)
        if not self.ranks_k or counts[0] != counts[1]:
            raise ValueError(f"a plan needs one k and one v rank per layer, got {counts[0]} and {counts[1]}")
        if self.step < 1 or self.width % self.step:
            raise ValueError(f"the step {self.step} does not divide the width {self.width}: use a divisor of it")
        bad = [rank for rank in (*self.ranks_k, *self.ranks_v) if not 1 <= rank <= self.width or rank % self.step]
        if bad:
            raise ValueError(f"rank {bad[0]} is not a multiple of {self.step} between {self.step} and {self.width}")

    @property
    def layers(self) -> int:
        """Number of layers."""
        return len(self.ranks_k)

    @property
    def total(self) -> int:
        """Numbers that one token caches in all layers."""
        return sum(self.ranks_k) + sum(self.ranks_v)

    @property
    def kept(self) -> float:
        """Fraction of the full cache that is kept, K and V together."""
        return self.total / (2 * self.layers * self.width)

    def ranks(self, matrix: Matrix) -> tuple[int, ...]:
        """Return the ranks of W_k or W_v."""
        return self.ranks_k if matrix == "k" else self.ranks_v

    def bytes_per_token(self, itemsize: int = 2) -> int:
        """Return the bytes that one token caches in all layers: sum of (r_k + r_v) x itemsize."""
        return self.total * itemsize

    def frame(self) -> pd.DataFrame:
        """Return one row per layer with its ranks and kept fractions."""
        frame = pd.DataFrame({"layer": range(self.layers), "rank_k": self.ranks_k, "rank_v": self.ranks_v})
        return frame.assign(kept_k=frame["rank_k"] / self.width, kept_v=frame["rank_v"] / self.width)

    def as_dict(self) -> dict[str, Any]:
        """Return the plan as plain values for a config or a JSON file (`Plan(**values)` reads it back)."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}


def uniform(layers: int, width: int, *, keep: float | int, matrices: Sequence[str] = MATRICES, step: int = 1) -> Plan:
    """Keep the same rank in every layer (the baseline of arXiv:2410.03111).

    Where `keep` is no whole rank, the first layers take one `step` more, so that the total is exact.
    Raises ValueError for a `keep` outside (0, 1].
    """
    return _assemble(spread(np.full(layers, keep * width), width=width, step=step, keep=keep), width, matrices, step)


def progressive(
    log_conditions: Float[Tensor, " layers"],
    width: int,
    *,
    keep: float | int,
    reverse: bool = False,
    matrices: Sequence[str] = MATRICES,
    step: int = 1,
) -> Plan:
    """Keep more in layers whose errors travel further (progressive strategy of arXiv:2410.03111).

    `log_conditions` are log kappa(W_k) + log kappa(W_v) per layer. K and V of a layer get one rank, as in the paper;
    d_max is the width and d_min is set to meet `keep`; where even d_min = 1 `step` keeps too much, d_max falls instead.
    `reverse` gives the ranks in the opposite order, as a control. Raises ValueError for a `keep` outside (0, 1].
    """
    _check_keep(keep)
    fall = fall_of_cumulative_condition(log_conditions)
    largest, smallest = _ends(fall, width=width, keep=keep, step=step)
    ranks = spread(largest - fall * (largest - smallest), width=width, step=step, keep=keep)
    return _assemble(ranks[::-1] if reverse else ranks, width, matrices, step)


def energy(spectra: Spectra, *, keep: float | int, matrices: Sequence[str] = MATRICES, step: int = 1) -> Plan:
    """Keep the same share eta of the squared singular values in every matrix (energy criterion).

    eta is the one at which the total rank meets `keep`: the values with the least energy above them go in first.
    Raises ValueError for a `keep` outside (0, 1].
    """
    chosen = check_matrices(matrices)
    squares = torch.stack([spectra.of(matrix) for matrix in chosen]).double().square()
    before = (squares.cumsum(-1) - squares) / squares.sum(-1, keepdim=True)
    return _from_keys(before.cpu().numpy(), chosen, keep=keep, step=step)


def by_gain(
    gains: dict[Matrix, Float[Tensor, "layers values"]], *, keep: float | int, step: int = 1, floor: int = 1
) -> Plan:
    """Spend one budget over all K and V matrices where a dimension is worth most (an extension of arXiv:2410.03111).

    `gains[matrix][l, i]` is what the (i+1)-th dimension of that layer saves, non-increasing in i; one `keep` is spent
    over all matrices named, each taking at least `floor` dimensions. Raises ValueError for a `keep` outside (0, 1].
    """
    chosen = check_matrices(tuple(gains))
    keys = -torch.stack([gains[matrix] for matrix in chosen]).double().cpu().numpy()
    keys[..., :floor] = -np.inf
    return _from_keys(keys, chosen, keep=keep, step=step)


def only_layers(
    layers: int,
    width: int,
    *,
    compressed: Collection[int],
    keep: float | int,
    matrices: Sequence[str] = MATRICES,
    step: int = 1,
) -> Plan:
    """Compress the layers named to `keep` and leave the rest full (single-layer sensitivity of arXiv:2410.03111).

    Raises ValueError for a layer that does not exist, or a `keep` outside (0, 1].
    """
    missing = [layer for layer in compressed if not 0 <= layer < layers]
    if missing or not compressed:
        raise ValueError(f"name at least one layer between 0 and {layers - 1} to compress, got {sorted(compressed)}")
    small = int(spread(np.array([keep * width]), width=width, step=step, keep=keep)[0])
    return _assemble([small if layer in compressed else width for layer in range(layers)], width, matrices, step)


def fall_of_cumulative_condition(log_conditions: Float[Tensor, " layers"]) -> np.ndarray:
    """Return t_l: how far log kappa-tilde of each layer has fallen from the largest (0) to the smallest (1).

    A single layer, or condition numbers of 1 everywhere, give zeros: there is nothing to tell the layers apart by.
    """
    cumulative = cumulative_log_condition(log_conditions).cpu().numpy()
    span = cumulative.max() - cumulative.min()
    return (cumulative.max() - cumulative) / span if span > 0 else np.zeros_like(cumulative)


def spread(targets: np.ndarray, *, width: int, step: int, keep: float | int) -> list[int]:
    """Round real ranks to multiples of `step` so that their sum is the multiple nearest to keep x layers x width.

    Largest remainders go up first and earlier layers win ties, so a non-increasing list stays non-increasing.
    """
    _check_keep(keep)
    units = np.clip(np.asarray(targets, dtype=np.float64) / step, 1, width // step)
    total = min(max(round(keep * len(units) * width / step), len(units)), len(units) * (width // step))
    whole = np.floor(units + 1e-9)
    while whole.sum() != total:
        # The layer furthest below (or above) its target moves; ties go to the shallowest (deepest) one.
        if whole.sum() < total:
            whole[np.where(whole < width // step, units - whole, -np.inf).argmax()] += 1
        else:
            whole[len(whole) - 1 - np.where(whole > 1, whole - units, -np.inf)[::-1].argmax()] -= 1
    return [int(unit) * step for unit in whole]


def _check_keep(keep: float | int) -> None:
    if not 0 < keep <= 1:
        raise ValueError(f"keep is the fraction of the cache to keep and must be in (0, 1], got {keep}")


def _ends(fall: np.ndarray, *, width: int, keep: float | int, step: int) -> tuple[float, float]:
    # The mean rank d_max - mean(t) (d_max - d_min) is linear in both ends, so the target is met in closed form.
    mean_fall, target = float(fall.mean()), keep * width
    if mean_fall == 0:
        return target, target
    smallest = width - (width - target) / mean_fall
    if smallest >= step:
        return float(width), smallest
    return (target - mean_fall * step) / (1 - mean_fall), float(step)


def _from_keys(keys: np.ndarray, matrices: tuple[Matrix, ...], *, keep: float | int, step: int) -> Plan:
    """Take dimensions in ascending order of `keys` [matrices, layers, width] until the budget is spent."""
    _check_keep(keep)
    count, layers, width = keys.shape
    cells = count * layers
    # A step of several dimensions is worth the mean of their keys; the first step of each matrix is always taken.
    with np.errstate(invalid="ignore"):
        blocks = keys.reshape(cells, width // step, step).mean(-1)
    blocks[:, 0] = -np.inf
    order = np.argsort(np.maximum.accumulate(blocks, axis=1), axis=None, kind="stable")
    total = min(max(round(keep * cells * width / step), cells), blocks.size)
    taken = np.bincount(order[:total] // blocks.shape[1], minlength=cells).reshape(count, layers) * step
    ranks: dict[Matrix, tuple[int, ...]] = {matrix: (width,) * layers for matrix in MATRICES}
    ranks.update({matrix: tuple(map(int, taken[row])) for row, matrix in enumerate(matrices)})
    return Plan(ranks_k=ranks["k"], ranks_v=ranks["v"], width=width, step=step)


def _assemble(ranks: Sequence[int], width: int, matrices: Sequence[str], step: int) -> Plan:
    chosen, full = check_matrices(matrices), (width,) * len(ranks)
    compressed = tuple(int(rank) for rank in ranks)
    return Plan(compressed if "k" in chosen else full, compressed if "v" in chosen else full, width, step)
