"""The choice between one pass and k: where one is not known to be right, and when memory is short."""

import pytest
import torch

from lib.multilora import compose, composite

THREE = {"character": 1.0, "clothing": 0.8, "style": 0.6}


def test_memory_that_runs_out_in_a_batched_pass_leaves_the_sequential_image(make_pipe, run_pipe, monkeypatch):
    pipe = make_pipe("sd15")
    with compose(pipe, THREE, "composite", batched=False):
        expected = run_pipe(pipe)
    forward, rows = pipe.unet.forward, []

    def small(sample, *args, **kwargs):
        rows.append(len(sample))
        if len(sample) > 2:
            raise torch.OutOfMemoryError("no memory for copies")
        return forward(sample, *args, **kwargs)

    monkeypatch.setattr(pipe.unet, "forward", small)
    with compose(pipe, THREE, "composite") as composition:
        assert torch.equal(run_pipe(pipe), expected)
    assert rows.count(6) == 1, "the shape is remembered as too large"
    assert not any(p.batched for p in composition.taken)
    with pytest.raises(torch.OutOfMemoryError), compose(pipe, THREE, "composite", batched=True):
        run_pipe(pipe)


def test_an_error_that_is_not_about_memory_is_not_hidden(make_pipe, run_pipe, monkeypatch):
    pipe = make_pipe("sd15")

    def broken(*args, **kwargs):
        raise RuntimeError("shapes differ")

    monkeypatch.setattr(pipe.unet, "forward", broken)
    with pytest.raises(RuntimeError, match="shapes differ"), compose(pipe, THREE, "composite"):
        run_pipe(pipe)


def test_a_denoiser_of_an_unknown_class_is_composed_in_k_passes(make_pipe, run_pipe, monkeypatch):
    pipe = make_pipe("sd3")

    with compose(pipe, THREE, "composite", batched=False):
        expected = run_pipe(pipe)
    monkeypatch.delitem(composite.FAMILIES, "SD3Transformer2DModel")
    with compose(pipe, THREE, "composite") as composition:
        assert torch.equal(run_pipe(pipe), expected)
    assert not any(p.batched for p in composition.taken)
    with pytest.raises(ValueError, match="not known to be right with a SD3Transformer2DModel"):
        with compose(pipe, THREE, "composite", batched=True):
            pass


def test_dora_is_composed_in_k_passes(make_pipe, run_pipe):
    from peft import LoraConfig, inject_adapter_in_model

    pipe = make_pipe("sd15", 1)
    config = LoraConfig(r=4, target_modules=r".*to_q$", use_dora=True, init_lora_weights=False)
    inject_adapter_in_model(config, pipe.unet, adapter_name="dora")
    with compose(pipe, {"character": 1.0, "dora": 1.0}, "composite") as composition:
        run_pipe(pipe)
    assert not any(p.batched for p in composition.taken)
