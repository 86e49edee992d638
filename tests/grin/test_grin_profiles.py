"""The notebook's gpu profile, which cannot run here: its models are built on the meta device and must fit its plan."""

import tomllib

import pytest
import torch

from lib import grin, root

ADAM = 16  # bytes a float32 parameter: weight, gradient, two moments


@pytest.fixture(scope="module")
def profile():
    return tomllib.loads((root() / "notebooks/profiles/gpu.toml").read_text())


def meta_model(p, **sizes):
    config = grin.GrinConfig(
        vocab_size=p["vocabulary"], hidden_size=p["width"], num_hidden_layers=p["layers"], num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=2 * p["window"], tie_word_embeddings=True, pad_token_id=None,
        **sizes,
    )  # fmt: skip
    with torch.device("meta"):
        return grin.GrinForCausalLM(config)


def test_the_mixture_has_sixteen_experts_of_the_dense_models_size_and_fits_one_gpu(profile):
    p, inner = profile["parameters"]["grin"], profile["parameters"]["grin"]["inner"]
    mixture = meta_model(p, num_local_experts=p["experts"], intermediate_size=inner)
    active = meta_model(p, num_local_experts=1, num_experts_per_tok=1, intermediate_size=2 * inner)
    total = meta_model(p, num_local_experts=1, num_experts_per_tok=1, intermediate_size=p["experts"] * inner)
    experts = sum(w.numel() for n, w in mixture.named_parameters() if ".experts." in n)
    assert p["experts"] == 16
    assert experts * 2 / 16 == sum(w.numel() for n, w in active.named_parameters() if ".experts." in n)
    assert mixture.num_parameters() == pytest.approx(total.num_parameters(), rel=1e-3)
    assert mixture.num_parameters() * ADAM / 2**30 < 0.7 * profile["cost"]["grin"]["memory_gib"]


def test_workers_divide_the_batches(profile):
    p = profile["parameters"]["grin"]
    assert p["batch_size"] % p["processes"] == 0
    assert p["conversations"] * p["windows_per_document"] > p["batch_size"]
