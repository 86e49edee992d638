"""The training of the shipped drafter at a small size: what it writes, and that it goes on where it was."""

import pytest
import torch

from lib import zoo
from lib.tempspec import FeatureDrafter, SpeculativeDecoder, load_feature_model
from lib.tempspec.study import train

SIZES = {"text_tokens": 500, "questions": 4, "temperatures": (0.0, 1.0), "answer_tokens": 6, "answer_epochs": 1}


def test_the_shipped_drafter_is_trained_kept_small_and_goes_on_where_it_was(tmp_path, monkeypatch):
    monkeypatch.setattr(train, "cache_dir", lambda: tmp_path / "cache")
    facts = train.train(tmp_path, **SIZES)
    file = tmp_path / "feature.safetensors"
    assert file.stat().st_size <= 12 * 2**20
    assert facts["feature"]["tokens"] > 500
    target, tokenizer = zoo.load_lm(train.MODEL, dtype=torch.bfloat16)
    drafter = FeatureDrafter(load_feature_model(file, target))
    ids = torch.tensor([tokenizer("The capital of France is").input_ids])
    output = SpeculativeDecoder(target, drafter, gamma=2, temperature=0).generate(ids, max_new_tokens=8)
    plain = target.generate(ids, max_new_tokens=8, do_sample=False)
    assert output.sequences.tolist() == plain.tolist()
    monkeypatch.setattr(train, "answer", lambda *_, **__: pytest.fail("kept answers are asked for again"))
    first = file.read_bytes()
    train.train(tmp_path, **SIZES)
    assert file.read_bytes() == first
