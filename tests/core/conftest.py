"""Tiny random causal models: one whose every continuation can be listed, and one of each kind of head and window."""

import pytest
import torch
from transformers import (
    Cohere2Config,
    CohereConfig,
    Gemma2Config,
    GPTNeoXConfig,
    GraniteConfig,
    LlamaConfig,
    MistralConfig,
)
from transformers.models.auto.modeling_auto import AutoModelForCausalLM

VOCAB = 11
USUAL = {
    "vocab_size": VOCAB, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 4, "max_position_embeddings": 128, "initializer_range": 0.6,
    "eos_token_id": None, "bos_token_id": None, "pad_token_id": 0,
}  # fmt: skip
FAMILIES = {
    "llama": LlamaConfig(**USUAL),
    "granite": GraniteConfig(**USUAL, logits_scaling=5.0),
    "cohere": CohereConfig(**USUAL, logit_scale=0.1),
    "gemma-2": Gemma2Config(**USUAL, final_logit_softcapping=0.5, sliding_window=5),
    "gpt-neox": GPTNeoXConfig(**{k: v for k, v in USUAL.items() if k not in ("num_key_value_heads", "head_dim")}),
    "mistral": MistralConfig(**USUAL, sliding_window=5),
    "cohere-2": Cohere2Config(**USUAL, logit_scale=0.1, sliding_window=5),
}


def made(family: str, seed: int = 0):
    torch.manual_seed(seed)
    return AutoModelForCausalLM.from_config(FAMILIES[family]).eval()


@pytest.fixture(scope="session")
def llama():
    return made("llama")


@pytest.fixture(scope="session", params=list(FAMILIES))
def any_family(request):
    return made(request.param)
