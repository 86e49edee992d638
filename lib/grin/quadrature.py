"""Quadrature rules along the ray from 0 to h, by which a sparse mixer estimates f(h) - f(0) (arXiv:2409.12136, app. A).

Euler uses f'(h) h, exact for linear f; the mid-point rule f'(h/2) h, for quadratic f; Heun's third-order rule
(1/4 f'(h) + 3/4 f'(h/3)) h, for cubic f. One node is drawn per token, so that the expectation is the rule.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor


@dataclass(frozen=True)
class Quadrature:
    """A two-node rule: the full output with probability `full`, else the output shrunk to `shrunk`.

    `gradient` multiplies the gradient; `temperature` divides the scores before the softmax.
    """

    shrunk: float
    full: float
    gradient: float = 1.0
    temperature: float = 1.0

    @torch.no_grad()
    def draw(
        self,
        euler: Bool[Tensor, "tokens 1"],
        *,
        dtype: torch.dtype = torch.float32,
        generator: torch.Generator | None = None,
    ) -> Float[Tensor, "tokens 1"]:
        """Return a node for each token: 1 where `euler`, else 1 with probability `full` and `shrunk` otherwise."""
        drawn = torch.empty(euler.shape, device=euler.device).uniform_(generator=generator)
        whole = euler | (drawn > 1 - self.full)
        # Deviation: the published code scales by 0.3333 + 0.6667 B; here by exactly 1/3 or 1.
        return torch.where(whole, 1.0, self.shrunk).to(dtype)

    def integral(self, derivative: Callable[[float], float]) -> float:
        """Return the rule's estimate of f(1) - f(0) from f' at its two nodes (for the rules of weight 1)."""
        return self.full * derivative(1.0) + (1 - self.full) * derivative(self.shrunk)


# v2 detaches the gate (Eq. 7): only f(h) - f(0) is left, by Heun's rule as it stands.
HEUN = Quadrature(shrunk=1 / 3, full=1 / 4)
# v2* keeps it (Eq. 4): f'(h) h more, so 5/4 f'(h) + 3/4 f'(h/3) = 2 (5/8 f'(h) + 3/8 f'(h/3)).
HEUN_CONSISTENT = Quadrature(shrunk=1 / 3, full=5 / 8, gradient=2.0, temperature=2.0)
# v1 (arXiv:2310.00811) likewise with the mid-point rule: f'(h) + f'(h/2) = 2 (1/2 f'(h) + 1/2 f'(h/2)).
MIDPOINT = Quadrature(shrunk=1 / 2, full=1 / 2, gradient=2.0)
