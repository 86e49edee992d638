"""The choice between one pass and k: what it measures, and what it does when memory is short."""

import pytest
import torch

from lib import TenfoldError
from lib.multilora import batching, compose, denoisers
from lib.multilora.batching import Choice

THREE = {"character": 1.0, "clothing": 0.8, "style": 0.6}


def decide(batched, sequential):
    choice = Choice()
    assert choice.next_way() is False, "memory is measured in a sequential pass"
    choice.learn_memory(peak=10, free=1e9, k=3)
    ways = []
    while choice.batched is None:
        ways.append(choice.next_way())
        choice.learn(ways[-1], batched if ways[-1] else sequential)
    assert ways == [True, False] * batching.TRIALS
    return choice.next_way()


def test_the_faster_way_is_taken():
    assert decide(batched=1.0, sequential=2.0) is True
    assert decide(batched=2.0, sequential=1.0) is False


def test_copies_that_do_not_fit_are_never_batched():
    choice = Choice()
    choice.learn_memory(peak=300, free=1000.0, k=3)
    assert choice.next_way() is False
    assert choice.batched is False


def test_peak_counts_what_is_alive_at_once():
    def work():
        a = torch.ones(1000)
        b = a * 2
        del a
        c = b + 1
        del b
        return c.view(10, 100)[:1]

    with batching.Live() as live:
        kept = work()
    assert live.peak == 2 * 4000
    assert live.level == 4000
    del kept
    assert live.level == 0


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
    assert not any(p.batched for p in composition.passes)
    with pytest.raises(torch.OutOfMemoryError), compose(pipe, THREE, "composite", batched=True):
        run_pipe(pipe)


def test_an_error_that_is_not_about_memory_is_not_hidden(make_pipe, run_pipe, monkeypatch):
    pipe = make_pipe("sd15")
    monkeypatch.setattr(
        batching, "with_peak", lambda call, device: (_ for _ in ()).throw(RuntimeError("shapes differ"))
    )
    with pytest.raises(RuntimeError, match="shapes differ"), compose(pipe, THREE, "composite"):
        run_pipe(pipe)


def test_a_denoiser_of_an_unknown_class_is_composed_in_k_passes(make_pipe, run_pipe, monkeypatch):
    pipe = make_pipe("sd3")

    with compose(pipe, THREE, "composite", batched=False):
        expected = run_pipe(pipe)
    monkeypatch.delitem(denoisers.FAMILIES, "SD3Transformer2DModel")
    with compose(pipe, THREE, "composite") as composition:
        assert torch.equal(run_pipe(pipe), expected)
    assert not any(p.batched for p in composition.passes)
    with pytest.raises(TenfoldError, match="SD3Transformer2DModel is not known to be right"):
        with compose(pipe, THREE, "composite", batched=True):
            pass


def test_dora_is_composed_in_k_passes(make_pipe, run_pipe):
    from peft import LoraConfig, inject_adapter_in_model

    pipe = make_pipe("sd15", 1)
    config = LoraConfig(r=4, target_modules=r".*to_q$", use_dora=True, init_lora_weights=False)
    inject_adapter_in_model(config, pipe.unet, adapter_name="dora")
    with compose(pipe, {"character": 1.0, "dora": 1.0}, "composite") as composition:
        run_pipe(pipe)
    assert not any(p.batched for p in composition.passes)
