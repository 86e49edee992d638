"""The notebook's gpu profile, which cannot run here: its model and adapters on the meta device must fit its plan."""

import tomllib

import torch

from lib import root
from lib.sciagent import trainer
from lib.zoo import meta_lm

ADAM = 16  # bytes a trained float32 parameter: weight, gradient, two moments


def test_the_model_in_half_precision_and_its_adapters_fit_the_plan():
    profile = tomllib.loads((root() / "notebooks/profiles/gpu.toml").read_text())
    p, memory = profile["parameters"]["sciagent"], profile["cost"]["sciagent"]["memory_gib"]
    with torch.device("meta"):
        adapted = trainer.with_adapter(meta_lm(p["model"]), trainer.LoraRecipe())
    trained = sum(w.numel() for w in adapted.parameters() if w.requires_grad)
    frozen = sum(w.numel() for w in adapted.parameters() if not w.requires_grad)
    assert 7.0e9 < frozen < 7.5e9
    assert {n.split(".lora")[0].rsplit(".", 1)[-1] for n, w in adapted.named_parameters() if w.requires_grad} == {
        "q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj",
    }  # fmt: skip
    assert (2 * frozen + ADAM * trained) / 2**30 < 0.5 * memory
