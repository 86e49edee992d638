"""Low-rank factors of W_k and W_v: of one projection, and of a whole model at once (the SVD of arXiv:2410.03111).

Symbols: with transformers' `weight` = W^T in R^{m x D}, SVD gives W^T = U S V^T; `up` = U_r (the paper's right factor,
absorbed into W_o or used to reconstruct K) and `down` = S_r V_r^T = U_r^T W^T, so that `down @ x` is the cached latent.
Since U is orthonormal, truncation is a projection of the outputs; a `Basis` holds all of U, and a rank takes its head.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from lib.lorc.budget import Spectra
from lib.lorc.calibration import Calibration
from lib.lorc.configuration import (
    MATRICES,
    Granularity,
    Matrix,
    Plan,
    attentions,
    check_matrices,
    geometry,
    head_groups,
    projection,
)


@dataclass(frozen=True)
class Factors:
    """Two factors whose product stands for one projection.

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
    """A full, ordered basis of one projection's outputs, one per group of heads.

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
    rows = weight.double().reshape(groups, weight.shape[0] // groups, weight.shape[1])
    parts = [_group_basis(rows[g], input_root, _block(output_root, g, rows.shape[1])) for g in range(groups)]
    up, down, values = (torch.stack(part) for part in zip(*parts, strict=True))
    return Basis(up=up, down=down, singular_values=values)


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


def decompose(weight: Float[Tensor, "out in"], rank: int, *, groups: int = 1) -> Factors:
    """Return the truncated SVD of a projection in its dtype (arXiv:2410.03111; computed in float64).

    All heads are one matrix, or split into `groups` with rank / groups each. Raises ValueError for a rank outside
    1..min(out, in), or one that `groups` does not divide.
    """
    rows, columns = weight.shape
    if not 1 <= rank <= min(rows, columns):
        raise ValueError(f"rank must be in 1..{min(rows, columns)} for a {rows} x {columns} weight, got {rank}")
    return basis(weight, groups=groups).factors(rank, dtype=weight.dtype)


@dataclass(frozen=True)
class Decomposition:
    """The full basis of every W_k and W_v of one model, so that many plans cost one SVD (arXiv:2410.03111).

    Held in float32 on the CPU: 4 x (m D + m^2) bytes per matrix. `weighted` says that gradients weigh the
    errors too, so that half the squared singular values are nats and can be compared between matrices.
    """

    k: tuple[Basis, ...]
    v: tuple[Basis, ...]
    weighted: bool = False

    def of(self, matrix: Matrix) -> tuple[Basis, ...]:
        """Return the bases of W_k or W_v, one per layer."""
        return self.k if matrix == "k" else self.v

    @property
    def groups(self) -> int:
        """Number of groups of heads with a basis each."""
        return self.k[0].singular_values.shape[0]

    @property
    def spectra(self) -> Spectra:
        """Return the singular values of every matrix in the order in which ranks take them (head by head in turn)."""
        k, v = (torch.stack([each.singular_values.T.flatten() for each in self.of(matrix)]) for matrix in MATRICES)
        return Spectra(k=k, v=v)

    def low_rank_weight(self, matrix: Matrix, layer: int, rank: int) -> Float[Tensor, "width hidden"]:
        """Return the low-rank stand-in of one weight, multiplied out in float64."""
        return self.of(matrix)[layer].factors(rank, dtype=torch.float64).product()


def decompose_model(
    model: nn.Module, *, granularity: Granularity = "joint", calibration: Calibration | None = None
) -> Decomposition:
    """Decompose every W_k and W_v of a model once (in float64, kept in float32).

    Without options this is the paper's plain SVD over all heads; `granularity` is "joint", "head", or the number of
    heads that share a basis. Extension: `calibration` weighs errors by real inputs (and by the loss where it holds
    gradients). Raises ValueError for an unsupported or compressed model, or one on the `meta` device.
    """
    groups = head_groups(granularity, geometry(model).kv_heads)
    bases: dict[Matrix, list[Basis]] = {"k": [], "v": []}
    for layer, attention in enumerate(attentions(model)):
        root = calibration.input_root(layer) if calibration else None
        for matrix in MATRICES:
            weight = projection(attention, matrix).weight.detach()
            if weight.is_meta:
                raise ValueError("the model is on the meta device and has no weights: load it before decomposing it")
            metric = calibration.output_root(matrix, layer) if calibration else None
            full = basis(weight, groups=groups, input_root=root, output_root=metric)
            bases[matrix].append(Basis(*(part.float().cpu() for part in (full.up, full.down, full.singular_values))))
    weighted = calibration is not None and calibration.gradients is not None
    return Decomposition(k=tuple(bases["k"]), v=tuple(bases["v"]), weighted=weighted)


def check_plan(model: nn.Module, plan: Plan, *, groups: int) -> None:
    """Raise ValueError where a plan has other layers or another width than the model, or uneven ranks.

    `groups` is the number of groups of heads that have a basis each and share every rank.
    """
    sizes = geometry(model)
    if plan.layers != sizes.layers:
        raise ValueError(f"the plan has ranks for {plan.layers} layers but the model has {sizes.layers}")
    if plan.width != sizes.width:
        raise ValueError(f"the plan is for projections of width {plan.width} but the model's have {sizes.width}")
    uneven = [rank for rank in (*plan.ranks_k, *plan.ranks_v) if rank % groups]
    if uneven:
        raise ValueError(f"rank {uneven[0]} cannot be shared by {groups} groups of heads: plan with step={groups}")


def replace_weights(
    model: nn.Module, plan: Plan, *, matrices: Sequence[str] = MATRICES, decomposition: Decomposition | None = None
) -> nn.Module:
    """Overwrite each k_proj and v_proj weight with its low-rank product and return the same model (arXiv:2410.03111).

    The cache stays as large as before; what changes is what the model computes, which is all that perplexity needs and
    what the compressed cache must equal. A rank equal to the width leaves its weight untouched. Pass a `decomposition`
    to try many plans on one model. Raises ValueError where the plan does not fit the model; no weight is touched then.
    """
    chosen = check_matrices(matrices)
    check_plan(model, plan, groups=1)
    decomposition = decomposition or decompose_model(model)
    check_plan(model, plan, groups=decomposition.groups)
    with torch.no_grad():
        for layer, attention in enumerate(attentions(model)):
            for matrix in chosen:
                rank = plan.ranks(matrix)[layer]
                if rank < plan.width:
                    weight = projection(attention, matrix).weight
                    weight.copy_(decomposition.low_rank_weight(matrix, layer, rank))
    return model


@contextmanager
def replaced(
    model: nn.Module, plan: Plan, *, matrices: Sequence[str] = MATRICES, decomposition: Decomposition | None = None
) -> Iterator[nn.Module]:
    """Replace the weights inside a `with` block and put the originals back after it, also after an exception.

    Raises what `replace_weights` raises.
    """
    chosen = check_matrices(matrices)
    weights = [projection(attention, matrix).weight for attention in attentions(model) for matrix in chosen]
    originals = [weight.detach().clone() for weight in weights]
    try:
        yield replace_weights(model, plan, matrices=chosen, decomposition=decomposition)
    finally:
        with torch.no_grad():
            for weight, original in zip(weights, originals, strict=True):
                weight.copy_(original)
