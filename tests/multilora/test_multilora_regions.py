"""Regions: each LoRA where its mask says, the base model's where none does; weights of blocks; merged adapters."""

from pathlib import Path

import numpy as np
import pytest
import torch
from peft import LoraConfig, LoraModel, get_peft_model, inject_adapter_in_model
from PIL import Image
from torch import nn

from lib.multilora import compose, merge_adapters, region
from lib.multilora.layers import AdapterLayers
from lib.multilora.regions import Shares
from tests.multilora.conftest import UNET_LAYERS, add_lora, call, make

TWO = {"character": 1.0, "clothing": 0.8}


def one_step(pipe, weights, method="merge", **options):
    """Latents after one step, which are linear in the prediction at each place."""
    with compose(pipe, weights, method, **options):
        return call(pipe, steps=1)


def layers_of(pipe):
    return AdapterLayers(getattr(pipe, "unet", None) or pipe.transformer).layers


def base(pipe):
    layers = AdapterLayers(getattr(pipe, "unet", None) or pipe.transformer)
    with layers.restored():
        layers.set({})
        return call(pipe, steps=1)


@pytest.mark.parametrize("family", ["sd15", "sdxl", "sd3", "flux"])
def test_halves_are_the_two_loras_own_and_the_rest_is_the_base_models(family):
    pipe = make(family, 2)
    alone = [one_step(pipe, {name: weight}) for name, weight in TWO.items()]
    left, right = torch.zeros(8, 8), torch.zeros(8, 8)
    left[:, :4], right[:4, 4:] = 1.0, 1.0
    made = one_step(pipe, TWO, "composite", masks={"character": left, "clothing": right})
    if family == "flux":  # packed: a token is two by two latents, row after row
        made, *alone, bare = (x.view(1, 4, 4, -1).permute(0, 3, 1, 2) for x in (made, *alone, base(pipe)))
    else:
        bare = base(pipe)
    half = made.shape[-1] // 2
    size = float(bare.abs().max())
    assert (made[..., :half] - alone[0][..., :half]).abs().max() < 1e-5 * size
    assert (made[..., :half, half:] - alone[1][..., :half, half:]).abs().max() < 1e-5 * size
    assert (made[..., half:, half:] - bare[..., half:, half:]).abs().max() < 1e-5 * size
    assert (alone[0] - bare).abs().max() > 1e-3 * size


def test_masks_of_one_are_the_papers_mean_and_batched_regions_the_sequential_ones():
    pipe, everywhere = make("sd15", 2), np.ones((5, 9), dtype=np.uint8) * 255
    plain = one_step(pipe, TWO, "composite")
    same = one_step(pipe, TWO, "composite", masks=dict.fromkeys(TWO, everywhere))
    assert (same - plain).abs().max() < 1e-5 * plain.abs().max()
    masks = {"character": region(0, 0, 0.5, 1, soft=0.3), "clothing": Image.new("L", (7, 3), 100)}
    both = [one_step(pipe, TWO, "composite", masks=masks, batched=batched) for batched in (True, False)]
    assert (both[0] - both[1]).abs().max() < 1e-5 * plain.abs().max()


def test_packed_images_of_one_size_and_two_aspects_have_their_own_masks():
    pipe, halves = make("flux", 2), {"character": region(0, 0, 0.5, 1), "clothing": region(0.5, 0, 1, 1)}
    with compose(pipe, TWO, "composite", masks=halves):
        tall = call(pipe, steps=1, height=32, width=8)
    with compose(pipe, TWO, "composite", masks=halves):
        wide = call(pipe, steps=1, height=8, width=32)
        assert torch.equal(call(pipe, steps=1, height=32, width=8), tall)
    assert wide.shape == tall.shape


def test_switch_keeps_each_lora_in_its_mask():
    pipe, mask = make("sd15", 2), torch.zeros(8, 8)
    mask[2:5] = 1.0
    made = one_step(pipe, TWO, "switch", masks={"character": mask})
    alone, bare = one_step(pipe, {"character": 1.0}), base(pipe)
    expected = torch.where(mask.bool(), alone, bare)
    assert (made - expected).abs().max() < 1e-5 * bare.abs().max()


