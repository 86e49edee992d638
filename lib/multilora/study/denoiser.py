"""The scene testbed's base model: a small UNet on 4×4 patches, told the scene by six tags (five categories, a look).

It predicts the clean scene. Images are 48 channels of 8×8 to it (`pixel_unshuffle`), which is lossless and eight times
cheaper than pixels.
"""

import json
from pathlib import Path
from typing import Any

import torch
from diffusers import DDPMScheduler, DiffusionPipeline, DPMSolverMultistepScheduler, UNet2DConditionModel
from jaxtyping import Float, Int
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.functional import pixel_shuffle, pixel_unshuffle

from lib.multilora.study.scenes import NULL, TAGS, null_tags

NOT_ADAPTED = ("conv_in", "conv_out", "time_embedding", "time_emb_proj")  # what scenes share, whatever is in them
PATCH = 4
SCHEDULE: dict[str, Any] = {"beta_schedule": "squaredcos_cap_v2", "prediction_type": "sample"}


def make_unet(*, channels: tuple[int, ...] = (64, 96), tag_width: int = 64) -> Any:
    """Make a UNet of 2.8 M parameters at the default size, with cross-attention to the tags in every block."""
    blocks = len(channels)
    return UNet2DConditionModel(
        sample_size=8, in_channels=3 * PATCH**2, out_channels=3 * PATCH**2, block_out_channels=channels,
        layers_per_block=1, norm_num_groups=8, attention_head_dim=4, cross_attention_dim=tag_width,
        down_block_types=("CrossAttnDownBlock2D",) * blocks, up_block_types=("CrossAttnUpBlock2D",) * blocks,
    )  # fmt: skip


class TagEncoder(nn.Module):
    """One embedding a tag, and one "not given" a category; a trigger's stays as drawn where no training meets it."""

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.table = nn.Embedding(NULL + len(TAGS), width)

    def forward(self, tags: Int[Tensor, "n 6"]) -> Float[Tensor, "n 6 width"]:
        """Return the context of the denoiser's cross-attention."""
        return self.table(tags)


def to_patches(images: Float[Tensor, "n 3 32 32"]) -> Float[Tensor, "n 48 8 8"]:
    """Return images as the denoiser sees them."""
    return pixel_unshuffle(images, PATCH)


def noising() -> DDPMScheduler:
    """Return the noise schedule of training."""
    return DDPMScheduler(**SCHEDULE)


class ScenePipeline(DiffusionPipeline):
    """Tags to images by DPM-Solver++ with classifier-free guidance, like the paper's pipelines."""

    def __init__(self, unet: nn.Module, tag_encoder: nn.Module, scheduler: Any = None) -> None:
        super().__init__()
        scheduler = scheduler or DPMSolverMultistepScheduler(**SCHEDULE)
        self.register_modules(unet=unet, tag_encoder=tag_encoder, scheduler=scheduler)

    @torch.no_grad()
    def __call__(
        self, tags: Int[Tensor, "n 6"], *, noise: Float[Tensor, "n 48 8 8"], guidance_scale: float = 3.0,
        num_inference_steps: int = 40,
    ) -> Float[Tensor, "n 3 32 32"]:  # fmt: skip
        """Images in [−1, 1] from tags and starting noise; guidance 1 leaves the unconditional half out."""
        guided = guidance_scale != 1.0
        context = self.tag_encoder(tags.to(self.unet.device))
        if guided:
            context = torch.cat([self.tag_encoder(null_tags(len(tags)).to(self.unet.device)), context])
        self.scheduler.set_timesteps(num_inference_steps)
        latents = noise.to(self.unet.device)
        for time in self.scheduler.timesteps:
            inputs = torch.cat([latents] * 2) if guided else latents
            scene = self.unet(inputs, time, encoder_hidden_states=context, return_dict=False)[0]
            if guided:
                free, told = scene.chunk(2)
                scene = free + guidance_scale * (told - free)
            latents = self.scheduler.step(scene, time, latents, return_dict=False)[0]
        return pixel_shuffle(latents, PATCH).clamp(-1, 1)


def starting_noise(seeds: list[int]) -> Float[Tensor, "n 48 8 8"]:
    """Draw the noise of one image a seed, whatever batch it is in."""
    shape = (3 * PATCH**2, 8, 8)
    return torch.stack([torch.randn(shape, generator=torch.Generator().manual_seed(seed)) for seed in seeds])


# --- LoRAs and files: a model or all of its LoRAs in one file, in half precision ---


def adapted_layers(unet: nn.Module) -> list[str]:
    """List the layers that a LoRA sits on: attention, feed-forward and convolutions."""
    layers = [n for n, m in unet.named_modules() if isinstance(m, (nn.Linear, nn.Conv2d)) and "lora_" not in n]
    names = dict.fromkeys(name.removesuffix(".base_layer") for name in layers)
    return [name for name in names if not any(part in name for part in NOT_ADAPTED)]


def save_half(file: Path, weights: dict[str, Tensor], **facts: Any) -> None:
    """Write weights in half precision with some facts about them, whole or not at all."""
    halves = {name: w.detach().half() if w.is_floating_point() else w for name, w in weights.items()}
    part = file.with_suffix(".part")
    save_file({n: w.contiguous() for n, w in halves.items()}, part, {k: json.dumps(v) for k, v in facts.items()})
    part.replace(file)


def load_single(file: Path) -> dict[str, Tensor]:
    """Read weights back in single precision."""
    return {name: w.float() if w.is_floating_point() else w for name, w in load_file(file).items()}


def save_base(file: Path, unet: Any, tags: TagEncoder, **facts: Any) -> None:
    """Write a base model with its tags."""
    weights = {f"unet.{n}": w for n, w in unet.state_dict().items()} | {"tags": tags.table.weight}
    save_half(file, weights, channels=list(unet.config.block_out_channels), **facts)


def load_base(file: Path) -> tuple[Any, TagEncoder]:
    """Read a base model and its tags."""
    with safe_open(file, "pt") as opened:
        unet = make_unet(channels=tuple(json.loads(opened.metadata()["channels"])))
    weights, tags = load_single(file), TagEncoder()
    tags.table.weight.data.copy_(weights.pop("tags"))
    unet.load_state_dict({name.removeprefix("unet."): w for name, w in weights.items()})
    return unet.eval(), tags.eval()


def load_adapters(unet: Any, file: Path, names: dict[str, str] | None = None) -> None:
    """Load the adapters of a file, or those of `names` (file's name to adapter's), ready to be composed."""
    kept: dict[str, dict[str, Tensor]] = {}
    for key, weight in load_single(file).items():
        name, _, layer = key.partition("/")
        kept.setdefault(name, {})[layer] = weight
    for name, adapter in (names or {name: name for name in kept}).items():
        unet.load_lora_adapter(kept[name], adapter_name=adapter, prefix=None)
    unet.requires_grad_(False).eval()
