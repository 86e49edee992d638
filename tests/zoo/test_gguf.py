"""GGUF to safetensors, weight for weight what transformers' own dequantisation gives."""

import json

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

from lib.zoo import gguf

TOKENS = ["<s>", "</s>", *"abcdefghijklmnopqrstuvwxyz ", "th", "the"]
WIDTH, INNER, HEADS, KV_HEADS, LAYERS = 64, 96, 4, 2, 2


@pytest.fixture(params=["llama", "qwen2"])
def file(request, tmp_path):
    """A tiny model of a family, its matrices in 8 bits."""
    from gguf import GGMLQuantizationType, GGUFWriter, quants

    family, generator = request.param, np.random.default_rng(0)
    writer = GGUFWriter(str(tmp_path / "tiny.gguf"), family)
    writer.add_name(f"Tiny {family}")
    writer.add_context_length(128)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(INNER)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10_000.0)
    writer.add_vocab_size(len(TOKENS))
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(TOKENS)
    writer.add_token_types([3, 3] + [1] * (len(TOKENS) - 2))
    writer.add_token_merges(["t h", "th e"])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)

    def add(name, *shape):
        values = generator.standard_normal(shape).astype(np.float32)
        if len(shape) == 2:
            packed = quants.quantize(values, GGMLQuantizationType.Q8_0)
            writer.add_tensor(name, packed, raw_dtype=GGMLQuantizationType.Q8_0)
        else:
            writer.add_tensor(name, values)

    add("token_embd.weight", len(TOKENS), WIDTH)
    add("output.weight", len(TOKENS), WIDTH)
    add("output_norm.weight", WIDTH)
    for layer in range(LAYERS):
        shared = KV_HEADS * WIDTH // HEADS
        for name, out in (("attn_q", WIDTH), ("attn_k", shared), ("attn_v", shared)):
            add(f"blk.{layer}.{name}.weight", out, WIDTH)
            if family == "qwen2":
                add(f"blk.{layer}.{name}.bias", out)
        add(f"blk.{layer}.attn_output.weight", WIDTH, WIDTH)
        add(f"blk.{layer}.ffn_gate.weight", INNER, WIDTH)
        add(f"blk.{layer}.ffn_up.weight", INNER, WIDTH)
        add(f"blk.{layer}.ffn_down.weight", WIDTH, INNER)
        add(f"blk.{layer}.attn_norm.weight", WIDTH)
        add(f"blk.{layer}.ffn_norm.weight", WIDTH)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return tmp_path / "tiny.gguf"


def test_weights_and_tokens_are_those_of_transformers(file, tmp_path, monkeypatch):
    monkeypatch.setattr(gguf, "SHARD_BYTES", 40_000)  # several shards
    gguf.convert(file, tmp_path / "made", dtype=torch.float32)
    assert len(list((tmp_path / "made").glob("model-*.safetensors"))) > 2
    ours = AutoModelForCausalLM.from_pretrained(tmp_path / "made", dtype="auto")
    quantisation = GgufConfig(dequantize=True)
    theirs = AutoModelForCausalLM.from_pretrained(
        file.parent, gguf_file=file.name, quantization_config=quantisation, dtype=torch.float32
    )
    wanted = theirs.state_dict()
    assert ours.dtype == torch.float32
    assert ours.state_dict().keys() == wanted.keys()
    assert all(torch.equal(tensor, wanted[name]) for name, tensor in ours.state_dict().items())
    text = "the cat"
    tokenizers = [AutoTokenizer.from_pretrained(tmp_path / "made")]
    tokenizers += [AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)]
    assert tokenizers[0](text).input_ids == tokenizers[1](text).input_ids
    assert gguf.name_of(file).startswith("Tiny")


def test_bfloat16_is_the_rounded_float32_at_half_the_size(file, tmp_path):
    sizes = {}
    for dtype in (torch.float32, torch.bfloat16):
        gguf.convert(file, tmp_path / str(dtype), dtype=dtype)
        index = json.loads((tmp_path / str(dtype) / "model.safetensors.index.json").read_text())
        sizes[dtype] = index["metadata"]["total_size"]
    assert sizes[torch.float32] == 2 * sizes[torch.bfloat16]
    exact, rounded = (AutoModelForCausalLM.from_pretrained(tmp_path / str(d), dtype="auto") for d in sizes)
    assert rounded.dtype == torch.bfloat16
    assert all(torch.equal(t.bfloat16(), rounded.state_dict()[n]) for n, t in exact.state_dict().items())


def test_a_file_that_lacks_a_weight_is_refused(file, tmp_path, monkeypatch):
    whole = gguf._tensors

    def without_one(*arguments):
        return ((name, tensor) for name, tensor in whole(*arguments) if "layers.1.mlp.up_proj" not in name)

    monkeypatch.setattr(gguf, "_tensors", without_one)
    with pytest.raises(ValueError, match=r"lacks model.layers.1.mlp.up_proj.weight \(1 weights are missing\)"):
        gguf.convert(file, tmp_path / "made", dtype=torch.float32)
