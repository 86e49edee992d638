"""Singular values and condition numbers of W_k and W_v, layer by layer (the progressive strategy of arXiv:2410.03111).

Symbols: kappa(W) = sigma_max / sigma_min; the cumulative condition number of layer l is the product of
kappa(W_k^j) kappa(W_v^j) over j = l..L. Products overflow, so everything here is the natural logarithm in float64.
"""

from dataclasses import dataclass

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor, nn

from lib.lorc.architecture import MATRICES, Matrix, attentions, projection

RELATIVE_EPSILON = 1e-10


@dataclass(frozen=True)
class Spectra:
    """Singular values of every W_k and W_v, largest first (arXiv:2410.03111)."""

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
        parts = []
        for matrix in MATRICES:
            values = self.of(matrix).cpu()
            layers, count = values.shape
            names = ["layer", "matrix", "index"]
            index = pd.MultiIndex.from_product([range(layers), [matrix], range(count)], names=names)
            parts.append(pd.DataFrame({"singular_value": values.reshape(-1).numpy()}, index=index).reset_index())
        return pd.concat(parts, ignore_index=True)


def singular_values(model: nn.Module) -> Spectra:
    """Return the singular values of every W_k and W_v of a model, in float64.

    Raises ValueError on the `meta` device, where there are no weights to decompose.
    """
    found: dict[Matrix, list[Tensor]] = {"k": [], "v": []}
    for attention in attentions(model):
        for matrix in MATRICES:
            weight = projection(attention, matrix).weight.detach()
            if weight.is_meta:
                raise ValueError("the model is on the meta device and has no weights: load it, or use a uniform plan")
            values = torch.linalg.svdvals(weight.double())
            # A projection with more outputs than inputs has fewer values than its width; the rest are zero.
            found[matrix].append(nn.functional.pad(values, (0, weight.shape[0] - values.shape[0])))
    return Spectra(k=torch.stack(found["k"]), v=torch.stack(found["v"]))


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
    """Return the log of the cumulative condition number: the sum from each layer to the last, in nats."""
    return log_conditions.double().flip(0).cumsum(0).flip(0)
