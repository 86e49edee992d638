"""All bases of a model, made once: many plans and the compressed model itself are cut from them (arXiv:2410.03111)."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from lib.lorc.architecture import MATRICES, Matrix, attentions, geometry, projection
from lib.lorc.budget import Plan
from lib.lorc.calibrate import Calibration
from lib.lorc.decompose import Basis, Granularity, basis, check_granularity
from lib.lorc.spectra import Spectra


@dataclass(frozen=True)
class Decomposition:
    """The full basis of every W_k and W_v of one model, so that many plans cost one SVD (arXiv:2410.03111).

    Held in float32 on the model's device: 4 x (m D + m^2) bytes per matrix. `weighted` says that gradients weigh the
    errors too, so that half the squared singular values are nats and can be compared between matrices.
    """

    k: tuple[Basis, ...]
    v: tuple[Basis, ...]
    granularity: Granularity
    weighted: bool = False

    def of(self, matrix: Matrix) -> tuple[Basis, ...]:
        """Return the bases of W_k or W_v, one per layer."""
        return self.k if matrix == "k" else self.v

    @property
    def groups(self) -> int:
        """Number of groups of heads that are decomposed apart: 1 when joint, the KV heads when per head."""
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
    model: nn.Module,
    *,
    granularity: str = "joint",
    calibration: Calibration | None = None,
    scale_by_norm: bool = False,
) -> Decomposition:
    """Decompose every W_k and W_v of a model once (in float64, kept in float32).

    Without options this is the paper's plain SVD. Extensions: `calibration` weighs errors by real inputs (and by the
    loss where it holds gradients); `scale_by_norm` weighs inputs by the gain of the RMSNorm before them. Raises
    ValueError for an unsupported or compressed model, one on the `meta` device, or both extensions at once.
    """
    if calibration is not None and scale_by_norm:
        raise ValueError("calibration already weighs the inputs: leave scale_by_norm out")
    kind = check_granularity(granularity)
    groups = geometry(model).kv_heads if kind == "head" else 1
    found: dict[Matrix, list[Basis]] = {"k": [], "v": []}
    for layer, attention in enumerate(attentions(model)):
        root = calibration.input_root(layer) if calibration else _norm_root(model, layer) if scale_by_norm else None
        for matrix in MATRICES:
            weight = projection(attention, matrix).weight.detach()
            if weight.is_meta:
                raise ValueError("the model is on the meta device and has no weights: load it before decomposing it")
            metric = calibration.output_root(matrix, layer) if calibration else None
            found[matrix].append(_single(basis(weight, groups=groups, input_root=root, output_root=metric)))
    return Decomposition(
        k=tuple(found["k"]),
        v=tuple(found["v"]),
        granularity=kind,
        weighted=calibration is not None and calibration.gradients is not None,
    )


def check_plan(model: nn.Module, plan: Plan) -> None:
    """Raise ValueError where the plan was made for another number of layers or another width than the model's."""
    sizes = geometry(model)
    if plan.layers != sizes.layers:
        raise ValueError(f"the plan has ranks for {plan.layers} layers but the model has {sizes.layers}")
    if plan.width != sizes.width:
        raise ValueError(f"the plan is for projections of width {plan.width} but the model's have {sizes.width}")


def check_groups(plan: Plan, groups: int) -> None:
    """Raise ValueError where a rank cannot be shared equally by the groups of heads that are decomposed apart."""
    uneven = [rank for rank in (*plan.ranks_k, *plan.ranks_v) if rank % groups]
    if uneven:
        raise ValueError(f"rank {uneven[0]} cannot be shared by {groups} heads: plan with step={groups} for 'head'")


def _norm_root(model: nn.Module, layer: int) -> Tensor:
    gain = model.get_submodule(f"model.layers.{layer}.input_layernorm").weight
    # Without data the normalised inputs are taken as white, so that x has the gain as its scale.
    return torch.diag(torch.as_tensor(gain).detach().double().abs())


def _single(each: Basis) -> Basis:
    return Basis(up=each.up.float(), down=each.down.float(), singular_values=each.singular_values.float())
