"""Configuration of a GRIN model: transformers' PhiMoE configuration and what routing and balancing need besides."""

from typing import Any, no_type_check

from transformers import AutoConfig, PhimoeConfig

from lib.grin.routing import route_named


@no_type_check  # transformers' configs take keywords that their signature does not name; fields are checked by its own
class GrinConfig(PhimoeConfig):
    """Configuration of a GRIN model: PhiMoE's fields and these.

    `router`: a name in `lib.grin.ROUTES`. `expert_gradient`: `code` or `algorithm`. `norm`: `layer` (the paper) or
    `rms` (an upcycled Llama). `balance_shards`: 1 for the global balance loss, or how many parts of a batch balance
    alone.
    Raises ValueError for unknown names. Source: section 3 of arXiv:2409.12136 (read); the coefficients and the radius
    during its training are not given there.
    """

    model_type = "grin"
    # No expert parallelism (section 2.2): only the tensor-parallel plan of the base class is kept.
    base_model_ep_plan = None

    router: str = "sparsemixer_v2"
    expert_gradient: str = "code"
    norm: str = "layer"
    balance_shards: int = 1
    router_z_loss_coef: float = 0.0
    # Deviation: the released configuration has 0.01, where nearly all tokens have one survivor and no router gradient.
    router_jitter_noise: float = 0.1
    router_aux_loss_coef: float = 0.01

    def __post_init__(self, **kwargs: Any) -> None:
        route_named(self.router, expert_gradient=self.expert_gradient)
        if self.norm not in ("layer", "rms"):
            raise ValueError(f"norm must be 'layer' or 'rms', got {self.norm!r}")
        if not 1 <= self.num_experts_per_tok <= self.num_local_experts:
            raise ValueError(
                f"num_experts_per_tok must be between 1 and the {self.num_local_experts} experts, "
                f"got {self.num_experts_per_tok}"
            )
        super().__post_init__(**kwargs)


AutoConfig.register("grin", GrinConfig)
