"""One LoRA a value: trained with peft on a frozen base model, kept and loaded the way diffusers keeps adapters."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig
from torch import nn

from lib.multilora.scenes.training import Recipe, scenes_of, train
from lib.multilora.testbed import Element

FILE = "pytorch_lora_weights.safetensors"
NOT_ADAPTED = ("conv_in", "conv_out", "time_embedding", "time_emb_proj")  # what scenes share, whatever is in them


def adapted_layers(unet: nn.Module) -> list[str]:
    """Names of the layers a LoRA sits on: attention, feed-forward and convolutions."""
    found = [n for n, m in unet.named_modules() if isinstance(m, (nn.Linear, nn.Conv2d)) and "lora_" not in n]
    found = [name.removesuffix(".base_layer") for name in found]
    return [name for name in dict.fromkeys(found) if not any(part in name for part in NOT_ADAPTED)]


def train_adapter(
    unet: Any,
    tag_encoder: nn.Module,
    element: Element,
    recipe: Recipe,
    folder: Path,
    *,
    seed: int,
    rank: int = 8,
    device: str = "cpu",
) -> list[float]:
    """Train the LoRA of an element on scenes that have it, write it to `folder`, and take it off again."""
    torch.manual_seed(seed)
    unet.requires_grad_(False), tag_encoder.requires_grad_(False)
    unet.add_adapter(LoraConfig(r=rank, lora_alpha=rank, target_modules=adapted_layers(unet)), element.name)
    try:
        losses = train(
            unet,
            tag_encoder,
            lambda n, generator: scenes_of(element.category, element.name, n, generator=generator),
            recipe,
            seed=seed,
            device=device,
        )
        unet.save_lora_adapter(folder, adapter_name=element.name)
    finally:
        unet.delete_adapters(element.name)
    return losses


def load_adapters(unet: Any, folders: Iterable[tuple[str, Path]]) -> None:
    """Load adapters from their folders under their names, ready to be composed."""
    for name, folder in folders:
        unet.load_lora_adapter(folder, adapter_name=name, prefix=None, weight_name=FILE)
    unet.requires_grad_(False).eval()
