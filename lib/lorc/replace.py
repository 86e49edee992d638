"""Swap W_k and W_v for their low-rank products in place ("fake" compression of arXiv:2410.03111).

The cache stays as large as before; what changes is what the model computes, which is all that perplexity needs. It is
also the reference that the compressed cache must equal.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import nn

from lib.lorc.architecture import MATRICES, attentions, check_matrices, projection
from lib.lorc.budget import Plan
from lib.lorc.decomposition import Decomposition, check_groups, check_plan, decompose_model


def replace_weights(
    model: nn.Module,
    plan: Plan,
    *,
    matrices: Sequence[str] = MATRICES,
    decomposition: Decomposition | None = None,
) -> nn.Module:
    """Overwrite each k_proj and v_proj weight with its low-rank product and return the same model (arXiv:2410.03111).

    A rank equal to the width leaves its weight untouched. Pass a `decomposition` to try many plans on one model.
    Raises ValueError where the plan does not fit the model; no weight is touched then.
    """
    chosen = check_matrices(matrices)
    check_plan(model, plan)
    decomposition = decomposition or decompose_model(model)
    check_groups(plan, decomposition.groups)
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
    model: nn.Module,
    plan: Plan,
    *,
    matrices: Sequence[str] = MATRICES,
    decomposition: Decomposition | None = None,
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
