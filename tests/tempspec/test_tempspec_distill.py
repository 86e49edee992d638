"""Batches hold the target's answers and opinions; losses are their textbook values; teaching raises acceptance."""

import copy

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file
from transformers import LlamaConfig, LlamaForCausalLM

from lib.tempspec import (
    Example,
    FeatureModel,
    Warping,
    answer,
    distill,
    load_drafter,
    load_feature_model,
    save_drafter,
    save_feature_model,
    teach,
    teacher_forced_acceptance,
    truncate,
)
from lib.tempspec.answers import collate, log_probs_at, observe, teaching_batches
from lib.tempspec.feature import fit_maps, older, real_positions
from lib.tempspec.metrics import acceptance, block_efficiency, speedup
from lib.tempspec.modeling import ReducedHead, frequent_tokens
from lib.tempspec.study import analysis, recipes
from lib.tempspec.trainer import LOSSES, divergence, draft_log_probs, with_rest
from tests.tempspec.conftest import VOCAB, llama

PROMPTS = [[1, 2, 3], [4, 5], [2, 2, 4, 1], [3]]


def test_answers_keep_prompt_order_temperature_and_end(target):
    answered = answer(target, PROMPTS, 0.0, max_new_tokens=6, batch_size=3, progress=False)
    for prompt, example in zip(PROMPTS, answered, strict=True):
        wanted = target.generate(torch.tensor([prompt]), do_sample=False, max_new_tokens=6)[0]
        assert torch.equal(example.tokens, wanted)
        assert (example.start, example.temperature) == (len(prompt), 0.0)


def test_only_answers_are_scored_and_each_target_is_the_next_token():
    examples = [Example(torch.tensor([1, 2, 3, 4]), 2, 1.0), Example(torch.tensor([5, 0, 5]), 1, 0.5)]
    batch = collate(examples)
    assert batch.scored.tolist() == [[False, True, True, False], [True, True, False, False]]
    assert batch.targets.tolist() == [3, 4, 0, 5]
    assert batch.temperature.tolist() == [1.0, 1.0, 0.5, 0.5]


@pytest.mark.parametrize("temperature", [0.0, 0.5, 1.0, 1.7])
def test_the_targets_opinion_is_its_own_law_at_the_answers_temperature(target, temperature):
    examples = answer(target, PROMPTS, temperature, max_new_tokens=5, progress=False)
    batch = observe(target, examples, top=VOCAB, layers=(1,))
    logits = target(batch.ids).logits[batch.scored]
    law = Warping(temperature).probs(logits)
    observed = torch.zeros_like(law).scatter_(-1, batch.top_ids, batch.top_log_probs.exp())
    torch.testing.assert_close(observed, law)
    assert batch.features.shape == (*batch.ids.shape, target.config.hidden_size)


def test_losses_are_their_definitions_on_the_coarsened_law():
    generator = torch.Generator().manual_seed(0)
    p, q = (torch.randn(5, 7, generator=generator).softmax(-1) for _ in range(2))
    kept = 3
    joined = [torch.cat([x[:, :kept], x[:, kept:].sum(-1, keepdim=True)], -1) for x in (p, q)]
    a, b = (x.double() for x in joined)
    middle = (a + b) / 2
    wanted = {
        "fkl": (a * (a / b).log()).sum(-1),
        "rkl": (b * (b / a).log()).sum(-1),
        "jsd": ((a * (a / middle).log()).sum(-1) + (b * (b / middle).log()).sum(-1)) / 2,
        "tvd": 1 - torch.minimum(a, b).sum(-1),
    }
    for name, value in wanted.items():
        distance = divergence(name, p[:, :kept].log(), q[:, :kept].log())
        torch.testing.assert_close(distance, value.float(), rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match="use one of ce, fkl"):
        divergence("kl", p.log(), q.log())
    assert with_rest(p[:, :kept].log()).exp().sum(-1).tolist() == pytest.approx([1.0] * 5)


def test_a_reduced_head_gives_the_missing_tokens_no_probability():
    kept = torch.tensor([0, 3, 4])
    log_q = draft_log_probs(torch.zeros(2, 3), kept, torch.tensor([[3, 1], [0, 5]]), torch.ones(2))
    assert log_q.exp().tolist() == [pytest.approx([1 / 3, 0.0]), pytest.approx([1 / 3, 0.0])]


@pytest.mark.parametrize("loss", LOSSES)
def test_every_loss_raises_acceptance(target, loss):
    student = llama(5, layers=1)
    examples = answer(target, PROMPTS * 24, 1.0, max_new_tokens=12, progress=False)

    @torch.inference_mode()
    def rate() -> float:
        batch = collate(examples[:32])
        p, q = (model(batch.ids).logits[batch.scored].softmax(-1) for model in (target, student))
        return float(acceptance(p, q).mean())

    before = rate()
    teach(student, examples, target=target, loss=loss, top=4, epochs=6, learning_rate=1e-2, progress=False)
    assert rate() > before + 0.03
    assert not student.training


