"""Pairs by rule, LoRA that starts as the identity, and trl's DPO on token ids."""

import copy

import pytest
import torch
import torch.nn.functional as F
from trl import DPOTrainer

from lib import TenfoldError, preference
from lib.preference import Response, Scored, TokenDPOTrainer, best_and_worst, config, pairs, train, with_lora
from lib.preference.trainer import cut_prompt


def group(scores, tokens=None, greedy=None, prompt=(5, 6)):
    tokens = tokens or [(10 + i, 11) for i in range(len(scores))]
    responses = tuple(Response(tuple(t), " ".join(map(str, t)), -1.0, False) for t in tokens)
    return Scored("q", prompt, responses, tuple(map(float, scores)), greedy)


def test_best_against_worst_with_the_tie_rule():
    assert best_and_worst(group([1, 3, 2, 0])) == (1, 3)
    assert best_and_worst(group([2, 3, 3, 2])) == (1, 0)  # the first of equals
    assert best_and_worst(group([1, 1, 1])) is None
    assert best_and_worst(group([1.0, 1.2]), margin=0.3) is None
    # the same words twice are one response, at the score of the first
    assert best_and_worst(group([2, 5, 1], tokens=[(7,), (7,), (8,)])) == (0, 2)
    assert best_and_worst(group([2, 5], tokens=[(7,), (7,)])) is None


def test_pairs_are_token_ids_with_counts():
    data, counts = pairs(
        [group([1, 2]), group([1, 1]), group([3, 1, 2], tokens=[(9,), (9,), (8,)])],
        extra=lambda g: {"first_ids": list(g.responses[0].tokens)},
    )
    assert (counts.pairs, counts.ties, counts.duplicates) == (2, 1, 1)
    assert data[0]["prompt_ids"] == [5, 6]
    assert data[0]["chosen_ids"] == [11, 11]
    assert data[0]["rejected_ids"] == [10, 11] == data[0]["first_ids"]
    assert (data[1]["chosen_score"], data[1]["rejected_score"]) == (3, 2)
    assert [r.tokens for r in group([1, 2, 3], greedy=1).samples()] == [(10, 11), (12, 11)]


def test_nothing_to_learn_from_is_said():
    with pytest.raises(ValueError, match="all 1 prompts tie"):
        pairs([group([1, 1])])
    with pytest.raises(ValueError, match="needs two responses"):
        pairs([group([1])])


def data_of(count=6):
    generator = torch.Generator().manual_seed(0)
    rows = torch.randint(5, 400, (count, 12), generator=generator).tolist()
    groups = [
        group([1, 0], tokens=[r[:4], r[4 : 4 + 2 + i % 3]], prompt=tuple(r[8 : 10 + i % 2])) for i, r in enumerate(rows)
    ]
    return pairs(groups)[0]


def sequence_log_prob(model, prompt, response):
    with torch.no_grad():
        logits = model(torch.tensor([prompt + response])).logits[0, len(prompt) - 1 : -1]
    return logits.log_softmax(-1).gather(-1, torch.tensor(response)[:, None]).sum()


def test_the_first_loss_is_dpos_on_the_ids(tiny_policy, tokenizer, tmp_path):
    reference, data = copy.deepcopy(tiny_policy), data_of()
    for p in tiny_policy.parameters():
        p.data += 0.01 * torch.randn(p.shape, generator=torch.Generator().manual_seed(1))
    margins = [
        sum(
            sign
            * (
                sequence_log_prob(tiny_policy, r["prompt_ids"], r[ids])
                - sequence_log_prob(reference, r["prompt_ids"], r[ids])
            )
            for sign, ids in ((1, "chosen_ids"), (-1, "rejected_ids"))
        )
        for r in data
    ]
    wanted = -F.logsigmoid(0.3 * torch.stack(margins)).mean()
    args = config(tmp_path, beta=0.3, per_device_train_batch_size=6, max_steps=1, learning_rate=0.0)
    history = train(tiny_policy, tokenizer, data, args, ref_model=reference, progress=False)
    assert history[0]["loss"] == pytest.approx(float(wanted), abs=1e-5)


def test_lora_starts_as_the_identity_trains_and_is_its_own_reference(tiny_policy, tokenizer, tmp_path):
    before = copy.deepcopy(tiny_policy)
    policy = with_lora(tiny_policy, layers=1, rank=2, alpha=4, seed=0)
    trained = {n for n, p in policy.named_parameters() if p.requires_grad}
    assert trained
    assert all(".layers.1." in n and "lora_" in n for n in trained)
    ids = torch.tensor([[5, 6, 7, 8]])
    assert torch.equal(policy(ids).logits, before(ids).logits)
    data = data_of()
    args = config(tmp_path, beta=0.1, learning_rate=1e-2, per_device_train_batch_size=3, num_train_epochs=4)
    first = train(policy, tokenizer, data, args, progress=False)
    assert first[0]["loss"] == pytest.approx(0.6931, abs=1e-3)
    assert first[-1]["rewards/accuracies"] > 0.9
    assert first[-1]["loss"] < 0.69
    assert set(policy.peft_config) == {"default"}  # the reference's copy is gone
    # the reference is reset: a second training begins from where the policy is
    second = train(policy, tokenizer, data, args, progress=False)
    assert second[0]["loss"] == pytest.approx(0.6931, abs=1e-3)
    with pytest.raises(ValueError, match="the model has 2 layers"):
        with_lora(before, layers=3)


