"""`compress` and `plan` as a user meets them: options, saving and loading, shapes without weights, bad input."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from lib.lorc import LowRankCache, Plan, calibrate, compress, decompose_model, from_pretrained, plan, singular_values

Maker = Callable[..., nn.Module]
# Sizes of the paper's models: layers, hidden, query heads, KV heads.
SHAPES = {"Llama-2-13B": (40, 5120, 40, 40), "Llama-3-8B": (32, 4096, 32, 8), "Llama-3-70B": (80, 8192, 64, 8)}


def token_ids(batch: int, tokens: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(1, 61, (batch, tokens), generator=torch.Generator().manual_seed(seed))


def logits(model: Any, tokens: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=tokens).logits


def shape(name: str) -> LlamaConfig:
    layers, hidden, heads, kv_heads = SHAPES[name]
    return LlamaConfig(
        num_hidden_layers=layers,
        hidden_size=hidden,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        intermediate_size=2 * hidden,
        vocab_size=100,
    )


def test_progressive_is_the_default_and_follows_the_condition_numbers(make_model: Maker) -> None:
    model = make_model(layers=4)
    expected = plan(model, 0.6)
    conditions = singular_values(model).log_condition_numbers()
    assert expected == plan(model.config, 0.6, log_conditions=conditions)
    small = compress(model)
    assert LowRankCache(small.config).spec.plan == expected
    assert list(expected.ranks_k) == sorted(expected.ranks_k, reverse=True)


@pytest.mark.parametrize("granularity", ["joint", "head"])
@pytest.mark.parametrize("budget", ["uniform", "progressive", "energy"])
@pytest.mark.parametrize("keep", [0.3, 0.55, 1.0])
def test_every_budget_meets_the_kept_ratio(make_model: Maker, budget: str, granularity: str, keep: float) -> None:
    model = make_model(kv_heads=2, layers=5)
    planned = plan(model, keep, budget=budget, granularity=granularity)
    step = 2 if granularity == "head" else 1
    assert abs(planned.kept - keep) <= step / (2 * 5 * 16)
    assert all(rank % step == 0 for rank in (*planned.ranks_k, *planned.ranks_v))
    assert logits(compress(model, ranks=planned, granularity=granularity), token_ids(1, 5)).isfinite().all()


@pytest.mark.parametrize("name", SHAPES)
def test_plans_of_the_papers_models_need_no_weights(name: str) -> None:
    config = shape(name)
    layers, hidden, heads, kv_heads = SHAPES[name]
    width = hidden // heads * kv_heads
    planned = plan(config, 0.6, budget="uniform")
    assert planned.layers == layers
    assert planned.bytes_per_token(2) == round(0.6 * layers * width) * 2 * 2
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    assert plan(model, 0.6, budget="uniform") == planned
    frame = plan(config, 0.55, log_conditions=torch.linspace(8, 4, layers)).frame()
    assert len(frame) == layers
    assert frame["rank_k"].is_monotonic_decreasing
    with pytest.raises(ValueError, match="on the meta device and has no weights"):
        plan(model, 0.6)
    with pytest.raises(ValueError, match="a progressive plan needs the weights: pass the model, log_conditions"):
        plan(config, 0.6)


@pytest.mark.parametrize("granularity", ["joint", "head"])
@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2", "qwen3", "gemma3"])
def test_saving_and_loading_give_the_same_model(
    make_model: Maker, tmp_path: Path, family: str, granularity: str
) -> None:
    # Read from a file first, as a user's model is.
    make_model(family).save_pretrained(tmp_path / "original")
    original = AutoModelForCausalLM.from_pretrained(tmp_path / "original")
    tokens = token_ids(2, 9)
    model = compress(original, 0.6, granularity=granularity, sink_tokens=1, bits=8)
    model.save_pretrained(tmp_path / "small")
    assert (tmp_path / "small" / "model.safetensors").exists()
    for loaded in (
        from_pretrained(str(tmp_path / "small")),
        AutoModelForCausalLM.from_pretrained(tmp_path / "small"),
    ):
        assert type(loaded) is type(model)
        assert loaded.config.lorc == model.config.lorc
        torch.testing.assert_close(logits(loaded, tokens), logits(model, tokens), atol=1e-4, rtol=0)
        options: dict[str, Any] = {"max_new_tokens": 6, "do_sample": False}
        assert torch.equal(loaded.generate(tokens, **options), model.generate(tokens, **options))
    half = from_pretrained(str(tmp_path / "small"), dtype=torch.bfloat16)
    assert {weight.dtype for weight in half.parameters()} == {torch.bfloat16}
    with pytest.raises(ValueError, match="belongs to no compressed model"):
        from_pretrained(str(tmp_path / "original"))


def test_tied_embeddings_stay_tied(make_model: Maker, tmp_path: Path) -> None:
    model = compress(make_model(tie_word_embeddings=True), 0.5)
    model.save_pretrained(tmp_path)
    loaded = from_pretrained(str(tmp_path))
    assert loaded.get_output_embeddings().weight is loaded.get_input_embeddings().weight
    torch.testing.assert_close(logits(loaded, token_ids(1, 7)), logits(model, token_ids(1, 7)), atol=1e-4, rtol=0)


def test_a_compressed_model_can_be_copied_and_moved(make_model: Maker) -> None:
    model, tokens = compress(make_model(), 0.5, granularity="head"), token_ids(1, 8)
    expected = logits(model, tokens)
    assert torch.equal(logits(copy.deepcopy(model), tokens), expected)
    double = logits(copy.deepcopy(model).double(), tokens)
    torch.testing.assert_close(double.float(), expected, atol=1e-4, rtol=0)


def test_compress_keeps_dtype_mode_and_other_weights(make_model: Maker) -> None:
    model = make_model().to(torch.bfloat16)
    before = {name: weight for name, weight in model.named_parameters() if "self_attn" not in name}
    small = compress(model, 0.5, granularity="head")
    assert small is model
    assert not small.training
    assert not any(module.training for module in small.modules())
    assert {weight.dtype for weight in small.parameters()} == {torch.bfloat16}
    after = dict(small.named_parameters())
    assert all(after[name] is weight for name, weight in before.items())


@pytest.mark.parametrize("keep", [0, -1, 1.2, float("nan")])
def test_bad_keep_is_refused(make_model: Maker, keep: float) -> None:
    with pytest.raises(ValueError, match=r"must be in \(0, 1\]"):
        compress(make_model(), keep)


def test_bad_input_leaves_the_model_untouched(make_model: Maker) -> None:
    model, tokens = make_model(), token_ids(1, 6)
    expected, kind = logits(model, tokens), type(model)
    moments = calibrate(model, [tokens])
    cases: list[tuple[dict[str, Any], str]] = [
        ({"ranks": ((8, 8), (8, 8))}, "ranks for 2 layers but the model has 3"),
        ({"ranks": ((8, 8, 8), (8, 8))}, "one k and one v rank per layer, got 3 and 2"),
        ({"ranks": Plan((8,) * 3, (8,) * 3, width=32)}, "width 32 but the model's have 16"),
        ({"ranks": ((17, 8, 8), (8, 8, 8))}, "rank 17 is not a multiple of 1 between 1 and 16"),
        ({"ranks": ((7, 8, 8), (8, 8, 8)), "granularity": "head"}, "rank 7 is not a multiple of 2"),
        ({"budget": "best"}, "budget must be one of uniform, progressive, energy, sensitivity, got 'best'"),
        ({"granularity": "block"}, "a number of heads that divides 2, got 'block'"),
        ({"matrices": ("q",)}, "matrices must name 'k', 'v' or both"),
        ({"sink_tokens": -1}, "cannot be negative, got -1"),
        ({"budget": "sensitivity"}, "needs gradients"),
        ({"budget": "sensitivity", "whiten": moments}, "needs gradients"),
        ({"granularity": 3}, "a number of heads that divides 2, got 3"),
        ({"bits": 3}, "bits must be 16, 8 or 4, got 3"),
        ({"max_loss": 0.1}, "max_loss needs text to measure on"),
        ({"whiten": token_ids(2, 12), "max_loss": -50.0}, "nats a token on held-out text, more than"),
    ]
    for options, message in cases:
        with pytest.raises(ValueError, match=message):
            compress(model, **({"keep": 0.5} | options))
        assert type(model) is kind
    assert torch.equal(logits(model, tokens), expected)


@pytest.mark.parametrize("text", ["some text", ["some text"], [[1, 2, 3]], {"input_ids": token_ids(1, 6)}])
@pytest.mark.parametrize("option", ["whiten", "held_out"])
@pytest.mark.usefixtures("as_installed")
def test_text_that_is_no_token_ids_is_refused(make_model: Maker, option: str, text: Any) -> None:
    model = make_model()
    kind = type(model)
    with pytest.raises(TypeError, match="take tensors of token ids"):
        compress(model, 0.5, **{option: text})
    assert type(model) is kind


def test_models_that_cannot_be_compressed_are_refused(make_model: Maker) -> None:
    with pytest.raises(
        ValueError, match="model type 'gpt2' is not supported: use one of llama, mistral, mixtral, qwen2"
    ):
        compress(GPT2LMHeadModel(GPT2Config(n_layer=1, n_head=1, n_embd=8, vocab_size=11)))
    with pytest.raises(ValueError, match="'dynamic' RoPE changes its angles"):
        compress(make_model(rope_parameters={"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}))
    with pytest.raises(ValueError, match="on the meta device"):
        compress(make_model().to("meta"), budget="uniform")
    small = compress(make_model(), 0.5)
    with pytest.raises(ValueError, match="already compressed: start from the original model"):
        compress(small, 0.5)
    with pytest.raises(ValueError, match="already compressed"):
        singular_values(small)


def test_a_decomposition_stands_for_the_granularity(make_model: Maker, tmp_path: Path) -> None:
    model = make_model(kv_heads=2, layers=3)
    bases = decompose_model(model, granularity="head")
    small = compress(copy.deepcopy(model), 0.6, decomposition=bases)
    ranks = small.config.lorc["plan"]
    assert all(rank % 2 == 0 for rank in (*ranks["ranks_k"], *ranks["ranks_v"]))
    small.save_pretrained(tmp_path)
    assert torch.equal(logits(from_pretrained(str(tmp_path)), token_ids(1, 5)), logits(small, token_ids(1, 5)))
    with pytest.raises(ValueError, match="rank 3 is not a multiple of 2"):
        compress(copy.deepcopy(model), ranks=((3, 3, 3), (4, 4, 4)), decomposition=bases)
    with pytest.raises(ValueError, match="of 3 layers .* the model of 4"):
        compress(make_model(kv_heads=2, layers=4), 0.6, decomposition=bases)


def test_adapters_and_other_classes_are_refused_and_the_model_is_untouched(make_model: Maker) -> None:
    class Own(LlamaForCausalLM):
        pass

    model = make_model()
    adapted = get_peft_model(copy.deepcopy(model), LoraConfig(r=2, target_modules=["v_proj"]))
    with pytest.raises(ValueError, match="v_proj is a Linear.*merge adapters before"):
        compress(adapted.get_base_model(), 0.5)
    for other in (adapted, model.model, Own(model.config)):
        config = other.config
        with pytest.raises(ValueError, match="not a plain causal language model"):
            compress(other, 0.5)
        assert config.model_type == "llama"
    merged = adapted.merge_and_unload()
    assert compress(merged, 0.5).config.model_type == "lorc_llama"


def test_a_rest_of_one_token_does_not_spoil_the_calibration(make_model):
    ids = torch.randint(2, 61, (1, 33), generator=torch.Generator().manual_seed(0))
    whole, rest = (compress(make_model(), 0.5, whiten=ids[:, :n].split(8, dim=1)) for n in (32, 33))
    assert whole.config.lorc == rest.config.lorc
    with pytest.raises(ValueError, match="whiten holds no text to calibrate on"):
        compress(make_model(), 0.5, whiten=ids[:, :1])
