"""Benchmarks: composite in `auto` against k passes, switch's turn against `set_adapters`, merge and cost against k.

The denoiser is that of the scene testbed with random weights and five LoRAs: time does not depend on the values.
"""

from collections.abc import Callable, Iterator
from functools import cache as memoised
from typing import Any

import torch
from diffusers import DPMSolverMultistepScheduler
from peft import LoraConfig, inject_adapter_in_model

from lib.multilora.composition import METHODS, compose
from lib.multilora.layers import AdapterLayers
from lib.multilora.study.denoiser import adapted_layers, make_unet
from lib.multilora.study.testbed import CATEGORIES

STEPS = 3  # of a timed loop
TURNS = 20  # turns of switch in one timing


class Loop:
    """What of a pipeline matters here: a denoiser, a scheduler, and a guided denoising loop over them."""

    def __init__(self, unet: Any, batch: int) -> None:
        self.unet, self.components = unet, {"unet": unet}
        self.scheduler = DPMSolverMultistepScheduler()
        draw = torch.Generator().manual_seed(0)
        self.noise = torch.randn(batch, 48, 8, 8, generator=draw)
        self.tags = torch.randn(2 * batch, 5, 64, generator=draw)

    @torch.inference_mode()
    def __call__(self) -> None:
        """Denoise for a few steps."""
        self.scheduler.set_timesteps(STEPS)
        latents = self.noise
        for time in self.scheduler.timesteps:
            both = self.unet(torch.cat([latents] * 2), time, self.tags, return_dict=False)[0]
            free, tagged = both.chunk(2)
            latents = self.scheduler.step(free + 4 * (tagged - free), time, latents, return_dict=False)[0]


@memoised
def testbed_unet() -> Any:
    """Make the denoiser of the scene testbed with five LoRAs, all of random weights."""
    torch.manual_seed(0)
    unet = make_unet()
    layers = adapted_layers(unet)
    for name in CATEGORIES:
        inject_adapter_in_model(LoraConfig(r=8, target_modules=layers, init_lora_weights=False), unet, name)
    return unet.requires_grad_(False).eval()


def _weights(k: int) -> dict[str, float]:
    return dict.fromkeys(CATEGORIES[:k], 0.8)


def _case(name: str, ours: Callable, peer: Callable, peer_name: str, **extra: Any) -> dict[str, Any]:
    return {"name": name, "unit": "s", "ours": ours, "peer": peer, "peer_name": peer_name, **extra}


def cases(*, quick: bool = False) -> Iterator[dict[str, Any]]:
    """Yield the cases: composite at k and batch, a turn of switch, methods against merge and against one adapter."""
    for batch in (1, 2) if quick else (1, 4, 16):
        for k in (2, 3) if quick else (2, 3, 4, 5):
            goal = 1 / 1.5 if batch == 1 and k >= 3 else 1.0
            ours = _composed(batch, k, "composite", batched="auto")
            peer = _composed(batch, k, "composite", batched=False)
            yield _case(f"composite, {STEPS} steps, k={k}, batch {batch}, auto", ours, peer, "k passes", goal=goal)
    one = _composed(1, 1, "merge")
    for method in METHODS:
        for k in (3,) if quick else (2, 3, 4, 5):
            ours = _composed(1, k, method)
            peer, peer_name = (one, "one adapter") if method == "merge" else (_composed(1, k, "merge"), "merge")
            name = f"{method}, {STEPS} steps, k={k}, batch 1"
            yield _case(name, ours, peer, peer_name, curve=f"{method} of k LoRAs", size=k)
    yield _case(f"{TURNS} turns on the cached layers", _turns, _set_adapters, "set_adapters")
    yield _case(f"{TURNS} turns on the cached layers", _turns, _passes, f"{TURNS} UNet passes, batch 1", goal=0.01)


def _composed(batch: int, k: int, method: str, **options: Any) -> Callable[[], None]:
    """Timed loop inside a composition."""
    loop = Loop(testbed_unet(), batch)

    def run() -> None:
        with compose(loop, _weights(k), method, tau=1, **options):
            loop()

    return run


@memoised
def _layers() -> AdapterLayers:
    return AdapterLayers(testbed_unet())


def _turns() -> None:
    layers = _layers()
    with layers.restored():
        for index in range(TURNS):
            layers.set({CATEGORIES[index % len(CATEGORIES)]: 0.8})


def _set_adapters() -> None:
    for index in range(TURNS):
        testbed_unet().set_adapters([CATEGORIES[index % len(CATEGORIES)]], [0.8])


@torch.inference_mode()
def _passes() -> None:
    loop = Loop(testbed_unet(), 1)
    for _ in range(TURNS):
        loop.unet(torch.cat([loop.noise] * 2), 500, loop.tags)
