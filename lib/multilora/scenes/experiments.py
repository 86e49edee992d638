"""What the testbed is used for, as jobs for worker processes: training to folders, and judged images from them."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from accelerate import PartialState
from diffusers import UNet2DConditionModel
from jaxtyping import Float, Int
from safetensors.torch import load_file, save_file
from torch import Tensor

from lib.multilora.composition import METHODS, compose
from lib.multilora.scenes.adapters import load_adapters, train_adapter
from lib.multilora.scenes.denoiser import ScenePipeline, TagEncoder, make_unet, starting_noise
from lib.multilora.scenes.elements import draw_generic, index_of, names_of, to_tags
from lib.multilora.scenes.judge import SceneJudge, train_judge
from lib.multilora.scenes.training import Recipe, half_known_scenes, scenes_at_large, train
from lib.multilora.testbed import CATEGORIES, Element

NO_LORA = "none"
TRIGGERS = names_of("development") + names_of("held-out")


def build_base(folder: Path, channels: Sequence[int], recipe: Recipe, unnamed: float, seed: int) -> None:
    """Train the base model and keep it; it sees the LoRAs' elements at a share of `unnamed`, and never a trigger."""
    torch.manual_seed(seed)
    unet, tags = make_unet(channels=tuple(channels)), TagEncoder()

    def draw(n: int, generator: torch.Generator) -> Any:
        return scenes_at_large(TRIGGERS, n, share=unnamed, generator=generator)

    train(unet, tags, draw, recipe, seed=seed)
    if PartialState().is_main_process:
        _save(folder, unet, tags)


def build_prior(base: Path, folder: Path, recipe: Recipe, truth: float, rate: float, seed: int) -> None:
    """Train a base model on with all triggers half known, and keep it."""
    unet, tags = load_base(base)
    for module in (unet, tags):
        module.requires_grad_(True).train()

    def draw(n: int, generator: torch.Generator) -> Any:
        return half_known_scenes(TRIGGERS, n, truth=truth, rate=rate, generator=generator)

    train(unet, tags, draw, recipe, seed=seed)
    if PartialState().is_main_process:
        _save(folder, unet, tags)


def build_adapter(base: Path, folder: Path, element: Element, recipe: Recipe, seed: int) -> None:
    """Train the LoRA of an element on a base model and keep it."""
    unet, tags = load_base(base)
    train_adapter(unet, tags, element, recipe, folder, seed=seed)


def build_judge(folder: Path, steps: int, seed: int) -> None:
    """Train the judge and keep it."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file(train_judge(steps=steps, seed=seed).state_dict(), folder / "judge.safetensors")


def _save(folder: Path, unet: Any, tags: TagEncoder) -> None:
    unet.save_pretrained(folder / "unet")
    save_file(tags.state_dict(), folder / "tags.safetensors")


def load_base(folder: Path) -> tuple[Any, TagEncoder]:
    """Base model and its tags from a folder."""
    unet, tags = UNet2DConditionModel.from_pretrained(folder / "unet"), TagEncoder()
    tags.load_state_dict(load_file(folder / "tags.safetensors"))
    return unet.eval(), tags.eval()


@lru_cache(maxsize=2)
def load_pipeline(base: Path, adapters: Path) -> ScenePipeline:
    """Pipeline of a base model with every LoRA in a folder (one folder a LoRA, named for it)."""
    unet, tags = load_base(base)
    load_adapters(unet, [(folder.name, folder) for folder in sorted(adapters.iterdir()) if folder.is_dir()])
    return ScenePipeline(unet, tags)


@lru_cache(maxsize=1)
def load_judge(folder: Path) -> SceneJudge:
    """Judge from its folder."""
    judge = SceneJudge()
    judge.load_state_dict(load_file(folder / "judge.safetensors"))
    return judge.eval()


@dataclass(frozen=True)
class Condition:
    """How images are made: method of composition and its settings."""

    method: str
    tau: int = 5
    first: str = ""  # category whose LoRA has the first turn, where not the character's
    backwards: bool = False  # whether the turns after the first come in reverse order
    weight: float = 1.0
    guidance: float = 3.0
    steps: int = 40


def wanted_scenes(combination: Sequence[Element], seeds: Sequence[int]) -> Int[Tensor, "n 5"]:
    """Values of a scene for each seed: the combination's elements, and generic ones in the other categories."""
    draws = [draw_generic(1, generator=torch.Generator().manual_seed(seed)) for seed in seeds]
    values = torch.cat(draws)
    for element in combination:
        values[:, CATEGORIES.index(element.category)] = index_of(element.category, element.name)
    return values


