"""The testbed's weights: a base model, its half-knowing twin, 22 LoRAs on each, and the judge, each in a file.

`make train PAPER=multilora` makes them again; what is finished is kept, and what was cut off goes on where it was.
"""

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model_state_dict
from safetensors import safe_open
from torch import nn

from lib.multilora.layers import AdapterLayers
from lib.multilora.study.denoiser import (
    TagEncoder,
    adapted_layers,
    load_base,
    load_single,
    make_unet,
    save_base,
    save_half,
)
from lib.multilora.study.judge import SceneJudge, lesson
from lib.multilora.study.scenes import LOOKS, lora_elements
from lib.multilora.study.testbed import Element
from lib.multilora.study.training import (
    TRIGGERS,
    Recipe,
    Scenes,
    denoising_loss,
    fit,
    half_known_scenes,
    map_jobs,
    scenes_at_large,
    scenes_of,
)
from lib.zoo import shipped

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
    loras: tuple[str, ...] = ()  # names of the elements that get one; none given: all 22


def train(folder: Path, *, seed: int = 0, processes: int = 2, **sizes: Any) -> dict[str, dict[str, Any]]:
    """Write the testbed's weights into a folder, file by file, and return the minutes of each.

    `sizes` are those of `Sizes`. What is under way lies in the hidden folder `.parts`, which goes at the end.
    """
    size, parts = Sizes(**sizes), folder / ".parts"
    parts.mkdir(parents=True, exist_ok=True)
    files = {name: folder / f"{name}.safetensors" for name in FILES}
    if not files["base"].is_file():
        torch.manual_seed(seed)
        unet, tags = make_unet(channels=tuple(size.channels)), TagEncoder()

        def scenes(n: int, generator: torch.Generator) -> Scenes:
            return scenes_at_large(TRIGGERS, n, share=size.unnamed, generator=generator)

        _train_denoiser(files["base"], parts, unet, tags, scenes, size.base, seed)
    if not files["twin"].is_file():
        unet, tags = load_base(files["base"])

        def scenes(n: int, generator: torch.Generator) -> Scenes:
            return half_known_scenes(TRIGGERS, n, truth=size.truth, rate=size.rate, generator=generator)

        _train_denoiser(files["twin"], parts, unet, tags, scenes, size.twin, seed + 1)
    if not files["judge"].is_file():
        torch.manual_seed(seed + 2)
        judge, n = SceneJudge().train(), size.judge.batch_size
        file = parts / "judge.checkpoint"
        minutes = fit(judge, lambda generator: lesson(judge, n, generator=generator), size.judge, file, seed=seed + 2)
        save_half(files["judge"], judge.state_dict(), minutes=minutes)
    elements = [(e, look) for look in LOOKS for e in lora_elements(look) if not size.loras or e.name in size.loras]
    for base in reversed(BASES.values()):  # the twin's first: the claims rest on them
        if not files[f"{base}-loras"].is_file():
            jobs = [(folder, base, e, look, size, seed + 10 + i) for i, (e, look) in enumerate(elements)]
            for _ in map_jobs(train_adapter, jobs, processes=processes):
                pass
            made = {e.name: parts / f"{base}-{e.name}.safetensors" for e, _ in elements}
            weights = {f"{name}/{key}": w for name, file in made.items() for key, w in load_single(file).items()}
            save_half(files[f"{base}-loras"], weights, minutes=sum(map(minutes_of, made.values())))
    shutil.rmtree(parts)
    return {name: {"minutes": round(minutes_of(file), 1)} for name, file in files.items()}


def shipped_folder() -> Path | None:
    """Return the folder of the shipped weights, each checked, or None where they are not (all) there."""
    if not all((shipped.folder("multilora") / f"{name}.safetensors").is_file() for name in FILES):
        return None
    return [shipped.weights("multilora", name) for name in FILES][0].parent


def minutes_of(file: Path) -> float:
    """Return the minutes of processor time that a file says it took."""
    with safe_open(file, "pt") as opened:
        return json.loads(opened.metadata()["minutes"])


def _train_denoiser(
    file: Path, parts: Path, unet: Any, tags: TagEncoder, scenes: Callable[[int, torch.Generator], Scenes],
    recipe: Recipe, seed: int,
) -> None:  # fmt: skip
    def loss(generator: torch.Generator) -> torch.Tensor:
        return denoising_loss(unet, tags, scenes(recipe.batch_size, generator), generator=generator)

    model = nn.ModuleList([unet, tags]).requires_grad_(True).train()
    minutes = fit(model, loss, recipe, parts / f"{file.stem}.checkpoint", seed=seed)
    save_base(file, unet, tags, minutes=minutes)


def train_adapter(folder: Path, base: str, element: Element, look: str, size: Sizes, seed: int) -> None:
    """Train the LoRA of an element on scenes of its look that have it, and keep it among the base's parts."""
    file = folder / ".parts" / f"{base}-{element.name}.safetensors"
    if file.is_file():
        return
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

    minutes = fit(unet, loss, size.lora, file.with_suffix(".checkpoint"), seed=seed)
    save_half(file, get_peft_model_state_dict(unet, adapter_name=element.name), minutes=minutes)
