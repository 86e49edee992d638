"""How large the error of truncated projections can get, beside what it is (the error bounds of arXiv:2410.03111).

Symbols: W the weight, W~ its truncation to rank r, sigma_{r+1} the first singular value left out, phi an activation
with Lipschitz constant L and phi(0) = 0. One matrix: |(W - W~) x| <= sigma_{r+1} |x|, and the squared Frobenius error
is the sum of the squared values left out (Eckart-Young). One layer: L times that. In depth, for x_l = phi(W_l x_{l-1}),
each layer adds L sigma_{r_l+1} |x_{l-1}| and multiplies what came before by L |W_l|: errors of shallow layers pass
through all later ones, which is why the progressive strategy spares them.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from lib.lorc.decompose import decompose

Activation = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class ErrorBound:
    """Measured errors and their bounds, both as Euclidean norms; the last axis runs over inputs."""

    measured: Float[Tensor, "*depth inputs"]
    bound: Float[Tensor, "*depth inputs"]

    @property
    def holds(self) -> bool:
        """Whether no measured error is above its bound, up to rounding."""
        return bool((self.measured <= self.bound * (1 + 1e-6) + 1e-9).all())


def frobenius_error(weight: Float[Tensor, "out in"], rank: int) -> ErrorBound:
    """Return |W - W~|_F and the root of the sum of the squared values left out: equal by Eckart-Young."""
    exact = weight.double()
    measured = torch.linalg.matrix_norm(exact - decompose(exact, rank).product())
    tail = torch.linalg.svdvals(exact)[rank:]
    return ErrorBound(measured=measured[None], bound=tail.square().sum().sqrt()[None])


def matrix_error(weight: Float[Tensor, "out in"], rank: int, inputs: Float[Tensor, "inputs in"]) -> ErrorBound:
    """Return |(W - W~) x| of each input and the bound sigma_{r+1} |x| (single-matrix bound of arXiv:2410.03111)."""
    return layer_error(weight, rank, inputs, activation=lambda states: states, lipschitz=1.0)


def layer_error(
    weight: Float[Tensor, "out in"],
    rank: int,
    inputs: Float[Tensor, "inputs in"],
    *,
    activation: Activation,
    lipschitz: float,
) -> ErrorBound:
    """Return |phi(W x) - phi(W~ x)| of each input and the bound L sigma_{r+1} |x| (layer bound of arXiv:2410.03111)."""
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


def depth_contributions(
    weights: Sequence[Float[Tensor, "_ _"]], ranks: Sequence[int], *, lipschitz: float
) -> Float[Tensor, " layers"]:
    """Return what each layer's truncation adds to the bound at the end of a chain, per unit of its input's norm.

    Layer l adds sigma_{r_l+1} L^{n-l+1} prod_{j>l} |W_j|.
    """
    left_out = [_first_left_out(weight.double(), rank) for weight, rank in zip(weights, ranks, strict=True)]
    gains = [lipschitz * _spectral_norm(weight.double()) for weight in weights]
    after = [torch.stack([torch.ones_like(gains[0]), *gains[index + 1 :]]).prod() for index in range(len(gains))]
    return lipschitz * torch.stack(left_out) * torch.stack(after)


def _first_left_out(weight: Tensor, rank: int) -> Tensor:
    values = torch.linalg.svdvals(weight)
    return values[rank] if rank < len(values) else values.new_zeros(())


def _spectral_norm(weight: Tensor) -> Tensor:
    return torch.linalg.matrix_norm(weight, 2)
