"""Fake compression: what is swapped, what is left alone, and that the originals come back."""

from collections.abc import Callable

import pytest
import torch
from torch import nn

from lib.lorc import Plan, decompose, decompose_model, replace_weights, replaced, uniform


def projections(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in model.named_parameters()}


def logits(model: nn.Module) -> torch.Tensor:
    tokens = torch.randint(1, 61, (2, 9), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        return model(input_ids=tokens).logits


@pytest.mark.parametrize(("family", "kv_heads"), [("llama", 4), ("llama", 2), ("mistral", 2), ("qwen2", 1)])
def test_only_k_and_v_weights_change(make_model: Callable[..., nn.Module], family: str, kv_heads: int) -> None:
    model = make_model(family, kv_heads=kv_heads)
    before = projections(model)
    width = 8 * kv_heads
    replace_weights(model, uniform(3, width, keep=0.5))
    for name, value in projections(model).items():
        if name.endswith(("k_proj.weight", "v_proj.weight")):
            expected = decompose(before[name], width // 2).product()
            torch.testing.assert_close(value, expected, atol=1e-5, rtol=1e-4)
            assert torch.linalg.matrix_rank(value) == width // 2
        else:
            assert torch.equal(value, before[name])


def test_full_rank_touches_nothing(make_model: Callable[..., nn.Module]) -> None:
    model = make_model()
    before = logits(model)
    with replaced(model, uniform(3, 16, keep=1.0)):
        assert torch.equal(logits(model), before)


def test_one_decomposition_serves_many_plans(make_model: Callable[..., nn.Module]) -> None:
    model = make_model()
    before, bases = projections(model), decompose_model(model)
    torch.testing.assert_close(
        bases.spectra.k[0], torch.linalg.svdvals(before["model.layers.0.self_attn.k_proj.weight"])
    )
    for keep in (0.25, 0.5, 0.75):
        with replaced(model, uniform(3, 16, keep=keep), decomposition=bases):
            with_cached = logits(model)
        with replaced(model, uniform(3, 16, keep=keep)):
            torch.testing.assert_close(logits(model), with_cached)
    assert all(torch.equal(value, before[name]) for name, value in projections(model).items())


def test_originals_come_back_after_an_exception(make_model: Callable[..., nn.Module]) -> None:
    model = make_model()
    before = projections(model)
    with pytest.raises(RuntimeError, match="stop"), replaced(model, uniform(3, 16, keep=0.25)):
        raise RuntimeError("stop")
    assert all(torch.equal(value, before[name]) for name, value in projections(model).items())


def test_matrices_named_are_the_only_ones_replaced(make_model: Callable[..., nn.Module]) -> None:
    model = make_model()
    before = projections(model)
    replace_weights(model, uniform(3, 16, keep=0.25), matrices=("v",))
    for name, value in projections(model).items():
        assert torch.equal(value, before[name]) != name.endswith("v_proj.weight")


def test_a_plan_for_another_model_is_refused(make_model: Callable[..., nn.Module]) -> None:
    model = make_model()
    before = projections(model)
    with pytest.raises(ValueError, match="ranks for 4 layers but the model has 3"):
        replace_weights(model, uniform(4, 16, keep=0.5))
    with pytest.raises(ValueError, match="width 32 but the model's have 16"):
        replace_weights(model, uniform(3, 32, keep=0.5))
    with pytest.raises(ValueError, match="rank 7 cannot be shared by 2 groups of heads"):
        replace_weights(
            model, Plan((8, 8, 7), (8, 8, 8), width=16), decomposition=decompose_model(model, granularity="head")
        )
    assert all(torch.equal(value, before[name]) for name, value in projections(model).items())


def test_other_architectures_are_refused() -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    model = GPT2LMHeadModel(GPT2Config(n_layer=1, n_head=1, n_embd=8, vocab_size=11))
    with pytest.raises(ValueError, match="model type 'gpt2' is not supported"):
        replace_weights(model, uniform(1, 8, keep=0.5))
    with pytest.raises(TypeError, match="expected a transformers model or config, got Linear"):
        decompose_model(nn.Linear(2, 2))
