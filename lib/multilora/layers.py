"""The LoRA layers of a model, listed once: activating adapters on the list is what `set_adapters` does by walking.

`set_adapters` visits every module and touches the gradients of every adapter; between two denoising steps only the
active names and the scalings change. Gradients are left alone, so there is nothing of theirs to restore.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import nn


@dataclass(frozen=True)
class LayerState:
    """What activation changes in one layer: active adapters, whether they are disabled, and all scalings."""

    active: Any
    disabled: bool
    scaling: dict[str, float]


class AdapterLayers:
    """LoRA layers of `model`, with each adapter's own scaling α/r (α/√r for rank-stabilised LoRA) at weight 1."""

    def __init__(self, model: nn.Module) -> None:
        from peft.tuners.lora import LoraLayer

        self.layers = [module for module in model.modules() if isinstance(module, LoraLayer)]
        self._scalings: dict[str, list[tuple[dict[str, float], float]]] = {}
        for layer in self.layers:
            for name in layer.scaling:
                root = layer.r[name] ** 0.5 if layer.use_rslora.get(name, False) else layer.r[name]
                self._scalings.setdefault(name, []).append((layer.scaling, layer.lora_alpha[name] / root))
        self._active: tuple[str, ...] | None = None

    @property
    def names(self) -> list[str]:
        """Adapters loaded in any layer, in order of loading."""
        return list(self._scalings)

    @property
    def fused(self) -> bool:
        """Whether a layer holds merged weights (`fuse_lora`), which would be counted twice."""
        return any(layer.merged for layer in self.layers)

    @property
    def routable(self) -> bool:
        """Whether peft can choose the adapter per sample in every layer (not with DoRA and other variants)."""
        from peft.tuners.lora.layer import MultiheadAttention

        return not any(layer.lora_variant or isinstance(layer, MultiheadAttention) for layer in self.layers)

    def activate(self, names: Sequence[str]) -> None:
        """Make `names` the active adapters of every layer (a layer that lacks one skips it)."""
        wanted = tuple(names)
        if wanted == self._active:
            return
        active = list(wanted)
        for layer in self.layers:
            layer._active_adapter = active
            layer._disable_adapters = False
        self._active = wanted

    def weigh(self, weights: Mapping[str, float]) -> None:
        """Set the scaling of each adapter to its own α/r times its weight."""
        for name, weight in weights.items():
            for scaling, own in self._scalings.get(name, ()):
                scaling[name] = weight * own

    def _snapshot(self) -> list[LayerState]:
        return [LayerState(la._active_adapter, la._disable_adapters, dict(la.scaling)) for la in self.layers]

    @contextmanager
    def restored(self) -> Iterator[None]:
        """Put active adapters, scalings and the disabled flag back to the bit at the end, also after an exception."""
        before = self._snapshot()
        try:
            yield
        finally:
            for layer, state in zip(self.layers, before, strict=True):
                layer._active_adapter, layer._disable_adapters = state.active, state.disabled
                layer.scaling.clear()
                layer.scaling.update(state.scaling)
            self._active = None


class Routing:
    """Per-sample adapters of peft: rows of copy i of a batch, stacked copy by copy, go through adapter i.

    peft hands `adapter_names` to its layers by pre-forward hooks that only its own wrapper models install; these are
    the same hooks for a bare denoiser, installed once and silent unless `copies` is set.
    """

    def __init__(self) -> None:
        self.copies: tuple[str, ...] = ()
        self._rows: dict[int, list[str]] = {}

    @contextmanager
    def through(self, names: Sequence[str]) -> Iterator[None]:
        """Route stacked copies through `names` while the block lasts."""
        self.copies, self._rows = tuple(names), {}
        try:
            yield
        finally:
            self.copies = ()

    def _hook(self, layer: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]] | None:
        if not self.copies:
            return None
        rows = len(args[0] if args else kwargs["x"])
        if rows not in self._rows:
            # A layer may see frames or tokens folded into the batch: a copy still is one block of rows.
            self._rows[rows] = [name for name in self.copies for _ in range(rows // len(self.copies))]
        return args, kwargs | {"adapter_names": self._rows[rows]}

    @contextmanager
    def installed(self, layers: AdapterLayers) -> Iterator["Routing"]:
        """Keep the hooks on the layers while the block lasts."""
        handles = [layer.register_forward_pre_hook(self._hook, with_kwargs=True) for layer in layers.layers]
        try:
            yield self
        finally:
            for handle in handles:
                handle.remove()
