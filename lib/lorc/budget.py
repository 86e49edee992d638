"""How many dimensions each layer keeps: the spectra of W_k and W_v, and the rank budgets of arXiv:2410.03111.

Symbols: kappa(W) = sigma_max / sigma_min; kappa-tilde of layer l is the product of kappa(W_k^j) kappa(W_v^j) over
j = l..L. Products overflow, so all of it is the natural logarithm in float64. `width` = m, the full rank; `keep` = the
mean of d_c^l / m over layers. The progressive strategy is d_c^l = d_max [1 - t_l (1 - d_min / d_max)], where t_l in
[0, 1] is how far log kappa-tilde of layer l has fallen from the largest to the smallest.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor, nn

from lib.lorc.configuration import MATRICES, Matrix, Plan, attentions, check_matrices, projection

RELATIVE_EPSILON = 1e-10


@dataclass(frozen=True)
class Spectra:
    """Singular values of every W_k and W_v, largest first."""

    k: Float[Tensor, "layers values"]
    v: Float[Tensor, "layers values"]

    def of(self, matrix: Matrix) -> Float[Tensor, "layers values"]:
        """Return the singular values of one of the two matrices."""
        return self.k if matrix == "k" else self.v

    def log_condition_numbers(self) -> Float[Tensor, " layers"]:
        """Return log kappa(W_k) + log kappa(W_v) of each layer, in nats."""
        return log_condition_numbers(self.k) + log_condition_numbers(self.v)

    def frame(self) -> pd.DataFrame:
        """Return one row per layer, matrix and index, with its singular value."""
        layers, count = self.k.shape
        names = ["layer", "matrix", "index"]
        parts = []
        for matrix in MATRICES:
            index = pd.MultiIndex.from_product([range(layers), [matrix], range(count)], names=names)
            values = self.of(matrix).cpu().reshape(-1).numpy()
            parts.append(pd.DataFrame({"singular_value": values}, index=index).reset_index())
        return pd.concat(parts, ignore_index=True)


def singular_values(model: nn.Module) -> Spectra:
    """Return the singular values of every W_k and W_v of a model, in float64.

    Raises ValueError on the `meta` device, where there are no weights to decompose.
    """
    values: dict[Matrix, list[Tensor]] = {"k": [], "v": []}
    for attention in attentions(model):
        for matrix in MATRICES:
            weight = projection(attention, matrix).weight.detach()
            if weight.is_meta:
                raise ValueError("the model is on the meta device and has no weights: load it, or use a uniform plan")
            sigma = torch.linalg.svdvals(weight.double())
            # A projection with more outputs than inputs has fewer values than its width; the rest are zero.
            values[matrix].append(nn.functional.pad(sigma, (0, weight.shape[0] - sigma.shape[0])))
    return Spectra(k=torch.stack(values["k"]), v=torch.stack(values["v"]))


def log_condition_numbers(values: Float[Tensor, "layers values"]) -> Float[Tensor, " layers"]:
    """Return log(sigma_max / sigma_min) of each row of singular values, in nats.

    sigma_min is the smallest value above 1e-10 of the largest, so that a rank-deficient weight has a finite condition
    number. Raises ValueError for a row without a positive value.
    """
    values = values.double()
    largest = values.amax(dim=-1, keepdim=True)
    if (largest <= 0).any():
        raise ValueError("a projection has no positive singular value: its weight is zero")
    counted = values.masked_fill(values <= RELATIVE_EPSILON * largest, torch.inf)
    return largest.squeeze(-1).log() - counted.amin(dim=-1).log()


def cumulative_log_condition(log_conditions: Float[Tensor, " layers"]) -> Float[Tensor, " layers"]:
    """Return log kappa-tilde: the sum of the log condition numbers from each layer to the last, in nats."""
    return log_conditions.double().flip(0).cumsum(0).flip(0)


def uniform(layers: int, width: int, *, keep: float | int, matrices: Sequence[str] = MATRICES, step: int = 1) -> Plan:
    """Keep the same rank in every layer (the baseline of arXiv:2410.03111).

    Where `keep` is no whole rank, the first layers take one `step` more, so that the total is exact.
    Raises ValueError for a `keep` outside (0, 1].
    """
    ranks = _spread(np.full(layers, keep * width), width=width, step=step, keep=keep)
    return _plan_of(ranks, width, matrices, step)


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
    cumulative = cumulative_log_condition(log_conditions).cpu().numpy()
    span = cumulative.max() - cumulative.min()
    # t_l; a single layer, or condition numbers of 1 everywhere, leave nothing to tell the layers apart by.
    fall = (cumulative.max() - cumulative) / span if span > 0 else np.zeros_like(cumulative)
    largest, smallest = _ends(fall, width=width, keep=keep, step=step)
    ranks = _spread(largest - fall * (largest - smallest), width=width, step=step, keep=keep)
    return _plan_of(ranks[::-1] if reverse else ranks, width, matrices, step)


def energy(spectra: Spectra, *, keep: float | int, matrices: Sequence[str] = MATRICES, step: int = 1) -> Plan:
    """Keep the same share eta of the squared singular values in every matrix (energy criterion).

    eta is the one at which the total rank meets `keep`: the values with the least energy above them go in first.
    Raises ValueError for a `keep` outside (0, 1].
    """
    chosen = check_matrices(matrices)
    squares = torch.stack([spectra.of(matrix) for matrix in chosen]).double().square()
    before = (squares.cumsum(-1) - squares) / squares.sum(-1, keepdim=True)
    return _in_order(before.cpu().numpy(), chosen, keep=keep, step=step)


def by_gain(
    gains: dict[Matrix, Float[Tensor, "layers values"]], *, keep: float | int, step: int = 1, floor: int = 1
) -> Plan:
    """Spend one budget over all K and V matrices where a dimension is worth most (an extension of arXiv:2410.03111).

    `gains[matrix][l, i]` is what the (i+1)-th dimension of that layer saves, non-increasing in i; one `keep` is spent
    over all matrices named, each taking at least `floor` dimensions. Raises ValueError for a `keep` outside (0, 1].
    """
    chosen = check_matrices(tuple(gains))
    losses = -torch.stack([gains[matrix] for matrix in chosen]).double().cpu().numpy()
    losses[..., :floor] = -np.inf
    return _in_order(losses, chosen, keep=keep, step=step)


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
    (small,) = _spread(np.array([keep * width]), width=width, step=step, keep=keep)
    return _plan_of([small if layer in compressed else width for layer in range(layers)], width, matrices, step)


def _spread(targets: np.ndarray, *, width: int, step: int, keep: float | int) -> list[int]:
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


def _in_order(keys: np.ndarray, matrices: tuple[Matrix, ...], *, keep: float | int, step: int) -> Plan:
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


def _plan_of(ranks: Sequence[int], width: int, matrices: Sequence[str], step: int) -> Plan:
    """Give the ranks to the matrices named, the full width to the other."""
    chosen, full = check_matrices(matrices), (width,) * len(ranks)
    return Plan(tuple(ranks) if "k" in chosen else full, tuple(ranks) if "v" in chosen else full, width, step)
