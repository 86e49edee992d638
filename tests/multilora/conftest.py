"""Tiny random pipelines of the four families, with LoRAs whose weights are large enough to show in the image."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from diffusers import (
    AutoencoderKL,
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from peft import LoraConfig, inject_adapter_in_model
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

NAMES = ("character", "clothing", "style", "background", "object")
FAMILIES = ("sd15", "sdxl", "sd3", "flux")
UNET_LAYERS = r".*(to_q|to_k|to_v|to_out\.0|conv1|proj_in)$"
TRANSFORMER_LAYERS = r".*(to_q|to_k|to_v|to_out\.0|add_q_proj|proj_mlp)$"
SIZE = 16  # pixels; latents are half of it


def autoencoder(channels: int, **more: Any) -> AutoencoderKL:
    return AutoencoderKL(
        block_out_channels=(8, 8), latent_channels=channels, norm_num_groups=4,
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2, **more,
    )  # fmt: skip


def unet(**more: Any) -> UNet2DConditionModel:
    return UNet2DConditionModel(
        block_out_channels=(8, 16), layers_per_block=1, sample_size=8, norm_num_groups=4, attention_head_dim=4,
        cross_attention_dim=16, down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"), **more,
    )  # fmt: skip


def solver() -> DPMSolverMultistepScheduler:
    return DPMSolverMultistepScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", steps_offset=1
    )


def sd15() -> Any:
    letters = list("abcdefghijklmnopqrstuvwxyz")
    words = ["<|startoftext|>", "<|endoftext|>", *letters, *(letter + "</w>" for letter in letters)]
    tokenizer = CLIPTokenizer(vocab={w: i for i, w in enumerate(words)}, merges=[], model_max_length=16)
    config = CLIPTextConfig(
        vocab_size=len(words), hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
        max_position_embeddings=16, bos_token_id=0, eos_token_id=1,
    )  # fmt: skip
    return StableDiffusionPipeline(
        vae=autoencoder(4), text_encoder=CLIPTextModel(config), tokenizer=tokenizer, unet=unet(), scheduler=solver(),
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip


def sdxl() -> Any:
    more = {"addition_embed_type": "text_time", "addition_time_embed_dim": 8}
    return StableDiffusionXLPipeline(
        vae=autoencoder(4), text_encoder=None, text_encoder_2=None, tokenizer=None, tokenizer_2=None,
        unet=unet(projection_class_embeddings_input_dim=16 + 6 * 8, **more), scheduler=solver(),
    )  # fmt: skip


def sd3() -> Any:
    transformer = SD3Transformer2DModel(
        sample_size=8, patch_size=1, in_channels=4, num_layers=2, attention_head_dim=8, num_attention_heads=2,
        joint_attention_dim=16, caption_projection_dim=16, pooled_projection_dim=16, out_channels=4,
    )  # fmt: skip
    return StableDiffusion3Pipeline(
        transformer=transformer, scheduler=FlowMatchEulerDiscreteScheduler(), vae=autoencoder(4, shift_factor=0.0),
        **dict.fromkeys(
            ["text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2", "text_encoder_3", "tokenizer_3"]
        ),
    )  # fmt: skip


def flux() -> Any:
    transformer = FluxTransformer2DModel(
        patch_size=1, in_channels=4, num_layers=1, num_single_layers=1, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=16, pooled_projection_dim=16, axes_dims_rope=(4, 4, 8), guidance_embeds=True,
    )  # fmt: skip
    return FluxPipeline(
        transformer=transformer, scheduler=FlowMatchEulerDiscreteScheduler(), vae=autoencoder(1, shift_factor=0.0),
        text_encoder=None, tokenizer=None, text_encoder_2=None, tokenizer_2=None,
    )  # fmt: skip


def add_lora(model: torch.nn.Module, name: str, *, layers: str, seed: int, size: float = 0.15) -> None:
    torch.manual_seed(seed)
    config = LoraConfig(r=4, lora_alpha=6, target_modules=layers, init_lora_weights=False)
    inject_adapter_in_model(config, model, adapter_name=name)
    for key, weight in model.named_parameters():
        if f".{name}." in key:
            torch.nn.init.normal_(weight, std=size)


def make(family: str, adapters: int = 3, *, same: bool = False, encoder: bool = False) -> Any:
    """Pipeline of a family with `adapters` LoRAs (`same`: all alike), also in the text encoder on request."""
    torch.manual_seed(0)
    pipe = {"sd15": sd15, "sdxl": sdxl, "sd3": sd3, "flux": flux}[family]()
    pipe.set_progress_bar_config(disable=True)
    denoiser = getattr(pipe, "unet", None) or pipe.transformer
    layers = UNET_LAYERS if family.startswith("sd1") or family == "sdxl" else TRANSFORMER_LAYERS
    for index, name in enumerate(NAMES[:adapters]):
        add_lora(denoiser, name, layers=layers, seed=1 if same else index + 1)
        if encoder:
            add_lora(pipe.text_encoder, name, layers=r".*(q_proj|v_proj)$", seed=10 + index, size=0.5)
    for module in pipe.components.values():
        if isinstance(module, torch.nn.Module):
            module.requires_grad_(False).eval()
    return pipe


def call(pipe: Any, *, prompts: int = 1, steps: int = 4, guidance: float = 4.0, seed: int = 0, **more: Any):
    """Latents of a run from embeddings (text encoders of these families are too large to be made up)."""
    draw = torch.Generator().manual_seed(5)
    name = type(pipe).__name__
    kwargs = {"prompt_embeds": torch.randn(prompts, 4, 16, generator=draw)}
    if name != "FluxPipeline" or "true_cfg_scale" in more:
        kwargs["negative_prompt_embeds"] = torch.randn(prompts, 4, 16, generator=draw)
    if any(part in name for part in ("XL", "Diffusion3", "Flux")):
        kwargs["pooled_prompt_embeds"] = torch.randn(prompts, 16, generator=draw)
        if "negative_prompt_embeds" in kwargs:
            kwargs["negative_pooled_prompt_embeds"] = torch.randn(prompts, 16, generator=draw)
    kwargs |= {"height": SIZE, "width": SIZE, "num_inference_steps": steps, "guidance_scale": guidance}
    return pipe(**(kwargs | more), generator=torch.Generator().manual_seed(seed), output_type="latent").images


@pytest.fixture
def make_pipe() -> Callable[..., Any]:
    return make


@pytest.fixture
def run_pipe() -> Callable[..., Any]:
    return call
