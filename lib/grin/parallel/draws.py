"""Draws that do not depend on the layout: each window of each layer has its own generator.

Tensor-parallel processes must draw the same experts for the same token, and a run should not change when it moves to
another number of processes. So the seed of a draw is a function of run, step, layer and window, and of nothing else.
"""

import hashlib
from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from lib.grin.modeling import GrinDecoderLayer, GrinForCausalLM
from lib.grin.routing import Route, Routing, joined


def own_layers(model: GrinForCausalLM) -> dict[int, GrinDecoderLayer]:
    """Return the decoder layers that this process holds, by their place in the whole model."""
    return {i: layer for i, layer in enumerate(model.model.layers) if isinstance(layer, GrinDecoderLayer)}


class WindowDraws:
    """Makes all routers of a model draw window by window; call `at` before every forward pass in training."""

    def __init__(self, model: GrinForCausalLM, *, seed: int = 0) -> None:
        self.seed, self.step = seed, 0
        self.windows: Sequence[int] = ()
        for index, layer in own_layers(model).items():
            router = layer.mlp.router
            router.route = partial(self._route, index, router.route)

    def at(self, step: int, windows: Sequence[int]) -> None:
        """Say which step comes, and the numbers, in the global batch, of the windows that the next pass holds."""
        self.step, self.windows = step, windows

    def _route(self, layer: int, route: Route, scores: Tensor, *, training: bool, **options: object) -> Routing:
        if not training:
            return route(scores, training=False, **options)
        if not self.windows or len(scores) % len(self.windows):
            raise ValueError(f"{len(scores)} tokens are not {len(self.windows)} windows: call `at` before the pass")
        parts = []
        for number, rows in zip(self.windows, scores.chunk(len(self.windows)), strict=True):
            generator = torch.Generator(device=scores.device).manual_seed(self._seed_of(layer, number))
            parts.append(route(rows, training=True, generator=generator, **options))
        return joined(parts)

    def _seed_of(self, layer: int, window: int) -> int:
        text = f"{self.seed} {self.step} {layer} {window}"
        return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=4).digest(), "little")
