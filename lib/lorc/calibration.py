"""What a few real tokens say about the error of a truncated projection: extensions of arXiv:2410.03111, off by default.

The paper uses the weights alone. With the second moment E[x x^T] = L L^T of the inputs, the truncation that changes the
outputs least is the SVD of W L (whitening). With the second moment F = G^T G of the loss's gradient at the outputs too,
it is the SVD of G W L, and half its squared singular values are nats: that is the K-FAC model of the KL divergence
between the original model and the compressed one, so one budget can be spent over all K and V matrices.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from tqdm.auto import tqdm

from lib.core.scoring import head_logits
from lib.lorc.configuration import MATRICES, Matrix, attentions, geometry, projection

DAMPING = 1e-6
OUTPUT_DAMPING = 1e-3
POSITIONS = 256  # that go through the vocabulary head at once


@dataclass(frozen=True)
class Calibration:
    """Second moments of every layer's K and V projection over calibration tokens, in float64.

    `inputs[l]` = E[x x^T] [D, D]; `gradients[matrix][l]` = E[g g^T] [m, m] for the gradient g of the loss at the
    projection's output, where sensitivity was asked for. `skipped` positions at each row's start are left out.
    """

    inputs: tuple[Float[Tensor, "hidden hidden"], ...]
    gradients: dict[Matrix, tuple[Float[Tensor, "width width"], ...]] | None
    tokens: int
    skipped: int

    def input_root(self, layer: int) -> Float[Tensor, "hidden hidden"]:
        """Return L with L L^T = the inputs' second moment, damped so that it exists."""
        return _cholesky(self.inputs[layer], DAMPING)

    def output_root(self, matrix: Matrix, layer: int) -> Float[Tensor, "width width"] | None:
        """Return G with G^T G = the gradients' second moment, damped; None where it was not measured."""
        return None if self.gradients is None else _cholesky(self.gradients[matrix][layer], OUTPUT_DAMPING).T


def calibrate(
    model: nn.Module,
    batches: Iterable[Int[Tensor, "_ _"]] | Int[Tensor, "_ _"],
    *,
    skip: int = 0,
    sensitivity: bool = False,
    generator: torch.Generator | None = None,
    progress: bool = False,
) -> Calibration:
    """Measure the second moments that whitening needs on batches of token ids without padding (an extension).

    `skip` leaves out the first positions of each row: those that sink tokens will keep exact. `sensitivity` adds one
    backward pass a batch, with labels drawn from the model itself (the Fisher information, not the empirical one).
    One tensor [rows, tokens] counts as batches of one row. Raises ValueError where no token lies beyond `skip`.
    """
    sizes = geometry(model)
    sums = _Sums(attentions(model), sizes.hidden, sizes.width, skip)
    device = next(model.parameters()).device
    batches = batches.split(1) if isinstance(batches, Tensor) else batches
    with sums.watching(), _frozen(model), torch.set_grad_enabled(sensitivity):
        for batch in tqdm(batches, desc="calibration", unit="batch", disable=not progress, leave=False):
            embedded = cast(Any, model).get_input_embeddings()(batch.to(device)).requires_grad_(sensitivity)
            hidden = cast(Any, model).get_decoder()(inputs_embeds=embedded, use_cache=False).last_hidden_state
            if sensitivity:
                _backward_from_samples(model, hidden, generator)
                sums.collect_gradients()
    if not sums.tokens:
        raise ValueError(f"the calibration batches hold no token after the first {skip} of each row: pass longer rows")
    return sums.means(sensitivity)


def _backward_from_samples(model: nn.Module, hidden: Tensor, generator: torch.Generator | None) -> None:
    """Go back from -sum log p(y) with each y drawn from p: the second moment of gradients is the Fisher information.

    Only so many positions at once, since with a vocabulary of 150,000 their logits are most of the memory.
    """
    states = hidden.detach().flatten(0, 1).requires_grad_()
    for start in range(0, len(states), POSITIONS):
        logits = head_logits(model, states[start : start + POSITIONS])
        with torch.no_grad():
            labels = torch.multinomial(logits.softmax(-1), 1, generator=generator)
        (logits.logsumexp(-1) - logits.gather(-1, labels).squeeze(-1)).sum().backward()
    hidden.backward(cast(Tensor, states.grad).view_as(hidden))


class _Sums:
    """Running sums over the outputs and inputs that hooks see."""

    def __init__(self, layers: list[Any], hidden: int, width: int, skip: int) -> None:
        self.layers, self.skip, self.tokens = layers, skip, 0
        place = {"device": layers[0].k_proj.weight.device, "dtype": torch.float64}
        self.inputs = [torch.zeros(hidden, hidden, **place) for _ in layers]
        self.gradients = {matrix: [torch.zeros(width, width, **place) for _ in layers] for matrix in MATRICES}
        self.outputs: dict[tuple[Matrix, int], Tensor] = {}

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Hook every K and V projection inside the block."""
        handles = [
            projection(attention, matrix).register_forward_hook(self._hook(matrix, index))
            for index, attention in enumerate(self.layers)
            for matrix in MATRICES
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _hook(self, matrix: Matrix, index: int) -> Any:
        def seen(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            if output.requires_grad:
                output.retain_grad()
                self.outputs[matrix, index] = output
            if matrix == "k":  # V has the same inputs
                rows = inputs[0].detach()[:, self.skip :].flatten(0, 1).double()
                self.inputs[index] += rows.T @ rows
                self.tokens += rows.shape[0] if index == 0 else 0

        return seen

    def collect_gradients(self) -> None:
        """Add the gradients of the last backward pass."""
        for (matrix, index), output in self.outputs.items():
            rows = cast(Tensor, output.grad)[:, self.skip :].flatten(0, 1).double()
            self.gradients[matrix][index] += rows.T @ rows
        self.outputs.clear()

    def means(self, sensitivity: bool) -> Calibration:
        """Return the means over tokens."""
        gradients: dict[Matrix, tuple[Tensor, ...]] = {
            matrix: tuple(each / self.tokens for each in self.gradients[matrix]) for matrix in MATRICES
        }
        inputs = tuple(each / self.tokens for each in self.inputs)
        return Calibration(inputs, gradients if sensitivity else None, tokens=self.tokens, skipped=self.skip)


@contextmanager
def _frozen(model: nn.Module) -> Iterator[None]:
    """Take gradients of activations only: half the work of a training step, and no gradient left on the weights."""
    flags = [(weight, weight.requires_grad) for weight in model.parameters()]
    try:
        for weight, _ in flags:
            weight.requires_grad_(False)
        yield
    finally:
        for weight, flag in flags:
            weight.requires_grad_(flag)


def _cholesky(moment: Tensor, damping: float) -> Tensor:
    scale = moment.diagonal().mean().clamp_min(torch.finfo(moment.dtype).tiny)
    identity = torch.eye(len(moment), dtype=moment.dtype, device=moment.device)
    for power in range(6):
        # Few tokens make a singular moment; damp ten times more until its root exists.
        root, failed = torch.linalg.cholesky_ex(moment + damping * 10**power * scale * identity)
        if not failed.any():
            return root
    raise ValueError("the calibration moments are not finite or far from positive: check the calibration batches")
