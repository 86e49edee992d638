"""compose on real pipeline classes: the three methods against each other, against set_adapters, and restored after."""

import itertools

import pytest
import torch
from peft import LoraConfig, inject_adapter_in_model

from lib import TenfoldError
from lib.multilora import compose
from lib.multilora.layers import AdapterLayers

FAMILIES = ("sd15", "sdxl", "sd3", "flux")
THREE = {"character": 1.0, "clothing": 0.8, "style": 0.6}


def denoiser(pipe):
    return getattr(pipe, "unet", None) or pipe.transformer


def difference(a, b):
    return float((a - b).abs().max())


def state(pipe):
    return [
        (la._active_adapter, la._disable_adapters, dict(la.scaling), [p.requires_grad for p in la.parameters()])
        for la in AdapterLayers(denoiser(pipe)).layers
    ]


def activate(pipe, weights):
    AdapterLayers(denoiser(pipe)).set(weights)


@pytest.mark.parametrize("family", FAMILIES)
def test_with_one_adapter_the_three_methods_are_the_pipelines_own_call(family, make_pipe, run_pipe):
    pipe = make_pipe(family, 2)
    images = []
    for method in ("merge", "switch", "composite"):
        with compose(pipe, {"clothing": 0.8}, method, tau=2):
            images.append(run_pipe(pipe))
    activate(pipe, {"clothing": 0.8})
    reference = run_pipe(pipe)
    assert max(difference(image, reference) for image in images) < 1e-5
    activate(pipe, {"character": 0.8})
    assert difference(run_pipe(pipe), reference) > 1e-2, "the LoRAs do not show in the image"


@pytest.mark.parametrize("family", FAMILIES)
def test_identical_loras_composite_is_the_single_one_and_merge_is_not(family, make_pipe, run_pipe):
    pipe = make_pipe(family, 3, same=True)
    weights = dict.fromkeys(THREE, 0.8)
    with compose(pipe, {"character": 0.8}):
        single = run_pipe(pipe)
    for batched in (True, False):
        with compose(pipe, weights, "composite", batched=batched):
            assert difference(run_pipe(pipe), single) < 1e-4
    with compose(pipe, weights, "merge"):
        assert difference(run_pipe(pipe), single) > 1e-2


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("k", [2, 5])
def test_batched_composite_is_the_sequential_one(family, k, make_pipe, run_pipe):
    pipe = make_pipe(family, 5)
    names = ["character", "clothing", "style", "background", "object"][:k]
    weights = {name: 0.4 + 0.2 * i for i, name in enumerate(names)}
    images = []
    for batched in (True, False, "auto"):
        with compose(pipe, weights, "composite", batched=batched) as composition:
            images.append(run_pipe(pipe, prompts=2))
        assert {p.batched for p in composition.taken} == {bool(batched)}
    assert difference(images[0], images[1]) < 1e-4
    assert difference(images[2], images[1]) < 1e-4


@pytest.mark.parametrize("family", ["sd15", "sd3"])
def test_composite_is_the_mean_of_guided_predictions(family, make_pipe, run_pipe):
    # One step: latents are linear in the prediction, so the mean of the single-LoRA images is the composite image.
    pipe = make_pipe(family, 3)
    singles = []
    for name, weight in THREE.items():
        with compose(pipe, {name: weight}):
            singles.append(run_pipe(pipe, steps=1))
    size = float(singles[0].abs().max())  # a single step from pure noise leaves latents of tens
    with compose(pipe, THREE, "composite", batched=True):
        assert difference(run_pipe(pipe, steps=1), torch.stack(singles).mean(0)) < 1e-5 * size
    with compose(pipe, THREE, "composite", shares={"character": 2.0, "clothing": 1.0, "style": 1.0}):
        expected = (2 * singles[0] + singles[1] + singles[2]) / 4
        assert difference(run_pipe(pipe, steps=1), expected) < 1e-5 * size


@pytest.mark.parametrize("family", FAMILIES)
def test_merge_is_set_adapters_with_all(family, make_pipe, run_pipe):
    pipe = make_pipe(family)
    with compose(pipe, THREE, "merge"):
        merged = run_pipe(pipe)
    denoiser(pipe).set_adapters(list(THREE), list(THREE.values()))
    assert difference(merged, run_pipe(pipe)) < 1e-6


@pytest.mark.parametrize("convention", ["paper", "callback"])
def test_switch_is_set_adapters_between_steps(convention, make_pipe, run_pipe):
    pipe = make_pipe("sd15")
    names = list(THREE)
    with compose(pipe, THREE, "switch", tau=2, convention=convention) as composition:
        switched = run_pipe(pipe, steps=9)
    table = "AABBCCAAB" if convention == "paper" else "AAABBCCAA"
    assert [next(iter(p.weights)) for p in composition.taken] == [names["ABC".index(t)] for t in table]

    def callback(pipe, step, timestep, kwargs):
        if step + 1 < 9:
            name = names["ABC".index(table[step + 1])]
            pipe.set_adapters([name], [THREE[name]])
        return kwargs

    pipe.set_adapters(["character"], [1.0])
    assert difference(switched, run_pipe(pipe, steps=9, callback_on_step_end=callback)) < 1e-6


