"""What the testbed is used for, as jobs for worker processes: judged images from the folders of what was trained."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor

from lib.multilora.composition import METHODS, compose
from lib.multilora.study.denoiser import ScenePipeline, load_adapters, load_base, starting_noise
from lib.multilora.study.judge import load_judge
from lib.multilora.study.scenes import draw_generic, index_of, role_of, to_tags
from lib.multilora.study.testbed import CATEGORIES, Element
from lib.multilora.study.train import BASES

NO_LORA = "none"


@lru_cache(maxsize=2)
def load_pipeline(folder: Path, setting: str) -> ScenePipeline:
    """Load the pipeline of a setting (A, C) with all of its LoRAs from the folder of the weights."""
    unet, tags = load_base(folder / f"{BASES[setting]}.safetensors")
    load_adapters(unet, folder / f"{BASES[setting]}-loras.safetensors")
    return ScenePipeline(unet, tags)


@dataclass(frozen=True)
class Condition:
    """How images are made: method of composition and its settings."""

    method: str
    tau: int = 5
    first: str = ""  # category whose LoRA has the first turn, where not the character's
    backwards: bool = False  # whether the turns after the first come in reverse order
    weight: float = 0.8  # as in the paper
    guidance: float = 3.0
    steps: int = 40


def wanted_scenes(combination: Sequence[Element], seeds: Sequence[int]) -> Int[Tensor, "n 6"]:
    """Return a scene's values for each seed: the combination's elements in their look, else generic ones."""
    look = role_of(combination[0].category, combination[0].name) if combination else ""
    values = torch.cat([draw_generic(1, generator=torch.Generator().manual_seed(s), look=look) for s in seeds])
    for element in combination:
        values[:, CATEGORIES.index(element.category)] = index_of(element.category, element.name)
    return values


def in_turn(combination: Sequence[Element], condition: Condition) -> list[Element]:
    """Order elements by their turns: the paper's order of categories, but for what the condition says."""
    ordered = sorted(combination, key=lambda e: (e.category != condition.first, CATEGORIES.index(e.category)))
    return [ordered[0], *(ordered[:0:-1] if condition.backwards else ordered[1:])]


def make_images(
    pipe: ScenePipeline, combination: Sequence[Element], condition: Condition, seeds: Sequence[int], **more: Any
) -> Float[Tensor, "n 3 32 32"]:
    """Make one image a seed; a seed has the same noise and the same other elements under every condition.

    What is given `more` are options of `compose`.
    """
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
    with compose(pipe, weights, condition.method, tau=condition.tau, **more):
        return pipe(tags, **options)


def judged_images(
    folder: Path, setting: str, combination: Sequence[Element], conditions: Sequence[Condition], seeds: Sequence[int]
) -> pd.DataFrame:
    """Judge an image of a combination for each seed and condition: which elements show, quality, and pixels.

    `presence` is the share of the asked elements that show, `kept` that of the other categories' generic values;
    `quality` is about the rendering alone.
    """
    pipe, rows = load_pipeline(folder, setting), []
    wanted = wanted_scenes(combination, seeds)
    asked = [CATEGORIES.index(element.category) for element in combination]
    others = [column for column in range(len(CATEGORIES)) if column not in asked]
    for condition in conditions:
        made = make_images(pipe, combination, condition, seeds)
        verdict = load_judge(folder / "judge.safetensors").judge(made)
        present, rejected = verdict.present(wanted[:, : len(CATEGORIES)]), verdict.rejected
        for i, seed in enumerate(seeds):
            row: dict[str, Any] = {
                "k": len(combination), "combination": "+".join(e.name for e in combination), "image": i,
                "seed": seed,
                **vars(condition), "presence": float(present[i, asked].float().mean()),
                "complete": float(present[i, asked].all()),
                "kept": float(present[i, others].float().mean()) if others else float("nan"),
                "quality": float(verdict.quality[i]),
                "rejected": float(rejected[i].float().mean()),
                "pixels": ((made[i].permute(1, 2, 0) + 1) * 127.5).round().byte().numpy().tobytes(),
            }  # fmt: skip
            row |= {CATEGORIES[c]: float(present[i, c]) if c in asked else float("nan") for c in range(len(CATEGORIES))}
            rows.append(row)
    return pd.DataFrame(rows)


Group = tuple[Sequence[Element], Sequence[int]]  # a combination, and the seeds of its images
Points = Mapping[tuple[str, str], Mapping[int, tuple[Sequence[Group], Sequence[Condition]]]]


def jobs_of(points: Points, folder: Path) -> tuple[list[tuple], list[dict[str, Any]]]:
    """Lay out experiments (by name and setting, then k) as jobs of `judged_images`, and label the rows of each."""
    jobs, labels = [], []
    for (experiment, setting), by_k in points.items():
        for groups, conditions in by_k.values():
            for combination, seeds in groups:
                jobs.append((folder, setting, combination, conditions, seeds))
                labels.append({"experiment": experiment, "setting": setting, "job": len(jobs)})
    return jobs, labels


def beyond_no_lora(
    values: Mapping[str, Float[np.ndarray, "sets images"]], *methods: str
) -> Float[np.ndarray, "sets images"]:
    """Return what a method shows less what the base model shows without a LoRA: of the method that shows least."""
    return min((values[method] - values[NO_LORA] for method in methods), key=np.mean)


def in_places(
    folder: Path, setting: str, element: Element, condition: Condition, seeds: Sequence[int], **options: Any
) -> list[np.ndarray]:
    """Make an image a seed with one LoRA and options of `compose` (masks): pictures (32, 32, 3) from 0 to 1."""
    made = make_images(load_pipeline(folder, setting), (element,), condition, seeds, **options)
    return list(((made + 1) / 2).permute(0, 2, 3, 1).numpy())


def picture_of(pixels: bytes) -> np.ndarray:
    """Return the pixels of a row as an image: height, width, colour, from 0 to 1."""
    return np.frombuffer(pixels, dtype=np.uint8).reshape(32, 32, 3) / 255


def tag_accuracy(folder: Path, setting: str, condition: Condition, *, seeds: Sequence[int]) -> dict[str, float]:
    """Measure in how many generic scenes a base model shows each category as told, no LoRA anywhere."""
    values = wanted_scenes((), seeds)
    pipe = load_pipeline(folder, setting)
    made = make_images(pipe, (), replace(condition, method=NO_LORA), seeds)
    shown = load_judge(folder / "judge.safetensors").judge(made).present(values[:, : len(CATEGORIES)]).float().mean(0)
    return dict(zip(CATEGORIES, shown.tolist(), strict=True))


def identities(folder: Path, setting: str, element: Element, condition: Condition, *, seed: int) -> dict[str, Any]:
    """Measure pixel differences that the method fixes, for one LoRA: between methods alone, and with two copies."""
    pipe = load_pipeline(folder, setting)
    alone = [make_images(pipe, [element], replace(condition, method=m), [seed]) for m in METHODS]
    copy = f"{element.name}-copy"
    load_adapters(pipe.unet, folder / f"{BASES[setting]}-loras.safetensors", {element.name: copy})
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
