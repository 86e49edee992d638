"""Shapes of hub models that the `gpu` profile names, so that their plans can be made without a hub, on the meta device.

Numbers are those of the models' public configurations.
"""

from typing import Any

from lib import TenfoldError

SHAPES: dict[str, dict[str, Any]] = {
    "HuggingFaceH4/mistral-7b-sft-beta": {
        "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32,
        "num_key_value_heads": 8, "vocab_size": 32000, "max_position_embeddings": 32768,
    },
    "JackFram/llama-68m": {
        "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 2, "num_attention_heads": 12,
        "num_key_value_heads": 12, "vocab_size": 32000, "max_position_embeddings": 2048,
    },
    "meta-llama/Llama-2-7b-chat-hf": {
        "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "num_attention_heads": 32,
        "num_key_value_heads": 32, "vocab_size": 32000, "max_position_embeddings": 4096,
    },
    "meta-llama/Llama-2-13b-chat-hf": {
        "hidden_size": 5120, "intermediate_size": 13824, "num_hidden_layers": 40, "num_attention_heads": 40,
        "num_key_value_heads": 40, "vocab_size": 32000, "max_position_embeddings": 4096,
    },
    "meta-llama/Meta-Llama-3-8B-Instruct": {
        "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32,
        "num_key_value_heads": 8, "vocab_size": 128256, "max_position_embeddings": 8192,
    },
    "meta-llama/Meta-Llama-3-70B-Instruct": {
        "hidden_size": 8192, "intermediate_size": 28672, "num_hidden_layers": 80, "num_attention_heads": 64,
        "num_key_value_heads": 8, "vocab_size": 128256, "max_position_embeddings": 8192,
    },
    "mistralai/Mistral-7B-v0.1": {
        "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32,
        "num_key_value_heads": 8, "vocab_size": 32000, "max_position_embeddings": 32768,
    },
}  # fmt: skip


def meta_lm(name: str) -> Any:
    """Model of a known shape on the meta device: every shape and count, no weights; raises TenfoldError if unknown."""
    import torch
    from transformers import AutoModelForCausalLM, LlamaConfig

    if name not in SHAPES:
        raise TenfoldError(f"the shape of {name!r} is not known: add its configuration to lib/zoo/shapes.py.")
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(LlamaConfig(**SHAPES[name]))


def parameter_count(shape: dict[str, Any]) -> int:
    """Parameters of an untied Llama-family model, counted from its shape."""
    hidden, inner, layers = shape["hidden_size"], shape["intermediate_size"], shape["num_hidden_layers"]
    kv_width = hidden // shape["num_attention_heads"] * shape["num_key_value_heads"]
    layer = 2 * hidden * hidden + 2 * hidden * kv_width + 3 * hidden * inner + 2 * hidden
    return layers * layer + 2 * shape["vocab_size"] * hidden + hidden


def summary(name: str) -> str:
    """Parameters and bf16 memory of a known hub model."""
    count = parameter_count(SHAPES[name])
    return f"{count / 1e9:.1f} B parameters, {2 * count / 2**30:.0f} GiB in bf16, from the Hugging Face hub"