def test_order_decides_whose_turn_comes_first(make_pipe, run_pipe):
    pipe = make_pipe("sd15")
    with compose(pipe, THREE, "switch", tau=1, order=["style", "character", "clothing"]) as composition:
        run_pipe(pipe, steps=4)
    assert [next(iter(p.weights)) for p in composition.taken] == ["style", "character", "clothing", "style"]


@pytest.mark.parametrize("family", FAMILIES)
def test_guidance_off(family, make_pipe, run_pipe):
    pipe = make_pipe(family)
    images = []
    for batched in (True, False):
        with compose(pipe, THREE, "composite", batched=batched):
            images.append(run_pipe(pipe, guidance=1.0))
    assert difference(*images) < 1e-4
    with compose(pipe, {"style": 0.6}):
        assert difference(images[0], run_pipe(pipe, guidance=1.0)) > 1e-3, "the last adapter alone"


def test_several_denoiser_calls_a_step_are_one_step(make_pipe, run_pipe):
    pipe = make_pipe("flux")
    with compose(pipe, THREE, "switch", tau=1) as composition:
        run_pipe(pipe, steps=3, true_cfg_scale=3.0)
    assert [(p.step, next(iter(p.weights))) for p in composition.taken] == list(enumerate(THREE))


def test_a_prompt_in_a_batch_gets_the_image_it_gets_alone(make_pipe, run_pipe):
    pipe = make_pipe("sd15")
    latents = torch.randn(3, 4, 8, 8, generator=torch.Generator().manual_seed(3))
    prompts = torch.randn(3, 4, 16, generator=torch.Generator().manual_seed(4))
    negative = torch.randn(3, 4, 16, generator=torch.Generator().manual_seed(6))
    for method in ("merge", "switch", "composite"):
        with compose(pipe, THREE, method, batched=True, tau=2):
            together = run_pipe(pipe, latents=latents, prompt_embeds=prompts, negative_prompt_embeds=negative)
            for i in range(3):
                rows = slice(i, i + 1)
                alone = run_pipe(
                    pipe,
                    latents=latents[rows],
                    prompt_embeds=prompts[rows],
                    negative_prompt_embeds=negative[rows],
                )
                assert difference(together[rows], alone) < 1e-4
            other = run_pipe(pipe, latents=latents, prompt_embeds=prompts, negative_prompt_embeds=prompts)
            assert difference(together, other) > 1e-3, "the negative prompt has no effect"


def test_weights_of_zero_leave_the_base_model(make_pipe, run_pipe):
    pipe = make_pipe("sd15")
    layers = AdapterLayers(pipe.unet)
    with layers.restored():
        layers.set({})
        base = run_pipe(pipe)
    for method, batched in itertools.product(("merge", "switch", "composite"), (True, False)):
        with compose(pipe, dict.fromkeys(THREE, 0.0), method, batched=batched):
            assert difference(run_pipe(pipe), base) < 1e-4


@pytest.mark.parametrize("method", ["merge", "switch", "composite"])
def test_the_pipelines_own_lora_scale_multiplies_the_weights(method, make_pipe, run_pipe):
    pipe = make_pipe("sd15")
    with compose(pipe, {name: 0.5 * w for name, w in THREE.items()}, method, batched=True, tau=1):
        expected = run_pipe(pipe)
    for batched in (True, False):
        with compose(pipe, THREE, method, batched=batched, tau=1):
            assert difference(run_pipe(pipe, cross_attention_kwargs={"scale": 0.5}), expected) < 1e-4


def test_schedules_by_step_and_by_progress(make_pipe, run_pipe):
    pipe = make_pipe("sd15")
    schedule = {"character": [1.0, 0.5], "style": lambda progress: 1 - progress}
    with compose(pipe, THREE, "merge", schedule=schedule) as composition:
        scheduled = run_pipe(pipe, steps=3)
    assert [list(p.weights.values()) for p in composition.taken] == [
        pytest.approx([1.0, 0.8, 0.6]),
        pytest.approx([0.5, 0.8, 0.3]),
        pytest.approx([0.5, 0.8, 0.0]),
    ]
    with compose(pipe, THREE, "merge"):
        assert difference(scheduled, run_pipe(pipe, steps=3)) > 1e-3


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("method", ["merge", "switch", "composite"])
def test_everything_is_restored_after_success_and_after_an_exception(family, method, make_pipe, run_pipe):
    pipe = make_pipe(family)
    activate(pipe, {"clothing": 0.37})
    AdapterLayers(denoiser(pipe)).layers[0].lora_A["style"].weight.requires_grad_(True)
    before, image = state(pipe), run_pipe(pipe, steps=3)
    with compose(pipe, THREE, method, tau=1, batched="auto"):
        run_pipe(pipe, steps=9)
    assert state(pipe) == before

    def stop(pipe, step, timestep, kwargs):
        if step == 1:
            raise KeyboardInterrupt
        return kwargs

    for batched in (True, False):
        with pytest.raises(KeyboardInterrupt):
            with compose(pipe, THREE, method, tau=1, batched=batched):
                run_pipe(pipe, callback_on_step_end=stop)
        assert state(pipe) == before
    for owner in (denoiser(pipe), pipe.scheduler):
        assert not {"forward", "step", "set_timesteps"} & set(vars(owner))
    assert not any(layer._forward_pre_hooks for layer in AdapterLayers(denoiser(pipe)).layers)
    assert torch.equal(run_pipe(pipe, steps=3), image)


