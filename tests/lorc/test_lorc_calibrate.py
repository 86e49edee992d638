"""Calibration moments against a direct computation, and what whitening with them buys."""

import copy
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from lib.lorc import calibrate, compress, decompose_model, plan, replaced
from lib.lorc.perplexity import mean_loss

Maker = Callable[..., nn.Module]


def token_ids(batch: int, tokens: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(1, 61, (batch, tokens), generator=torch.Generator().manual_seed(seed))


def layer_inputs(model: Any, tokens: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        hidden = model(input_ids=tokens, output_hidden_states=True).hidden_states[1]
        return model.model.layers[1].input_layernorm(hidden)


@pytest.mark.parametrize("skip", [0, 2])
def test_input_moments_are_those_of_the_hidden_states(make_model: Maker, skip: int) -> None:
    model, batches = make_model(), [token_ids(2, 9), token_ids(3, 7, seed=1)]
    moments = calibrate(model, batches, skip=skip)
    rows = torch.cat([layer_inputs(model, batch)[:, skip:].flatten(0, 1) for batch in batches]).double()
    assert moments.tokens == len(rows) == 2 * (9 - skip) + 3 * (7 - skip)
    torch.testing.assert_close(moments.inputs[1], rows.T @ rows / len(rows), atol=1e-5, rtol=1e-4)
    assert moments.gradients is None
    assert moments.output_root("k", 1) is None


def test_gradients_are_the_fisher_information(make_model: Maker) -> None:
    model, batch = make_model(layers=2), token_ids(1, 6)
    moments = calibrate(model, [batch] * 600, sensitivity=True, generator=torch.Generator().manual_seed(0))
    # The exact Fisher of the last layer's V outputs: the expectation over labels, position by position.
    captured: dict[str, torch.Tensor] = {}
    linear = model.get_submodule("model.layers.1.self_attn.v_proj")

    def keep(module: Any, given: Any, output: torch.Tensor) -> None:
        output.retain_grad()
        captured["v"] = output

    handle = linear.register_forward_hook(keep)
    exact = torch.zeros(16, 16, dtype=torch.float64)
    for position in range(6):
        for label in range(61):
            logs = model(input_ids=batch).logits[0, position].log_softmax(-1)
            logs[label].backward()
            rows = captured["v"].grad[0].double()
            exact += logs[label].exp().item() * rows.T @ rows
    handle.remove()
    # A position's gradients at different labels' draws are independent with mean zero, so their moments add up.
    torch.testing.assert_close(moments.gradients["v"][1], exact / 6, atol=0.1 * exact.abs().max().item() / 6, rtol=0)


def test_calibration_leaves_no_trace_on_the_model(make_model: Maker) -> None:
    model = make_model()
    calibrate(model, [token_ids(2, 8)], sensitivity=True)
    assert all(weight.grad is None and weight.requires_grad for weight in model.parameters())
    assert not model.get_submodule("model.layers.0.self_attn.k_proj")._forward_hooks


def error(model: Any, tokens: torch.Tensor, expected: torch.Tensor) -> float:
    with torch.no_grad():
        logs = model(input_ids=tokens).logits.log_softmax(-1)
    return float((expected.exp() * (expected - logs)).sum(-1).mean())


def test_sensitivity_budget_is_nearer_to_the_original_than_plain_svd(make_model: Maker) -> None:
    model, tokens = make_model(kv_heads=4), token_ids(8, 24, seed=7)
    with torch.no_grad():
        expected = model(input_ids=tokens).logits.log_softmax(-1)
    moments = calibrate(
        model,
        [token_ids(16, 24, seed=s) for s in range(4)],
        sensitivity=True,
        generator=torch.Generator().manual_seed(0),
    )
    errors = {}
    for name, calibration in (("uniform", None), ("sensitivity", moments)):
        bases = decompose_model(model, calibration=calibration)
        with replaced(model, plan(model, 0.5, budget=name, decomposition=bases), decomposition=bases):
            errors[name] = error(model, tokens, expected)
    assert errors["sensitivity"] < 0.8 * errors["uniform"]


@pytest.mark.parametrize("granularity", ["joint", "head"])
def test_compress_takes_batches_or_moments(make_model: Maker, granularity: str) -> None:
    model, batches = make_model(), [token_ids(4, 12)]
    moments = calibrate(model, batches, skip=1)
    options: dict[str, Any] = {"budget": "uniform", "granularity": granularity, "sink_tokens": 1}
    first = compress(copy.deepcopy(model), 0.5, whiten=batches, held_out=[], **options)
    second = compress(copy.deepcopy(model), 0.5, whiten=moments, **options)
    plain = compress(copy.deepcopy(model), 0.5, **options)
    tokens = token_ids(2, 9, seed=4)
    with torch.no_grad():
        logits = [each(input_ids=tokens).logits for each in (first, second, plain)]
    torch.testing.assert_close(logits[0], logits[1])
    assert (logits[0] - logits[2]).abs().max() > 1e-3
    tuned = compress(model, 0.5, budget="sensitivity", whiten=batches, granularity=granularity)
    assert tuned.config.lorc["made_with"]["sensitivity"]


def test_compress_says_what_it_costs(make_model: Maker) -> None:
    model, rows = make_model(), token_ids(8, 24)
    with pytest.warns(UserWarning, match="perplexity on held-out text is .* keep more"):
        broken = compress(copy.deepcopy(model), 0.1, whiten=rows, budget="uniform")
    made = broken.config.lorc["made_with"]
    assert made["calibration_tokens"] == 7 * 24  # the last eighth of the rows is what is measured
    assert made["loss_before"] == pytest.approx(mean_loss(model, [rows[-1:]]), abs=1e-4)
    assert made["loss_after"] == pytest.approx(mean_loss(broken, [rows[-1:]]), abs=1e-4)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        whole = compress(copy.deepcopy(model), 1.0, held_out=rows, max_loss=1e-3).config.lorc["made_with"]
    assert whole["loss_after"] == pytest.approx(whole["loss_before"], abs=1e-4)
    assert "loss_after" not in compress(model, 0.5).config.lorc["made_with"]


def test_empty_calibration_is_refused(make_model: Maker) -> None:
    for batches in ([], [token_ids(2, 3)]):
        with pytest.raises(ValueError, match="hold no token after the first 3 of each row"):
            calibrate(make_model(), batches, skip=3)


def test_one_tensor_is_taken_row_by_row(make_model: Maker) -> None:
    model, rows = make_model(), token_ids(3, 9)
    whole, split = calibrate(model, rows), calibrate(model, list(rows.split(1)))
    torch.testing.assert_close(whole.input_root(0), split.input_root(0))


def test_gradients_come_from_behind_the_head():
    """A family that divides its logits has the gradients of a head with weights as much smaller."""
    from transformers import GraniteConfig, GraniteForCausalLM

    sizes = {"vocab_size": 31, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "tie_word_embeddings": False}
    torch.manual_seed(0)
    divided = GraniteForCausalLM(GraniteConfig(**sizes, **heads, logits_scaling=4.0)).eval()
    smaller = GraniteForCausalLM(GraniteConfig(**sizes, **heads, logits_scaling=1.0)).eval()
    smaller.load_state_dict(divided.state_dict())
    smaller.lm_head.weight.data /= 4
    rows = torch.randint(31, (3, 12), generator=torch.Generator().manual_seed(1))
    found, expected = (
        calibrate(model, rows, sensitivity=True, generator=torch.Generator().manual_seed(2))
        for model in (divided, smaller)
    )
    for matrix, moments in expected.gradients.items():
        for got, wanted in zip(found.gradients[matrix], moments, strict=True):
            assert wanted.abs().max() > 0
            torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-12)
