"""A tiny target with a vocabulary small enough to enumerate everything it can say, and drafters of every kind."""

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from lib.tempspec import FeatureDrafter, FeatureModel, FirstOf, ModelDrafter, PromptLookupDrafter, truncate

VOCAB = 6


def llama(seed: int, layers: int = 2) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=VOCAB, hidden_size=16, intermediate_size=32, num_hidden_layers=layers, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=64, eos_token_id=None, bos_token_id=None, pad_token_id=0,
        initializer_range=0.6,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


@pytest.fixture(scope="session")
def target() -> LlamaForCausalLM:
    return llama(0)


@pytest.fixture(scope="session")
def drafters(target):
    kept = torch.tensor([0, 2, 3, 5])
    torch.manual_seed(1)
    features = FeatureModel(target, layers=(1, 2), token_ids=kept)
    return {
        "model": ModelDrafter(llama(1, layers=1)),
        "truncated": ModelDrafter(truncate(target, [0], token_ids=kept)),
        "lookup": PromptLookupDrafter(shortest=1),
        "feature": FeatureDrafter(features),
        "lookup then model": FirstOf(PromptLookupDrafter(longest=2), ModelDrafter(llama(2, layers=1))),
    }
