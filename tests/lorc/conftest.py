"""Tiny models of every family that LoRC takes, with random weights of a decaying spectrum."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from transformers import (
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

CLASSES = {
    "gemma3": (Gemma3TextConfig, Gemma3ForCausalLM),
    "llama": (LlamaConfig, LlamaForCausalLM),
    "mistral": (MistralConfig, MistralForCausalLM),
    "qwen2": (Qwen2Config, Qwen2ForCausalLM),
    "qwen3": (Qwen3Config, Qwen3ForCausalLM),
}


def tiny(family: str = "llama", *, kv_heads: int = 2, layers: int = 3, seed: int = 0, **changes: Any) -> nn.Module:
    """Make a model of 4 query heads of 8 whose weights are large enough that attention is far from uniform."""
    torch.manual_seed(seed)
    config_class, model_class = CLASSES[family]
    sizes = {
        "vocab_size": 61,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "num_key_value_heads": kv_heads,
        "head_dim": 8,
        "max_position_embeddings": 512,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": None,
    }
    model = model_class(config_class(**(sizes | changes))).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.endswith("_proj.weight"):
                weight.normal_(std=weight.shape[1] ** -0.5)
            if name.endswith("_proj.bias"):
                weight.normal_(std=0.5)
            if name.endswith(("embed_tokens.weight", "lm_head.weight")):
                weight.normal_()
    return model


@pytest.fixture
def make_model() -> Callable[..., nn.Module]:
    """Return the maker of tiny models."""
    return tiny
