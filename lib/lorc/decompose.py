"""Low-rank factors of one key or value projection (the truncated SVD of arXiv:2410.03111).

Symbols: with transformers' `weight` = W^T in R^{m x D}, SVD gives W^T = U S V^T; `up` = U_r (the paper's right factor,
absorbed into W_o or used to reconstruct K) and `down` = S_r V_r^T = U_r^T W^T, so that `down @ x` is the cached latent.
Since U is orthonormal, truncation is a projection of the outputs; a `Basis` holds all of U, and a rank takes its head.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

Granularity = Literal["joint", "head"]


@dataclass(frozen=True)
class Factors:
    """Two factors whose product stands for one projection (the low-rank form of arXiv:2410.03111).

    `down` makes the latent of a hidden state, `up` makes the key or value of a latent.
    """

    down: Float[Tensor, "rank in"]
    up: Float[Tensor, "out rank"]

    @property
    def rank(self) -> int:
        """Numbers cached per token."""
        return self.down.shape[0]

    def product(self) -> Float[Tensor, "out in"]:
        """Return the projection that the factors stand for, in their dtype."""
        return self.up @ self.down


@dataclass(frozen=True)
class Basis:
    """A full, ordered basis of one projection's outputs, one per group of heads, in float64.

    `up[g] @ down[g]` is the whole weight of group g, and the first r columns and rows are its best factors of rank r.
    `singular_values` are those of the weight (or of the weighted weight when moments were given), largest first.
    """

    up: Float[Tensor, "groups size size"]
    down: Float[Tensor, "groups size in"]
    singular_values: Float[Tensor, "groups size"]

    def factors(self, rank: int, *, dtype: torch.dtype | None = None) -> Factors:
        """Return the factors of total rank `rank` (block-diagonal `up` when there is a group per head).

        Raises ValueError where the rank is outside 1..width or is not a multiple of the groups.
        """
        groups, size = self.singular_values.shape
        if not 1 <= rank <= groups * size or rank % groups:
            raise ValueError(f"rank must be a multiple of {groups} between {groups} and {groups * size}, got {rank}")
        each = rank // groups
        up = torch.block_diag(*self.up[:, :, :each])
        return Factors(down=self.down[:, :each].reshape(rank, -1).to(dtype), up=up.to(dtype))


def basis(
    weight: Float[Tensor, "out in"],
    *,
    groups: int = 1,
    input_root: Float[Tensor, "in in"] | None = None,
    output_root: Float[Tensor, "out out"] | None = None,
) -> Basis:
    """Return the ordered basis of a projection: the SVD of each group of rows of G W L, in float64.

    Without roots this is the plain SVD of arXiv:2410.03111. Extension: `input_root` L with L L^T = E[x x^T] weighs the
    error by the inputs, `output_root` G with G^T G = the metric of the outputs weighs it by what they do to the loss.
    Raises ValueError for a weight with NaN or infinity, or for groups that do not divide its rows.
    """
    if not torch.isfinite(weight).all():
        raise ValueError("the weight holds NaN or infinite values: load the checkpoint again")
    if groups < 1 or weight.shape[0] % groups:
        raise ValueError(f"{weight.shape[0]} output rows cannot be split into {groups} equal groups")
    exact = weight.double()
    rows = exact.reshape(groups, weight.shape[0] // groups, weight.shape[1])
    parts = [_group_basis(rows[g], input_root, _block(output_root, g, rows.shape[1])) for g in range(groups)]
    up, down, values = (torch.stack(part) for part in zip(*parts, strict=True))
    return Basis(up=up, down=down, singular_values=values)


def decompose(
    weight: Float[Tensor, "out in"],
    rank: int,
    *,
    granularity: str = "joint",
    heads: int = 1,
) -> Factors:
    """Return the truncated SVD of a projection in its dtype (arXiv:2410.03111; computed in float64).

    `granularity="joint"` treats all heads as one matrix; `"head"` splits the rows into `heads` and gives each head
    rank / heads. Raises ValueError for a rank outside 1..min(out, in), or one that `heads` does not divide.
    """
    rows, columns = weight.shape
    if not 1 <= rank <= min(rows, columns):
        raise ValueError(f"rank must be in 1..{min(rows, columns)} for a {rows} x {columns} weight, got {rank}")
    groups = heads if check_granularity(granularity) == "head" else 1
    return basis(weight, groups=groups).factors(rank, dtype=weight.dtype)


def check_granularity(granularity: str) -> Granularity:
    """Return the granularity, or raise ValueError for other names than `joint` and `head`."""
    if granularity not in ("joint", "head"):
        raise ValueError(f"granularity must be 'joint' or 'head', got {granularity!r}")
    return granularity


def _block(root: Tensor | None, group: int, size: int) -> Tensor | None:
    if root is None:
        return None
    # A metric of one group's outputs is the diagonal block of G^T G, not of G.
    start = group * size
    metric = (root.double().T @ root.double())[start : start + size, start : start + size]
    return torch.linalg.cholesky(metric).T


def _group_basis(
    weight: Tensor, input_root: Tensor | None, output_root: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    weighted = weight if output_root is None else output_root @ weight
    weighted = weighted if input_root is None else weighted @ input_root.double()
    left, values, _ = torch.linalg.svd(weighted, full_matrices=weighted.shape[0] > weighted.shape[1])
    values = torch.nn.functional.pad(values, (0, weight.shape[0] - values.shape[0]))
    if output_root is None:
        return left, left.T @ weight, values
    # G^-1 U_r U_r^T G W is the rank-r weight nearest to W in the metric G^T G.
    return torch.linalg.solve(output_root, left), left.T @ (output_root @ weight), values
