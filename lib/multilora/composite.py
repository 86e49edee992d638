"""LoRA Composite's prediction: the mean of the denoiser's outputs under each of k adapters (arXiv:2402.16843).

ẽ = (1/k) Σ_i [e_i(z) + s (e_i(z, c) − e_i(z))]. The mean and the guidance are both linear, so averaging what the
denoiser gives, guided or not, and letting the pipeline guide it is the same; it also works with guidance off.

The k predictions are one pass over k stacked copies of the batch where that is known to be right, and k passes
otherwise, or where memory runs out; the two agree to rounding.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from lib.multilora.layers import AdapterLayers
from lib.multilora.routing import Routing

Batched = Literal["auto"] | bool


class Composite:
    """Runs a denoiser under each adapter and averages, in one pass over k copies or in k passes."""

    def __init__(self, denoiser: nn.Module, layers: AdapterLayers, names: Sequence[str], batched: Batched) -> None:
        self.layers, self.names, self.family = layers, tuple(names), family_of(denoiser)
        self.routing = Routing(self.names)
        possible = self.family is not None and layers.routable
        if batched is True and not possible:
            raise ValueError(
                f"one batched pass of {type(denoiser).__name__} is not known to be right (known: "
                f"{', '.join(FAMILIES)}; plain LoRA layers only): pass batched=False or 'auto'"
            )
        self.batched = bool(batched) and possible and len(self.names) > 1
        self.insisted = batched is True

    def enter(self, stack: ExitStack) -> None:
        """Route the layers until the stack closes, where a batched pass may be asked for."""
        if self.batched:
            stack.enter_context(self.routing.installed(self.layers))

    def __call__(
        self, forward: Any, args: tuple, kwargs: dict, weights: Mapping[str, float], shares: Mapping[str, float]
    ) -> tuple[Any, bool]:
        """Return the averaged output of one denoiser call, and whether it was one batched pass."""
        mean = [shares[name] for name in self.names]
        if self.batched:
            try:
                return self._one_pass(forward, args, kwargs, weights, mean), True
            except RuntimeError as error:
                if self.insisted or not out_of_memory(error):
                    raise
            self.batched = False
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
        return self._passes(forward, args, kwargs, weights, mean), False

    def _passes(self, forward: Any, args: tuple, kwargs: dict, weights: Mapping[str, float], mean: list) -> Any:
        outputs = []
        for name in self.names:
            self.layers.set({name: weights[name]})
            outputs.append(forward(*args, **kwargs))
        return map_outputs(outputs, lambda parts: _mix(parts, mean))

    def _one_pass(
        self, forward: Any, args: tuple, kwargs: dict, weights: Mapping[str, float], mean: list[float]
    ) -> Any:
        assert self.family is not None
        self.layers.set(weights)  # all of them, so that a pipeline's own LoRA scale reaches each
        args, kwargs = stack_copies(self.family, args, kwargs, k=len(self.names))
        with self.routing.on():
            return map_outputs([forward(*args, **kwargs)], lambda parts: _mix(parts[0].chunk(len(mean)), mean))


def out_of_memory(error: RuntimeError) -> bool:
    """Tell whether an error says that memory ran out, on an accelerator or on the CPU."""
    return isinstance(error, torch.OutOfMemoryError) or "allocate memory" in str(error)


# --- denoisers: where they are, how they take a batch, how their outputs are averaged ---

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
    """Return the denoisers of a pipeline by component name; raises TypeError where it has none, or no scheduler."""
    parts = {name: getattr(pipe, name, None) for name in COMPONENTS}
    denoisers = {name: module for name, module in parts.items() if isinstance(module, nn.Module)}
    if not denoisers or getattr(pipe, "scheduler", None) is None:
        raise TypeError(
            f"{type(pipe).__name__} has no scheduler with a `unet` or `transformer`: pass a diffusers pipeline"
        )
    return denoisers


def family_of(denoiser: nn.Module) -> Family | None:
    """Return a denoiser's family (also inside a peft model), None where stacking inputs is not known to be right."""
    unwrap = getattr(denoiser, "get_base_model", None)
    model = unwrap() if unwrap else denoiser
    return next((FAMILIES[c.__name__] for c in type(model).__mro__ if c.__name__ in FAMILIES), None)


def stack_copies(family: Family, args: Sequence[Any], kwargs: dict[str, Any], *, k: int) -> tuple[tuple, dict]:
    """Stack the inputs of a pass over k copies of the batch: tensors with its rows are repeated, others are shared."""
    given = (kwargs.get(family.sample), *args, *kwargs.values())
    sample = next((value for value in given if isinstance(value, Tensor)), None)
    if sample is None:
        raise TypeError(f"the denoiser was called without {family.sample!r}: there is no batch to copy")
    rows = len(sample)  # the noisy sample's first dimension is the batch

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
    """Join the outputs of several passes tensor by tensor, in the denoiser's own form (a tensor, tuple or output)."""
    first = outputs[0]
    if isinstance(first, Tensor):
        return join(list(outputs))
    if isinstance(first, tuple):
        return tuple(map_outputs(parts, join) for parts in zip(*outputs, strict=True))
    if hasattr(first, "keys"):
        return type(first)(**{key: map_outputs([o[key] for o in outputs], join) for key in first.keys()})
    return first


def _mix(parts: Sequence[Tensor], shares: Sequence[float]) -> Tensor:
    mixed = shares[0] * parts[0]
    for share, part in zip(shares[1:], parts[1:], strict=True):
        mixed = mixed.add(part, alpha=share)
    return mixed
