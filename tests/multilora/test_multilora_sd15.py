"""The paper's scale: its base models' shape on the meta device, and a set made on a tiny pipeline."""

import pytest
import torch
from diffusers import UNet2DConditionModel

from lib import TenfoldError
from lib.lab import profiles
from lib.multilora import compose
from lib.multilora.study import sd15
from lib.multilora.study.testbed import Element, Setting

SETTING = Setting(
    "tiny",
    (Element("character", "character", "a hero"), Element("clothing", "clothing", "a hat")),
    prefix="best",
    negative="bad",
    options={"model": "owner/tiny", "steps": 3, "guidance": 4.0, "height": 16, "width": 16},
)


def test_the_base_models_denoiser_has_stable_diffusions_size():
    with torch.device("meta"):
        unet = UNet2DConditionModel(cross_attention_dim=768, attention_head_dim=8)  # the defaults are SD 1.5's
    assert sum(p.numel() for p in unet.parameters()) == 859_520_964


def test_the_papers_settings_need_no_repeating_and_can_be_overruled():
    own = Setting("anime", (), options={"steps": 50})
    assert sd15.options_of(own)["steps"] == 50
    assert sd15.options_of(own)["model"] == "gsdf/Counterfeit-V2.5"
    assert sd15.options_of(Setting("reality", ()))["guidance"] == 7.0
    for options, word in (({"step": 1}, "step"), ({}, "model")):
        with pytest.raises(TenfoldError, match=word):
            sd15.options_of(Setting("mine", (), options=options | dict.fromkeys(sd15.OPTIONS[1:], 1)))


def test_a_set_is_made_from_its_prompt_and_composed(make_pipe):
    pipe = make_pipe("sd15", 2)
    image = sd15.compose_set(pipe, SETTING, SETTING.elements, method="switch", seed=1, tau=1)
    assert image.shape == (3, 16, 16)
    with compose(pipe, {"character": 0.8, "clothing": 0.8}, "switch", tau=1):
        expected = pipe(
            "best, a hero, a hat", negative_prompt="bad", num_inference_steps=3, guidance_scale=4.0, height=16,
            width=16, generator=torch.Generator().manual_seed(1), output_type="pt",
        ).images[0]  # fmt: skip
    assert torch.equal(image, 2 * expected - 1)


def test_without_the_hub_loading_says_so():
    with pytest.raises(TenfoldError, match="cannot be reached"):
        sd15.load_setting(SETTING, device="cpu")


def test_the_gpu_profile_asks_for_a_testbed():
    assert profiles.load("gpu").parameters("multilora")["testbed_file"]