@pytest.mark.parametrize("lora", [True, False])
def test_a_policy_is_put_away_and_taken_up(tiny_policy, tokenizer, tmp_path, lora):
    policy = with_lora(tiny_policy, layers=1, rank=2) if lora else tiny_policy
    start = preference.weights(policy)
    reference = None if lora else copy.deepcopy(policy)
    args = config(tmp_path, learning_rate=1e-2, per_device_train_batch_size=6, max_steps=2)
    train(policy, tokenizer, data_of(), args, ref_model=reference, progress=False)
    ids = torch.tensor([[5, 6, 7, 8]])
    after = policy(ids).logits.detach()
    preference.save_policy(policy, tmp_path / "kept")
    preference.set_weights(policy, start)
    assert not torch.allclose(policy(ids).logits, after)
    preference.load_policy(policy, tmp_path / "kept")
    assert torch.equal(policy(ids).logits, after)
    with pytest.raises(TenfoldError, match="holds no trained policy"):
        preference.load_policy(policy, tmp_path / "nothing")
    with pytest.raises(TenfoldError, match="do not belong"):
        preference.set_weights(policy, {"strange": torch.zeros(1)})


def test_a_plain_policy_needs_a_reference(tiny_policy, tokenizer, tmp_path):
    with pytest.raises(ValueError, match="needs its reference"):
        train(tiny_policy, tokenizer, data_of(), config(tmp_path), progress=False)


def test_prompts_are_cut_before_responses(tiny_policy, tokenizer, tmp_path):
    row = {"prompt_ids": [*range(1, 11)], "chosen_ids": [1, 2, 3], "rejected_ids": [4], "response_ids": [5] * 4}
    assert cut_prompt(row, 14) == {"prompt_ids": row["prompt_ids"]}
    assert cut_prompt(row, 12) == {"prompt_ids": [*range(3, 11)]}  # its beginning goes; y fits whole
    assert cut_prompt(row, 6) == {"prompt_ids": [8, 9, 10]}  # half of the limit stays
    with pytest.raises(ValueError, match="max_length = 1 leaves no token"):
        cut_prompt(row, 1)
    args = config(tmp_path, max_length=4, max_steps=1)
    train(tiny_policy, tokenizer, data_of(), args, ref_model=copy.deepcopy(tiny_policy), progress=False)


def test_text_goes_trls_way(tiny_policy, tokenizer, tmp_path):
    import datasets

    rows = [{"prompt": "2 + 2 =", "chosen": " 4", "rejected": " 5"}] * 2
    args = config(tmp_path, max_steps=1, per_device_train_batch_size=2)
    options = {"train_dataset": datasets.Dataset.from_list(rows), "processing_class": tokenizer}
    ours = TokenDPOTrainer(copy.deepcopy(tiny_policy), ref_model=copy.deepcopy(tiny_policy), args=args, **options)
    theirs = DPOTrainer(copy.deepcopy(tiny_policy), ref_model=copy.deepcopy(tiny_policy), args=args, **options)
    assert ours.train_dataset[0]["chosen_ids"] == theirs.train_dataset[0]["chosen_ids"]


def test_a_text_prompt_is_cut_before_its_responses_too(tiny_policy, tokenizer, tmp_path):
    import datasets

    rows = [{"prompt": "one two three four five six seven", "chosen": " yes, it is", "rejected": " no", "row_ids": 3}]
    options = {"train_dataset": datasets.Dataset.from_list(rows * 2), "processing_class": tokenizer}
    args = config(tmp_path, max_length=7)  # trl would drop these rows, whose prompt fills it
    trainer = TokenDPOTrainer(tiny_policy, ref_model=copy.deepcopy(tiny_policy), args=args, **options)
    assert args.max_length == 7
    assert tokenizer.decode(trainer.train_dataset[0]["prompt_ids"]) == " five six seven"
    assert tokenizer.decode(trainer.train_dataset[0]["chosen_ids"]) == " yes, it is<|im_end|>"


def test_an_adapter_of_another_name_is_put_away_and_taken_up(tiny_policy, tokenizer, tmp_path):
    from peft import LoraConfig, get_peft_model

    policy = get_peft_model(tiny_policy, LoraConfig(target_modules=["q_proj"]), adapter_name="mine")
    moved = preference.weights(policy)
    preference.save_policy(policy, tmp_path)
    with torch.no_grad():
        next(p for name, p in policy.named_parameters() if "lora_B" in name).add_(1)
    preference.load_policy(policy, tmp_path)
    assert all(torch.equal(weight, moved[name]) for name, weight in preference.weights(policy).items())
    with pytest.raises(ValueError, match='trains the adapter "default", and this policy has mine'):
        train(policy, tokenizer, data_of(), config(tmp_path))
    policy.base_model.set_adapter([*policy.active_adapters, *_second(policy)])
    with pytest.raises(ValueError, match="2 adapters are at work"):
        preference.weights(policy)


def _second(policy):
    policy.add_adapter("yours", policy.peft_config["mine"])
    return ["yours"]


def test_lora_lies_on_a_model_of_other_names_or_says_that_it_cannot():
    from transformers import GPT2Config, GPT2LMHeadModel

    model = GPT2LMHeadModel(GPT2Config(vocab_size=31, n_embd=16, n_layer=3, n_head=2, n_positions=32))
    policy = preference.with_lora(model, layers=1)
    adapted = {name for name, weight in policy.named_parameters() if weight.requires_grad}
    assert adapted
    assert all(".h.2." in name for name in adapted)
    model.config.model_type = "unheard of"
    with pytest.raises(ValueError, match="GPT2LMHeadModel has none of the layers q_proj"):
        preference.with_lora(GPT2LMHeadModel(model.config))
