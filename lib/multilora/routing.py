"""Per-sample adapters for stacked copies of a batch: rows of copy i go through adapter i, all in one pass.

Copies are contiguous blocks, so the k low-rank products of a layer are one batched product, or one grouped convolution
(peft gathers and scatters the rows of each adapter). Where ranks differ or an adapter is lacking they go one by one.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d

from lib.multilora.layers import AdapterLayers, replaced


class Routing:
    """Routes stacked copies, one for each name, through these adapters while switched on; silent otherwise."""

    def __init__(self) -> None:
        self.names: tuple[str, ...] = ()
        self._adders: dict[Any, tuple[tuple[str, ...], Callable[[Tensor, Tensor], Tensor]]] = {}

    def forget(self) -> None:
        """Forget the stacked weights, which may have been moved or trained since."""
        self._adders.clear()

    @contextmanager
    def on(self, names: Sequence[str]) -> Iterator[None]:
        """Route what passes through the layers while the block lasts; an unknown name leaves its copy alone."""
        self.names = tuple(names)
        try:
            yield
        finally:
            self.names = ()

    @contextmanager
    def installed(self, layers: AdapterLayers) -> Iterator[None]:
        """Keep the layers' forward passes routable while the block lasts."""
        with ExitStack() as stack:
            for layer in layers.layers:
                stack.enter_context(replaced(layer, "forward", self._routed(layer)))
            yield
            self.forget()

    def _routed(self, layer: Any) -> Callable[..., Tensor]:
        """Forward pass of a LoRA layer that knows both ways."""
        own = layer.forward

        def forward(x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
            if not self.names:
                return own(x, *args, **kwargs)
            names, add = self._adders.get(layer, ((), own))
            if names != self.names:
                add = _adder(layer, self.names)
                self._adders[layer] = self.names, add
            return add(layer.base_layer(x, *args, **kwargs), x)

        return forward


def _adder(layer: Any, names: tuple[str, ...]) -> Callable[[Tensor, Tensor], Tensor]:
    """How the adapters' outputs are added to a base layer's output for stacked copies."""
    here = [name for name in names if name in layer.lora_A]
    parts = [layer.lora_A[name] for name in here] + [layer.lora_B[name] for name in here]
    base = getattr(layer.get_base_layer(), "weight", None)
    alike = len({layer.r[name] for name in here}) == 1 and all(part.bias is None for part in parts)
    if here == list(names) and alike and base is not None and {part.weight.dtype for part in parts} == {base.dtype}:
        if all(type(part) is nn.Linear for part in parts):
            return _StackedLinear(layer, names)
        if all(type(part) is nn.Conv2d and part.groups == 1 and part.padding_mode == "zeros" for part in parts):
            return _StackedConv(layer, names)
    return _blockwise(layer, names)


class _Stacked:
    """Weights of k adapters of a layer in one tensor each; the scalings are multiplied in when they change."""

    def __init__(self, layer: Any, names: tuple[str, ...]) -> None:
        self.layer, self.names = layer, names
        self.down = self.stack([layer.lora_A[name].weight for name in names])
        self.own_up = self.stack([layer.lora_B[name].weight for name in names])
        self.scales: tuple[float, ...] = ()
        self.up = self.own_up

    stack: Callable[[list[Tensor]], Tensor]

    def scaled(self) -> Tensor:
        scales = tuple(self.layer.scaling[name] for name in self.names)
        if scales != self.scales:
            factors = torch.tensor(scales, dtype=self.own_up.dtype, device=self.own_up.device)
            factors = factors.repeat_interleave(len(self.own_up) // len(scales))
            self.up = self.own_up * factors.view(-1, *[1] * (self.own_up.ndim - 1))
            self.scales = scales
        return self.up


class _StackedLinear(_Stacked):
    @staticmethod
    def stack(weights: list[Tensor]) -> Tensor:
        return torch.stack([weight.T for weight in weights]).detach()  # adapters, inputs, outputs

    def __call__(self, result: Tensor, x: Tensor) -> Tensor:
        copies = (len(self.names), -1)
        inner = torch.bmm(x.reshape(*copies, x.shape[-1]), self.down)
        return torch.baddbmm(result.reshape(*copies, result.shape[-1]), inner, self.scaled()).view_as(result)


class _StackedConv(_Stacked):
    @staticmethod
    def stack(weights: list[Tensor]) -> Tensor:
        return torch.cat(list(weights)).detach()  # adapters × outputs, inputs, height, width

    def __call__(self, result: Tensor, x: Tensor) -> Tensor:
        k, like = len(self.names), self.layer.lora_A[self.names[0]]
        x = x.unflatten(0, (k, -1)).transpose(0, 1).flatten(1, 2)  # batch, adapters × channels, height, width
        inner = conv2d(x, self.down, None, like.stride, like.padding, like.dilation, groups=k)
        added = conv2d(inner, self.scaled(), groups=k)
        return result + added.unflatten(1, (k, -1)).transpose(0, 1).flatten(0, 1)


def _blockwise(layer: Any, names: tuple[str, ...]) -> Callable[[Tensor, Tensor], Tensor]:
    def add(result: Tensor, x: Tensor) -> Tensor:
        parts = []
        for name, rows, inputs in zip(names, result.chunk(len(names)), x.chunk(len(names)), strict=True):
            if name in layer.lora_A:
                down, up = layer.lora_A[name], layer.lora_B[name]
                added = up(down(layer.lora_dropout[name](inputs.to(down.weight.dtype))))
                rows = rows + (layer.scaling[name] * added).to(rows.dtype)
            parts.append(rows)
        return torch.cat(parts)

    return add