def test_distilling_a_feature_drafter_shares_prompts_among_temperatures(target, monkeypatch):
    network = FeatureModel(target, layers=(1, 2), token_ids=torch.arange(VOCAB))
    seen = []
    monkeypatch.setattr(
        "lib.tempspec.trainer.teach", lambda drafter, examples, **options: seen.extend(examples) or drafter
    )
    distill(target, network, PROMPTS * 3, temperatures=(0.7, 1.0, 1.3), max_new_tokens=4)
    assert sorted(example.temperature for example in seen) == [0.7] * 4 + [1.0] * 4 + [1.3] * 4
    with pytest.raises(ValueError, match="cannot be shared"):
        distill(target, network, PROMPTS[:1], temperatures=(0.7, 1.0))


def test_teaching_continues_from_its_last_checkpoint(target, tmp_path):
    examples = answer(target, PROMPTS * 8, 1.0, max_new_tokens=8, progress=False)
    options = {"batch_size": 4, "learning_rate": 1e-2, "progress": False}
    whole = teach(llama(6, layers=1), examples, epochs=2, output_dir=tmp_path / "whole", **options)

    class Killed(Exception):
        pass

    def killed(self, *args, **kwargs):
        raise Killed

    torch.manual_seed(0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("transformers.trainer_callback.CallbackHandler.on_epoch_begin", _second(killed))
        with pytest.raises(Killed):
            teach(llama(6, layers=1), examples, epochs=2, output_dir=tmp_path / "cut", **options)
    again = teach(llama(6, layers=1), examples, epochs=2, output_dir=tmp_path / "cut", **options)
    for ours, theirs in zip(again.parameters(), whole.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_a_drafter_with_tied_weights_leaves_checkpoints(target, tmp_path):
    small = llama(6, layers=1)
    small.lm_head.weight = small.model.embed_tokens.weight
    examples = answer(target, PROMPTS, 1.0, max_new_tokens=8, progress=False)
    for epochs in (1, 2):  # the second goes on from the first's checkpoint
        teach(small, examples, epochs=epochs, output_dir=tmp_path, progress=False)
    assert small.lm_head.weight is small.model.embed_tokens.weight
    assert len(list(tmp_path.glob("checkpoint-*"))) == 1


def _second(stop):
    from transformers.trainer_callback import CallbackHandler

    original, calls = CallbackHandler.on_epoch_begin, []

    def patched(self, *args, **kwargs):
        calls.append(1)
        return stop(self) if len(calls) == 2 else original(self, *args, **kwargs)

    return patched


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"loss": "mse"}, "use one of"),
        ({"examples": []}, "no examples"),
        ({"loss": "fkl", "target": None}, "needs the target"),
    ],
)
def test_bad_teaching_says_what_to_do(target, options, message):
    call = {"examples": [Example(torch.tensor([1, 2, 3]), 1)], "target": target} | options
    with pytest.raises(ValueError, match=message):
        teach(llama(7), **call)


def test_truncated_models_share_the_targets_layers_and_survive_saving(target, tmp_path):
    kept = torch.tensor([1, 3, 5])
    small = truncate(target, [-1], token_ids=kept)
    weight = small.model.layers[0].mlp.up_proj.weight
    assert torch.equal(weight, target.model.layers[1].mlp.up_proj.weight)
    ids = torch.tensor([[1, 2, 3]])
    logits = small(ids).logits
    assert logits.shape[-1] == VOCAB
    assert torch.isneginf(logits[..., [0, 2, 4]]).all()
    save_drafter(small, tmp_path)
    torch.testing.assert_close(load_drafter(tmp_path, target)(ids).logits, logits)
    with pytest.raises(ValueError, match="pass the target"):
        load_drafter(tmp_path)
    save_drafter(target, tmp_path / "whole")  # its embeddings are its own
    torch.testing.assert_close(load_drafter(tmp_path / "whole")(ids).logits, target(ids).logits)
    assert torch.equal(truncate(target, [0, 1])(ids).logits, target(ids).logits)
    with pytest.raises(ValueError, match="choose some of 0 to 1"):
        truncate(target, [2])


def test_frequent_tokens_and_heads_refuse_nonsense():
    assert frequent_tokens([[5, 5, 1], [5, 2, 2]], 2, VOCAB).tolist() == [2, 5]
    with pytest.raises(ValueError, match="between 1 and"):
        frequent_tokens([], 0, VOCAB)
    with pytest.raises(ValueError, match="none twice"):
        ReducedHead(torch.zeros(2, 4), torch.tensor([1, 1]), VOCAB)
    with pytest.raises(ValueError, match="outside the vocabulary"):
        ReducedHead(torch.zeros(1, 4), torch.tensor([VOCAB]), VOCAB)


