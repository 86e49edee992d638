"""The sizes of a model's K and V projections, the ranks that each keeps, and how a compressed model's config says so.

Symbols (arXiv:2410.03111): `width` is m = KV heads x head dimension of W_k, W_v in R^{D x m}, what a token costs per
matrix; `ranks_k[l]`, `ranks_v[l]` = d_c^l.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, cast

import pandas as pd
from torch import nn
from transformers import PreTrainedConfig

Matrix = Literal["k", "v"]
MATRICES: tuple[Matrix, ...] = ("k", "v")
Granularity = str | int  # "joint", "head", or the number of heads that share a basis

SUPPORTED = (
    "llama", "mistral", "mixtral", "qwen2", "qwen3", "gemma2", "gemma3_text", "granite", "cohere", "cohere2", "olmo2",
    "smollm3",
)  # fmt: skip
COMPRESSED_PREFIX = "lorc_"


@dataclass(frozen=True)
class Geometry:
    """The sizes that a low-rank plan depends on: layers, heads and widths of W_k and W_v."""

    family: str
    layers: int
    hidden: int
    query_heads: int
    kv_heads: int
    head_dim: int

    @property
    def width(self) -> int:
        """Numbers that one token stores per layer and matrix in the full cache: KV heads x head dimension."""
        return self.kv_heads * self.head_dim


def geometry(model_or_config: nn.Module | PreTrainedConfig) -> Geometry:
    """Read the sizes of W_k and W_v from a model or its config (the `meta` device is fine).

    Raises TypeError for anything else, and ValueError for a family that is not supported.
    """
    config: Any = model_or_config
    if isinstance(model_or_config, nn.Module):
        config = getattr(model_or_config, "config", None)
    if not isinstance(config, PreTrainedConfig):
        raise TypeError(f"expected a transformers model or config, got {type(model_or_config).__name__}")
    family = str(config.model_type).removeprefix(COMPRESSED_PREFIX)
    if family not in SUPPORTED:
        raise ValueError(f"model type {config.model_type!r} is not supported: use one of {', '.join(SUPPORTED)}")
    values = cast(Any, config)
    return Geometry(
        family=family,
        layers=values.num_hidden_layers,
        hidden=values.hidden_size,
        query_heads=values.num_attention_heads,
        kv_heads=values.num_key_value_heads,
        head_dim=getattr(values, "head_dim", None) or values.hidden_size // values.num_attention_heads,
    )


def attentions(model: nn.Module) -> list[Any]:
    """Return the attention module of every layer, shallowest first.

    Raises what `geometry` raises, and ValueError for a compressed model, whose k_proj and v_proj are gone.
    """
    geometry(model)
    if str(cast(Any, model).config.model_type).startswith(COMPRESSED_PREFIX):
        raise ValueError("the model is already compressed: start from the original model")
    return [layer.self_attn for layer in cast(Any, model).get_decoder().layers]


def projection(attention: Any, matrix: Matrix) -> nn.Linear:
    """Return the linear layer of W_k (`k`) or W_v (`v`) of an attention module; its weight is [width, hidden].

    Raises ValueError for a layer that adds something to a linear one (an adapter) or stores its weight otherwise.
    """
    layer = attention.k_proj if matrix == "k" else attention.v_proj
    if type(layer) is not nn.Linear:
        raise ValueError(
            f"{matrix}_proj is a {type(layer).__name__}, not a plain linear layer: merge adapters before "
            "(merge_and_unload), and load without quantisation"
        )
    return layer


def check_matrices(matrices: Sequence[str]) -> tuple[Matrix, ...]:
    """Return the matrices to compress, in order and without repeats; raises ValueError for other names than k and v."""
    if not matrices or any(name not in MATRICES for name in matrices):
        raise ValueError(f"matrices must name 'k', 'v' or both, got {tuple(matrices)!r}")
    return tuple(name for name in MATRICES if name in matrices)


def head_groups(granularity: Granularity, kv_heads: int) -> int:
    """Return the number of groups of heads with a basis each: one when joint, one a head, or of `granularity` heads.

    Raises ValueError for another name, or a number of heads that does not divide the model's KV heads.
    """
    heads = (
        {"joint": kv_heads, "head": 1}.get(granularity, granularity) if isinstance(granularity, str) else granularity
    )
    if isinstance(heads, str) or heads < 1 or kv_heads % heads:
        raise ValueError(
            f"granularity must be 'joint', 'head' or a number of heads that divides {kv_heads}, got {granularity!r}"
        )
    return kv_heads // heads


@dataclass(frozen=True)
class Plan:
    """Ranks to keep per layer; a rank equal to `width` leaves that projection as it is.

    Every rank is the number of values that one token caches for that layer and matrix. Raises ValueError for ranks
    outside 1..width, for lists of different length, or ranks that are not multiples of `step`.
    """

    ranks_k: tuple[int, ...]
    ranks_v: tuple[int, ...]
    width: int
    step: int = 1

    def __post_init__(self) -> None:
        counts = len(self.ranks_k), len(self.ranks_v)
        if not self.ranks_k or counts[0] != counts[1]:
            raise ValueError(f"a plan needs one k and one v rank per layer, got {counts[0]} and {counts[1]}")
        if self.step < 1 or self.width % self.step:
            raise ValueError(f"the step {self.step} does not divide the width {self.width}: use a divisor of it")
        bad = [rank for rank in (*self.ranks_k, *self.ranks_v) if not 1 <= rank <= self.width or rank % self.step]
        if bad:
            raise ValueError(f"rank {bad[0]} is not a multiple of {self.step} between {self.step} and {self.width}")

    @property
    def layers(self) -> int:
        """Number of layers."""
        return len(self.ranks_k)

    @property
    def total(self) -> int:
        """Numbers that one token caches in all layers."""
        return sum(self.ranks_k) + sum(self.ranks_v)

    @property
    def kept(self) -> float:
        """Fraction of the full cache that is kept, K and V together."""
        return self.total / (2 * self.layers * self.width)

    def ranks(self, matrix: Matrix) -> tuple[int, ...]:
        """Return the ranks of W_k or W_v."""
        return self.ranks_k if matrix == "k" else self.ranks_v

    def bytes_per_token(self, itemsize: int = 2) -> int:
        """Return the bytes that one token caches in all layers: sum of (r_k + r_v) x itemsize."""
        return self.total * itemsize

    def frame(self) -> pd.DataFrame:
        """Return one row per layer with its ranks and kept fractions."""
        frame = pd.DataFrame({"layer": range(self.layers), "rank_k": self.ranks_k, "rank_v": self.ranks_v})
        return frame.assign(kept_k=frame["rank_k"] / self.width, kept_v=frame["rank_v"] / self.width)


@dataclass(frozen=True)
class LowRankSpec:
    """Ranks and options of a compressed model (arXiv:2410.03111), as saved in its config.

    `groups` of heads have a basis each. Extensions: the `sink_tokens` first positions are kept at full rank, latents
    take 16, 8 or 4 `bits`. `made_with` records how the ranks were chosen and what they cost.
    """

    plan: Plan
    groups: int = 1
    sink_tokens: int = 0
    bits: int = 16
    made_with: Mapping[str, Any] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """Return plain values for a config file."""
        values = {**asdict(self), "made_with": dict(self.made_with)}
        values["plan"] |= {name: list(values["plan"][name]) for name in ("ranks_k", "ranks_v")}
        return values

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "LowRankSpec":
        """Read what `as_dict` made; raises ValueError where a plan or an option is not valid."""
        plan = dict(values["plan"])
        plan |= {name: tuple(plan[name]) for name in ("ranks_k", "ranks_v")}
        return cls(**{**values, "plan": Plan(**plan)})


def spec_of(config: PreTrainedConfig) -> LowRankSpec:
    """Return the specification of a compressed model's config; raises ValueError for any other config."""
    values = getattr(config, "lorc", None)
    if not str(config.model_type).startswith(COMPRESSED_PREFIX) or not values:
        raise ValueError(f"{type(config).__name__} belongs to no compressed model: compress the model first")
    spec = LowRankSpec.from_dict(cast(Mapping[str, Any], values))
    sizes = geometry(config)
    if (spec.plan.layers, spec.plan.width) != (sizes.layers, sizes.width):
        raise ValueError("the config's ranks do not fit its layers and width: the checkpoint's config.json was edited")
    return spec
