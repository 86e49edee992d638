"""How large the error of truncated projections can get, beside what it is (the error bounds of arXiv:2410.03111).

Symbols: W the weight, W~ its truncation to rank r, sigma_{r+1} the first singular value left out, phi an activation
with Lipschitz constant L and phi(0) = 0. One layer: |phi(W x) - phi(W~ x)| <= L sigma_{r+1} |x|. In depth, for
x_l = phi(W_l x_{l-1}), each layer adds L sigma_{r_l+1} |x_{l-1}| and multiplies what came before by L |W_l|: errors of
shallow layers pass through all later ones, which is why the progressive strategy spares them.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from lib.lorc.configuration import MATRICES, geometry, projection
from lib.lorc.decomposition import decompose

Activation = Callable[[Tensor], Tensor]
SILU_SLOPE = 1.1  # Lipschitz constant of SiLU, rounded up


@dataclass(frozen=True)
class ErrorBound:
    """Measured errors and their bounds, both as Euclidean norms; the last axis runs over inputs."""

    measured: Float[Tensor, "*depth inputs"]
    bound: Float[Tensor, "*depth inputs"]

    @property
    def holds(self) -> bool:
        """Whether no measured error is above its bound, up to rounding."""
        return bool((self.measured <= self.bound * (1 + 1e-6) + 1e-9).all())


def layer_error(
    weight: Float[Tensor, "out in"],
    rank: int,
    inputs: Float[Tensor, "inputs in"],
    *,
    activation: Activation = nn.Identity(),  # noqa: B008 - has no state
    lipschitz: float = 1.0,
) -> ErrorBound:
    """Return |phi(W x) - phi(W~ x)| of each input and the bound L sigma_{r+1} |x|; by default of the matrix alone."""
    exact, states = weight.double(), inputs.double()
    truncated = decompose(exact, rank).product()
    error = activation(states @ exact.T) - activation(states @ truncated.T)
    bound = lipschitz * _first_left_out(exact, rank) * states.norm(dim=-1)
    return ErrorBound(measured=error.norm(dim=-1), bound=bound)


def depth_error(
    weights: Sequence[Float[Tensor, "_ _"]],
    ranks: Sequence[int],
    inputs: Float[Tensor, "inputs in"],
    *,
    activation: Activation,
    lipschitz: float,
) -> ErrorBound:
    """Return the error after each layer of x_l = phi(W_l x_{l-1}) and its bound (depth bound of arXiv:2410.03111).

    Deviation: the norms |x_{l-1}| are those measured in the exact chain, which is tighter than their own bound.
    Raises ValueError where there are not as many ranks as weights.
    """
    if len(weights) != len(ranks):
        raise ValueError(f"a chain of {len(weights)} weights needs as many ranks, got {len(ranks)}")
    exact = approximate = inputs.double()
    bound = torch.zeros(len(inputs), dtype=torch.float64, device=inputs.device)
    errors, bounds = [], []
    for weight, rank in zip(weights, ranks, strict=True):
        full = weight.double()
        bound = lipschitz * (_first_left_out(full, rank) * exact.norm(dim=-1) + _spectral_norm(full) * bound)
        exact, approximate = activation(exact @ full.T), activation(approximate @ decompose(full, rank).product().T)
        errors.append((exact - approximate).norm(dim=-1))
        bounds.append(bound)
    return ErrorBound(measured=torch.stack(errors), bound=torch.stack(bounds))


@torch.inference_mode()
def measured_errors(model: nn.Module, tokens: Int[Tensor, " tokens"], rank: int) -> pd.DataFrame:
    """Measure one text's errors and bounds in every projection, and along the chain of value-output circuits.

    Returns mean norms over tokens and the largest ratio: kind, matrix, layer, measured, bound, worst.
    """
    decoder = cast(Any, model).get_decoder()
    ids = tokens[None].to(next(model.parameters()).device)
    hidden = decoder(ids, output_hidden_states=True).hidden_states
    errors = {}
    for layer, block in enumerate(decoder.layers):
        inputs = block.input_layernorm(hidden[layer])[0].double().cpu()
        for matrix in MATRICES:
            weight = projection(block.self_attn, matrix).weight.detach().double().cpu()
            errors["one matrix", matrix, layer] = layer_error(weight, rank, inputs)
    chain = [value_output_circuit(model, layer) for layer in range(len(decoder.layers))]
    states, options = hidden[0][0].double().cpu(), {"activation": nn.functional.silu, "lipschitz": SILU_SLOPE}
    deep = depth_error(chain, [rank] * len(chain), states, **options)
    for layer, (measured, bound) in enumerate(zip(deep.measured, deep.bound, strict=True)):
        errors["chain", "vo", layer] = ErrorBound(measured, bound)
    rows = [
        (*place, float(e.measured.mean()), float(e.bound.mean()), float((e.measured / e.bound).max()))
        for place, e in errors.items()
    ]
    return pd.DataFrame(rows, columns=["kind", "matrix", "layer", "measured", "bound", "worst"])


def value_output_circuit(model: nn.Module, layer: int) -> Float[Tensor, "hidden hidden"]:
    """Return W_o W_v of a layer in float64, each KV head's values repeated for the queries that share it."""
    sizes, attention = geometry(model), cast(Any, model).get_decoder().layers[layer].self_attn
    values = attention.v_proj.weight.detach().double().cpu().unflatten(0, (sizes.kv_heads, sizes.head_dim))
    repeated = values.repeat_interleave(sizes.query_heads // sizes.kv_heads, 0).flatten(0, 1)
    return attention.o_proj.weight.detach().double().cpu() @ repeated


def _first_left_out(weight: Tensor, rank: int) -> Tensor:
    values = torch.linalg.svdvals(weight)
    return values[rank] if rank < len(values) else values.new_zeros(())


def _spectral_norm(weight: Tensor) -> Tensor:
    return torch.linalg.matrix_norm(weight, 2)
