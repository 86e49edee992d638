"""Where the key and value projections of a Llama-family model are, and how wide they are.

`width` is m = (KV heads) x (head dimension) of W_k, W_v in R^{D x m} (arXiv:2410.03111): what a token costs per matrix.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

from torch import nn
from transformers import PreTrainedConfig

Matrix = Literal["k", "v"]
MATRICES: tuple[Matrix, ...] = ("k", "v")

SUPPORTED = ("llama", "mistral", "qwen2", "qwen3")
COMPRESSED_PREFIX = "lorc_"
COMPRESSED = tuple(COMPRESSED_PREFIX + family for family in SUPPORTED)


@dataclass(frozen=True)
class Geometry:
    """The sizes that a low-rank plan depends on (arXiv:2410.03111): layers, heads and widths of W_k and W_v."""

    family: str
    layers: int
    hidden: int
    query_heads: int
    kv_heads: int
    head_dim: int
    key_norm: bool

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
        key_norm=family == "qwen3",
    )


def is_compressed(model: nn.Module) -> bool:
    """Say whether the model was already compressed by this room (its config then carries a `lorc_` model type)."""
    return str(getattr(getattr(model, "config", None), "model_type", "")).startswith(COMPRESSED_PREFIX)


def require_uncompressed(model: nn.Module) -> None:
    """Raise ValueError where the model is already compressed, since its k_proj and v_proj are gone."""
    if is_compressed(model):
        raise ValueError("the model is already compressed: start from the original model")


def attentions(model: nn.Module) -> list[Any]:
    """Return the attention module of every layer, shallowest first.

    Raises what `geometry` and `require_uncompressed` raise.
    """
    require_uncompressed(model)
    geometry(model)
    layers = cast(Any, model).get_decoder().layers
    return [layer.self_attn for layer in layers]


def projection(attention: Any, matrix: Matrix) -> nn.Linear:
    """Return the linear layer of W_k (`k`) or W_v (`v`) of an attention module; its weight is [width, hidden]."""
    return cast(nn.Linear, attention.k_proj if matrix == "k" else attention.v_proj)


def check_matrices(matrices: Sequence[str]) -> tuple[Matrix, ...]:
    """Return the matrices to compress, in order and without repeats; raises ValueError for other names than k and v."""
    if not matrices or any(name not in MATRICES for name in matrices):
        raise ValueError(f"matrices must name 'k', 'v' or both, got {tuple(matrices)!r}")
    return tuple(name for name in MATRICES if name in matrices)
