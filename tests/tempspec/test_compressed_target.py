"""Speculative decoding of a target whose cache holds LoRC latents: the compressed model's output, token for token."""

import copy

import pytest
import torch
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
)

from lib import TenfoldError, lorc
from lib.tempspec import (
    FeatureDrafter,
    FeatureModel,
    ModelDrafter,
    PromptLookupDrafter,
    SpeculativeDecoder,
    load_feature_model,
    save_feature_model,
)


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


def features(whole, small, folder):
    """A drafter made for the whole model, loaded for the compressed one, of which it then reads the hidden states."""
    made = FeatureModel(whole, layers=(0, 1), token_ids=torch.arange(40))
    save_feature_model(made, folder)
    return FeatureDrafter(load_feature_model(folder, small))


@pytest.mark.parametrize("drafter", ["lookup", "whole model", "features"])
def test_greedy_output_is_the_compressed_models_own(models, drafter, tmp_path):
    whole, small = models
    prompt = torch.tensor([[3, 5, 7, 9, 3, 5, 7, 9, 3, 5]])
    wanted = small.generate(prompt, max_new_tokens=40, do_sample=False, pad_token_id=0)
    made = {"lookup": PromptLookupDrafter, "whole model": lambda: ModelDrafter(whole)}
    drafts = made.get(drafter, lambda: features(whole, small, tmp_path))()
    output = SpeculativeDecoder(small, drafts, gamma=4, temperature=0.0).generate(prompt, max_new_tokens=40)
    assert output.sequences.equal(wanted)
    assert output.stats.block_efficiency > 1


def test_a_compressed_model_generates_and_trains_after_it_was_a_target(models):
    small = lorc.compress(copy.deepcopy(models[0]), keep=0.6)
    prompt = torch.tensor([[3, 5, 7, 9, 3, 5, 7, 9]])
    wanted = models[1].generate(prompt, max_new_tokens=8, do_sample=False, pad_token_id=0)
    SpeculativeDecoder(small, PromptLookupDrafter(), temperature=0.0).generate(prompt, max_new_tokens=8)
    assert small.generate(prompt, max_new_tokens=8, do_sample=False, pad_token_id=0).equal(wanted)
    cache = lorc.LowRankCache(small.config)
    small(prompt, cache=cache, use_cache=True)
    small(prompt, cache=cache, use_cache=True).logits.sum().backward()


def test_a_cache_that_lets_go_of_its_window_keeps_it_until_drafts_are_judged():
    torch.manual_seed(0)
    config = MistralConfig(
        vocab_size=40, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, sliding_window=6, initializer_range=0.3, eos_token_id=None,
    )  # fmt: skip
    target = lorc.compress(MistralForCausalLM(config).double().eval(), keep=0.6)
    prompt = torch.tensor([[3, 5, 7, 9, 3, 5, 7, 9, 3, 5]])
    wanted = target.generate(prompt, max_new_tokens=30, do_sample=False, pad_token_id=0)
    for gamma in (4, "auto"):
        decoder = SpeculativeDecoder(target, PromptLookupDrafter(), gamma=gamma, temperature=0.0)
        output = decoder.generate(prompt, max_new_tokens=30)
        assert output.sequences.equal(wanted)
        assert sum(output.stats.drafted) > sum(output.stats.accepted), "some drafts must be taken back"


def test_a_recurrent_model_decodes_without_drafts_and_is_refused_with_them():
    torch.manual_seed(0)
    sizes = {"vocab_size": 40, "hidden_size": 32, "state_size": 8, "num_hidden_layers": 2, "initializer_range": 0.3}
    target = MambaForCausalLM(MambaConfig(**sizes, eos_token_id=None)).double().eval()
    prompt = torch.tensor([[3, 5, 7, 9, 3, 5, 7, 9]])
    wanted = target.generate(prompt, max_new_tokens=12, do_sample=False, pad_token_id=0)
    assert SpeculativeDecoder(target, None, temperature=0.0).generate(prompt, max_new_tokens=12).sequences.equal(wanted)
    for drafter in (PromptLookupDrafter(), ModelDrafter(target)):
        with pytest.raises(TenfoldError, match="mamba carries a recurrent state"):
            SpeculativeDecoder(target, drafter, temperature=0.0).generate(prompt, max_new_tokens=12)


def test_a_new_feature_drafter_of_a_compressed_target_starts_as_what_is_left_of_its_last_layer(models):
    whole, small = models
    made, same = FeatureModel(small, layers=(1,), token_ids=torch.arange(40)), whole.model.layers[-1]
    layer = made.decoder.layers[0]
    assert layer.mlp.up_proj.weight.equal(same.mlp.up_proj.weight.float())
    assert layer.self_attn.k_proj.weight.shape == same.self_attn.k_proj.weight.shape


def test_rows_that_advance_differently_are_refused(models):
    with pytest.raises(TenfoldError, match="one prompt at a time"):
        SpeculativeDecoder(models[1], PromptLookupDrafter()).generate(torch.ones(2, 4, dtype=torch.long))
