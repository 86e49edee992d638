"""The compressed, cached model against the fake-compressed one: prefill, token by token, padded, with every option."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from lib.lorc import LowRankCache, compress, decompose_model, plan, replace_weights
from lib.lorc.latents import mixing, pack

Maker = Callable[..., nn.Module]
FAMILIES = [("llama", 4), ("mistral", 2), ("qwen2", 2), ("qwen3", 2), ("gemma3", 4)]
GRANULARITIES = ["joint", "head", 2]


@pytest.fixture(autouse=True)
def small_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a few tokens fill several pages."""
    monkeypatch.setattr("lib.lorc.cache.PAGE_TOKENS", 6)


def token_ids(batch: int, tokens: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(1, 61, (batch, tokens), generator=torch.Generator().manual_seed(seed))


def fake_compressed(
    model: nn.Module, *, keep: float, granularity: Any, matrices: tuple[str, ...] = ("k", "v"), sinks: int = 0
) -> Any:
    """Replace weights by their low-rank products; the outputs of the first `sinks` positions stay exact."""
    fake = copy.deepcopy(model)
    followed = plan(model, keep, budget="uniform", granularity=granularity, matrices=matrices)
    bases = decompose_model(model, granularity=granularity)
    if not sinks:
        return replace_weights(fake, followed, decomposition=bases)
    for index, layer in enumerate(fake.get_submodule("model.layers").children()):
        for matrix in matrices:
            linear = layer.get_submodule(f"self_attn.{matrix}_proj")
            low = bases.low_rank_weight(matrix, index, followed.ranks(matrix)[index]).to(linear.weight)

            def truncate(module: Any, given: Any, exact: torch.Tensor, low: torch.Tensor = low) -> torch.Tensor:
                cut = nn.functional.linear(given[0], low, module.bias)
                return torch.cat((exact[:, :sinks], cut[:, sinks:]), dim=1)

            linear.register_forward_hook(truncate)
    return fake


def decoded(model: nn.Module, tokens: torch.Tensor, *, prompt: int, **options: Any) -> torch.Tensor:
    """Feed a prompt, then one token at a time, then the rest at once."""
    cache, total = LowRankCache(model.config), tokens.shape[1]
    steps = [slice(0, prompt), *[slice(t, t + 1) for t in range(prompt, total - 4)], slice(total - 4, total)]
    parts = []
    with torch.no_grad():
        for step in steps:
            given = {name: value[:, : step.stop] for name, value in options.items()}
            parts.append(model(input_ids=tokens[:, step], cache=cache, **given).logits)
    return torch.cat(parts, dim=1)


@pytest.mark.parametrize("sinks", [0, 2])
@pytest.mark.parametrize("granularity", GRANULARITIES)
@pytest.mark.parametrize(("family", "kv_heads"), FAMILIES)
def test_equals_the_fake_compressed_model(
    make_model: Maker, family: str, kv_heads: int, granularity: Any, sinks: int
) -> None:
    model, tokens = make_model(family, kv_heads=kv_heads), token_ids(2, 21)
    fake = fake_compressed(model, keep=0.5, granularity=granularity, sinks=sinks)
    with torch.no_grad():
        expected, original = fake(input_ids=tokens).logits, model(input_ids=tokens).logits
    small = compress(model, 0.5, budget="uniform", granularity=granularity, sink_tokens=sinks)
    with torch.no_grad():
        torch.testing.assert_close(small(input_ids=tokens).logits, expected, atol=1e-4, rtol=0)
    torch.testing.assert_close(decoded(small, tokens, prompt=5), expected, atol=1e-4, rtol=0)
    torch.testing.assert_close(decoded(small, tokens, prompt=1), expected, atol=1e-4, rtol=0)
    assert (expected - original).abs().max() > 0.01  # so that equality says something


@pytest.mark.parametrize("granularity", GRANULARITIES)
@pytest.mark.parametrize(("family", "kv_heads"), FAMILIES)
def test_full_rank_equals_the_original(make_model: Maker, family: str, kv_heads: int, granularity: Any) -> None:
    model, tokens = make_model(family, kv_heads=kv_heads), token_ids(2, 14)
    with torch.no_grad():
        expected = model(input_ids=tokens).logits
    full = compress(model, 1.0, granularity=granularity)
    torch.testing.assert_close(decoded(full, tokens, prompt=4), expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("sinks", [0, 3])
@pytest.mark.parametrize("granularity", GRANULARITIES)
@pytest.mark.parametrize("kv_heads", [4, 2])
def test_left_padding_changes_nothing(make_model: Maker, kv_heads: int, granularity: Any, sinks: int) -> None:
    model = compress(make_model(kv_heads=kv_heads), 0.5, granularity=granularity, sink_tokens=sinks)
    rows = [token_ids(1, 16, seed=1), token_ids(1, 11, seed=2)]
    padding = torch.zeros(1, 5, dtype=torch.long)
    tokens = torch.cat((rows[0], torch.cat((padding, rows[1]), dim=1)))
    mask = (tokens > 0).long()
    # Short prompts: the second row is still in its sinks when decoding begins.
    for prompt in (6, 9):
        padded = decoded(model, tokens, prompt=prompt, attention_mask=mask)
        for row, start in ((0, 0), (1, 5)):
            with torch.no_grad():
                alone = model(input_ids=rows[row]).logits
            torch.testing.assert_close(padded[row : row + 1, start:], alone, atol=1e-4, rtol=0)


@pytest.mark.parametrize(("family", "heads"), FAMILIES)
def test_hidden_states_can_be_asked_for(make_model: Maker, family: str, heads: int) -> None:
    model = make_model(family, kv_heads=heads)
    seen: list[torch.Tensor] = []
    small = compress(model, keep=0.5)
    for layer in small.get_decoder().layers:
        layer.register_forward_hook(lambda module, given, made: seen.append(made))
    states = small(input_ids=token_ids(2, 7), output_hidden_states=True).hidden_states
    assert len(states) == len(seen) + 1
    assert all(torch.equal(state, said) for state, said in zip(states[1:-1], seen[:-1], strict=True))


@pytest.mark.parametrize("family", ["mistral", "qwen2"])
def test_sliding_windows_are_masked_as_in_the_original(make_model: Maker, family: str) -> None:
    changes: dict[str, Any] = {"sliding_window": 5}
    if family == "qwen2":
        changes |= {"use_sliding_window": True, "max_window_layers": 1}
    model, tokens = make_model(family, **changes), token_ids(2, 19)
    with torch.no_grad():
        expected = fake_compressed(model, keep=0.5, granularity="joint")(input_ids=tokens).logits
    small = compress(model, 0.5, budget="uniform")
    torch.testing.assert_close(decoded(small, tokens, prompt=7), expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("rope", ["linear", "llama3", "yarn"])
def test_scaled_rope_is_followed(make_model: Maker, rope: str) -> None:
    parameters: dict[str, Any] = {"rope_type": rope, "rope_theta": 100.0, "factor": 4.0}
    if rope != "linear":
        parameters["original_max_position_embeddings"] = 16
    if rope == "llama3":
        parameters |= {"low_freq_factor": 1.0, "high_freq_factor": 4.0}
    model, tokens = make_model(rope_parameters=parameters), token_ids(1, 24)
    with torch.no_grad():
        expected = fake_compressed(model, keep=0.5, granularity="joint")(input_ids=tokens).logits
    torch.testing.assert_close(
        decoded(compress(model, 0.5, budget="uniform"), tokens, prompt=9), expected, atol=1e-4, rtol=0
    )


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_both_attention_kernels_agree(make_model: Maker, implementation: str) -> None:
    model = make_model()
    reference = compress(copy.deepcopy(model), 0.5)
    model.set_attn_implementation(implementation)
    tokens = token_ids(2, 15)
    small = compress(model, 0.5)
    torch.testing.assert_close(
        decoded(small, tokens, prompt=6), decoded(reference, tokens, prompt=6), atol=1e-4, rtol=0
    )


def test_biases_of_every_projection_are_kept(make_model: Maker) -> None:
    for granularity in ("joint", "head"):
        model, tokens = make_model(attention_bias=True), token_ids(2, 15)
        fake = fake_compressed(model, keep=0.5, granularity=granularity)
        with torch.no_grad():
            expected = fake(input_ids=tokens).logits
        small = compress(model, 0.5, budget="uniform", granularity=granularity)
        torch.testing.assert_close(decoded(small, tokens, prompt=6), expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize(("bits", "most"), [(8, 0.03), (4, 0.4)])
@pytest.mark.parametrize("keep", [0.75, 1.0])
def test_rounded_latents_are_close_and_the_same_with_and_without_a_cache(
    make_model: Maker, bits: int, most: float, keep: float
) -> None:
    model, tokens = make_model(), token_ids(2, 21)
    exact = compress(copy.deepcopy(model), keep, budget="uniform")
    rounded = compress(model, keep, budget="uniform", bits=bits)
    with torch.no_grad():
        whole, expected = rounded(input_ids=tokens).logits, exact(input_ids=tokens).logits
    torch.testing.assert_close(decoded(rounded, tokens, prompt=5), whole, atol=1e-3, rtol=0)
    error = (whole - expected).norm() / expected.norm()
    assert 0 < error < most


@pytest.mark.parametrize("size", [5, 8, 115])
def test_mixing_is_orthogonal_and_spreads_an_outlier(size: int) -> None:
    mix = mixing(size)
    torch.testing.assert_close(mix @ mix.T, torch.eye(size, dtype=torch.float64), atol=1e-12, rtol=0)
    assert mix.abs().max() <= (2 / size) ** 0.5 + 1e-12
    latents = torch.zeros(1, 1, size, dtype=torch.float64)
    latents[..., 0], latents[..., 1:] = 100.0, 1.0
    errors = [(pack(each, 4).latents() - each).norm() for each in (latents, latents @ mix.T)]
    assert errors[1] < errors[0] or size < 100


def test_gradients_reach_the_factors_and_the_inputs(make_model: Maker) -> None:
    model = compress(make_model(), 0.5)
    model(input_ids=token_ids(1, 9)).logits.square().mean().backward()
    factors = model.get_submodule("model.layers.0.self_attn.k_proj")
    assert factors.down.grad.abs().sum() > 0
    assert factors.up.grad.abs().sum() > 0


def test_decoding_with_gradients_on_takes_the_same_values(make_model: Maker) -> None:
    model, tokens = compress(make_model(), 0.5), token_ids(1, 9)
    cache = LowRankCache(model.config)
    model(input_ids=tokens[:, :8], cache=cache)
    step = model(input_ids=tokens[:, 8:], cache=cache).logits
    torch.testing.assert_close(step, decoded(model, tokens, prompt=4)[:, 8:], atol=1e-4, rtol=0)


def test_a_checkpointed_backward_pass_gives_the_same_gradients(make_model: Maker) -> None:
    model = compress(make_model(), 0.5, sink_tokens=1).train()
    ids = torch.randint(2, 61, (2, 9), generator=torch.Generator().manual_seed(0))

    def gradients() -> dict[str, torch.Tensor]:
        model.zero_grad()
        model(input_ids=ids, labels=ids).loss.backward()
        return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}

    plain = gradients()
    model.gradient_checkpointing_enable()
    assert all(torch.allclose(grad, plain[name], atol=1e-6) for name, grad in gradients().items())
