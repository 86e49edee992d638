"""Rows of `tests/FAMILIES.md` about diffusion: what `compose` does with tiny random pipelines of each family and task.

`python -m tests.multilora.families` writes them into the table's page; `test_multilora_families.py` compares.
"""

import functools
import itertools
from collections.abc import Callable
from typing import Any

import torch
from diffusers import (
    AutoPipelineForImage2Image,
    AutoPipelineForInpainting,
    AutoPipelineForText2Image,
    ControlNetModel,
    StableDiffusionControlNetPipeline,
)

from lib import TenfoldError
from lib.multilora import compose
from lib.multilora.layers import AdapterLayers
from tests.multilora import conftest

HEADING = "## Diffusion"
THREE = {"character": 1.0, "clothing": 0.8, "style": 0.6}
PICTURE = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(1))
STEPS = 3  # one turn for each of three LoRAs


def image_to_image(pipe: Any) -> tuple[Any, dict[str, Any]]:
    """Half of six steps from a picture."""
    return AutoPipelineForImage2Image.from_pipe(pipe), {"image": PICTURE, "strength": 0.5, "steps": 2 * STEPS}


def inpainting(pipe: Any) -> tuple[Any, dict[str, Any]]:
    """The same with a mask of all of it."""
    options = {"image": PICTURE, "mask_image": torch.ones(1, 1, 16, 16), "strength": 0.5, "steps": 2 * STEPS}
    return AutoPipelineForInpainting.from_pipe(pipe), options


def control(pipe: Any) -> tuple[Any, dict[str, Any]]:
    """A ControlNet of random weights beside the denoiser."""
    net = ControlNetModel.from_unet(conftest.unet(), conditioning_embedding_out_channels=(4, 8)).eval()
    made = StableDiffusionControlNetPipeline(**pipe.components, controlnet=net, requires_safety_checker=False)
    return made, {"image": PICTURE}


def perturbed(pipe: Any) -> tuple[Any, dict[str, Any]]:
    """Perturbed-attention guidance, whose processors look at several rows of a batch."""
    return AutoPipelineForText2Image.from_pipe(pipe, enable_pag=True, pag_applied_layers=["mid"]), {"pag_scale": 3.0}


TASKS: dict[str, tuple[str, Callable[[Any], tuple[Any, dict[str, Any]]] | None]] = {
    "SD 1.5": ("sd15", None), "SD 1.5, image to image": ("sd15", image_to_image),
    "SD 1.5, inpainting": ("sd15", inpainting), "SD 1.5, ControlNet": ("sd15", control),
    "SD 1.5, PAG": ("sd15", perturbed), "SDXL": ("sdxl", None), "SDXL, image to image": ("sdxl", image_to_image),
    "SDXL, inpainting": ("sdxl", inpainting), "SD 3": ("sd3", None), "SD 3, image to image": ("sd3", image_to_image),
    "Flux": ("flux", None), "Flux, image to image": ("flux", image_to_image), "Flux, inpainting": ("flux", inpainting),
}  # fmt: skip


def pipeline(task: str) -> tuple[Any, Callable[..., Any]]:
    """Make a task's pipeline with three LoRAs, and what runs it."""
    family, change = TASKS[task]
    pipe, options = change(conftest.make(family)) if change else (conftest.make(family), {})
    pipe.set_progress_bar_config(disable=True)
    return pipe, functools.partial(conftest.call, pipe, **({"steps": STEPS} | options))


def by_hand(task: str, turns: list[dict[str, float]]) -> torch.Tensor:
    """Latents of a run whose LoRAs are set between steps, with nothing of ours but the listed layers."""
    pipe, run = pipeline(task)
    layers = AdapterLayers(getattr(pipe, "unet", None) or pipe.transformer)

    def callback(pipe: Any, step: int, timestep: Any, kwargs: dict) -> dict:
        layers.set(turns[min(step + 1, len(turns) - 1)])
        return kwargs

    layers.set(turns[0])
    return run(callback_on_step_end=callback)


