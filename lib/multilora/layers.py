"""The LoRA layers of a model, listed once: setting adapters on the list is what `set_adapters` does by walking.

Between two denoising steps only active names and scalings change, which compiled code sees by its guards; gradients,
which `set_adapters` touches, are left alone.
"""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from itertools import product
from typing import Any

from torch import nn

from lib import TenfoldError

Blocks = Mapping[str, Mapping[str, float]]  # adapter → beginning of a layer's name → factor on its weight there
WRAPPER = "_orig_mod."  # what `torch.compile(module)` puts before every name
CHANGES = (
    "set_adapters", "set_adapter", "delete_adapters", "disable_adapters", "enable_adapters", "disable_lora",
    "enable_lora", "add_adapter", "load_lora_weights", "load_lora_adapter", "unload_lora_weights", "unload_lora",
    "fuse_lora", "unfuse_lora", "fuse_qkv_projections",
)  # fmt: skip


class AdapterLayers:
    """LoRA layers of `model`, with each adapter's own scaling at weight 1: α/r (rank-stabilised: α/√r), by block."""

    def __init__(self, model: nn.Module, blocks: Blocks | None = None) -> None:
        from peft.tuners.lora import LoraLayer

        named = [(n.replace(WRAPPER, ""), m) for n, m in model.named_modules() if isinstance(m, LoraLayer)]
        self.layers: list[Any] = [layer for _, layer in named]
        self._scalings: dict[str, list[tuple[dict[str, float], float]]] = {}
        self.met = {name: set() for name in blocks or ()}  # the blocks of each adapter that some layer of it is in
        for place, layer in named:
            for name in layer.scaling:
                root = layer.r[name] ** 0.5 if layer.use_rslora.get(name, False) else layer.r[name]
                own = layer.lora_alpha[name] / root * self._factor(name, place, (blocks or {}).get(name, {}))
                self._scalings.setdefault(name, []).append((layer.scaling, own))
        self.names = list(self._scalings)  # in order of loading
        self.fused = any(layer.merged for layer in self.layers)  # `fuse_lora`: they would be counted twice
        # Straight into the layers' dictionaries: nn.Module's own __setattr__ would take ten times as long.
        self._attributes = [vars(layer) for layer in self.layers]

    def _factor(self, name: str, place: str, blocks: Mapping[str, float]) -> float:
        """Return the factor of the longest block that a layer's name begins with, 1 where there is none."""
        within = [block for block in blocks if f"{place}.".startswith(f"{block}.")]
        if within:
            self.met[name].update(within)
        return float(blocks[max(within, key=len)]) if within else 1.0

    @property
    def stackable(self) -> bool:
        """Whether all layers are peft's plain ones: no DoRA or other variant, no quantised base."""
        from peft.tuners.lora.layer import Conv2d, Linear

        plain = nn.Linear, nn.Conv2d
        return all(
            type(layer) in (Linear, Conv2d) and type(layer.get_base_layer()) in plain and not layer.lora_variant
            for layer in self.layers
        )

    def set(self, weights: Mapping[str, float]) -> None:
        """Make these the active adapters, scaled by their own α/r times the weight (layers that lack one skip it)."""
        for name, weight in weights.items():
            for scaling, own in self._scalings.get(name, ()):
                if name not in scaling:
                    raise TenfoldError(f"the LoRA {name!r} was deleted inside compose: leave the block first.")
                scaling[name] = weight * own
        for attributes in self._attributes:
            attributes["_active_adapter"] = list(weights)

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
                layer.scaling.update({name: own for name, own in scaling.items() if name in layer.scaling})


@contextmanager
def replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    """Set an instance attribute while the block lasts, then what was there before (or nothing, so the class shows).

    Through the instance's dictionary: compiled modules and pipelines do other things on assignment.
    """
    before = {name: vars(owner)[name]} if name in vars(owner) else {}
    vars(owner)[name] = value
    try:
        yield
    finally:
        vars(owner).pop(name, None)
        vars(owner).update(before)


@contextmanager
def unchanging(*owners: Any) -> Iterator[None]:
    """Refuse the owners' methods that load, choose, fuse or delete adapters while the block lasts."""

    def refuse(name: str, *_: Any, **__: Any) -> None:
        raise TenfoldError(f"{name} inside compose would change what is composed: leave the block first.")

    with ExitStack() as stack:
        for owner, name in product(owners, CHANGES):
            if hasattr(type(owner), name):
                stack.enter_context(replaced(owner, name, partial(refuse, name)))
        yield
