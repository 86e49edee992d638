"""Denoisers of diffusers pipelines: where they are, how k copies of inputs are stacked, how outputs are averaged."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lib import TenfoldError

COMPONENTS = ("unet", "transformer", "transformer_2")


@dataclass(frozen=True)
class Family:
    """How a denoiser class takes a batch: the argument that has it, and arguments without a batch dimension."""

    sample: str
    shared: frozenset[str] = frozenset()


FAMILIES = {
    "UNet2DConditionModel": Family("sample"),
    "SD3Transformer2DModel": Family("hidden_states"),
    "FluxTransformer2DModel": Family("hidden_states", frozenset({"img_ids", "txt_ids"})),
    "PixArtTransformer2DModel": Family("hidden_states"),
}


def denoisers_of(pipe: Any) -> dict[str, nn.Module]:
    """Denoisers of a pipeline by component name; raises TenfoldError where it has none, or no scheduler."""
    found = {name: getattr(pipe, name, None) for name in COMPONENTS}
    found = {name: module for name, module in found.items() if isinstance(module, nn.Module)}
    if not found or getattr(pipe, "scheduler", None) is None:
        raise TenfoldError(
            f"{type(pipe).__name__} has no scheduler with a `unet` or `transformer`: pass a diffusers pipeline."
        )
    return found


def family_of(denoiser: nn.Module) -> Family | None:
    """Family of a denoiser (also inside a peft model), or None where stacking its inputs is not known to be right."""
    unwrap = getattr(denoiser, "get_base_model", None)
    model = unwrap() if unwrap else denoiser
    return next((FAMILIES[c.__name__] for c in type(model).__mro__ if c.__name__ in FAMILIES), None)


def sample_of(family: Family | None, args: Sequence[Any], kwargs: dict[str, Any]) -> Tensor | None:
    """Noisy sample of a call, whose first dimension is the batch."""
    if family is not None and family.sample in kwargs:
        return kwargs[family.sample]
    return next((value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)), None)


def stack_copies(family: Family, args: Sequence[Any], kwargs: dict[str, Any], *, k: int) -> tuple[tuple, dict]:
    """Inputs of one pass over k copies of the batch: a tensor with the batch's rows is repeated, others are shared."""
    sample = sample_of(family, args, kwargs)
    if sample is None:
        raise TenfoldError(f"the denoiser was called without {family.sample!r}: there is no batch to copy.")
    rows = len(sample)

    def copies(value: Any) -> Any:
        if isinstance(value, Tensor):
            return torch.cat([value] * k) if value.ndim and len(value) == rows else value
        if isinstance(value, dict):
            return {name: copies(v) for name, v in value.items()}
        if type(value) in (list, tuple):
            return type(value)(copies(v) for v in value)
        return value

    kept = family.shared
    return tuple(map(copies, args)), {n: v if n in kept else copies(v) for n, v in kwargs.items()}


def map_outputs(outputs: Sequence[Any], join: Callable[[list[Tensor]], Tensor]) -> Any:
    """Outputs of several passes joined tensor by tensor, in the form the denoiser gives (a tensor, tuple or output)."""
    first = outputs[0]
    if isinstance(first, Tensor):
        return join(list(outputs))
    if isinstance(first, tuple):
        return tuple(map_outputs(parts, join) for parts in zip(*outputs, strict=True))
    if hasattr(first, "keys"):
        return type(first)(**{key: map_outputs([o[key] for o in outputs], join) for key in first.keys()})
    return first


def weighted_sum(outputs: Sequence[Any], shares: Sequence[float]) -> Any:
    """Σ_i share_i · output_i over separate passes."""
    return map_outputs(outputs, lambda parts: _mix(parts, shares))


def weighted_sum_of_copies(output: Any, shares: Sequence[float]) -> Any:
    """Σ_i share_i · output_i where the k outputs are stacked along the batch of one pass."""

    return map_outputs([output], lambda parts: _mix(parts[0].chunk(len(shares)), shares))


def _mix(parts: Sequence[Tensor], shares: Sequence[float]) -> Tensor:
    mixed = shares[0] * parts[0]
    for share, part in zip(shares[1:], parts[1:], strict=True):
        mixed = mixed.add(part, alpha=share)
    return mixed
