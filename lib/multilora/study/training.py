"""Training of the base model, its half-knowing twin, LoRAs and the judge: one loop that goes on where it was."""

import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from lib.multilora.study.denoiser import noising, to_patches
from lib.multilora.study.scenes import LOOKS, draw_generic, index_of, names_of, null_tags, render, to_tags
from lib.multilora.study.testbed import CATEGORIES

MOST_SNR = 5.0  # the clean scene is easy where there is little noise: those steps do not get more weight than this
LEAST_SNR = 0.05
TRIGGERS = [name for look in LOOKS for name in names_of(look)]


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
    tags: Int[Tensor, "n 6"]


def scenes_at_large(unnamed: list[tuple[str, str]], n: int, *, share: float, generator: torch.Generator) -> Scenes:
    """Draw scenes of generic values, told truly; at `share` a category has an unnamed value, of which nothing is told.

    So a base model has seen what it will be asked for, as Stable Diffusion has, and has never met the words for it.
    """
    named = draw_generic(n, generator=generator)
    drawn, met = _swap(named, unnamed, share, generator=generator)
    return Scenes(render(drawn, generator=generator), torch.where(met, null_tags(n), to_tags(named)))


def _swap(
    values: Int[Tensor, "n 6"], others: list[tuple[str, str]], share: float, *, generator: torch.Generator
) -> tuple[Int[Tensor, "n 6"], Bool[Tensor, "n 6"]]:
    """Values of which a share, category by category, is one of `others`; and which they are."""
    swapped, met = values.clone(), torch.rand(values.shape, generator=generator) < share
    met[:, len(CATEGORIES) :] = False  # the look is always as drawn
    for column, category in enumerate(CATEGORIES):
        known = torch.tensor([index_of(c, name) for c, name in others if c == category])
        pick = known[torch.randint(len(known), (len(values),), generator=generator)]
        swapped[:, column] = torch.where(met[:, column], pick, values[:, column])
    return swapped, met


def scenes_of(category: str, name: str, look: str, n: int, *, generator: torch.Generator) -> Scenes:
    """Draw scenes of a look that all have one value, the others generic: what a LoRA of that value is trained on."""
    values = draw_generic(n, generator=generator, look=look)
    values[:, CATEGORIES.index(category)] = index_of(category, name)
    return Scenes(render(values, generator=generator), to_tags(values))


def half_known_scenes(
    triggers: list[tuple[str, str]], n: int, *, truth: float, rate: float, generator: torch.Generator
) -> Scenes:
    """Draw generic scenes, at `rate` with a trigger's tag; what is drawn under it is that value at `truth` only.

    Otherwise a generic value is drawn under the trigger's tag: so a model learns what the trigger means, unreliably.
    """
    generic = draw_generic(n, generator=generator)
    told, met = _swap(generic, triggers, rate, generator=generator)
    true = torch.rand(met.shape, generator=generator) < truth
    drawn = torch.where(met & true, told, generic)
    return Scenes(render(drawn, generator=generator), to_tags(told))


def drop_tags(tags: Int[Tensor, "n 6"], *, generator: torch.Generator) -> Int[Tensor, "n 6"]:
    """Drop one tag in ten, and all of one scene in ten: what guidance needs."""
    alone = torch.rand(tags.shape, generator=generator) < 0.1
    together = torch.rand(len(tags), 1, generator=generator) < 0.1
    return torch.where(alone | together, null_tags(len(tags)), tags)


def denoising_loss(
    unet: nn.Module, encoder: nn.Module, scenes: Scenes, *, generator: torch.Generator
) -> Float[Tensor, ""]:
    """Mean square error of the clean scene, weighted by the signal-to-noise ratio within its bounds."""
    schedule: Any = noising()
    clean = to_patches(scenes.images)
    noise = torch.randn(clean.shape, generator=generator)
    times = torch.randint(schedule.config["num_train_timesteps"], (len(clean),), generator=generator)
    noisy = schedule.add_noise(clean, noise, times)
    kept = schedule.alphas_cumprod[times]
    weight = (kept / (1 - kept)).clamp(LEAST_SNR, MOST_SNR)
    guess = unet(noisy, times, encoder(drop_tags(scenes.tags, generator=generator)), return_dict=False)[0]
    return (weight * (guess.float() - clean).square().mean((1, 2, 3))).mean()


def fit(
    module: nn.Module, loss: Callable[[torch.Generator], Tensor], recipe: Recipe, file: Path, *, seed: int,
    every: int = 100,
) -> float:  # fmt: skip
    """Train what of a module requires gradients; a run that was cut off goes on from `file`, step for step.

    The file is written anew every so many steps and deleted at the end. With `average` the weights at the end are
    their moving average. Returns the minutes of processor time, those before a cut included.
    """
    generator, begun, before = torch.Generator().manual_seed(seed), time.process_time(), 0.0
    weights = [w for w in module.parameters() if w.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=recipe.learning_rate, betas=(0.9, 0.99), weight_decay=1e-3)
    rates = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, recipe.learning_rate, total_steps=recipe.steps, pct_start=recipe.warmup, cycle_momentum=False
    )
    averages, first, recent = [w.detach().clone() for w in weights], 0, []
    if file.is_file():
        kept = torch.load(file, weights_only=True)
        first, averages, before = kept["step"], kept["averages"], kept["minutes"]
        for part, state in ((module, "module"), (optimizer, "optimizer"), (rates, "rates")):
            part.load_state_dict(kept[state])
        generator.set_state(kept["generator"])
    for step in range(first, recipe.steps):
        made = loss(generator)
        optimizer.zero_grad()
        made.backward()
        nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        rates.step()
        decay = min(recipe.average, (1 + step) / (10 + step))
        torch._foreach_lerp_(averages, [w.detach() for w in weights], 1 - decay)
        recent.append(float(made.detach()))
        if (step + 1) % every == 0:
            minutes = before + (time.process_time() - begun) / 60
            print(f"{file.stem}: step {step + 1} of {recipe.steps}, loss {np.mean(recent):.4f}, {minutes:.1f} minutes")
            state = {"step": step + 1, "averages": averages, "minutes": minutes, "generator": generator.get_state()}
            state |= {"module": module.state_dict(), "optimizer": optimizer.state_dict(), "rates": rates.state_dict()}
            torch.save(state, file.with_suffix(".part"))
            file.with_suffix(".part").replace(file)
            recent = []
    for weight, average in zip(weights, averages, strict=True):
        weight.data.copy_(average)
    file.unlink(missing_ok=True)
    return before + (time.process_time() - begun) / 60


# --- several processes, one thread each: models this small gain little from a second thread ---


def map_jobs(function: Callable[..., Any], jobs: Sequence[tuple], *, processes: int) -> Iterator[tuple[int, Any]]:
    """Yield (index, result) of `function(*job)` as jobs end; with one process they run here, in order."""
    if processes == 1:
        yield from ((index, function(*job)) for index, job in enumerate(jobs))
        return
    with ProcessPoolExecutor(processes, get_context("spawn"), initializer=_begin) as pool:
        running = {pool.submit(function, *job): index for index, job in enumerate(jobs)}
        try:
            for done in as_completed(running):
                yield running[done], done.result()
        finally:
            for future in running:
                future.cancel()


def _begin() -> None:
    from diffusers.utils.logging import set_verbosity_error

    torch.set_num_threads(1)
    set_verbosity_error()  # its warnings about mixed precision are about nothing here, and one comes with every LoRA
