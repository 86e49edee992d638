"""The router module: a linear map without bias, in float32 whatever the model's dtype, and one of the routes."""

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from lib.grin.routing import Route, Routing, sparsemixer_v2


class Router(nn.Linear):
    """Scores z = x W^T in float32, routed by `route` (arXiv:2409.12136, section 2.1: linear, no bias; read)."""

    def __init__(
        self, width: int, experts: int, *, top_k: int = 2, jitter_eps: float = 0.1, route: Route = sparsemixer_v2
    ) -> None:
        super().__init__(width, experts, bias=False)
        if not 1 <= top_k <= experts:
            raise ValueError(f"top_k must be between 1 and the {experts} experts, got {top_k}")
        self.top_k, self.jitter_eps, self.route = top_k, jitter_eps, route

    def forward(self, hidden: Float[Tensor, "tokens width"]) -> Routing:
        """Return the routing of hidden states; sampled in training, the argmax in evaluation."""
        with torch.autocast(hidden.device.type, enabled=False):
            exact = torch.promote_types(hidden.dtype, torch.float32)  # scores a hair apart decide who survives
            scores = F.linear(hidden.to(exact), self.weight.to(exact))
            return self.route(scores, top_k=self.top_k, jitter_eps=self.jitter_eps, training=self.training)