def merges(task: str) -> None:
    """All LoRAs at once are those set by hand."""
    pipe, run = pipeline(task)
    with compose(pipe, THREE, "merge"):
        torch.testing.assert_close(run(), by_hand(task, [THREE]), rtol=1e-5, atol=1e-5)


def switches(task: str) -> None:
    """A turn a step is the LoRA set by hand before it."""
    pipe, run = pipeline(task)
    with compose(pipe, THREE, "switch", tau=1):
        made = run()
    torch.testing.assert_close(made, by_hand(task, [{n: w} for n, w in THREE.items()]), rtol=1e-5, atol=1e-5)


def composes(task: str) -> None:
    """One pass for all, where there is one, gives what a pass for each gives; copies of one LoRA give that LoRA."""
    pipe, run = pipeline(task)
    made = []
    for batched in ("auto", False):
        with compose(pipe, THREE, "composite", batched=batched):
            made.append(run())
    torch.testing.assert_close(*made, rtol=1e-4, atol=1e-4 * float(made[0].abs().max()))
    layers = AdapterLayers(getattr(pipe, "unet", None) or pipe.transformer)
    for layer, (other, part) in itertools.product(layers.layers, itertools.product(("clothing", "style"), "AB")):
        ours, theirs = (getattr(layer, f"lora_{part}")[name].weight for name in ("character", other))
        theirs.data.copy_(ours)
    with compose(pipe, dict.fromkeys(THREE, 0.8), "composite"):
        equal = run()
    with compose(pipe, {"character": 0.8}):
        torch.testing.assert_close(equal, run(), rtol=1e-4, atol=1e-4 * float(equal.abs().max()))
    assert not torch.allclose(equal, made[0], rtol=1e-3)


def composes_in_one_pass(task: str) -> None:
    """One pass over copies is demanded: exact, or refused."""
    pipe, run = pipeline(task)
    with compose(pipe, THREE, "composite", batched=True) as composition:
        made = run()
    assert all(step.batched for step in composition.taken), "k passes, though one was demanded"
    with compose(pipe, THREE, "composite", batched=False):
        torch.testing.assert_close(made, run(), rtol=1e-4, atol=1e-4 * float(made.abs().max()))


METHODS: dict[str, Callable[[str], None]] = {
    "merge": merges, "switch": switches, "composite": composes, "composite, one pass": composes_in_one_pass,
}  # fmt: skip


def outcome(method: str, task: str) -> str:
    """Say "exact", or "refused: " and the sentence; a wrong answer goes on up."""
    try:
        METHODS[method](task)
    except (ValueError, TenfoldError) as refusal:
        if "composing" not in str(refusal) and "batched" not in str(refusal):
            raise
        return f"refused: {refusal}"
    return "exact"


def section(outcomes: dict[tuple[str, str], str]) -> str:
    """Render the section of the page."""
    lines = [
        HEADING, "",
        "What `lib.multilora.compose` does with tiny random pipelines of three LoRAs: **exact** (the same latents as",
        "LoRAs set by hand between steps; for composite, as k passes one after another), or **refused**.",
        "Written by `python -m tests.multilora.families`.", "",
        f"| family | {' | '.join(METHODS)} |", "|---|" + "---|" * len(METHODS),
    ]  # fmt: skip
    notes: list[str] = []
    for task in TASKS:
        cells = []
        for method in METHODS:
            verdict, _, sentence = outcomes[method, task].partition(": ")
            if sentence and sentence not in notes:
                notes.append(sentence)
            cells.append(f"{verdict} ({notes.index(sentence) + 1})" if sentence else verdict)
        lines.append(f"| {task} | {' | '.join(cells)} |")
    return "\n".join([*lines, "", *(f"{number}. {note}" for number, note in enumerate(notes, start=1)), ""])


if __name__ == "__main__":
    from tests.families import TABLE

    found = {(method, task): outcome(method, task) for method in METHODS for task in TASKS}
    page = TABLE.read_text(encoding="utf8").partition(HEADING)[0].rstrip()
    TABLE.write_text(f"{page}\n\n{section(found)}", encoding="utf8")
