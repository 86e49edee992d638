"""What a compressed model is made of: the part of its config that the layers and the cache are built from."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, cast

from transformers import PreTrainedConfig

from lib.lorc.architecture import Geometry, Matrix, geometry
from lib.lorc.budget import Plan
from lib.lorc.decompose import Granularity, check_granularity


@dataclass(frozen=True)
class LowRankSpec:
    """Ranks and options of a compressed model (arXiv:2410.03111), as saved in its config.

    `biases` names the projections (q, k, v, o) that have a bias in the original. Extensions: the `sink_tokens` first
    positions are kept at full rank, `int8` rounds latents to bytes. `made_with` records how the ranks were chosen.
    """

    plan: Plan
    granularity: Granularity = "joint"
    biases: tuple[str, ...] = ()
    sink_tokens: int = 0
    int8: bool = False
    made_with: Mapping[str, Any] = field(default_factory=dict)

    def rest(self, matrix: Matrix, layer: int) -> int:
        """Return how many more values per sink token than per other token that layer and matrix keep."""
        return self.plan.width - self.plan.ranks(matrix)[layer] if self.sink_tokens else 0

    def groups(self, sizes: Geometry) -> int:
        """Return the number of groups of heads that have a basis of their own."""
        return sizes.kv_heads if self.granularity == "head" else 1

    def as_dict(self) -> dict[str, Any]:
        """Return plain values for a config file."""
        lists = {"plan": self.plan.as_dict(), "biases": list(self.biases), "made_with": dict(self.made_with)}
        return {**asdict(self), **lists}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "LowRankSpec":
        """Read what `as_dict` made; raises ValueError where a plan or an option is not valid."""
        plan = dict(values["plan"])
        plan |= {name: tuple(plan[name]) for name in ("ranks_k", "ranks_v")}
        check_granularity(values["granularity"])
        return cls(**{**values, "plan": Plan(**plan), "biases": tuple(values["biases"])})


def spec_of(config: PreTrainedConfig) -> LowRankSpec:
    """Return the specification of a compressed model's config; raises ValueError for any other config."""
    values = getattr(config, "lorc", None)
    if not str(config.model_type).startswith("lorc_") or not values:
        raise ValueError(f"{type(config).__name__} belongs to no compressed model: compress the model first")
    spec = LowRankSpec.from_dict(cast(Mapping[str, Any], values))
    sizes = geometry(config)
    if (spec.plan.layers, spec.plan.width) != (sizes.layers, sizes.width):
        raise ValueError("the config's ranks do not fit its layers and width: the checkpoint's config.json was edited")
    return spec
