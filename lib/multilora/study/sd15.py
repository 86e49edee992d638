"""The paper's own scale: ComposLoRA sets on Stable Diffusion 1.5 with LoRAs of a testbed file (arXiv:2402.16843)."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from diffusers import AutoencoderKL, DPMSolverMultistepScheduler, StableDiffusionPipeline
from jaxtyping import Float
from torch import Tensor

from lib import TenfoldError
from lib.multilora.composition import METHODS, compose
from lib.multilora.study.evaluation import ASPECTS, Ask, ClipScorer, Comparison, compare
from lib.multilora.study.testbed import Element, Setting, combinations, spread
from lib.zoo import hub

WEIGHT = 0.8  # of every LoRA
# The paper's two base models; a testbed file whose styles have these names need not repeat them.
PAPER_SETTINGS: dict[str, dict[str, Any]] = {
    "reality": {
        "model": "SG161222/Realistic_Vision_V5.1_noVAE", "vae": "stabilityai/sd-vae-ft-mse",
        "steps": 100, "guidance": 7.0, "height": 1024, "width": 768,
    },
    "anime": {
        "model": "gsdf/Counterfeit-V2.5", "vae": "", "steps": 200, "guidance": 10.0, "height": 512, "width": 512
    },
}  # fmt: skip
# Deviation: prefixes and negative prompts in our own words; the authors' stand in their repository, without a licence.
WORDS = {
    "reality": (
        "photograph, sharp focus, natural light, high detail",
        "drawing, blurred, low quality, deformed hands, extra limbs, wrong anatomy, text, watermark",
    ),
    "anime": (
        "illustration, clean lines, vivid colours, high detail",
        "photograph, blurred, low quality, deformed hands, extra limbs, wrong anatomy, text, watermark",
    ),
}
OPTIONS = ("model", "vae", "steps", "guidance", "height", "width")


def options_of(setting: Setting) -> dict[str, Any]:
    """Return base model and sampling options of a setting: the paper's under the paper's name, the file's over these.

    Raises TenfoldError where one is missing or not known.
    """
    options = {"vae": ""} | PAPER_SETTINGS.get(setting.name, {}) | setting.options
    wrong = [name for name in OPTIONS if name not in options] + [name for name in options if name not in OPTIONS]
    if wrong:
        raise TenfoldError(f"[{setting.name}] of the testbed: {wrong[0]!r} is missing or not known ({OPTIONS}).")
    return options


def load_setting(setting: Setting, *, device: str, dtype: torch.dtype = torch.float32) -> StableDiffusionPipeline:
    """Load the pipeline of a setting with all of its LoRAs, DPM-Solver++, ready to be composed."""
    options = options_of(setting)
    pipe = hub.from_hub(StableDiffusionPipeline.from_pretrained, options["model"], (), dtype=dtype)
    if options["vae"]:
        pipe.vae = hub.from_hub(AutoencoderKL.from_pretrained, options["vae"], (), dtype=dtype)
    pipe.scheduler = DPMSolverMultistepScheduler.from_config(pipe.scheduler.config, algorithm_type="dpmsolver++")
    for element in setting.elements:
        pipe.load_lora_weights(element.file, adapter_name=element.name)
    return pipe.to(device)


def compose_set(
    pipe: Any, setting: Setting, combination: Sequence[Element], *, method: str, seed: int, tau: int = 5,
) -> Float[Tensor, "3 height width"]:  # fmt: skip
    """Make the image of one set in [−1, 1]: prefix and triggers as prompt, the negative prompt, weights of 0.8."""
    options, (prefix, negative) = options_of(setting), WORDS.get(setting.name, ("", ""))
    setting = replace(setting, prefix=setting.prefix or prefix, negative=setting.negative or negative)
    with compose(pipe, {element.name: WEIGHT for element in combination}, method, tau=tau):
        image = pipe(
            setting.prompt(tuple(combination)), negative_prompt=setting.negative or None,
            num_inference_steps=options["steps"], guidance_scale=options["guidance"], height=options["height"],
            width=options["width"], generator=torch.Generator("cpu").manual_seed(seed), output_type="pt",
        ).images[0]  # fmt: skip
    return (2 * image - 1).float().cpu()


def judged_sets(
    pipe: Any, setting: Setting, k: int, *, number: int, seed: int, tau: int, scorer: ClipScorer, ask: Ask | None
) -> tuple[list[dict[str, Any]], dict[str, list[Comparison]]]:
    """Compose sets of k LoRAs by every method: a row each with its scores, and each method's comparisons with merge."""
    rows, comparisons = [], {"switch": [], "composite": []}
    for chosen in spread(list(combinations(setting.elements, k)), number):
        made = {m: compose_set(pipe, setting, chosen, method=m, seed=seed, tau=tau) for m in METHODS}
        scores = scorer(torch.stack(list(made.values())), [setting.prompt(chosen)] * len(made))
        row: dict[str, Any] = {"style": setting.name, "k": k, "set": "+".join(e.name for e in chosen)}
        row |= {f"CLIPScore {m}": float(score) for m, score in zip(made, scores, strict=True)}
        for method, compared in comparisons.items():
            if ask is None:
                break
            compared.append(compare(ask, chosen, made[method], made["merge"]))
            for aspect in ASPECTS:
                row[f"{aspect} {method}"], row[f"{aspect} merge ({method})"] = compared[-1].mean(aspect)
        rows.append(row)
    return rows, comparisons
