"""Prefix-shared labelling: token for token what plain generation gives, the same log-probabilities, and resume."""

import copy
import dataclasses
import math

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from lib.autoinstruct.decoding import answer_groups, answer_ids, prompt_ids, stop_tokens
from lib.autoinstruct.labelling import Pair, label
from lib.autoinstruct.tasks import Demonstration
from lib.core.store import Journal

QUESTIONS = [
    ("Name the capital of France.", "Paris"),
    ("2 + 2", "4"),
    ("What is the opposite of hot, in one word?", "cold"),
    ("Is the sea salty? Answer Yes or No.", "Yes"),
    ("Which animal barks: a cat, a dog or a hen?", "dog"),
    ("Say hello in Spanish", "hola"),
    ("Name a colour of the French flag other than white", "blue"),
]
DEMOS = tuple(Demonstration(question, f"It is {answer}.") for question, answer in QUESTIONS[:5])
INSTRUCTIONS = ["Answer with a single word.", "You are a helpful assistant who explains every answer at length.", ""]


def plain(model, tokenizer, prompt, new):
    ids = torch.tensor([prompt])
    mask, stops = torch.ones_like(ids), list(stop_tokens(tokenizer))
    out = model.generate(ids, attention_mask=mask, do_sample=False, max_new_tokens=new, eos_token_id=stops)
    tokens = out[0, len(prompt) :].tolist()
    return tokens[:-1] if tokens and tokens[-1] in stops else tokens


def groups_of(tokenizer, demonstrations, counts=(2, 2, 2)):
    return [
        [prompt_ids(tokenizer, text, question, demonstrations=demonstrations) for question, _ in QUESTIONS[:count]]
        for text, count in zip(INSTRUCTIONS, counts, strict=True)
    ]


@pytest.mark.parametrize("demonstrations", [(), DEMOS], ids=["zero-shot", "five demonstrations"])
def test_answers_are_generates_token_for_token(lm, demonstrations):
    model, tokenizer = lm
    groups = groups_of(tokenizer, demonstrations, counts=(4, 2, 1))
    found = answer_groups(model, groups, stops=stop_tokens(tokenizer), max_new_tokens=8)
    wanted = [plain(model, tokenizer, prompt, 8) for group in groups for prompt in group]
    assert found.tokens == wanted
    assert len({len(tokens) for tokens in wanted}) > 1  # some stop early, so that rows were dropped on the way


def test_gold_log_probabilities_are_a_plain_forwards(lm):
    model, tokenizer = lm
    groups = groups_of(tokenizer, DEMOS[:2])
    gold = [[answer_ids(tokenizer, answer), answer_ids(tokenizer, "no idea")] for _, answer in QUESTIONS[:2]] * 3
    found = answer_groups(model, groups, replies=gold, stops=stop_tokens(tokenizer), max_new_tokens=0)
    assert found.tokens == [[]] * 6
    prompts = [prompt for group in groups for prompt in group]
    for prompt, both, scored in zip(prompts, gold, found.log_probs, strict=True):
        for reply, value in zip(both, scored, strict=True):
            with torch.inference_mode():
                logits = model(torch.tensor([prompt + reply])).logits[0, len(prompt) - 1 : -1]
            picked = logits.log_softmax(-1).gather(-1, torch.tensor(reply)[:, None])
            assert value == pytest.approx(float(picked.sum()), abs=5e-4)


def test_prompts_without_a_common_beginning_are_decoded_too(lm):
    model, tokenizer = lm
    prompts = [tokenizer(text).input_ids for text in ("The capital of France is", "Once upon a time", "One, two,")]
    found = answer_groups(model, [prompts], stops=stop_tokens(tokenizer), max_new_tokens=6)
    assert found.tokens == [plain(model, tokenizer, prompt, 6) for prompt in prompts]


def pairs():
    return [Pair(text, question, (answer,)) for text in INSTRUCTIONS[:2] for question, answer in QUESTIONS[:2]]


def test_labels_come_in_order_with_their_scores(lm):
    labels = label(*lm, pairs(), max_new_tokens=4, batch_rows=4, progress=False)
    alone = label(*lm, pairs()[2:3], max_new_tokens=4, progress=False)[0]
    assert labels[2].output == alone.output
    assert labels[2].log_prob == pytest.approx(alone.log_prob, abs=1e-4)
    assert all(0 <= one.rouge_l <= 1 and one.log_prob < 0 for one in labels)
    scored = label(*lm, pairs()[:1], max_new_tokens=0, progress=False)[0]
    assert scored.output is None
    assert math.isnan(scored.rouge_l)
    assert scored.log_prob == pytest.approx(labels[0].log_prob, abs=1e-4)