def test_acceptance_is_what_verification_accepts():
    p, q = torch.randn(3, 5), torch.randn(3, 5)
    expected = torch.minimum(p.softmax(-1), q.softmax(-1)).sum(-1)
    torch.testing.assert_close(acceptance(p.softmax(-1), q.softmax(-1)), expected)
    greedy = Warping(0.0).probs(p)
    assert acceptance(greedy, greedy).tolist() == [1.0] * 3
    kept = torch.tensor([0, 2])
    reduced = acceptance(p.softmax(-1), q[:, kept].softmax(-1), kept)
    torch.testing.assert_close(reduced, torch.minimum(p.softmax(-1)[:, kept], q[:, kept].softmax(-1)).sum(-1))


def test_formulas_have_their_hand_values():
    assert block_efficiency(0.5, 2) == pytest.approx(1.75)
    assert block_efficiency(1.0, 4) == 5
    assert speedup(0.8, 5, 0.1) == pytest.approx((1 - 0.8**6) / 0.2 / 1.5)
    assert speedup(0.5, 0, 0.3) == 1.0
    with pytest.raises(ValueError, match="between 0 and 1"):
        block_efficiency(1.2, 3)


def test_log_probs_are_each_rows_own_temperature():
    logits = torch.randn(3, 6)
    values = log_probs_at(logits, torch.tensor([0.0, 0.5, 2.0]))
    for row, temperature in enumerate((0, 0.5, 2)):
        torch.testing.assert_close(values[row].exp(), Warping(temperature).probs(logits[row]))


def test_a_student_is_not_its_teacher(target):
    before = copy.deepcopy(target.state_dict())
    teach(truncate(target, [0]), answer(target, PROMPTS, 1.0, max_new_tokens=4, progress=False), progress=False)
    assert all(torch.equal(weight, before[name]) for name, weight in target.state_dict().items())


@pytest.mark.parametrize("temperature", [0.0, 1.3])
def test_teacher_forced_acceptance_is_the_mean_over_each_answer(target, temperature):
    drafter = truncate(target, [0], token_ids=torch.tensor([0, 1, 4]))
    examples = answer(target, PROMPTS, temperature, max_new_tokens=5, progress=False)
    means = teacher_forced_acceptance(target, {"small": drafter, "same": target}, examples, temperature, batch_size=3)
    torch.testing.assert_close(means["same"], torch.ones(len(PROMPTS)))
    for example, value in zip(examples, means["small"], strict=True):
        p, q = (
            Warping(temperature).probs(model(example.tokens[None]).logits[0, example.start - 1 : -1])
            for model in (target, drafter)
        )
        torch.testing.assert_close(value, torch.minimum(p, q).sum(-1).mean())


def test_distilled_drafters_have_the_targets_dtype_and_prompts_may_be_strings(target):
    class Words:
        def __call__(self, texts):
            return type("Encoding", (), {"input_ids": [[ord(letter) - ord("a") for letter in text] for text in texts]})

    options = {"max_new_tokens": 4, "epochs": 1, "progress": False}
    low = copy.deepcopy(target).to(torch.bfloat16)
    made = distill(low, llama(5, layers=1), ["bcd", "ef"], temperatures=(1.0,), tokenizer=Words(), **options)
    assert {weight.dtype for weight in made.parameters()} == {torch.bfloat16}
    whole = distill(low, llama(5, layers=1), [[1, 2, 3], [4, 5]], temperatures=(1.0,), **options)
    assert all(map(torch.equal, made.parameters(), whole.parameters()))
    one = {"tokenizer": Words(), **options}
    alone, listed = (distill(low, llama(5, layers=1), prompts, **one) for prompts in ("bcd", ["bcd"]))
    assert all(map(torch.equal, alone.parameters(), listed.parameters()))
    with pytest.raises(TypeError, match="give a tokenizer"):
        distill(target, llama(5), ["bcd"])


