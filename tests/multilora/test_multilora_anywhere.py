"""Composition is right on a denoiser that is compiled, offloaded, cast or quantised, and in every kind of run."""

import functools
import itertools

import accelerate
import pytest
import torch
from diffusers import (
    AutoPipelineForImage2Image,
    AutoPipelineForInpainting,
    AutoPipelineForText2Image,
    ControlNetModel,
    EulerDiscreteScheduler,
    HeunDiscreteScheduler,
    StableDiffusionAdapterPipeline,
    StableDiffusionControlNetPipeline,
    T2IAdapter,
)
from torch import nn

from lib import TenfoldError
from lib.multilora import compose
from lib.multilora.layers import AdapterLayers
from tests.multilora.conftest import call, make, unet

THREE = {"character": 1.0, "clothing": 0.8, "style": 0.6}
TWO = {"character": 1.0, "clothing": 0.8}
METHODS = ("merge", "switch", "composite")
CPU = torch.device("cpu")


def denoiser(pipe):
    return getattr(pipe, "unet", None) or pipe.transformer


def composed(pipe, method, run=call, weights=THREE, **options):
    with compose(pipe, weights, method, tau=1, **options):
        return run(pipe)


def short(pipe):
    return call(pipe, steps=2)


@functools.cache
def plain(family, method, run=short, names=("character", "clothing")):
    return composed(make(family), method, run, {name: THREE[name] for name in names}, batched=False)


def compiled_inside(pipe):
    denoiser(pipe).compile(backend="eager", fullgraph=True)


def compiled_around(pipe):
    name = "unet" if hasattr(pipe, "unet") else "transformer"
    setattr(pipe, name, torch.compile(denoiser(pipe), backend="eager", fullgraph=True))


def compiled_blocks(pipe):
    denoiser(pipe).compile_repeated_blocks(backend="eager", fullgraph=True)


def offloaded_layers(pipe):
    accelerate.cpu_offload(denoiser(pipe), execution_device=CPU)


def offloaded_model(pipe):
    accelerate.cpu_offload_with_hook(denoiser(pipe), CPU)


def offloaded_groups(pipe):
    denoiser(pipe).enable_group_offload(onload_device=CPU, offload_device=CPU, offload_type="leaf_level")


def offloaded_blocks(pipe):
    denoiser(pipe).enable_group_offload(
        onload_device=CPU, offload_device=CPU, offload_type="block_level", num_blocks_per_group=1
    )


CASES = [
    ("flux", compiled_inside), ("flux", compiled_around), ("sd15", compiled_blocks), ("sd15", offloaded_layers),
    ("sd15", offloaded_model), ("sd15", offloaded_groups), ("flux", offloaded_blocks),
]  # fmt: skip


@pytest.fixture(autouse=True)
def fresh_compiler():
    yield
    torch._dynamo.reset()


@pytest.mark.parametrize(("family", "how"), CASES)
def test_a_denoiser_composed_as_it_is_run_gives_the_plain_images(family, how):
    pipe = make(family, 2)
    how(pipe)
    # A graph a set of active LoRAs: merge's, one more, is traced in the first of the compiled cases only.
    for method in METHODS if how not in (compiled_around, compiled_blocks) else METHODS[1:]:
        made = composed(pipe, method, short, TWO)
        torch.testing.assert_close(made, plain(family, method), rtol=1e-4, atol=1e-4)
    assert len({float(plain(family, method).sum()) for method in METHODS}) == 3


def by_hand(pipe, method):
    """What the method is by the library's own `set_adapters`: merge, and switch with a turn a step."""
    names = list(THREE)

    def callback(pipe, step, timestep, kwargs):
        name = names[(step + 1) % 3]
        denoiser(pipe).set_adapters([name], [THREE[name]])
        return kwargs

    if method == "merge":
        denoiser(pipe).set_adapters(names, list(THREE.values()))
        return call(pipe)
    denoiser(pipe).set_adapters(names[:1], [1.0])
    return call(pipe, callback_on_step_end=callback)


def cast_layerwise(pipe):
    denoiser(pipe).enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=torch.float32)


