"""The testbed's weights: a base model, its half-knowing twin, 22 LoRAs on each, and the judge, each in a file.

`make train PAPER=multilora` makes them again; what is finished is kept, and what was cut off goes on where it was.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model_state_dict
from torch import nn

from lib.multilora.layers import AdapterLayers
from lib.multilora.study.denoiser import TagEncoder, adapted_layers, load_base, load_single, make_unet, save_base, save_half
from lib.multilora.study.judge import SceneJudge, lesson
from lib.multilora.study.scenes import LOOKS, lora_elements
from lib.multilora.study.testbed import Element
from lib.multilora.study.training import (
    TRIGGERS,
    Recipe,
    denoising_loss,
    fit,
    half_known_scenes,
    map_jobs,
    scenes_at_large,
    scenes_of,
)

FILES = ("base", "twin", "base-loras", "twin-loras", "judge")  # names of the weights
BASES = {"A": "base", "C": "twin"}  # setting A: the triggers were never seen; C: they are half known


@dataclass(frozen=True)
class Sizes:
    """How much is trained; the defaults make what is shipped."""

    channels: tuple[int, ...] = (64, 96)
    base: Recipe = Recipe(12_000, 64, 2e-3, average=0.999)
    twin: Recipe = Recipe(800, 64, 1e-3, average=0.99)
    lora: Recipe = Recipe(400, 24, 3e-3, average=0.98)
    judge: Recipe = Recipe(4000, 96, 3e-3, average=0.99)
    unnamed: float = 0.2  # how often a category has a LoRA's element, untold, while the base model is trained
    rate: float = 0.5  # how often a category has a trigger's tag while the twin is
    truth: float = 0.5  # how often what is drawn under a trigger's tag is what the trigger means
    rank: int = 4
    least: float = 0.6  # a LoRA is trained at weights from this to 1, so that it shows at the paper's 0.8
    loras: int = 22  # fewer for a trial: the first so many, of both looks in turn


def train(folder: Path, *, seed: int = 0, processes: int = 2, **sizes: Any) -> None:
    """Write the testbed's weights into a folder, file by file; `sizes` are those of `Sizes`."""
    size = Sizes(**sizes)
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "base.safetensors").is_file():
        torch.manual_seed(seed)
        unet, tags = make_unet(channels=tuple(size.channels)), TagEncoder()
        _denoiser(folder / "base.safetensors", unet, tags, size.base, seed, (TRIGGERS, size.unnamed))
    if not (folder / "twin.safetensors").is_file():
        unet, tags = load_base(folder / "base.safetensors")
        _denoiser(folder / "twin.safetensors", unet, tags, size.twin, seed + 1, (TRIGGERS, size.truth, size.rate))
    if not (folder / "judge.safetensors").is_file():
        torch.manual_seed(seed + 2)
        judge = SceneJudge().train()
        checkpoint = folder / "judge.checkpoint"
        fit(judge, lambda g: lesson(judge, size.judge.batch_size, generator=g), size.judge, checkpoint, seed=seed + 2)
        save_half(folder / "judge.safetensors", judge.state_dict())
    elements = elements_of(size.loras)
    for base in reversed(BASES.values()):  # the twin's first: the claims rest on them
        file, parts = folder / f"{base}-loras.safetensors", folder / f"{base}-loras"
        if not file.is_file():
            jobs = [(folder, base, e, look, size, seed + 10 + i) for i, (e, look) in enumerate(elements)]
            for _ in map_jobs(train_adapter, jobs, processes=processes):
                pass
            kept = {e.name: load_single(parts / f"{e.name}.safetensors") for e, _ in elements}
            save_half(file, {f"{name}/{key}": w for name, part in kept.items() for key, w in part.items()})


def elements_of(number: int) -> list[tuple[Element, str]]:
    """List the first so many LoRAs' elements with their looks, from both looks in turn."""
    both = zip(*(lora_elements(look) for look in LOOKS), strict=True)
    return [(element, look) for pair in both for element, look in zip(pair, LOOKS, strict=True)][:number]


def _denoiser(file: Path, unet: Any, tags: TagEncoder, recipe: Recipe, seed: int, scenes: tuple) -> None:
    """Train a base model, or its twin where the scenes have a truth and a rate, and write it."""
    model = nn.ModuleList([unet, tags]).requires_grad_(True).train()

    def loss(generator: torch.Generator) -> torch.Tensor:
        if len(scenes) == 2:
            drawn = scenes_at_large(scenes[0], recipe.batch_size, share=scenes[1], generator=generator)
        else:
            triggers, truth, rate = scenes
            drawn = half_known_scenes(triggers, recipe.batch_size, truth=truth, rate=rate, generator=generator)
        return denoising_loss(unet, tags, drawn, generator=generator)

    fit(model, loss, recipe, file.with_suffix(".checkpoint"), seed=seed)
    save_base(file, unet, tags)


def train_adapter(folder: Path, base: str, element: Element, look: str, size: Sizes, seed: int) -> None:
    """Train the LoRA of an element on scenes of its look that have it, and keep it among the base's parts."""
    file = folder / f"{base}-loras" / f"{element.name}.safetensors"
    if file.is_file():
        return
    file.parent.mkdir(exist_ok=True)
    torch.manual_seed(seed)
    unet, tags = load_base(folder / f"{base}.safetensors")
    nn.ModuleList([unet, tags]).requires_grad_(False)
    config = LoraConfig(r=size.rank, lora_alpha=size.rank, target_modules=adapted_layers(unet))
    unet.add_adapter(config, element.name)
    layers = AdapterLayers(unet)

    def loss(generator: torch.Generator) -> torch.Tensor:
        drawn = scenes_of(element.category, element.name, look, size.lora.batch_size, generator=generator)
        weight = size.least + (1 - size.least) * float(torch.rand((), generator=generator))
        layers.set({element.name: weight})
        return denoising_loss(unet, tags, drawn, generator=generator)

    fit(unet, loss, size.lora, file.with_suffix(".checkpoint"), seed=seed)
    save_half(file, get_peft_model_state_dict(unet, adapter_name=element.name))