def in_turn(combination: Sequence[Element], condition: Condition) -> list[Element]:
    """Elements in the order of their turns: the paper's order of categories, but for what the condition says."""
    ordered = sorted(combination, key=lambda e: (e.category != condition.first, CATEGORIES.index(e.category)))
    return [ordered[0], *(ordered[:0:-1] if condition.backwards else ordered[1:])]


def make_images(
    pipe: ScenePipeline, combination: Sequence[Element], condition: Condition, seeds: Sequence[int]
) -> Float[Tensor, "n 3 32 32"]:
    """One image a seed; a seed has the same noise and the same other elements under every condition."""
    options: dict[str, Any] = {
        "noise": starting_noise(list(seeds)), "guidance_scale": condition.guidance,
        "num_inference_steps": condition.steps,
    }  # fmt: skip
    tags = to_tags(wanted_scenes(combination, seeds))
    if condition.method == NO_LORA:
        pipe.unet.disable_adapters()
        try:
            return pipe(tags, **options)
        finally:
            pipe.unet.enable_adapters()
    weights = {element.name: condition.weight for element in in_turn(combination, condition)}
    with compose(pipe, weights, condition.method, tau=condition.tau, batched=True):
        return pipe(tags, **options)


def judged_images(
    base: Path,
    adapters: Path,
    judge: Path,
    combination: Sequence[Element],
    conditions: Sequence[Condition],
    seeds: Sequence[int],
) -> pd.DataFrame:
    """A row for each image of a combination under each condition: which elements show, its quality, and its pixels."""
    pipe, rows = load_pipeline(base, adapters), []
    wanted = wanted_scenes(combination, seeds)
    asked = [CATEGORIES.index(element.category) for element in combination]
    for condition in conditions:
        made = make_images(pipe, combination, condition, seeds)
        verdict = load_judge(judge).judge(made)
        present, rejected = verdict.present(wanted), verdict.rejected
        for i, seed in enumerate(seeds):
            row: dict[str, Any] = {
                "k": len(combination), "combination": "+".join(e.name for e in combination), "seed": seed,
                **vars(condition), "presence": float(present[i, asked].float().mean()),
                "complete": float(present[i, asked].all()), "quality": float(verdict.quality[i]),
                "rejected": float(rejected[i].float().mean()),
                "pixels": ((made[i].permute(1, 2, 0) + 1) * 127.5).round().byte().numpy().tobytes(),
            }  # fmt: skip
            row |= {CATEGORIES[c]: float(present[i, c]) if c in asked else float("nan") for c in range(len(CATEGORIES))}
            rows.append(row)
    return pd.DataFrame(rows)


def picture_of(pixels: bytes) -> np.ndarray:
    """Pixels of a row as an image: height, width, colour, 0 to 255."""
    return np.frombuffer(pixels, dtype=np.uint8).reshape(32, 32, 3)


def tag_accuracy(base: Path, judge: Path, condition: Condition, *, seeds: Sequence[int]) -> dict[str, float]:
    """Share of generic scenes in which a base model shows each category as told, no LoRA anywhere."""
    values = wanted_scenes((), seeds)
    pipe = ScenePipeline(*load_base(base))
    options = {"guidance_scale": condition.guidance, "num_inference_steps": condition.steps}
    made = pipe(to_tags(values), noise=starting_noise(list(seeds)), **options)
    found = load_judge(judge).judge(made).present(values).float().mean(0)
    return dict(zip(CATEGORIES, found.tolist(), strict=True))


def identities(base: Path, adapters: Path, element: Element, condition: Condition, *, seed: int) -> dict[str, Any]:
    """Pixel differences that the method fixes, for one LoRA: between methods alone, and with two copies of it."""
    pipe = load_pipeline(base, adapters)
    alone = [make_images(pipe, [element], replace(condition, method=m), [seed]) for m in METHODS]
    copy = f"{element.name}-copy"
    load_adapters(pipe.unet, [(copy, adapters / element.name)])
    try:
        equals = {}
        for method in ("composite", "merge"):
            with compose(pipe, {element.name: condition.weight, copy: condition.weight}, method, batched=True):
                tags, noise = to_tags(wanted_scenes([element], [seed])), starting_noise([seed])
                options = {"guidance_scale": condition.guidance, "num_inference_steps": condition.steps}
                equals[method] = pipe(tags, noise=noise, **options)
    finally:
        pipe.unet.delete_adapters(copy)
    differ = [float((image - alone[0]).abs().max()) for image in (*alone, equals["composite"], equals["merge"])]
    return {"lora": element.name, "methods alone": max(differ[:3]), "composite": differ[3], "merge": differ[4]}