def quantised(pipe):
    """Put GGUF weights (Q8_0) under the LoRAs, as a quantised checkpoint has them."""
    import gguf
    from diffusers.quantizers.gguf.utils import GGUFLinear, GGUFParameter

    for layer in AdapterLayers(denoiser(pipe)).layers:
        base = layer.get_base_layer()
        if isinstance(base, nn.Linear) and base.in_features % 32 == 0:
            kind = gguf.GGMLQuantizationType.Q8_0
            packed = torch.from_numpy(gguf.quants.quantize(base.weight.detach().numpy(), kind))
            made = GGUFLinear(base.in_features, base.out_features, base.bias is not None, compute_dtype=torch.float32)
            made.weight, made.bias = GGUFParameter(packed, quant_type=kind), base.bias
            layer.base_layer = made


@pytest.mark.parametrize(("family", "how"), [("sd15", cast_layerwise), ("flux", cast_layerwise), ("flux", quantised)])
def test_cast_and_quantised_weights_are_composed_as_set_adapters_would(family, how):
    pipe = make(family)
    how(pipe)
    for method in ("merge", "switch"):
        expected = by_hand(pipe, method)
        torch.testing.assert_close(composed(pipe, method), expected, rtol=1e-5, atol=1e-5)
    singles = []
    for name, weight in THREE.items():
        with compose(pipe, {name: weight}):
            singles.append(call(pipe, steps=1))
    with compose(pipe, THREE, "composite") as composition:
        made = call(pipe, steps=1)
    assert not composition.taken[0].batched
    torch.testing.assert_close(made, torch.stack(singles).mean(0), rtol=1e-4, atol=1e-4 * float(made.abs().max()))


def test_pag_is_composed_one_lora_after_another():
    pipe = AutoPipelineForText2Image.from_pipe(make("sd15"), enable_pag=True, pag_applied_layers=["mid"])
    pipe.set_progress_bar_config(disable=True)
    run = functools.partial(call, pag_scale=3.0)
    assert not torch.equal(composed(pipe, "composite", run), composed(make("sd15"), "composite"))
    with compose(pipe, THREE, "composite") as composition:
        made = run(pipe)
    assert not any(step.batched for step in composition.taken)
    assert torch.equal(made, composed(pipe, "composite", run, batched=False))
    singles = []
    for name, weight in THREE.items():
        with compose(pipe, {name: weight}):
            singles.append(run(pipe, steps=1))
    mean = torch.stack(singles).mean(0)
    one = composed(pipe, "composite", functools.partial(run, steps=1))
    torch.testing.assert_close(one, mean, rtol=1e-4, atol=1e-4 * float(mean.abs().max()))


@pytest.mark.parametrize(
    ("family", "kind"),
    [*itertools.product(("sd15", "sdxl", "flux"), ("image", "inpainting")), ("sd3", "image"), ("sd15", "control")],
)  # inpainting with SD3 takes 16 channels only, and a ControlNet acts outside the denoiser: one family shows it
def test_other_tasks_share_the_adapters_and_the_steps(family, kind):
    pipe, picture = make(family), torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    options = {"image": picture, "strength": 0.5, "steps": 8}
    taken = 4
    if kind == "control":
        control = ControlNetModel.from_unet(unet(), conditioning_embedding_out_channels=(4, 8)).eval()
        pipe = StableDiffusionControlNetPipeline(**pipe.components, controlnet=control, requires_safety_checker=False)
        options, taken = {"image": torch.nn.functional.interpolate(picture, 16), "steps": 4}, 4
    elif kind == "image":
        pipe = AutoPipelineForImage2Image.from_pipe(pipe)
    else:
        pipe = AutoPipelineForInpainting.from_pipe(pipe)
        options["mask_image"] = torch.ones(1, 1, 16, 16)
    pipe.set_progress_bar_config(disable=True)
    run = functools.partial(call, **options)
    seen = []
    schedule = {"style": lambda progress: seen.append(progress) or 1 - progress}
    with compose(pipe, THREE, "switch", tau=1, schedule=schedule) as composition:
        switched = run(pipe)
    assert [next(iter(step.weights)) for step in composition.taken] == [*THREE, "character"][:taken]
    assert composition.taken[2].weights["style"] == pytest.approx(0.6 * (1 - 2 / 3))
    both = [composed(pipe, "composite", run, batched=batched) for batched in (True, False)]
    torch.testing.assert_close(*both, rtol=1e-4, atol=1e-3)
    assert not torch.allclose(both[0], switched, atol=1e-3)


