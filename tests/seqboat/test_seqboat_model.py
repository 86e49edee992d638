"""The models: equality with dense attention, causality, batch invariance, decoding, and the baselines."""

import pytest
import torch
from torch.nn.functional import silu
from transformers import AutoModelForCausalLM, Trainer, TrainingArguments

from lib.seqboat import (
    SeqBoatCache,
    SeqBoatConfig,
    SeqBoatForCausalLM,
    SeqBoatForSequenceClassification,
    SeqBoatModel,
)
from lib.seqboat.layers import SeqBoatLayer
from lib.seqboat.study import bench
from lib.seqboat.study.probe import attention_spans, saved_bytes
from lib.seqboat.study.trainer import RECIPES, recipe

SMALL = {"hidden_size": 16, "value_size": 24, "key_size": 8, "num_hidden_layers": 2, "vocab_size": 50, "ema_size": 4}
LM = {**SMALL, "is_decoder": True, "norm": "layer", "prenorm": True, "positions": "rotary", "temperature_scale": 1.0}


def language_model(seed=0, **changes):
    """A small model with weights large enough that its decisions differ."""
    torch.manual_seed(seed)
    model = SeqBoatForCausalLM(SeqBoatConfig(**(LM | {"window": 4} | changes))).eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(0.1 * torch.randn_like(weight))
    return model


def layer(**changes):
    torch.manual_seed(0)
    made = SeqBoatLayer(SeqBoatConfig(**(SMALL | {"window": 4} | changes))).eval()
    with torch.no_grad():
        for weight in made.parameters():
            weight.add_(0.1 * torch.randn_like(weight))
    return made


