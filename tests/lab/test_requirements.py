"""What a profile asks of the machine is said in words, and refused in one sentence where it is missing."""

import pytest

from lib import TenfoldError
from lib.lab import requirements
from lib.lab.reproduce import plan

NEEDS = {"gpus": 2, "gpu_gib": 80, "packages": ["torch"], "endpoints": ["judge_url"], "served": ["judge_name"]}
VALUES = {"judge_url": "http://127.0.0.1:9/v1", "judge_name": "a/judge", "testbed": "data/raw/none.toml"}


def refusal(requires, monkeypatch, gpus=()):
    monkeypatch.setattr(requirements, "_gpus", lambda: list(gpus))
    with pytest.raises(TenfoldError) as raised:
        requirements.refuse_missing("lorc", requires, VALUES)
    return str(raised.value)


def test_needs_are_said_in_words():
    said = ["2 GPUs of 80 GiB each", "the package torch", "a server of a/judge at http://127.0.0.1:9/v1"]
    assert requirements.in_words(NEEDS, VALUES) == said
    assert requirements.in_words({}, VALUES) == []


def test_what_is_missing_is_refused_in_one_sentence(monkeypatch):
    assert "the GPUs here: none: run it where they are" in refusal(NEEDS, monkeypatch)
    assert "the GPUs here: 80 GiB, 40 GiB" in refusal(NEEDS, monkeypatch, gpus=[80.0, 40.0])
    assert "nothing answers at http://127.0.0.1:9/v1: start the server" in refusal(
        NEEDS, monkeypatch, gpus=[80.0, 80.0]
    )
    assert "no_such_package is not installed" in refusal({"packages": ["no_such_package"]}, monkeypatch)
    assert "data/raw/none.toml is not here: bring it, or set testbed" in refusal({"files": ["testbed"]}, monkeypatch)
    requirements.refuse_missing("lorc", {"packages": ["torch"]}, VALUES)  # all here: nothing is said


def test_the_gpu_plan_names_every_model_and_data_set_and_only_those():
    named = {job.paper: job.models_and_data() for job in plan("gpu", ["tempspec", "multilora", "seqboat"])}
    assert named["tempspec"] == [
        "JackFram/llama-68m", "meta-llama/Llama-2-13b-chat-hf", "openai/gsm8k:main", "tatsu-lab/alpaca",
    ]  # fmt: skip
    assert named["multilora"] == ["openai/clip-vit-base-patch16"], "the judge is on a server, the test bed is a file"
    assert "google/speech_commands:v0.02" in named["seqboat"]