def test_denoising_end_ends_the_schedule():
    pipe = make("sdxl")
    with compose(pipe, THREE, schedule={"style": lambda progress: progress}) as composition:
        call(pipe, steps=10, denoising_end=0.5)
    shown = [step.weights["style"] / 0.6 for step in composition.taken]
    assert len(shown) < 7
    assert shown == pytest.approx([i / (len(shown) - 1) for i in range(len(shown))])


@pytest.mark.parametrize("scheduler", [EulerDiscreteScheduler, HeunDiscreteScheduler])
def test_a_scheduler_replaced_inside_is_followed(scheduler):
    pipe, other = make("sd15"), make("sd15")
    other.scheduler = scheduler.from_config(other.scheduler.config)
    expected = composed(other, "switch")
    with compose(pipe, THREE, "switch", tau=1) as composition:
        call(pipe)
        pipe.scheduler = scheduler.from_config(pipe.scheduler.config)
        assert torch.equal(call(pipe), expected)
    assert {step.run for step in composition.taken} == {1, 2}
    assert not {"step", "set_timesteps"} & set(vars(pipe.scheduler))


def test_a_scheduler_replaced_where_no_run_tells_its_beginning_is_an_error():
    from lib.multilora.study.bench import Loop, testbed_unet

    loop = Loop(testbed_unet(), 1)
    with pytest.raises(TenfoldError, match="scheduler was replaced"), compose(loop, {"character": 1.0}):
        loop.scheduler = EulerDiscreteScheduler()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda pipe: pipe.set_adapters(["style"], [1.0]), "set_adapters inside compose"),
        (lambda pipe: pipe.unet.set_adapters(["style"], [1.0]), "set_adapters inside compose"),
        (lambda pipe: pipe.delete_adapters("style"), "delete_adapters inside compose"),
        (lambda pipe: pipe.unload_lora_weights(), "unload_lora_weights inside compose"),
        (lambda pipe: [layer.delete_adapter("style") for layer in AdapterLayers(pipe.unet).layers], "was deleted"),
        (lambda pipe: setattr(pipe, "unet", make("sd15").unet), "pipe.unet was replaced"),
    ],
)
def test_adapters_changed_inside_are_one_clear_error(change, words):
    pipe = make("sd15")

    def changed():
        with compose(pipe, THREE):
            change(pipe)
            call(pipe)

    with pytest.raises(TenfoldError, match=words) as caught:
        changed()
    assert "\n" not in str(caught.value)
    assert not {"set_adapters", "delete_adapters"} & (set(vars(pipe)) | set(vars(pipe.unet)))


def test_fused_projections_and_caches_are_refused():
    from diffusers import PyramidAttentionBroadcastConfig

    pipe = make("sd15")
    pipe.unet.mid_block.attentions[0].transformer_blocks[0].attn1.fused_projections = True
    with pytest.raises(TenfoldError, match="unfuse_qkv_projections"), compose(pipe, THREE):
        pass
    pipe = make("flux")
    pipe.transformer.enable_cache(PyramidAttentionBroadcastConfig(current_timestep_callback=lambda: 500))
    with pytest.raises(TenfoldError, match="disable_cache"), compose(pipe, THREE, "composite"):
        pass


def test_one_seed_is_one_image():
    pipe = make("sd15")
    for method in METHODS:
        assert torch.equal(composed(pipe, method), composed(pipe, method))


def test_each_pass_has_the_features_of_a_t2i_adapter():
    torch.manual_seed(0)
    pipe = make("sd15", 2)
    adapter = T2IAdapter(
        in_channels=3, channels=[8, 16], num_res_blocks=1, downscale_factor=2, adapter_type="full_adapter"
    ).requires_grad_(False)
    for weight in adapter.parameters():
        nn.init.normal_(weight, std=0.3)
    parts = {name: part for name, part in pipe.components.items() if name != "image_encoder"}
    guided = StableDiffusionAdapterPipeline(**parts, adapter=adapter, requires_safety_checker=False)
    guided.set_progress_bar_config(disable=True)
    picture = torch.rand(1, 3, 16, 16)

    def run(weights, **options):
        return composed(guided, "composite", lambda pipe: call(pipe, image=picture, steps=1), weights, **options)

    alone = [run({name: weight}) for name, weight in TWO.items()]
    for batched in (False, True):
        torch.testing.assert_close(run(TWO, batched=batched), sum(alone) / 2, rtol=1e-4, atol=1e-4)