def test_disabled_adapters_are_enabled_inside_and_disabled_again_after(make_pipe, run_pipe):
    pipe = make_pipe("sd15")
    with compose(pipe, THREE):
        expected = run_pipe(pipe)
    pipe.disable_lora()
    base = run_pipe(pipe)
    with compose(pipe, THREE):
        assert torch.equal(run_pipe(pipe), expected)
    assert torch.equal(run_pipe(pipe), base)


def test_a_composition_within_a_composition(make_pipe, run_pipe):
    pipe = make_pipe("sd15")
    with compose(pipe, THREE, "switch", tau=1):
        outer = run_pipe(pipe)
    with compose(pipe, THREE, "switch", tau=1):
        with compose(pipe, {"style": 1.0}):
            pass
        assert torch.equal(run_pipe(pipe), outer)


def test_text_encoder_loras_all_for_merge_and_composite_only_the_first_for_switch(make_pipe, run_pipe):
    pipe = make_pipe("sd15", encoder=True)
    seen = []
    layers = AdapterLayers(pipe.text_encoder)
    layers.layers[0].register_forward_pre_hook(lambda layer, _: seen.append((layer.active_adapters, layer.scaling)))
    prompt = {"prompt": "a cat", "prompt_embeds": None, "negative_prompt": "bad", "negative_prompt_embeds": None}
    for method, expected in {"merge": list(THREE), "composite": list(THREE), "switch": ["character"]}.items():
        seen.clear()
        with compose(pipe, THREE, method):
            run_pipe(pipe, **prompt)
            assert {tuple(active) for active, _ in seen} == {tuple(expected)}
            assert seen[0][1]["clothing"] == pytest.approx(6 / 4 if method == "switch" else 0.8 * 6 / 4)
    assert layers.layers[0].scaling["clothing"] == pytest.approx(6 / 4)


def test_refusals_are_one_sentence(make_pipe):
    pipe = make_pipe("sd15", 2)
    cases = [
        (({"hat": 1.0},), {}, "no LoRA called 'hat' is loaded"),
        (({},), {}, "nothing to compose"),
        ((dict.fromkeys(THREE, 1.0),), {}, "3 asked for, 2 loaded: character, clothing"),
        (({"character": 1.0}, "blend"), {}, "'blend' is no method"),
        (({"character": 1.0}, "switch"), {"tau": 0}, "at least 1"),
        (({"character": 1.0}, "switch"), {"convention": "code"}, "no convention"),
        (({"character": 1.0},), {"order": ["clothing"]}, "order must name"),
        (({"character": 1.0},), {"schedule": {"hat": [1.0]}}, "names 'hat'"),
        (({"character": 1.0},), {"schedule": {"character": []}}, "neither a list"),
        (({"character": 1.0}, "composite"), {"shares": {"character": 0.0}}, "not all zero"),
    ]
    before = state(pipe)
    for args, kwargs, words in cases:
        with pytest.raises(ValueError, match=words) as caught, compose(pipe, *args, **kwargs):
            pass
        assert "\n" not in str(caught.value)
    assert state(pipe) == before


@pytest.mark.usefixtures("as_installed")
def test_names_without_weights_are_refused(make_pipe):
    pipe = make_pipe("sd15", 2)
    before = state(pipe)
    with pytest.raises(TypeError, match="adapter names with their LoRA weights"), compose(pipe, ["character"]):
        pass
    assert state(pipe) == before


def test_not_a_pipeline_and_fused_weights_are_refused(make_pipe):
    with pytest.raises(TypeError, match="pass a diffusers pipeline"), compose(object(), {"a": 1.0}):
        pass
    pipe = make_pipe("sd15", 2)
    pipe.unet.set_adapters(["character"], [1.0])
    pipe.fuse_lora(components=["unet"], adapter_names=["character"])
    with pytest.raises(TenfoldError, match="unfuse_lora"), compose(pipe, {"character": 1.0}):
        pass


@pytest.mark.parametrize(("rank_stabilised", "own"), [(False, 6 / 4), (True, 6 / 2)])
def test_an_adapters_own_scaling_is_alpha_over_its_rank_or_its_root(rank_stabilised, own):
    model = torch.nn.Sequential(torch.nn.Linear(3, 3))
    config = LoraConfig(r=4, lora_alpha=6, target_modules=["0"], use_rslora=rank_stabilised)
    inject_adapter_in_model(config, model, adapter_name="style")
    layers = AdapterLayers(model)
    layers.set({"style": 0.5})
    assert layers.layers[0].scaling["style"] == pytest.approx(0.5 * own)
