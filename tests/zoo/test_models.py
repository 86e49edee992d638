import copy
import errno

import pytest
import torch
from safetensors import SafetensorError

from lib import TenfoldError, zoo
from lib.zoo import gguf, models
from lib.zoo.models import SHAPES, parameter_count


@pytest.fixture(scope="module")
def smollm():
    return zoo.load_lm("smollm2-135m-instruct")


def test_the_language_model_knows_something(smollm):
    model, tokenizer = smollm
    messages = [{"role": "user", "content": "What is the capital of France?"}]
    inputs = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    reply = model.generate(**inputs, max_new_tokens=12, do_sample=False)[0, inputs["input_ids"].shape[1] :]
    assert "Paris" in tokenizer.decode(reply)
    assert model.dtype == torch.float32
    assert not model.training
    assert tokenizer.padding_side == "left"
    assert "/" not in model.config.name_or_path, "a machine's path must not travel with a saved model"


def test_dtype_is_a_name_or_a_torch_dtype():
    assert zoo.load_lm("smollm2-135m-instruct", dtype="bfloat16")[0].dtype == torch.bfloat16
    assert zoo.load_lm("smollm2-135m-instruct", dtype=torch.bfloat16)[0].dtype == torch.bfloat16


@pytest.mark.parametrize("name", ["bf16", "int8", "Tensor"])
def test_a_dtype_that_is_none_is_one_sentence(name):
    with pytest.raises(ValueError, match=f"'{name}' is no dtype of weights: give float32"):
        zoo.load_lm("smollm2-135m-instruct", dtype=name)


FULL = [
    SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"),
    OSError(errno.ENOSPC, "No space left on device"),
]


@pytest.mark.parametrize("error", FULL)
def test_a_disk_that_fills_while_a_model_is_converted_is_one_sentence(error, monkeypatch, tmp_path):
    (tmp_path / "m.gguf").write_text("")
    monkeypatch.setattr(models, "require", lambda name: tmp_path)
    monkeypatch.setattr(models, "fingerprint", lambda name: name)
    monkeypatch.setenv("TENFOLD_DATA", str(tmp_path / "data"))

    def convert(path, folder, dtype):
        folder.mkdir(parents=True)
        raise error

    monkeypatch.setattr(gguf, "convert", convert)
    with pytest.raises(TenfoldError, match=r"is full at .*zoo: free some space, or set TENFOLD_DATA"):
        models.converted("smollm2-135m-instruct")
    assert not list((tmp_path / "data" / "cache" / "zoo").iterdir())
    error = ValueError("another model")
    with pytest.raises(ValueError, match="another model"):
        models.converted("smollm2-135m-instruct")


def test_the_head_reads_the_last_states_of_many_rows_in_one_piece(smollm):
    model, seen = copy.deepcopy(smollm[0]), []
    model.lm_head.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].is_contiguous()))
    tokens = torch.tensor([[1, 2, 3], [4, 5, 6]])
    with torch.inference_mode():
        last = model(tokens, logits_to_keep=1).logits
        states = model.model(tokens).last_hidden_state[:, -1:]
        assert torch.equal(last, torch.nn.functional.linear(states.contiguous(), model.lm_head.weight))
    assert not states.is_contiguous()
    assert seen == [True], "a view would be multiplied row by row"


def test_a_local_folder_is_loaded_like_a_name(smollm, tmp_path):
    model, tokenizer = smollm
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    again, _ = zoo.load_lm(str(tmp_path))
    tokens = torch.tensor([[1, 2, 3]])
    with torch.inference_mode():
        assert torch.equal(model(tokens).logits, again(tokens).logits)


def test_the_encoder_puts_like_beside_like():
    encoder = zoo.load_encoder("minilm")
    texts = ["How do I cook rice?", "The best way to boil rice", "a treaty on maritime law " * 200]
    vectors = encoder.encode(texts, batch_size=2)
    assert vectors.shape == (3, 384)
    assert torch.allclose(vectors.norm(dim=-1), torch.ones(3), atol=1e-5)
    assert vectors[0] @ vectors[1] > 0.7 > 0.4 > vectors[0] @ vectors[2]
    alone = torch.cat([encoder.encode([text]) for text in texts])
    assert torch.allclose(vectors, alone, atol=1e-5), "an embedding must not depend on its batch mates"


@pytest.mark.parametrize("name", ["smollm2", "someone/model"])
def test_an_unknown_model_is_one_sentence(name):
    with pytest.raises(TenfoldError, match="no asset is called|is not in the local Hugging Face cache"):
        zoo.load_lm(name)


@pytest.mark.parametrize("name", SHAPES)
def test_shapes_are_counted_as_the_built_model_counts(name):
    model = zoo.meta_lm(name)
    assert parameter_count(SHAPES[name]) == sum(p.numel() for p in model.parameters())
    assert all(p.is_meta for p in model.parameters())


def test_plans_describe_what_they_need():
    assert zoo.describe("sharegpt") == "sharegpt: real conversations (here)"
    assert "13.0 B parameters, 24 GiB" in zoo.describe("meta-llama/Llama-2-13b-chat-hf")
    assert zoo.describe("a/b") == "a/b: from the Hugging Face hub"
