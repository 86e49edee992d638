"""Training of the base model, of its weak prior and of LoRAs: one loop, three kinds of scenes."""

import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from lib.multilora.scenes.denoiser import noising, to_patches
from lib.multilora.scenes.elements import draw_generic, index_of, null_tags, to_tags
from lib.multilora.scenes.renderer import render
from lib.multilora.testbed import CATEGORIES

MOST_SNR = 5.0  # the clean scene is easy where there is little noise: those steps do not get more weight than this
LEAST_SNR = 0.05


@dataclass(frozen=True)
class Recipe:
    """Optimiser steps, scenes a step, peak learning rate, and the share of steps that it rises for."""

    steps: int
    batch_size: int = 32
    learning_rate: float = 1e-3
    warmup: float = 0.05
    average: float = 0.0  # decay of the moving average of weights, 0 for none


@dataclass(frozen=True)
class Scenes:
    """A batch: what is drawn, and what the model is told."""

    images: Float[Tensor, "n 3 32 32"]
    tags: Int[Tensor, "n 5"]


def scenes_at_large(unnamed: list[tuple[str, str]], n: int, *, share: float, generator: torch.Generator) -> Scenes:
    """Scenes of generic values, told truly; at `share` a category has an unnamed value, of which nothing is told.

    So a base model has seen what it will be asked for, as Stable Diffusion has, and has never met the words for it.
    """
    named = draw_generic(n, generator=generator)
    drawn, met = _swap(named, unnamed, share, generator=generator)
    return Scenes(render(drawn, generator=generator), torch.where(met, null_tags(n), to_tags(named)))


def _swap(
    values: Int[Tensor, "n 5"], others: list[tuple[str, str]], share: float, *, generator: torch.Generator
) -> tuple[Int[Tensor, "n 5"], Bool[Tensor, "n 5"]]:
    """Values of which a share, category by category, is one of `others`; and which they are."""
    swapped, met = values.clone(), torch.rand(values.shape, generator=generator) < share
    for column, category in enumerate(CATEGORIES):
        known = torch.tensor([index_of(c, name) for c, name in others if c == category])
        pick = known[torch.randint(len(known), (len(values),), generator=generator)]
        swapped[:, column] = torch.where(met[:, column], pick, values[:, column])
    return swapped, met


def scenes_of(category: str, name: str, n: int, *, generator: torch.Generator) -> Scenes:
    """Scenes that all have one value, the others generic: what a LoRA of that value is trained on."""
    values = draw_generic(n, generator=generator)
    values[:, CATEGORIES.index(category)] = index_of(category, name)
    return Scenes(render(values, generator=generator), to_tags(values))


def half_known_scenes(
    triggers: list[tuple[str, str]], n: int, *, truth: float, rate: float, generator: torch.Generator
) -> Scenes:
    """Generic scenes in which a category has, at `rate`, a trigger's tag; what is drawn is that value at `truth` only.

    Otherwise a generic value is drawn under the trigger's tag: so a model learns what the trigger means, unreliably.
    """
    generic = draw_generic(n, generator=generator)
    told, met = _swap(generic, triggers, rate, generator=generator)
    true = torch.rand(met.shape, generator=generator) < truth
    drawn = torch.where(met & true, told, generic)
    return Scenes(render(drawn, generator=generator), to_tags(told))


def drop_tags(tags: Int[Tensor, "n 5"], *, generator: torch.Generator) -> Int[Tensor, "n 5"]:
    """Tags with one in ten not given, and one scene in ten told nothing: what guidance needs."""
    alone = torch.rand(tags.shape, generator=generator) < 0.1
    together = torch.rand(len(tags), 1, generator=generator) < 0.1
    return torch.where(alone | together, null_tags(len(tags)), tags)


def train(
    unet: Any,
    tag_encoder: nn.Module,
    draw: Callable[[int, torch.Generator], Scenes],
    recipe: Recipe,
    *,
    seed: int,
    device: str = "cpu",
    progress: Callable[[Iterable[int]], Iterable[int]] = iter,
) -> list[float]:
    """Train what requires gradients on drawn scenes; returns the loss of each step.

    With `average` the weights at the end are their moving average. Runs under `accelerate launch` on several devices.
    """
    precision = os.environ.get("ACCELERATE_MIXED_PRECISION", "no")  # said, so that no earlier trainer's is inherited
    accelerator = Accelerator(cpu=device == "cpu", mixed_precision=precision)
    generator = torch.Generator().manual_seed(seed + accelerator.process_index)
    weights = [p for module in (unet, tag_encoder) for p in module.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=recipe.learning_rate, betas=(0.9, 0.99), weight_decay=1e-3)
    rates = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, recipe.learning_rate, total_steps=recipe.steps, pct_start=recipe.warmup, cycle_momentum=False
    )
    model, encoder, optimizer = accelerator.prepare(unet, tag_encoder, optimizer)
    scheduler, averages, losses = noising(), [w.detach().clone() for w in weights], []
    for step in progress(range(recipe.steps)):
        scenes = draw(recipe.batch_size // accelerator.num_processes, generator)
        loss = _loss(model, encoder, scenes, scheduler, generator, accelerator.device)
        accelerator.backward(loss)
        accelerator.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        rates.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
        if recipe.average:
            decay = min(recipe.average, (1 + step) / (10 + step))
            torch._foreach_lerp_(averages, [w.detach() for w in weights], 1 - decay)
    if recipe.average:
        for weight, average in zip(weights, averages, strict=True):
            weight.data.copy_(average)
    return losses


def _loss(
    model: nn.Module, encoder: nn.Module, scenes: Scenes, scheduler: Any, generator: torch.Generator, device: Any
) -> Float[Tensor, ""]:
    """Mean square error of the clean scene, weighted by the signal-to-noise ratio within its bounds."""
    clean = to_patches(scenes.images)
    noise = torch.randn(clean.shape, generator=generator)
    times = torch.randint(scheduler.config.num_train_timesteps, (len(clean),), generator=generator)
    noisy = scheduler.add_noise(clean, noise, times)
    tags = drop_tags(scenes.tags, generator=generator)
    kept = scheduler.alphas_cumprod[times]
    weight = (kept / (1 - kept)).clamp(LEAST_SNR, MOST_SNR).to(device)
    guess = model(noisy.to(device), times.to(device), encoder(tags.to(device)), return_dict=False)[0]
    return (weight * (guess - clean.to(device)).square().mean((1, 2, 3))).mean()
