"""LoRA Composite's prediction: the mean of the denoiser's outputs under each of k adapters (arXiv:2402.16843).

ẽ = (1/k) Σ_i [e_i(z) + s (e_i(z, c) − e_i(z))]. The mean and the guidance are both linear, so averaging what the
denoiser gives, guided or not, and letting the pipeline guide it is the same; it also works with guidance off.
"""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import Any, Literal

import torch
from torch import nn

from lib import TenfoldError
from lib.multilora import batching
from lib.multilora.denoisers import (
    FAMILIES,
    family_of,
    sample_of,
    stack_copies,
    weighted_sum,
    weighted_sum_of_copies,
)
from lib.multilora.layers import AdapterLayers
from lib.multilora.routing import Routing

Batched = Literal["auto"] | bool


class Composite:
    """Runs a denoiser under each adapter and averages, in one pass over k copies or in k passes."""

    def __init__(self, denoiser: nn.Module, layers: AdapterLayers, names: Sequence[str], batched: Batched) -> None:
        self.denoiser, self.layers, self.names = denoiser, layers, tuple(names)
        self.family = family_of(denoiser)
        self.routing = Routing(self.names)
        possible = self.family is not None and layers.routable
        if batched is True and not possible:
            raise TenfoldError(
                f"one batched pass of {type(denoiser).__name__} is not known to be right (known: "
                f"{', '.join(FAMILIES)}; plain LoRA layers only): pass batched=False or 'auto'."
            )
        self.batched: Batched = batched if possible and len(self.names) > 1 else False

    def enter(self, stack: ExitStack) -> None:
        """Route the layers until the stack closes, where a batched pass may be asked for."""
        if self.batched is not False:
            stack.enter_context(self.routing.installed(self.layers))

    def __call__(self, forward: Any, args: tuple, kwargs: dict, shares: Mapping[str, float]) -> tuple[Any, bool]:
        """Averaged output of one denoiser call, and whether it was one batched pass."""
        weights = [shares[name] for name in self.names]
        if self.batched != "auto":
            run = self._one_pass if self.batched else self._passes
            return run(forward, args, kwargs, weights), bool(self.batched)
        sample = sample_of(self.family, args, kwargs)
        assert sample is not None
        return self._measured(forward, args, kwargs, weights, sample)

    def _measured(self, forward: Any, args: tuple, kwargs: dict, weights: list[float], sample: Any) -> tuple[Any, bool]:
        choice = batching.choice_for(self.denoiser, sample, len(self.names))
        way = choice.next_way()
        try:
            if choice.bytes_per_pass is None and choice.batched is None:
                free = batching.free_bytes(sample.device)
                output, peak = batching.with_peak(lambda: self._passes(forward, args, kwargs, weights), sample.device)
                choice.learn_memory(peak, free, len(self.names))
                return output, False
            if choice.batched is not None:
                return (self._one_pass if way else self._passes)(forward, args, kwargs, weights), way
            run = self._one_pass if way else self._passes
            output, seconds = batching.timed(lambda: run(forward, args, kwargs, weights), sample.device)
            choice.learn(way, seconds)
            return output, way
        except RuntimeError as error:
            if not way or not batching.out_of_memory(error):
                raise
            choice.batched = False
        if sample.device.type == "cuda":
            torch.cuda.empty_cache()
        return self._passes(forward, args, kwargs, weights), False

    def _passes(self, forward: Any, args: tuple, kwargs: dict, weights: list[float]) -> Any:
        outputs = []
        for name in self.names:
            self.layers.activate([name])
            outputs.append(forward(*args, **kwargs))
        return weighted_sum(outputs, weights)

    def _one_pass(self, forward: Any, args: tuple, kwargs: dict, weights: list[float]) -> Any:
        assert self.family is not None
        self.layers.activate(self.names)  # so that a pipeline's own LoRA scale reaches all of them
        args, kwargs = stack_copies(self.family, args, kwargs, k=len(self.names))
        with self.routing.on():
            return weighted_sum_of_copies(forward(*args, **kwargs), weights)
