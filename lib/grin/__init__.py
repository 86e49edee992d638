"""GRIN: gradient-informed routing for mixtures of experts, without dropping tokens (arXiv:2409.12136)."""

from lib.grin.balance import RoutingStatistics, balance_loss, dispatch_counts, routing_statistics, z_loss
from lib.grin.convert import from_phimoe, upcycle
from lib.grin.estimators import EnumerableProblem, Moments, relative_bias
from lib.grin.experts import Experts, tokens_per_expert
from lib.grin.modeling import GrinBlock, GrinConfig, GrinForCausalLM, GrinModel
from lib.grin.router import Router
from lib.grin.routing import (
    ROUTES,
    Routing,
    gshard,
    route_named,
    sparsemixer_v1,
    sparsemixer_v2,
    sparsemixer_v2_consistent,
)

__all__ = [
    "ROUTES",
    "EnumerableProblem",
    "Experts",
    "GrinBlock",
    "GrinConfig",
    "GrinForCausalLM",
    "GrinModel",
    "Moments",
    "Router",
    "Routing",
    "RoutingStatistics",
    "balance_loss",
    "dispatch_counts",
    "from_phimoe",
    "gshard",
    "relative_bias",
    "route_named",
    "routing_statistics",
    "sparsemixer_v1",
    "sparsemixer_v2",
    "sparsemixer_v2_consistent",
    "tokens_per_expert",
    "upcycle",
    "z_loss",
]