@pytest.mark.parametrize("aspect", [(8, 8), (6, 14), (20, 4)])
def test_a_region_has_its_place_and_soft_edge_at_any_aspect(aspect):
    shares = Shares(["a", "b"], None, {"a": region(0, 0, 0.5, 1), "b": region(0.5, 0, 1, 1)})
    maps = shares.at(["a", "b"], torch.zeros(1, 4, *aspect), {})
    assert len(maps) == 2, "the two halves leave nothing to the base model"
    assert maps[0].shape == aspect
    assert torch.allclose(maps[0] + maps[1], torch.ones(aspect), atol=1e-3)
    assert (maps[0][:, : aspect[1] // 2] > 0.95).all()
    soft = region(0.25, 0.25, 1.0, 0.75, soft=0.2)
    assert soft[128].diff().clamp(max=0).abs().sum() == 0, "no fall at the image's border"
    assert ((soft[:, 200] > 0.05) & (soft[:, 200] < 0.95)).float().mean() == pytest.approx(0.36, abs=0.03)
    with pytest.raises(ValueError, match="left < right"):
        region(0.5, 0, 0.5, 1)


def test_bad_masks_are_refused_in_one_sentence():
    pipe, good = make("sd15", 2), torch.ones(2, 2)
    cases = [
        ("merge", {"character": good}, "masks need"),
        ("composite", {"hat": good}, "masks name 'hat'"),
        ("composite", {"character": 2 * good}, "no picture"),
        ("switch", {"character": torch.ones(2, 2, 2)}, "no picture"),
        ("switch", {"character": "mask.png"}, "open a file first"),
        ("switch", {"character": Path("mask.png")}, "open a file first"),
    ]
    for method, masks, words in cases:
        with pytest.raises(ValueError, match=words), compose(pipe, TWO, method, masks=masks):
            pass


def test_weights_of_blocks_are_those_of_set_adapters():
    pipe = make("sd15", 0)
    for seed, name in enumerate(TWO):
        add_lora(pipe.unet, name, layers=r".*(to_q|to_v)$", seed=seed)
    with compose(pipe, TWO, blocks={"character": {"down_blocks": 0.5, "mid_block": 0.7, "up_blocks.1": 0.0}}):
        made = call(pipe)
    pipe.unet.set_adapters(list(TWO), [{"down": 0.5, "mid": 0.7, "up": 0.0}, 0.8])
    assert (made - call(pipe)).abs().max() < 1e-5
    with compose(pipe, TWO):
        assert (made - call(pipe)).abs().max() > 1e-2
    with compose(pipe, TWO, blocks={"character": {"up_blocks": 0.0, "up_blocks.1.attentions.0": 3.0}}):
        layers = [layer for layer in AdapterLayers(pipe.unet).layers if layer.scaling["character"] == 3.0 * 6 / 4]
        assert len(layers) == 4, "the longest name that fits counts"
    for wrong, words in (({"hat": {}}, "blocks name 'hat'"), ({"character": {"middle": 1.0}}, "lies in 'middle'")):
        with pytest.raises(ValueError, match=words), compose(pipe, TWO, blocks=wrong):
            pass


@pytest.mark.parametrize("combination", ["cat", "ties_svd", "dare_ties_svd"])
def test_merged_adapters_are_what_peft_makes_of_them(combination):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(12, 10))
    config = LoraConfig(r=3, lora_alpha=6, target_modules=["0"], init_lora_weights=False)
    peft_model = get_peft_model(model, config, "a")
    peft_model.add_adapter("b", config)

    class Pipe:
        scheduler, unet = object(), model

    model.peft_config = peft_model.base_model.peft_config
    merge_adapters(Pipe(), {"a": 0.7, "b": 1.2}, "ours", combination=combination, density=0.5, seed=3)
    torch.manual_seed(3)
    peft_model.add_weighted_adapter(
        ["a", "b"], [0.7, 1.2], "theirs", combination, density=0.5, svd_rank=6, svd_full_matrices=False
    )
    changes = [peft_model.base_model.model[0].get_delta_weight(name) for name in ("ours", "theirs")]
    torch.testing.assert_close(*changes)
    assert changes[0].abs().max() > 0.1
    with pytest.raises(ValueError, match="needs them loaded"):
        merge_adapters(Pipe(), {"a": 1.0}, "b")


def test_an_adapter_of_concatenated_loras_is_their_merge():
    pipe = make("flux", 2)
    with compose(pipe, TWO):
        expected = call(pipe)
    before = [(layer._active_adapter, layer.lora_A["character"].weight.requires_grad) for layer in layers_of(pipe)]
    merge_adapters(pipe, TWO, "all", combination="cat")
    assert before == [(la._active_adapter, la.lora_A["character"].weight.requires_grad) for la in layers_of(pipe)]
    with compose(pipe, {"all": 1.0}):
        torch.testing.assert_close(call(pipe), expected, rtol=1e-4, atol=1e-4)


def special_loras(**options):
    pipe = make("sd15", 0)
    for seed, name in enumerate(TWO):
        torch.manual_seed(seed)
        config = LoraConfig(r=4, lora_alpha=6, target_modules=UNET_LAYERS, init_lora_weights=False, **options)
        inject_adapter_in_model(config, pipe.unet, adapter_name=name)
    return pipe.unet.requires_grad_(False), pipe


@pytest.mark.parametrize("combination", ["cat", "svd"])
def test_merged_rank_stabilised_loras_are_their_sum(combination):
    unet, pipe = special_loras(use_rslora=True)
    merge_adapters(pipe, TWO, "all", combination=combination)
    for layer in layers_of(pipe):
        wanted = sum(weight * layer.get_delta_weight(name) for name, weight in TWO.items())
        torch.testing.assert_close(layer.get_delta_weight("all"), wanted, rtol=1e-4, atol=1e-4)
    assert not unet.peft_config["all"].use_rslora
    made, wanted = one_step(pipe, {"all": 1.0}), one_step(pipe, TWO)
    assert (made - wanted).abs().max() < 1e-4 * wanted.abs().max()


@pytest.mark.parametrize(
    ("weights", "options", "message"),
    [
        ({}, {}, "at least one adapter"),
        (TWO, {"rank": 0}, "rank of at least 1"),
        (TWO, {"rank": 500}, "room for a rank of 8, not 500"),
        (TWO, {"density": 0.0}, "a density in"),
    ],
)
def test_a_merge_that_cannot_be_made_is_refused_in_one_sentence(weights, options, message):
    with pytest.raises(ValueError, match=message):
        merge_adapters(make("sd15", 2), weights, "all", **options)


@pytest.mark.usefixtures("as_installed")
def test_a_merge_of_names_without_weights_is_refused():
    with pytest.raises(TypeError, match="adapter names with their LoRA weights"):
        merge_adapters(make("sd15", 2), list(TWO), "all")


def test_dora_is_not_merged():
    with pytest.raises(ValueError, match="such as DoRA"):
        merge_adapters(special_loras(use_dora=True)[1], TWO, "all")


def test_a_merge_that_fails_leaves_nothing_of_the_new_adapter(monkeypatch):
    pipe = make("sd15", 2)
    before = [(la._active_adapter, dict(la.scaling), sorted(la.lora_A)) for la in layers_of(pipe)]
    add = LoraModel.add_weighted_adapter

    def interrupted(*args, **kwargs):
        add(*args, **kwargs)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(LoraModel, "add_weighted_adapter", interrupted)
        with pytest.raises(KeyboardInterrupt):
            merge_adapters(pipe, TWO, "all")
    assert list(pipe.unet.peft_config) == list(TWO)
    assert before == [(la._active_adapter, dict(la.scaling), sorted(la.lora_A)) for la in layers_of(pipe)]
    assert not any(weight.requires_grad for weight in pipe.unet.parameters())
    merge_adapters(pipe, TWO, "all")
    assert "all" in AdapterLayers(pipe.unet).names
