"""The noise prediction of LoRA Composite: a mean of the denoiser's outputs under each of k adapters (arXiv:2402.16843).

ẽ = (1/k) Σ_i [e_i(z) + s (e_i(z, c) − e_i(z))]. Mean and guidance are linear, so averaging what the denoiser gives and
letting the pipeline guide it is the same. The denoiser's call is replaced from outside its hooks and compiled code. The
k passes are one over stacked copies of the batch where that is known to be right and fits; the two agree to rounding.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any, Literal

import torch
from torch import Tensor, nn

from lib import TenfoldError
from lib.multilora.layers import AdapterLayers, replaced
from lib.multilora.regions import Share, Shares
from lib.multilora.routing import Routing

Batched = Literal["auto"] | bool


class Prediction:
    """A denoiser's call replaced by a weighted sum of its calls under each adapter by itself."""

    def __init__(
        self, denoiser: nn.Module, layers: AdapterLayers, batched: Batched,
        weights: Callable[[], Mapping[str, float]], shares: Shares,
    ) -> None:  # fmt: skip
        self.denoiser, self.layers, self.weights, self.shares = denoiser, layers, weights, shares
        self.routing, self.insisted, self._fits = Routing(), batched is True, bool(batched)
        self.inner = denoiser._compiled_call_impl or denoiser._call_impl
        self._compiled = any(m._compiled_call_impl for m in denoiser.modules()) or denoiser is not unwrapped(denoiser)
        self.begin()
        self._refuse_one_pass(self.obstacle)

    def _refuse_one_pass(self, obstacle: str) -> None:
        if self.insisted and obstacle:
            raise ValueError(f"one batched pass is not known to be right with {obstacle}: use batched='auto'.")

    def begin(self) -> None:
        """Look at the denoiser anew: a run may have other processors, hooks or a device than the one before."""
        model = unwrapped(self.denoiser)
        if getattr(model, "is_cache_enabled", False):
            raise TenfoldError("LoRAs cannot share a denoiser's cache: call disable_cache() before composing.")
        self._attention = [module for module in model.modules() if hasattr(module, "processor")]
        self.obstacle, self.was_batched = self._obstacle(), False
        self.routing.forget()

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Predict in place of the denoiser while the block lasts."""

        @torch.compiler.disable  # where a whole pipeline is compiled
        def predict(*args: Any, **kwargs: Any) -> Any:
            return self(args, kwargs)

        self._fits = self._fits and not self.obstacle  # an obstacle that goes later leaves the layers as they are
        routed = self.routing.installed(self.layers) if self._fits else nullcontext()
        with routed, replaced(self.denoiser, "_compiled_call_impl", predict):
            yield

    def __call__(self, args: tuple, kwargs: dict[str, Any]) -> Any:
        """Return the sum of the outputs of one call, in one pass over copies or in a pass for each adapter."""
        weights = self.weights()
        shares = self.shares.at(list(weights), sample_of(args, kwargs), kwargs)
        # One share more than adapters is that of the model without any: places that no mask covers.
        sets = [{name: weight} for name, weight in weights.items()] + [{}] * (len(shares) - len(weights))
        # Processors once more: a pipeline puts its own on (PAG) between the beginning of a run and its loop.
        obstacle = self.obstacle or self._strange_processor()
        self._refuse_one_pass(obstacle)
        self.was_batched = self._fits and len(sets) > 1 and not obstacle
        if self.was_batched:
            try:
                return self._one_pass(args, kwargs, weights, shares)
            except RuntimeError as error:
                short = isinstance(error, torch.OutOfMemoryError) or "allocate memory" in str(error)  # GPU, CPU
                if self.insisted or not short:
                    raise
            self._fits = self.was_batched = False
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
        outputs = []
        for adapters in sets:
            self.layers.set(adapters)
            outputs.append(self.inner(*map(_own, args), **{name: _own(value) for name, value in kwargs.items()}))
        return map_outputs(outputs, lambda parts: _mix(parts, shares))

    def _obstacle(self) -> str:
        """Return what keeps copies of a batch from going through the denoiser in one pass, nothing where they can."""
        model = unwrapped(self.denoiser)
        if shared_arguments(model) is None:
            return f"a {type(model).__name__} (known: {', '.join(FAMILIES)})"
        if self._compiled:
            return "compiled code"
        hooks = {"_hf_hook", "_diffusers_hook"}  # accelerate's and diffusers', that bring or cast weights for a call
        if any(hooks & vars(module).keys() for module in model.modules() if module is not model):
            return "weights that are offloaded or cast layer by layer"
        if not self.layers.stackable:
            return "LoRA layers that are not plain ones"
        return self._strange_processor()

    def _strange_processor(self) -> str:
        strange = {type(module.processor).__name__ for module in self._attention} - PROCESSORS
        return f"the attention processor {min(strange)}" if strange else ""

    def _one_pass(self, args: tuple, kwargs: dict, weights: Mapping[str, float], shares: Sequence[Share]) -> Any:
        self.layers.set(weights)  # all of them, so that a pipeline's own LoRA scale reaches each
        k = len(shares)
        args, kwargs = stack_copies(shared_arguments(self.denoiser) or set(), args, kwargs, k=k)
        with self.routing.on([*weights, ""][:k]):
            return map_outputs([self.inner(*args, **kwargs)], lambda parts: _mix(parts[0].chunk(k), shares))


def _own(value: Any) -> Any:
    """Return a pass's own list or dictionary: a UNet takes the features of a T2I-Adapter out of the one it is given."""
    return value.copy() if type(value) in (list, dict) else value