def test_the_probability_of_the_right_choice_is_among_whole_replies(lm):
    pair = dataclasses.replace(pairs()[0], others=("London", "a city by the sea"))
    one = label(*lm, [pair], max_new_tokens=0, progress=False)[0]
    lengths = [len(answer_ids(lm[1], answer)) for answer in ("Paris", *pair.others)]
    sums = [mean * n for mean, n in zip((one.log_prob, *one.other_log_probs), lengths, strict=True)]
    assert one.choice == pytest.approx(math.exp(sums[0]) / sum(map(math.exp, sums)), rel=1e-5)
    assert math.isnan(label(*lm, pairs()[:1], max_new_tokens=0, progress=False)[0].choice)


def test_a_crash_loses_one_batch_and_a_second_call_goes_on(lm, tmp_path, monkeypatch):
    from lib.autoinstruct import labelling

    store, done, real = tmp_path / "labels.sqlite", [], labelling.answer_groups

    def breaks_at_the_second_batch(model, groups, **options):
        if len(done) == 1:
            raise KeyboardInterrupt
        done.append(sum(map(len, groups)))
        return real(model, groups, **options)

    options = {"max_new_tokens": 4, "batch_rows": 2, "progress": False}
    monkeypatch.setattr(labelling, "answer_groups", breaks_at_the_second_batch)
    with pytest.raises(KeyboardInterrupt):
        label(*lm, pairs(), store=store, **options)
    counted = []
    monkeypatch.setattr(
        labelling,
        "answer_groups",
        lambda model, groups, **o: counted.append(sum(map(len, groups))) or real(model, groups, **o),
    )
    labels = label(*lm, pairs(), store=store, **options)
    assert sum(counted) + done[0] == len(pairs())
    assert [one.output for one in labels] == [one.output for one in label(*lm, pairs(), **options)]
    counted.clear()
    with Journal(store) as journal:  # the file of something else, too
        journal.put("an earlier judgement", {"winner": "first"})
    again = label(*lm, pairs(), store=store, **options)
    assert [one.log_prob for one in again] == [one.log_prob for one in labels]
    assert not counted


def test_a_store_knows_a_model_by_its_weights_its_adapters_and_the_chat_template(lm, tmp_path):
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)
    small = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    model, tokenizer = LlamaForCausalLM(LlamaConfig(vocab_size=len(lm[1]), **small)).eval(), copy.deepcopy(lm[1])
    adapted = get_peft_model(copy.deepcopy(model), LoraConfig(target_modules=["q_proj", "down_proj"])).eval()

    def labelled(model):
        store, options = tmp_path / "labels.sqlite", {"max_new_tokens": 0, "progress": False}
        kept = label(model, tokenizer, pairs()[:1], store=store, **options)
        with Journal(store) as journal:
            counts.append(len(journal))
        assert [one.log_prob for one in kept] == [
            one.log_prob for one in label(model, tokenizer, pairs()[:1], **options)
        ]

    counts = []
    labelled(model)
    labelled(copy.deepcopy(model))
    with torch.no_grad():
        model.lm_head.weight[0, 0] += 0.5
        labelled(model)
        for name, weight in adapted.named_parameters():
            if "lora_B" in name:
                weight += 1
    labelled(adapted)
    with adapted.disable_adapter():
        labelled(adapted)
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    labelled(adapted)
    assert counts == [1, 1, 2, 3, 4, 5]


def test_an_endpoint_takes_no_store(tmp_path):
    class Writer:
        model = "scripted"

        def complete(self, messages, decoding=None, *, attempt=0):
            raise AssertionError

    with pytest.raises(ValueError, match="an endpoint keeps its replies in its client's journal: leave out store"):
        label(Writer(), None, pairs(), store=tmp_path / "labels.sqlite")


def test_a_template_that_refuses_a_system_turn_is_named(lm):
    tokenizer = copy.deepcopy(lm[1])
    tokenizer.chat_template = "{{ raise_exception('System role not supported') }}"
    with pytest.raises(ValueError, match=r"refuses an instruction as the system turn \(System role not supported\)"):
        label(lm[0], tokenizer, pairs()[:1], progress=False)


def test_a_pair_without_an_answer_is_refused(lm):
    with pytest.raises(ValueError, match="has no answer"):
        label(*lm, [dataclasses.replace(pairs()[0], answers=())])
    endless = copy.deepcopy(lm[1])
    endless.eos_token = None
    with pytest.raises(ValueError, match="this one names none: set it"):
        label(lm[0], endless, pairs()[:1])