def run(made, x, real=None):
    real = torch.ones(x.shape[:2], dtype=torch.bool) if real is None else real
    return made(x, real, (real.cumsum(1) - 1).clamp(min=0))


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("function", ["softmax", "relu2"])
def test_unlimited_window_is_dense_attention_over_active_tokens(causal, function):  # B2
    made = layer(window=None, is_decoder=causal, attention_function=function, positions="rotary", norm="layer")
    x = torch.randn(2, 30, 16)
    out, (activation,) = run(made, x)
    state = made.state_of(x, torch.ones(2, 30, dtype=torch.bool))
    unit, expected = made.sma.experts[0], []
    for row in range(2):
        at = activation.active[row].nonzero().squeeze(1)
        alone = unit(state[row, at].unsqueeze(0), at.unsqueeze(0), torch.ones(1, len(at), dtype=torch.bool))[0]
        full = torch.zeros(30, 16)
        full[at] = alone * activation.confidence[row, at].unsqueeze(-1)
        expected.append(silu(made.linear(state[row]) + full + x[row]))
    assert 0 < float(activation.rate.mean()) < 1
    torch.testing.assert_close(out, made.norm(torch.stack(expected)), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("positions", ["relative", "local", "rotary", "none"])
@pytest.mark.parametrize("function", ["softmax", "relu2", "laplace"])
def test_nothing_leaks_from_the_future(positions, function):  # B3, also through the router
    model = language_model(positions=positions, attention_function=function)
    ids = torch.randint(0, 50, (2, 40), generator=torch.Generator().manual_seed(0))
    changed = ids.clone()
    changed[:, 25:] = (changed[:, 25:] + 7) % 50
    before, after = model(input_ids=ids), model(input_ids=changed)
    torch.testing.assert_close(before.logits[:, :25], after.logits[:, :25], atol=1e-5, rtol=1e-5)
    for a, b in zip(before.activations, after.activations, strict=True):
        assert torch.equal(a.active[:, :25], b.active[:, :25])
    assert (before.logits[:, 25:] - after.logits[:, 25:]).abs().max() > 1e-3


def test_no_gradient_reaches_back_from_the_future():
    made = layer(is_decoder=True, positions="rotary", norm="layer")
    x = torch.randn(1, 30, 16, requires_grad=True)
    run(made, x)[0][0, 12].sum().backward()
    assert x.grad[0, :13].abs().sum() > 0
    assert x.grad[0, 13:].abs().sum() == 0


def test_layer_without_active_tokens_is_its_linear_path():  # B4
    made = layer(activation_bias=1e4, norm="layer", positions="none")
    x = torch.randn(2, 9, 16, requires_grad=True)
    out, (activation,) = run(made, x)
    assert not activation.active.any()
    state = made.state_of(x, torch.ones(2, 9, dtype=torch.bool))
    torch.testing.assert_close(out, made.norm(silu(made.linear(state) + x)))
    out.sum().backward()
    assert torch.isfinite(x.grad).all()


@pytest.mark.parametrize("kind", ["seqboat", "mega", "transformer"])
@pytest.mark.parametrize("causal", [True, False])
def test_output_does_not_depend_on_batch_mates(kind, causal):  # B12
    torch.manual_seed(0)
    norm = "batch" if kind == "seqboat" and not causal else "layer"
    config = SeqBoatConfig(**SMALL, layer=kind, is_decoder=causal, window=4, norm=norm, prenorm=True)
    model = SeqBoatModel(config).eval()
    ids, lengths = torch.randint(1, 50, (4, 30)), torch.tensor([30, 13, 5, 1])
    mask = torch.arange(30) < lengths.unsqueeze(1)
    together = model(input_ids=ids, attention_mask=mask)
    for row, length in enumerate(lengths.tolist()):
        alone = model(input_ids=ids[row : row + 1, :length]).last_hidden_state
        torch.testing.assert_close(together.last_hidden_state[row : row + 1, :length], alone, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("positions", ["relative", "local", "rotary"])
@pytest.mark.parametrize("function", ["softmax", "relu2", "laplace"])
@pytest.mark.parametrize("window", [1, 4, 64])
def test_decoding_step_by_step_equals_the_full_forward_pass(positions, function, window):
    model = language_model(positions=positions, attention_function=function, window=window)
    ids = torch.randint(0, 50, (3, 33), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    mask[1, :5], mask[2, :14] = 0, 0  # left padding
    full = model(input_ids=ids, attention_mask=mask)
    cache, pieces, at = SeqBoatCache(2), [], 0
    for size in (12, 1, 1, 6, *[1] * 13):
        part = model(input_ids=ids[:, at : at + size], attention_mask=mask[:, : at + size], cache=cache)
        pieces.append(part.logits)
        at += size
    difference = (torch.cat(pieces, 1) - full.logits).abs()[mask.bool()]
    assert difference.max() < 1e-4
    assert cache.get_seq_length() == 33


def test_cache_does_not_grow():
    model = language_model()
    cache = SeqBoatCache(2)
    sizes = []
    for _ in range(3):
        model(input_ids=torch.randint(0, 50, (2, 200)), cache=cache)
        sizes.append(cache.num_bytes())
    assert sizes[0] == sizes[-1] > 0


@pytest.mark.parametrize("options", [{}, {"num_beams": 3}, {"do_sample": True, "num_return_sequences": 2}])
def test_generate_with_and_without_cache(options):
    model = language_model()
    ids = torch.randint(1, 50, (2, 9), generator=torch.Generator().manual_seed(2))
    mask = torch.ones_like(ids)
    mask[0, :4] = 0
    outputs = []
    for use_cache in (True, False):
        torch.manual_seed(0)
        arguments = {"max_new_tokens": 12, "do_sample": False, "use_cache": use_cache} | options
        outputs.append(model.generate(ids, attention_mask=mask, **arguments))
    assert torch.equal(*outputs)


@pytest.mark.parametrize("options", [{}, {"num_beams": 3}, {"prefill_chunk_size": 4}])
@pytest.mark.parametrize("padding", [0, 4])
def test_generate_goes_on_from_a_used_cache_and_reads_nothing_twice(options, padding):
    model = language_model(window=64)
    ids = torch.randint(1, 50, (2, 30), generator=torch.Generator().manual_seed(2))
    mask = torch.ones_like(ids)
    mask[0, :padding] = 0
    arguments = {"max_new_tokens": 8, "do_sample": False, "return_dict_in_generate": True} | options
    wanted = model.generate(ids, attention_mask=mask, **arguments)
    for given in (ids, ids[:, 20:]) if padding else (ids,):  # all of the text, or what is new of it and the whole mask
        cache = SeqBoatCache(2)
        model(input_ids=ids[:, :20], attention_mask=mask[:, :20], cache=cache)
        cache.batch_repeat_interleave(options.get("num_beams", 1))
        made = model.generate(given, attention_mask=mask, cache=cache, **arguments)
        assert torch.equal(made.sequences[:, -8:], wanted.sequences[:, -8:])
        assert cache.seen == 30 + 8 - 1
    turn = torch.cat([wanted.sequences, ids], 1)
    with pytest.raises(ValueError, match="give at least one token more"):
        model.generate(turn[:, :37], cache=cache, **arguments)


def test_baselines_generate_without_a_cache():
    for kind in ("mega", "transformer"):
        model = language_model(layer=kind, norm="layer")
        assert model.generate(torch.ones(1, 3, dtype=torch.long), max_new_tokens=4, do_sample=False).shape == (1, 7)


def test_save_and_load(tmp_path):
    model = language_model()
    model.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    ids = torch.arange(20).unsqueeze(0)
    torch.testing.assert_close(model(input_ids=ids).logits, again(input_ids=ids).logits)
    assert model.lm_head.weight is model.model.encoder.table.weight


def test_initial_values_are_the_papers():
    torch.manual_seed(0)
    model = SeqBoatForCausalLM(recipe("enwik8", num_hidden_layers=1).config)
    weights = dict(model.named_parameters())
    assert float(weights["model.encoder.table.weight"].std()) == pytest.approx(616**-0.5, rel=0.02)
    unit = "model.layers.0.sma.experts.0"
    assert weights[f"{unit}.base.weight"].abs().max() <= 0.04
    assert not weights[f"{unit}.base.bias"].any()
    ids = torch.randint(1, 257, (1, 64))
    assert model(input_ids=ids, labels=ids).loss < 10  # ln 257 = 5.5, and a token still knows itself


def test_image_layer_has_the_papers_number_of_parameters():
    made = SeqBoatLayer(recipe("image").config)
    assert sum(p.numel() for p in made.parameters()) == 219_330


@pytest.mark.parametrize("name", RECIPES)
def test_recipes_build_and_run_on_the_meta_device(name):
    chosen = recipe(name)
    with torch.device("meta"):
        made = SeqBoatForCausalLM if chosen.config.is_decoder else SeqBoatForSequenceClassification
        model = made(chosen.config)
    assert sum(p.numel() for p in model.parameters()) > 2e5
    assert chosen.plan.warmup < chosen.plan.steps


def test_a_recipes_rate_warms_up_by_its_power_from_its_first_rate_and_falls_in_a_line():
    path, enwik8 = recipe("pathx").plan, recipe("enwik8").plan
    assert path.rate(12_500) == pytest.approx(0.01 / 4, rel=1e-3)  # half-way up, squared
    assert path.rate(25_000) == 0.01
    assert path.rate(75_000) == pytest.approx(0.005)
    assert (enwik8.rate(0), enwik8.rate(12_000), enwik8.rate(24_000)) == pytest.approx((0.002, 0.0035, 0.005))
    assert (path.devices, enwik8.devices, recipe("retrieval").plan.devices, recipe("text").plan.devices) == (
        64,
        8,
        8,
        1,
    )


def test_megas_unit_reads_the_moving_average_through_a_silu():
    torch.manual_seed(0)
    mega = SeqBoatModel(SeqBoatConfig(**SMALL, layer="mega", window=4, norm="layer", prenorm=True)).layers[0]
    x, real, seen = torch.randn(2, 9, SMALL["hidden_size"]), torch.ones(2, 9, dtype=torch.bool), []
    mega.base.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    run(mega, x)
    average = mega.ema(mega.norm(x, real), real)
    torch.testing.assert_close(seen[0], torch.nn.functional.silu(average))


def test_bfloat16_runs_and_trains():
    torch.manual_seed(0)
    model = SeqBoatForSequenceClassification(SeqBoatConfig(**SMALL, window=4, num_labels=3)).to(torch.bfloat16)
    output = model(input_ids=torch.randint(1, 50, (2, 21)), labels=torch.tensor([0, 2]))
    output.loss.backward()
    assert output.logits.dtype == torch.bfloat16
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)


def test_trainer_evaluates_with_metrics_of_the_logits_alone(tmp_path):
    torch.manual_seed(0)
    rows = [{"input_ids": row, "labels": torch.tensor(1)} for row in torch.randint(1, 50, (3, 20))]
    arguments = TrainingArguments(str(tmp_path), report_to=[], use_cpu=True, per_device_eval_batch_size=2)
    model, shapes = SeqBoatForSequenceClassification(SeqBoatConfig(**SMALL, window=4)), []
    trainer = Trainer(
        model, arguments, eval_dataset=rows, compute_metrics=lambda p: shapes.append(p.predictions.shape) or {}
    )
    trainer.evaluate()
    assert shapes == [(3, 2)]
    assert "keys_to_ignore_at_inference" not in model.config.to_dict()


def test_spans_follow_from_the_activations():
    model = language_model(window=3)
    ids = torch.randint(0, 50, (2, 60))
    spans = attention_spans(model, ids)
    active = model(input_ids=ids).activations[0].active
    expected = torch.cat([at[3:] - at[:-3] for at in (row.nonzero().squeeze(1) for row in active)])
    assert torch.equal(spans[0].reach.sort().values, expected.float().sort().values)
    assert (spans[0].distance <= spans[0].reach + 1e-3).all()
    assert (spans[0].distance >= -1e-3).all()


@pytest.mark.parametrize("rate", [0.1, 0.5, 1.0])
def test_benchmark_layer_has_the_rate_asked_for(rate):
    made, forward = bench.layer_of_rate(rate, 300)
    x = torch.randn(1, 300, bench.WIDTH, generator=torch.Generator().manual_seed(1))
    assert float(run(made, x)[1][0].rate) == pytest.approx(rate, abs=0.01)
    assert forward().shape == x.shape


def test_saved_bytes_counts_what_backward_needs():
    x = torch.randn(100, 10, requires_grad=True)
    assert saved_bytes(lambda: (x * 2).exp()) == 4 * 1000  # exp keeps its result
    assert saved_bytes(lambda: x + 1) == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"window": 0}, "at least 1 active token"),
        ({"layer": "magic"}, "layer must be one of"),
        ({"positions": "magic"}, "positions must be one of"),
        ({"norm": "magic"}, "norm must be one of"),
        ({"hidden_size": 0}, "hidden_size must be at least 1"),
        ({"norm": "batch", "is_decoder": True}, "would see the future in training"),
    ],
)
def test_bad_configurations(change, message):
    with pytest.raises(ValueError, match=message):
        SeqBoatConfig(**change)


def test_bad_inputs():
    with pytest.raises(ValueError, match="from left to right"):
        SeqBoatForCausalLM(SeqBoatConfig(**SMALL))
    model = SeqBoatModel(SeqBoatConfig(**SMALL, positions="relative", max_position_embeddings=8))
    with pytest.raises(ValueError, match="raise it"):
        model(input_ids=torch.ones(1, 9, dtype=torch.long))
    with pytest.raises(ValueError, match="at least one position"):
        model(input_values=torch.ones(1, 9))
    with pytest.raises(ValueError, match="give it a window"):
        language_model(window=None).model(input_ids=torch.ones(1, 3, dtype=torch.long), cache=SeqBoatCache(2))
    with pytest.raises(ValueError, match="key width must be even"):
        SeqBoatModel(SeqBoatConfig(**(SMALL | {"key_size": 7}), positions="rotary"))
    with pytest.raises(ValueError, match="no recipe is named"):
        recipe("chess")
