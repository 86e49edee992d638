"""Training of the base model, of its weak prior and of LoRAs: one loop, three kinds of scenes, several processes."""

import os
import socket
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from diffusers import UNet2DConditionModel
from jaxtyping import Bool, Float, Int
from peft import LoraConfig
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from lib.core.training import launched_accelerator
from lib.multilora.study.denoiser import TagEncoder, adapted_layers, make_unet, noising, to_patches
from lib.multilora.study.scenes import draw_generic, index_of, names_of, null_tags, render, to_tags
from lib.multilora.study.testbed import CATEGORIES, Element

MOST_SNR = 5.0  # the clean scene is easy where there is little noise: those steps do not get more weight than this
LEAST_SNR = 0.05
LORA_RANK = 8
TRIGGERS = names_of("development") + names_of("held-out")


@dataclass(frozen=True)
class SceneRecipe:
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
    """Draw scenes of generic values, told truly; at `share` a category has an unnamed value, of which nothing is told.

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
    """Draw scenes that all have one value, the others generic: what a LoRA of that value is trained on."""
    values = draw_generic(n, generator=generator)
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


def drop_tags(tags: Int[Tensor, "n 5"], *, generator: torch.Generator) -> Int[Tensor, "n 5"]:
    """Drop one tag in ten, and all of one scene in ten: what guidance needs."""
    alone = torch.rand(tags.shape, generator=generator) < 0.1
    together = torch.rand(len(tags), 1, generator=generator) < 0.1
    return torch.where(alone | together, null_tags(len(tags)), tags)


def train(
    unet: Any, tag_encoder: nn.Module, draw: Callable[[int, torch.Generator], Scenes], recipe: SceneRecipe, *, seed: int
) -> None:
    """Train what requires gradients on drawn scenes, on the CPU, with others in step under `train_together`.

    With `average` the weights at the end are their moving average.
    """
    accelerator = launched_accelerator(cpu=True)
    generator = torch.Generator().manual_seed(seed + accelerator.process_index)
    weights = [p for module in (unet, tag_encoder) for p in module.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=recipe.learning_rate, betas=(0.9, 0.99), weight_decay=1e-3)
    rates = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, recipe.learning_rate, total_steps=recipe.steps, pct_start=recipe.warmup, cycle_momentum=False
    )
    model, encoder, optimizer = accelerator.prepare(unet, tag_encoder, optimizer)
    scheduler, averages = noising(), [w.detach().clone() for w in weights]
    for step in range(recipe.steps):
        scenes = draw(recipe.batch_size // accelerator.num_processes, generator)
        accelerator.backward(_loss(model, encoder, scenes, scheduler, generator))
        accelerator.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        rates.step()
        optimizer.zero_grad()
        if recipe.average:
            decay = min(recipe.average, (1 + step) / (10 + step))
            torch._foreach_lerp_(averages, [w.detach() for w in weights], 1 - decay)
    if recipe.average:
        for weight, average in zip(weights, averages, strict=True):
            weight.data.copy_(average)


def _loss(
    model: nn.Module, encoder: nn.Module, scenes: Scenes, scheduler: Any, generator: torch.Generator
) -> Float[Tensor, ""]:
    """Mean square error of the clean scene, weighted by the signal-to-noise ratio within its bounds."""
    clean = to_patches(scenes.images)
    noise = torch.randn(clean.shape, generator=generator)
    times = torch.randint(scheduler.config.num_train_timesteps, (len(clean),), generator=generator)
    noisy = scheduler.add_noise(clean, noise, times)
    tags = drop_tags(scenes.tags, generator=generator)
    kept = scheduler.alphas_cumprod[times]
    weight = (kept / (1 - kept)).clamp(LEAST_SNR, MOST_SNR)
    guess = model(noisy, times, encoder(tags), return_dict=False)[0]
    return (weight * (guess - clean).square().mean((1, 2, 3))).mean()


def train_adapter(
    unet: Any, tag_encoder: nn.Module, element: Element, recipe: SceneRecipe, folder: Path, *, seed: int
) -> None:
    """Train the LoRA of an element on scenes that have it, write it to `folder`, and take it off again."""
    torch.manual_seed(seed)
    unet.requires_grad_(False), tag_encoder.requires_grad_(False)
    config = LoraConfig(r=LORA_RANK, lora_alpha=LORA_RANK, target_modules=adapted_layers(unet))
    unet.add_adapter(config, element.name)

    def draw(n: int, generator: torch.Generator) -> Scenes:
        return scenes_of(element.category, element.name, n, generator=generator)

    try:
        train(unet, tag_encoder, draw, recipe, seed=seed)
        unet.save_lora_adapter(folder, adapter_name=element.name)
    finally:
        unet.delete_adapters(element.name)


# --- from folder to folder ---


def build_base(folder: Path, channels: Sequence[int], recipe: SceneRecipe, unnamed: float, seed: int) -> None:
    """Train the base model and keep it; it sees the LoRAs' elements at a share of `unnamed`, and never a trigger."""
    torch.manual_seed(seed)
    unet, tags = make_unet(channels=tuple(channels)), TagEncoder()

    def draw(n: int, generator: torch.Generator) -> Any:
        return scenes_at_large(TRIGGERS, n, share=unnamed, generator=generator)

    train(unet, tags, draw, recipe, seed=seed)
    if PartialState().is_main_process:
        _save(folder, unet, tags)


def build_prior(base: Path, folder: Path, recipe: SceneRecipe, truth: float, rate: float, seed: int) -> None:
    """Train a base model on with all triggers half known, and keep it."""
    unet, tags = load_base(base)
    for module in (unet, tags):
        module.requires_grad_(True).train()

    def draw(n: int, generator: torch.Generator) -> Any:
        return half_known_scenes(TRIGGERS, n, truth=truth, rate=rate, generator=generator)

    train(unet, tags, draw, recipe, seed=seed)
    if PartialState().is_main_process:
        _save(folder, unet, tags)


def build_adapter(base: Path, folder: Path, element: Element, recipe: SceneRecipe, seed: int) -> None:
    """Train the LoRA of an element on a base model and keep it."""
    unet, tags = load_base(base)
    train_adapter(unet, tags, element, recipe, folder, seed=seed)


def _save(folder: Path, unet: Any, tags: TagEncoder) -> None:
    unet.save_pretrained(folder / "unet")
    save_file(tags.state_dict(), folder / "tags.safetensors")


def load_base(folder: Path) -> tuple[Any, TagEncoder]:
    """Load a base model and its tags from a folder."""
    unet, tags = UNet2DConditionModel.from_pretrained(folder / "unet"), TagEncoder()
    tags.load_state_dict(load_file(folder / "tags.safetensors"))
    return unet.eval(), tags.eval()


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


def train_together(function: Callable[..., Any], *arguments: Any, processes: int) -> None:
    """Call a function that trains in several processes that share their gradients (accelerate, over gloo)."""
    if processes == 1:
        function(*arguments)
        return
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    jobs = [(function, arguments, rank, processes, port) for rank in range(processes)]
    for _ in map_jobs(_one_of, jobs, processes=processes):
        pass


def _one_of(function: Callable[..., Any], arguments: tuple, rank: int, world: int, port: int) -> None:
    os.environ |= {
        "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world), "LOCAL_WORLD_SIZE": str(world),
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "ACCELERATE_USE_CPU": "true",
        "OMP_NUM_THREADS": "1",  # where it is unset, accelerate gives each process all the cores' threads
    }  # fmt: skip
    function(*arguments)
    torch.distributed.destroy_process_group()
