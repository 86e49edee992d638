"""Router gradients on a problem small enough to enumerate: exact gradient, bias and variance of every estimator.

One MoE layer of top-1 and a loss f of its output. With p = MaskedSoftmax(z) and outputs E_i, the two objectives are
Eq. 4 of arXiv:2409.12136, sum_i p_i f(p_i E_i), and Eq. 7, where the gate inside f is detached. Every estimator is a
function of the drawn expert D and the drawn node; both are summed over, so nothing here is a Monte Carlo estimate.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from lib.grin.routing import HEUN, HEUN_CONSISTENT, MIDPOINT, Quadrature, masked_softmax

Loss = Callable[[Tensor], Tensor]  # outputs [tokens, width] -> losses [tokens]


@dataclass(frozen=True)
class Moments:
    """Mean and variance (summed over the scores) of one estimator's gradient for each token."""

    mean: Float[Tensor, "tokens experts"]
    variance: Float[Tensor, "tokens"]


@dataclass(frozen=True)
class EnumerableProblem:
    """Scores, the outputs of all experts, and the loss of a token as a function of the layer's output.

    `kept` masks the experts that may be drawn. The loss must treat tokens apart (row i depends on row i only).
    """

    scores: Float[Tensor, "tokens experts"]
    outputs: Float[Tensor, "tokens experts width"]
    loss: Loss
    kept: Bool[Tensor, "tokens experts"]

    @property
    def probs(self) -> Float[Tensor, "tokens experts"]:
        """Probability of each expert, p."""
        return masked_softmax(self.scores, self.kept)

    def exact(self, *, detached_gate: bool = False) -> Float[Tensor, "tokens experts"]:
        """Return the exact gradient in the scores of Eq. 4 (or of Eq. 7, gate detached), of arXiv:2409.12136 (read)."""
        scores = self.scores.detach().requires_grad_()
        probs = masked_softmax(scores, self.kept)
        gates = probs.detach() if detached_gate else probs
        total = sum(
            (probs[:, i] * self.loss(gates[:, i, None] * self.outputs[:, i])).sum() for i in range(scores.shape[1])
        )
        (gradient,) = torch.autograd.grad(torch.as_tensor(total), scores)
        return gradient

    def derivatives(self, node: float) -> Float[Tensor, "tokens experts width"]:
        """Return f'(node p_i E_i) for every expert i."""
        gradients = []
        for i in range(self.scores.shape[1]):
            point = (node * self.probs[:, i, None] * self.outputs[:, i]).detach().requires_grad_()
            gradients += torch.autograd.grad(self.loss(point).sum(), point)
        return torch.stack(gradients, 1)

    def slopes(self, node: float) -> Float[Tensor, "tokens experts"]:
        """Return f'(node p_i E_i) . E_i for every expert i: what backward hands to the weight of expert i."""
        return (self.derivatives(node) * self.outputs.detach()).sum(-1)

    def jacobian(self) -> Float[Tensor, "tokens experts experts"]:
        """Return d p_i / d z_j at [token, i, j]."""
        probs = self.probs.detach()
        return torch.diag_embed(probs) - probs.unsqueeze(2) * probs.unsqueeze(1)

    def sparsemixer(self, rule: Quadrature, *, euler_at_argmax: bool = True) -> Moments:
        """Return the moments of a sparse mixer's gradient: D drawn from p, the node from the rule (temperature 1)."""
        probs, whole = self.probs.detach(), self.slopes(1.0)
        euler = torch.zeros_like(self.kept)
        if euler_at_argmax:
            euler = euler.scatter(-1, probs.argmax(-1, keepdim=True), True)
        full = torch.where(euler, 1.0, rule.full).to(probs.dtype)
        return self._moments([(probs * full, whole), (probs * (1 - full), self.slopes(rule.shrunk))], rule.gradient)

    def gating(self) -> Moments:
        """Return the moments of the conventional gradient: D the argmax, a constant; only the gate p_D is derived."""
        best = torch.zeros_like(self.scores).scatter(-1, self.probs.argmax(-1, keepdim=True), 1.0)
        return self._moments([(best, self.slopes(1.0))])

    def sampled_gating(self) -> Moments:
        """Return the moments of gating with a sampled D: right for its own gate, blind to which expert is drawn."""
        return self._moments([(self.probs.detach(), self.slopes(1.0))])

    def straight_through(self) -> Moments:
        """Return the moments of the straight-through gradient: f' at the drawn expert's output, applied to all experts.

        Backward takes the output for sum_i p_i E_i, so it needs every expert's output (arXiv:1308.3432).
        """
        values = torch.einsum("tdw,tew->dte", self.derivatives(1.0), self.outputs.detach())
        gradients = torch.einsum("dte,tej->dtj", values, self.jacobian())
        return _weighted_moments(list(zip(self.probs.detach().unbind(-1), gradients, strict=True)))

    def _moments(self, nodes: Sequence[tuple[Tensor, Tensor]], coefficient: float = 1.0) -> Moments:
        """Moments of coefficient x slope_D x dp_D/dz over the pairs (probability of D and node, slope at the node)."""
        jacobian, experts = self.jacobian(), range(self.scores.shape[1])
        return _weighted_moments([
            (weight[:, drawn], coefficient * slope[:, drawn, None] * jacobian[:, drawn])
            for weight, slope in nodes
            for drawn in experts
        ])  # fmt: skip

    def all_estimators(self) -> dict[str, Moments]:
        """Return every estimator by name; `v2*, all Heun` is v2* without the Euler exception at the argmax."""
        return {
            "v2*": self.sparsemixer(HEUN_CONSISTENT),
            "v2*, all Heun": self.sparsemixer(HEUN_CONSISTENT, euler_at_argmax=False),
            "v2": self.sparsemixer(HEUN),
            "v1": self.sparsemixer(MIDPOINT),
            "gating (GShard)": self.gating(),
            "sampled gating": self.sampled_gating(),
            "straight-through": self.straight_through(),
        }


def _weighted_moments(outcomes: Sequence[tuple[Tensor, Tensor]]) -> Moments:
    """Mean and summed variance of outcomes given as (probability [tokens], gradient [tokens, experts])."""
    mean = torch.stack([p.unsqueeze(-1) * g for p, g in outcomes]).sum(0)
    spread = torch.stack([p * (g - mean).square().sum(-1) for p, g in outcomes]).sum(0)
    return Moments(mean=mean, variance=spread)


def relative_bias(
    gradient: Float[Tensor, "tokens experts"], exact: Float[Tensor, "tokens experts"]
) -> Float[Tensor, "tokens"]:
    """Return ||gradient - exact|| / ||exact|| for each token."""
    return (gradient - exact).norm(dim=-1) / exact.norm(dim=-1).clamp(min=torch.finfo(exact.dtype).tiny)