def _mix(parts: Sequence[Tensor], shares: Sequence[Share]) -> Tensor:
    mixed = shares[0] * parts[0]
    for share, part in zip(shares[1:], parts[1:], strict=True):
        mixed = mixed + share * part if isinstance(share, Tensor) else mixed.add(part, alpha=share)
    return mixed


COMPONENTS = ("unet", "transformer", "transformer_2")


# Denoisers that take copies of a batch, each with its arguments that have no batch dimension.
FAMILIES: dict[str, set[str]] = {
    "UNet2DConditionModel": set(), "SD3Transformer2DModel": set(), "PixArtTransformer2DModel": set(),
    "FluxTransformer2DModel": {"img_ids", "txt_ids"},
}  # fmt: skip
# Attention that treats each row of a batch by itself; others (PAG's, for one) may look at several rows.
PROCESSORS = {
    "AttnProcessor", "AttnProcessor2_0", "SlicedAttnProcessor", "XFormersAttnProcessor", "JointAttnProcessor2_0",
    "XFormersJointAttnProcessor", "FluxAttnProcessor",
}  # fmt: skip


def unwrapped(denoiser: nn.Module) -> nn.Module:
    """Return the model inside `torch.compile`'s wrapper, or a model itself."""
    return vars(denoiser).get("_modules", {}).get("_orig_mod", denoiser)


def denoisers_of(pipe: Any) -> dict[str, nn.Module]:
    """Return the denoisers of a pipeline by component name; raises TypeError where it has none, or no scheduler."""
    parts = {name: getattr(pipe, name, None) for name in COMPONENTS}
    denoisers = {name: module for name, module in parts.items() if isinstance(module, nn.Module)}
    if not denoisers or getattr(pipe, "scheduler", None) is None:
        raise TypeError(
            f"{type(pipe).__name__} has no scheduler with a `unet` or `transformer`: pass a diffusers pipeline"
        )
    return denoisers


def shared_arguments(model: nn.Module) -> set[str] | None:
    """Return a denoiser's arguments without a batch (also inside a peft model), None for a class that is not known."""
    unwrap = getattr(model, "get_base_model", None)
    model = unwrap() if unwrap else model
    return next((FAMILIES[c.__name__] for c in type(model).__mro__ if c.__name__ in FAMILIES), None)


def sample_of(args: Sequence[Any], kwargs: Mapping[str, Any]) -> Tensor:
    """Return the noisy sample that a denoiser is called with."""
    given = (kwargs.get("sample"), kwargs.get("hidden_states"), *args, *kwargs.values())
    sample = next((value for value in given if isinstance(value, Tensor)), None)
    if sample is None:
        raise TypeError("the denoiser was called without a noisy sample: there is nothing to predict.")
    return sample


def stack_copies(shared: set[str], args: Sequence[Any], kwargs: dict[str, Any], *, k: int) -> tuple[tuple, dict]:
    """Stack the inputs of a pass over k copies of the batch: tensors with its rows are repeated, others are shared."""
    rows = len(sample_of(args, kwargs))  # the noisy sample's first dimension is the batch

    def copies(value: Any) -> Any:
        if isinstance(value, Tensor):
            return torch.cat([value] * k) if value.ndim and len(value) == rows else value
        if isinstance(value, dict):
            return {name: copies(v) for name, v in value.items()}
        if type(value) in (list, tuple):
            return type(value)(copies(v) for v in value)
        return value

    return tuple(map(copies, args)), {n: v if n in shared else copies(v) for n, v in kwargs.items()}


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
