"""Embeddings and the generative judge on a small Llama with a real tokenizer."""

import copy

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from lib.core.generation import common_length
from lib.preference.sampling import Question, Response
from lib.proxy_reward import embeddings
from lib.proxy_reward.embeddings import pooled_states, shallow
from lib.proxy_reward.generative import (
    CLOSENESS,
    GenerativeJudge,
    GenerativePlan,
    Judgement,
    evaluation_ids,
    expected_grade,
    to_points,
)
from lib.proxy_reward.study.recipes import self_play_rows
from lib.zoo.models import converted

EXCHANGES = [("What is rain?", "Water that falls."), ("Name a fruit, please.", "An apple"), ("Hi", "Hello there!")]


@pytest.fixture(scope="module")
def tokenizer():
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(converted("smollm2-135m-instruct"))
    tokenizer.padding_side = "left"
    return tokenizer


@pytest.fixture
def model(tokenizer):
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=256, tie_word_embeddings=True,
    )  # fmt: skip
    return LlamaForCausalLM(config)


@pytest.mark.parametrize("layers", [None, 1, 2])
@pytest.mark.parametrize("batch_tokens", [1, 300])
def test_pooled_states_are_those_of_each_sequence_alone(model, tokenizer, layers, batch_tokens):
    sequences = [evaluation_ids(tokenizer, p, r) for p, r in EXCHANGES]
    shared = common_length(sequences)
    assert shared > embeddings.SHORTEST_PREFIX
    found = pooled_states(model, sequences, layers=layers, batch_tokens=batch_tokens)
    for row, sequence in enumerate(sequences):
        with torch.no_grad():
            hidden = model(torch.tensor([sequence]), output_hidden_states=True).hidden_states
        # the last entry is normed already, the others are inputs of a layer
        states = hidden[-1] if layers is None else model.model.norm(hidden[layers])
        torch.testing.assert_close(found.last[row], states[0, -1], atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(found.mean[row], states[0, shared:].mean(0), atol=1e-5, rtol=1e-4)
    assert len(model.model.layers) == model.config.num_hidden_layers == 3
    assert found.by("last") is found.last


def test_the_mean_runs_over_the_span(model):
    sequences = [[5, 6, 7, 8], [9, 10, 11]]
    found = pooled_states(model, sequences, starts=[2, 1])
    with torch.no_grad():
        states = model.model(torch.tensor([sequences[0]])).last_hidden_state[0]
    torch.testing.assert_close(found.mean[0], states[2:].mean(0), atol=1e-5, rtol=1e-4)


def test_embedding_refusals(model, as_installed):
    with pytest.raises(ValueError, match="nothing to read"):
        pooled_states(model, [])
    with pytest.raises(ValueError, match="these hold texts"):
        pooled_states(model, ["a text", "another"])
    with pytest.raises(ValueError, match="it is empty"):
        pooled_states(model, [[1, 2]], starts=[2])
    with pytest.raises(ValueError, match="the model reads 256"):
        pooled_states(model, [[1] * 257])
    with pytest.raises(ValueError, match="the model has 3"), shallow(model, 4):
        pass
    with pytest.raises(RuntimeError), shallow(model, 1):
        raise RuntimeError
    assert len(model.model.layers) == 3


def test_a_generative_judge_learns_its_grades_and_batches_do_not_matter(model, tokenizer, tmp_path):
    judge = GenerativeJudge(model, tokenizer, batch_size=2)
    grades = [1, 5, 3]
    data = [Judgement(p, r, CLOSENESS, g) for (p, r), g in zip(EXCHANGES, grades, strict=True)]
    prompts, responses = zip(*EXCHANGES, strict=True)
    before = judge.law(prompts, responses)
    alone = torch.cat([judge.law([p], [r]) for p, r in EXCHANGES])
    torch.testing.assert_close(before, alone, atol=1e-4, rtol=1e-3)
    loss = judge.fit(data, GenerativePlan(epochs=40, batch_size=3, learning_rate=1e-2), folder=str(tmp_path))
    after = judge.law(prompts, responses)
    assert loss < 0.1
    assert (after.argmax(1) + 1).tolist() == grades
    assert judge.score(*[EXCHANGES[0][0]], [EXCHANGES[0][1]])[0] == pytest.approx(
        float(expected_grade(after)[0]), abs=1e-3
    )
    assert judge.prefer(EXCHANGES[0][0], "same", "same") == 0.5


def test_a_judge_whose_tokenizer_has_no_padding_token_grades_and_learns_alike(model, tokenizer, tmp_path):
    bare = copy.deepcopy(tokenizer)
    bare.pad_token = None
    prompts, responses = zip(*EXCHANGES, strict=True)
    wanted = GenerativeJudge(model, tokenizer).law(prompts, responses)
    judge = GenerativeJudge(model, bare)
    torch.testing.assert_close(judge.law(prompts, responses), wanted)
    data = [Judgement(p, r, CLOSENESS, 3) for p, r in EXCHANGES]
    assert judge.fit(data, GenerativePlan(epochs=1, batch_size=3), folder=str(tmp_path)) > 0


def test_generative_refusals(model, tokenizer, tmp_path):
    with pytest.raises(ValueError, match="use whole points from 1 to 5"):
        Judgement("p", "r", CLOSENESS, 6)
    with pytest.raises(ValueError, match="no judgement"):
        GenerativeJudge(model, tokenizer).fit([], folder=str(tmp_path))
    model.requires_grad_(False)
    with pytest.raises(ValueError, match="trainable"):
        GenerativeJudge(model, tokenizer).fit([Judgement("p", "r", CLOSENESS, 2)], folder=str(tmp_path))


def test_points_are_equally_frequent_classes():
    assert to_points(torch.arange(10.0)) == [1, 1, 2, 2, 3, 3, 4, 4, 5, 5]
    assert to_points(torch.tensor([-1.0, 99.0]), spread=torch.arange(10.0)) == [1, 5]


def test_spin_prefers_the_real_answer_and_cuts_it(tokenizer):
    asked = [Question("What is rain?", "Water that falls from clouds.", (1, 2, 3))]
    drawn = [[Response((4, 5), "no idea", -1.0, True)]]
    (row,) = self_play_rows(asked, drawn, tokenizer, max_tokens=3)
    assert tokenizer.decode(row["chosen_ids"]) == "Water that falls"
    assert row["prompt_ids"] == [1, 2, 3]
    assert row["rejected_ids"] == [4, 5]
    same = [[Response(tuple(row["chosen_ids"]), "Water that falls", -1.0, True)]]
    with pytest.raises(ValueError, match="repeats the real answer"):
        self_play_rows(asked, same, tokenizer, max_tokens=3)


def test_states_are_pooled_of_models_that_call_their_layers_otherwise():
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(vocab_size=31, n_embd=16, n_layer=3, n_head=2, n_positions=32)).eval()
    found = pooled_states(model, [[1, 2, 3], [4, 5, 6, 7]], layers=2)
    with torch.no_grad():
        below = model(torch.tensor([[4, 5, 6, 7]]), output_hidden_states=True).hidden_states[2]
        assert torch.allclose(found.last[1], model.transformer.ln_f(below)[0, -1], atol=1e-5)
    assert len(model.transformer.h) == model.config.num_hidden_layers == 3
    model.transformer.h = torch.nn.Identity()
    with pytest.raises(ValueError, match="GPT2Model keeps its layers under none of the names layers, h, blocks"):
        pooled_states(model, [[1, 2], [3, 4]])
