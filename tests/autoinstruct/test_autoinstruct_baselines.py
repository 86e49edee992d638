"""Baselines: bounds by construction, the fixed style from training tasks only, and the model's own judgements."""

import numpy as np
import pytest
import torch

from lib.autoinstruct import Candidate
from lib.autoinstruct.study import baselines
from lib.autoinstruct.study.inducer import STYLES, Inducer, inducer_examples, train_inducer
from lib.autoinstruct.tasks import Demonstration, Rule, make_tasks
from lib.autoinstruct.trainer import LabelTable

CANDIDATES = (
    Candidate("Add.", "human", "human"),
    Candidate("Add. Answer with a number only.", "rule", "format-line"),
    Candidate("Sum the numbers.", "inducer", "one-sentence"),
    Candidate("Add up what is given.", "inducer", "one-sentence"),
)
DEMOS = (Demonstration("2 + 2", "4"), Demonstration("3 + 9", "12"))


def table(metric):
    metric = np.asarray(metric, dtype=float)
    return LabelTable("t", tuple(f"x{i}" for i in range(len(metric))), CANDIDATES, metric)


def test_the_fixed_style_is_the_best_on_the_training_tasks():
    training = [table([[0, 1, 0.4, 0.6]]), table([[0.5, 0.9, 0.9, 0.2]])]
    assert baselines.best_style(training) == "rule: format-line"
    gains = baselines.style_gains(training)
    assert gains["inducer: one-sentence"] == pytest.approx([0.0, 0.55 - 0.625])
    assert baselines.with_style(training[0], "rule: format-line").tolist() == [1]
    assert baselines.with_style(training[0], "rule: none such").tolist() == [0]
    with pytest.raises(ValueError, match="at least one table"):
        baselines.best_style([])


def test_ape_takes_the_likeliest_generated_candidate():
    assert baselines.ape(CANDIDATES, np.array([0.0, -0.1, -3.0, -2.0])) == 3
    with pytest.raises(ValueError, match="there is none"):
        baselines.ape(CANDIDATES[:2], np.zeros(2))


def test_the_models_own_judgements(lm):
    validated = baselines.cross_validate(*lm, CANDIDATES[:2], DEMOS, progress=False)
    assert validated.shape == (2,)
    assert validated[1] > validated[0]  # the format line makes a bare number likelier
    asked = baselines.ask_the_model(*lm, CANDIDATES[:3], DEMOS)
    alone = baselines.ask_the_model(*lm, CANDIDATES[1:2], DEMOS)
    assert asked[1] == pytest.approx(alone[0], abs=2e-3)


def tasks():
    made = [
        {"task": f"t{k}", "instruction": text, "input": f"{i} {k}", "ideals": [str(i)]}
        for k, text in enumerate(["Say the first number.", "For example, 1 2 gives 1. Say it."])
        for i in range(8)
    ]
    return make_tasks(made, Rule(demonstrations=3, screening=1, examples=1))[0]


@pytest.fixture
def tiny(lm):
    """A two-layer model of the real tokenizer's vocabulary, so that training takes a moment."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    ends = {"eos_token_id": lm[1].eos_token_id, "bos_token_id": 1, "pad_token_id": lm[1].eos_token_id}
    return LlamaForCausalLM(LlamaConfig(vocab_size=len(lm[1]), **sizes, **ends)).eval()


def test_the_inducer_trains_its_adapter_only_and_comes_back(tiny, lm, tmp_path):
    inducer = Inducer(tiny, lm[1], rank=4, layers=2)
    examples = inducer_examples(tasks())
    assert {example.style for example in examples} == {"one-sentence", "use-example"}
    names = {name for name, weight in inducer.named_parameters() if weight.requires_grad}
    assert names
    assert all("lora_" in name for name in names)
    losses = train_inducer(inducer, examples, epochs=16, batch_size=1, lr=2e-2, progress=False)
    assert np.mean(losses[-2:]) < np.mean(losses[:2]) - 0.1
    path = tmp_path / "inducer.safetensors"
    inducer.save(path)
    again = Inducer(tiny.__class__(tiny.config), lm[1], rank=4, layers=2)
    again.load(path)
    assert torch.equal(again.style_vectors, inducer.style_vectors)
    assert all(
        torch.equal(w, dict(again.named_parameters())[name])
        for name, w in inducer.named_parameters()
        if "lora_" in name
    )
    with pytest.raises(ValueError, match="no adapter"):
        Inducer(tiny.__class__(tiny.config), lm[1], rank=4, layers=1).load(path)


def test_samples_keep_their_order_and_padding_changes_nothing(tiny, lm):
    tiny.get_output_embeddings().weight.data.mul_(50)  # no near ties
    inducer = Inducer(tiny, lm[1], rank=4, layers=2)
    demos = (DEMOS, (*DEMOS, Demonstration("a longer input than these", "7")))
    requests = [(demos[i % 2], STYLES[i % len(STYLES)]) for i in range(4)]
    cold = inducer.sample(requests, temperature=1e-4, max_new_tokens=5, batch_rows=4, progress=False)
    alone = [inducer.sample([r], temperature=1e-4, max_new_tokens=5, progress=False)[0] for r in requests]
    assert [c.text for c in cold] == [c.text for c in alone]
    assert [c.style for c in cold] == [style for _, style in requests]
    assert {c.origin for c in cold} == {"inducer"}