def test_a_shortened_target_is_the_language_model_of_its_layers(tmp_path):
    target = llama(0, layers=5)
    options = {"cut": 2, "rest": 3, "token_ids": torch.tensor([0, 1, 3, 4])}
    student = recipes.Shortened(target, **options)
    examples = answer(target, PROMPTS * 24, 1.0, max_new_tokens=8, progress=False)
    untuned = teacher_forced_acceptance(target, {"s": student.eval()}, examples, 1.0)["s"].mean()
    teach(
        student,
        examples,
        target=target,
        loss="fkl",
        top=VOCAB,
        epochs=8,
        batch_size=8,
        learning_rate=1e-2,
        progress=False,
    )
    taught = teacher_forced_acceptance(target, {"s": student}, examples, 1.0)["s"]
    assert float(taught.mean()) > float(untuned) + 0.02
    recipes.keep(student, tmp_path)
    again = recipes.fetch(tmp_path, target, student)
    same = teacher_forced_acceptance(target, {"model": recipes.as_model(again, target)}, examples, 1.0)["model"]
    torch.testing.assert_close(same, taught, rtol=1e-4, atol=1e-5)
    assert recipes.as_model(again, target).config.num_hidden_layers == 4


def test_the_best_other_drafter_is_chosen_on_other_prompts():
    """Two others whose values are noise: chosen on the same prompts, the better one looks better than it is."""
    noise = np.random.default_rng(0)
    gaps = []
    for _ in range(200):
        rows = [(kd, 0, "here", 1.0, p, noise.normal()) for kd in ("own", "a", "b") for p in range(8)]
        frame = pd.DataFrame(rows, columns=["kd", "number", "where", "temperature", "prompt", "alpha"])
        gaps.append(analysis.Acceptances(frame).ahead_of_best("own", ["a", "b"], "here", 1.0).mean())
    assert abs(np.mean(gaps)) < 0.12  # .2 or more below 0 if chosen on the same prompts


def test_a_feature_drafter_started_by_ridge_drafts_before_any_training(target):
    network = FeatureModel(target, layers=(1,), token_ids=torch.arange(VOCAB))
    batches = teaching_batches(
        answer(target, PROMPTS * 24, 1.0, max_new_tokens=12, progress=False), target, layers=(1,)
    )
    explained = fit_maps(network, batches, wanted=1)
    assert 1 > explained[0] >= explained[1] - 1e-3  # fresher features say more
    states = batches[-1].features
    said = network.inputs(batches[-1].ids, older(states, 1))
    known = real_positions(batches[-1], first=2)
    left = (said - states)[known].square().sum() / states[known].square().sum()
    assert float((1 - left).detach()) == pytest.approx(explained[0], abs=0.15)
    with pytest.raises(ValueError, match="add it to them"):
        fit_maps(network, batches, wanted=0)


def test_feature_models_survive_saving(target, tmp_path):
    network = FeatureModel(target, layers=(0, 1), token_ids=torch.tensor([1, 4])).eval()
    save_feature_model(network, tmp_path)
    again = load_feature_model(tmp_path, target)
    assert again.head.weight.requires_grad
    tokens, features = torch.tensor([[1, 2, 3]]), torch.randn(1, 3, 2 * target.config.hidden_size)
    torch.testing.assert_close(again(tokens, features, lag=2), network(tokens, features, lag=2))
    assert again.head.token_ids.tolist() == [1, 4]
    for wrong in ({"hidden_size": 48}, {"num_hidden_layers": 1, "vocab_size": 4}, {"intermediate_size": 24}):
        other = LlamaForCausalLM(LlamaConfig(**target.config.to_dict() | wrong))
        with pytest.raises(ValueError, match="a target of another shape: train"):
            load_feature_model(tmp_path, other)


def test_a_head_that_is_the_targets_is_neither_trained_nor_kept(target, tmp_path):
    options = {"layers": (0, 1), "token_ids": torch.tensor([1, 4]), "longest_lag": 2, "own_head": False}
    network = FeatureModel(target, **options)
    save_feature_model(network, file := tmp_path / "half.safetensors", dtype=torch.bfloat16)
    weights = load_file(file)
    assert not [name for name in weights if name.startswith(("embeddings.", "head.weight"))]
    assert {w.dtype for name, w in weights.items() if name != "head.token_ids"} == {torch.bfloat16}
    again = load_feature_model(file, target)
    assert (again.longest_lag, again.head.weight.requires_grad) == (2, False)
    torch.testing.assert_close(again.head.weight, network.head.weight)


def test_another_vocabulary_is_refused_before_any_answer_is_made():
    target, other = llama(0), llama(1)
    other.resize_token_embeddings(4000)
    with pytest.raises(ValueError, match=f"the drafter's vocabulary has 4000 tokens, the target's {VOCAB}"):
        distill(target, other, [[1, 2]] * 4)


def test_an_unknown_loss_is_refused_before_any_answer_is_made(target, monkeypatch):
    monkeypatch.setattr("lib.tempspec.trainer.answer", lambda *_, **__: pytest.fail("an answer was made"))
    with pytest.raises(ValueError, match="loss is 'mse': use one of"):
        distill(target, llama(5, layers=1), [[1, 2]] * 4, loss="mse")
