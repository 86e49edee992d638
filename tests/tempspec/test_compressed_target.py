"""Speculative decoding of a target whose cache holds LoRC latents: the compressed model's output, token for token."""

import copy

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from lib import TenfoldError, lorc
from lib.tempspec import ModelDrafter, PromptLookupDrafter, SpeculativeDecoder


@pytest.fixture(scope="module")
def models():
    torch.manual_seed(0)
    whole = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=40, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2, max_position_embeddings=256, initializer_range=0.2, eos_token_id=None,
        )
    ).double().eval()  # fmt: skip
    return whole, lorc.compress(copy.deepcopy(whole), keep=0.6)


@pytest.mark.parametrize("drafter", ["lookup", "whole model"])
def test_greedy_output_is_the_compressed_models_own(models, drafter):
    whole, small = models
    prompt = torch.tensor([[3, 5, 7, 9, 3, 5, 7, 9, 3, 5]])
    wanted = small.generate(prompt, max_new_tokens=40, do_sample=False, pad_token_id=0)
    drafts = PromptLookupDrafter() if drafter == "lookup" else ModelDrafter(whole)
    output = SpeculativeDecoder(small, drafts, gamma=4, temperature=0.0).generate(prompt, max_new_tokens=40)
    assert output.sequences.equal(wanted)
    assert output.stats.block_efficiency > 1


def test_rows_that_advance_differently_are_refused(models):
    with pytest.raises(TenfoldError, match="one prompt at a time"):
        SpeculativeDecoder(models[1], PromptLookupDrafter()).generate(torch.ones(2, 4, dtype=torch.long))
