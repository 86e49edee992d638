"""The LoRA layers of a model, listed once: setting adapters on the list is what `set_adapters` does by walking.

`set_adapters` visits every module and touches the gradients of every adapter; between two denoising steps only the
active names and the scalings change. Gradients are left alone, so there is nothing of theirs to restore.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import nn


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
        # Straight into the layers' dictionaries: nn.Module's own __setattr__ would take ten times as long.
        self._attributes = [vars(layer) for layer in self.layers]
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

    def set(self, weights: Mapping[str, float]) -> None:
        """Make these the active adapters, scaled by their own α/r times the weight (layers that lack one skip it)."""
        for name, weight in weights.items():
            for scaling, own in self._scalings.get(name, ()):
                scaling[name] = weight * own
        wanted = tuple(weights)
        if wanted == self._active:
            return
        for attributes in self._attributes:
            attributes["_active_adapter"] = list(wanted)
        self._active = wanted

    @contextmanager
    def restored(self) -> Iterator[None]:
        """Enable adapters, and put that, the active ones and scalings back to the bit at the end, whatever happens."""
        before = [(la._active_adapter, la._disable_adapters, dict(la.scaling)) for la in self.layers]
        try:
            for layer in self.layers:
                layer._disable_adapters = False
            yield
        finally:
            for layer, (active, disabled, scaling) in zip(self.layers, before, strict=True):
                layer._active_adapter, layer._disable_adapters = active, disabled
                layer.scaling.clear()
                layer.scaling.update(scaling)
            self._active = None


@contextmanager
def replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    """Set an instance attribute while the block lasts, then what was there before (or nothing, so the class shows)."""
    had = name in vars(owner)
    before = vars(owner).get(name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        if had:
            setattr(owner, name, before)
        else:
            delattr(owner, name)
