"""GRIN: gradient-informed routing for mixtures of experts, without dropping tokens (arXiv:2409.12136)."""

from lib.grin.balance import RoutingStatistics, balance_loss, dispatch_counts, routing_statistics, z_loss
from lib.grin.configuration import GrinConfig
from lib.grin.convert import from_phimoe, route_as_before, route_by_grin, upcycle
from lib.grin.experts import Experts, tokens_per_expert
from lib.grin.modeling import GrinBlock, GrinForCausalLM, GrinModel
from lib.grin.routing import (
    ROUTES,
    Router,
    Routing,
    gshard,
    route_named,
    sparsemixer,
    sparsemixer_v1,
    sparsemixer_v2,
    sparsemixer_v2_consistent,
)

__all__ = [
    "ROUTES",
    "Experts",
    "GrinBlock",
    "GrinConfig",
    "GrinForCausalLM",
    "GrinModel",
    "Router",
    "Routing",
    "RoutingStatistics",
    "balance_loss",
    "dispatch_counts",
    "from_phimoe",
    "gshard",
    "route_as_before",
    "route_by_grin",
    "route_named",
    "routing_statistics",
    "sparsemixer",
    "sparsemixer_v1",
    "sparsemixer_v2",
    "sparsemixer_v2_consistent",
    "tokens_per_expert",
    "upcycle",
    "z_loss",
]
