"""SELMTrainer against trl's DPOTrainer and against plain forward passes: loss, gradients, references, truncation."""

import copy

import datasets
import pytest
import torch
import torch.nn.functional as F
from transformers import LlamaForCausalLM
from trl.trainer.dpo_trainer import DataCollatorForPreference

from lib.preference import Response, Scored, TokenDPOTrainer, config, with_lora
from lib.selm import SELMConfig, SELMTrainer, third_response
from lib.selm.collator import DataCollatorForTriples

BETA, ALPHA = 0.3, 0.7


def made(trainer, policy, reference, data, tokenizer, folder, **settings):
    cls = SELMConfig if trainer is SELMTrainer else None
    options = {"beta": BETA, "per_device_train_batch_size": 6, "learning_rate": 0.0, "max_steps": 1} | settings
    args = config(folder, **({"cls": cls} if cls else {}), **options)
    return trainer(policy, ref_model=reference, args=args, train_dataset=data, processing_class=tokenizer)


def loss_and_gradients(trainer):
    trainer.model.train()
    trainer.model.zero_grad()
    batch = trainer._prepare_inputs(next(iter(trainer.get_train_dataloader())))
    loss = trainer.compute_loss(trainer.model, batch)
    loss.backward()
    return loss.detach(), {n: p.grad.clone() for n, p in trainer.model.named_parameters() if p.grad is not None}


def log_prob(model, prompt, response):
    with torch.no_grad():
        logits = model(torch.tensor([prompt + response])).logits[0, len(prompt) - 1 : -1]
    return logits.log_softmax(-1).gather(-1, torch.tensor(response)[:, None]).sum()


def by_hand(policy, reference, data, *, alpha=ALPHA, smoothing=0.0):
    losses, thirds = [], []
    for row in data:
        ratio = {
            name: log_prob(policy, row["prompt_ids"], row[name]) - log_prob(reference, row["prompt_ids"], row[name])
            for name in ("chosen_ids", "rejected_ids", "response_ids")
        }
        z = BETA * (ratio["chosen_ids"] - ratio["rejected_ids"])
        losses.append(-(1 - smoothing) * F.logsigmoid(z) - smoothing * F.logsigmoid(-z))
        thirds.append(ratio["response_ids"])
    return float(torch.stack(losses).mean() + alpha * BETA * torch.stack(thirds).mean())


def test_the_loss_is_equation_4_2_also_where_y_is_one_of_the_pair(policy_and_reference, triples, tokenizer, tmp_path):
    policy, reference = policy_and_reference
    wanted = by_hand(copy.deepcopy(policy), copy.deepcopy(reference), triples)
    trainer = made(SELMTrainer, policy, reference, triples, tokenizer, tmp_path, alpha=ALPHA)
    loss, shared = loss_and_gradients(trainer)
    assert float(loss) == pytest.approx(wanted, abs=1e-5)
    trainer.data_collator.share = False  # every y in a row of its own: the same numbers
    again, apart = loss_and_gradients(trainer)
    assert float(again) == pytest.approx(float(loss), abs=1e-6)
    assert all(torch.allclose(apart[n], g, atol=1e-6) for n, g in shared.items())


def test_alpha_zero_is_trls_dpo_with_its_gradients(policy_and_reference, triples, tokenizer, tmp_path):
    policy, reference = policy_and_reference
    ours = made(SELMTrainer, *copy.deepcopy((policy, reference)), triples, tokenizer, tmp_path, alpha=0.0)
    theirs = made(TokenDPOTrainer, policy, reference, triples, tokenizer, tmp_path)
    (a, ga), (b, gb) = loss_and_gradients(ours), loss_and_gradients(theirs)
    assert float(a) == pytest.approx(float(b), abs=1e-6)
    assert ga.keys() == gb.keys()
    assert max(float((ga[n] - gb[n]).abs().max()) for n in ga) < 1e-6


def test_skipping_prompt_positions_changes_no_number(policy_and_reference, triples, tokenizer, tmp_path, monkeypatch):
    from contextlib import nullcontext

    ours = made(TokenDPOTrainer, *copy.deepcopy(policy_and_reference), triples, tokenizer, tmp_path)
    a, ga = loss_and_gradients(ours)
    monkeypatch.setattr("lib.preference.trainer.response_positions_only", nullcontext)  # trl as it comes
    theirs = made(TokenDPOTrainer, *policy_and_reference, triples, tokenizer, tmp_path)
    b, gb = loss_and_gradients(theirs)
    assert float(a) == pytest.approx(float(b), abs=1e-6)
    assert max(float((ga[n] - gb[n]).abs().max()) for n in ga) < 1e-6
    for name in ("entropy", "mean_token_accuracy", "logits/chosen", "logps/rejected"):
        assert ours._metrics["train"][name] == pytest.approx(theirs._metrics["train"][name], abs=1e-4)


def test_alpha_near_zero_comes_near_dpo_through_the_joined_pass(policy_and_reference, triples, tokenizer, tmp_path):
    policy, reference = policy_and_reference
    ours = made(SELMTrainer, *copy.deepcopy((policy, reference)), triples, tokenizer, tmp_path, alpha=1e-12)
    theirs = made(TokenDPOTrainer, policy, reference, triples, tokenizer, tmp_path)
    (a, ga), (b, gb) = loss_and_gradients(ours), loss_and_gradients(theirs)
    assert float(a) == pytest.approx(float(b), abs=1e-6)
    assert max(float((ga[n] - gb[n]).abs().max()) for n in ga) < 1e-6
    for name in ("rewards/margins", "logps/chosen", "entropy", "mean_token_accuracy", "logits/rejected"):
        assert ours._metrics["train"][name] == pytest.approx(theirs._metrics["train"][name], abs=1e-4)


def test_the_extra_gradient_scales_with_alpha_and_beta(policy_and_reference, triples, tokenizer, tmp_path):
    def gradient(alpha, beta):
        settings = {"alpha": alpha, "beta": beta}
        trainer = made(SELMTrainer, *copy.deepcopy(policy_and_reference), triples, tokenizer, tmp_path, **settings)
        return torch.cat([g.flatten() for g in loss_and_gradients(trainer)[1].values()])

    extra = gradient(0.4, 0.2) - gradient(0.0, 0.2)
    assert torch.allclose(gradient(0.8, 0.2) - gradient(0.0, 0.2), 2 * extra, atol=1e-6)
    assert torch.allclose(gradient(0.4, 0.6) - gradient(0.0, 0.6), 3 * extra, atol=1e-6)


def test_label_smoothing_is_applied_and_robust_is_trls(policy_and_reference, triples, tokenizer, tmp_path):
    policy, reference = policy_and_reference
    wanted = by_hand(*copy.deepcopy((policy, reference)), triples, smoothing=0.2)
    settings = {"alpha": ALPHA, "label_smoothing": 0.2}
    trainer = made(SELMTrainer, *copy.deepcopy((policy, reference)), triples, tokenizer, tmp_path, **settings)
    assert float(loss_and_gradients(trainer)[0]) == pytest.approx(wanted, abs=1e-5)
    plain = by_hand(*copy.deepcopy((policy, reference)), triples, smoothing=0.2, alpha=0.0)
    trainer = made(
        SELMTrainer, *copy.deepcopy((policy, reference)), triples, tokenizer, tmp_path, alpha=0.0, label_smoothing=0.2
    )
    assert float(loss_and_gradients(trainer)[0]) == pytest.approx(plain, abs=1e-5)
    robust = {"loss_type": ["robust"], "label_smoothing": 0.2}
    ours = made(SELMTrainer, *copy.deepcopy((policy, reference)), triples, tokenizer, tmp_path, alpha=0.0, **robust)
    theirs = made(TokenDPOTrainer, policy, reference, triples, tokenizer, tmp_path, **robust)
    assert float(loss_and_gradients(ours)[0]) == pytest.approx(float(loss_and_gradients(theirs)[0]), abs=1e-6)


def test_the_reference_computed_before_training_gives_the_same_loss(policy_and_reference, triples, tokenizer, tmp_path):
    policy, reference = policy_and_reference
    wanted = by_hand(*copy.deepcopy((policy, reference)), triples)
    settings = {"alpha": ALPHA, "precompute_ref_log_probs": True}
    trainer = made(SELMTrainer, policy, reference, triples, tokenizer, tmp_path, **settings)
    assert "ref_response_logps" in trainer.train_dataset.column_names
    for p in reference.parameters():
        p.data.zero_()  # it is not asked again
    assert float(loss_and_gradients(trainer)[0]) == pytest.approx(wanted, abs=1e-5)


@pytest.mark.parametrize("fresh", [True, False])
def test_a_peft_policys_reference_is_the_adapter_off_or_as_it_was(tiny, triples, tokenizer, tmp_path, fresh):
    base = tiny(len(tokenizer))
    plain = copy.deepcopy(base)
    policy = with_lora(base, layers=1, rank=2, seed=0)
    if not fresh:
        for n, p in policy.named_parameters():
            if "lora_B" in n:
                p.data.normal_(std=0.1, generator=torch.Generator().manual_seed(2))
    before = copy.deepcopy(policy).merge_and_unload()
    if fresh:  # a new adapter through trl: nothing but the model below is the reference
        policy.unload()
        from peft import LoraConfig

        peft = LoraConfig(r=2, target_modules=["q_proj", "down_proj"], task_type="CAUSAL_LM")
        args = config(tmp_path, cls=SELMConfig, alpha=ALPHA, beta=BETA, per_device_train_batch_size=6, max_steps=1)
        options = {"train_dataset": triples, "processing_class": tokenizer, "peft_config": peft}
        trainer = SELMTrainer(copy.deepcopy(plain), args=args, **options)
        assert "ref" not in trainer.model.peft_config
    else:
        trainer = made(SELMTrainer, policy, None, triples, tokenizer, tmp_path, alpha=ALPHA)
        assert "ref" in trainer.model.peft_config
    for n, p in trainer.model.named_parameters():
        if "lora_B.default" in n:
            p.data += 0.1 * torch.randn(p.shape, generator=torch.Generator().manual_seed(3))
    moved = copy.deepcopy(trainer.model).merge_and_unload()
    wanted = by_hand(moved, plain if fresh else before, triples)
    assert float(loss_and_gradients(trainer)[0]) == pytest.approx(wanted, abs=1e-5)


def test_third_responses_are_cut_like_the_others(policy_and_reference, triples, tokenizer, tmp_path):
    policy, reference = policy_and_reference
    cut = triples.map(
        lambda r: {n: r[n][: 6 - len(r["prompt_ids"])] for n in ("chosen_ids", "rejected_ids", "response_ids")}
    )
    wanted = by_hand(*copy.deepcopy((policy, reference)), cut)
    trainer = made(SELMTrainer, policy, reference, triples, tokenizer, tmp_path, alpha=ALPHA, max_length=6)
    batch = next(iter(trainer.get_train_dataloader()))
    assert batch["response_input_ids"].shape[1] == 6
    assert float(loss_and_gradients(trainer)[0]) == pytest.approx(wanted, abs=1e-5)


def test_the_collator_gives_y_a_row_only_where_it_needs_one(triples):
    rows = [dict(row) for row in triples]
    shared = DataCollatorForTriples(pad_token_id=0)(rows)
    assert shared["response_rows"].tolist() == [12, 1, 8, 13, 4, 14]
    apart = DataCollatorForTriples(pad_token_id=0, share=False)(rows)
    assert apart["response_rows"].tolist() == list(range(12, 18))
    assert apart["response_completion_mask"].sum(1).tolist() == [len(r["response_ids"]) for r in rows]
    pairs = [{k: v for k, v in row.items() if k != "response_ids"} for row in rows]
    assert "response_rows" not in DataCollatorForTriples(pad_token_id=0)(pairs)


def test_metrics_and_the_divergence_in_evaluation(policy_and_reference, triples, tokenizer, tmp_path):
    policy, reference = policy_and_reference
    p, r = copy.deepcopy((policy, reference))
    ratios = [
        log_prob(r, x["prompt_ids"], x["response_ids"]) - log_prob(p, x["prompt_ids"], x["response_ids"])
        for x in triples
    ]
    args = config(tmp_path, cls=SELMConfig, alpha=ALPHA, beta=BETA, per_device_eval_batch_size=6, max_steps=1)
    options = {"train_dataset": triples, "eval_dataset": triples, "processing_class": tokenizer}
    trainer = SELMTrainer(policy, ref_model=reference, args=args, **options)
    found = trainer.evaluate()
    assert found["eval_kl"] == pytest.approx(float(torch.stack(ratios).mean()), abs=1e-4)
    assert found["eval_rewards/response"] == pytest.approx(-BETA * float(torch.stack(ratios).mean()), abs=1e-4)
    assert {"eval_logps/response", "eval_logps/ref_response", "eval_rewards/margins"} <= found.keys()
    trainer.train()
    assert "rewards/response" in trainer.state.log_history[0]


def test_optimism_chooses_the_column(triples, tokenizer, tmp_path, policy_and_reference):
    columns = triples.rename_column("response_ids", "sampled_ids").add_column("greedy_ids", [[9, 9]] * 6)
    greedy = made(
        SELMTrainer, *copy.deepcopy(policy_and_reference), columns, tokenizer, tmp_path, alpha=1.0, optimism="greedy"
    )
    assert greedy.train_dataset[0]["response_ids"] == [9, 9]
    drawn = made(SELMTrainer, *policy_and_reference, columns, tokenizer, tmp_path, alpha=1.0)
    assert drawn.train_dataset[0]["response_ids"] == triples[0]["response_ids"]
    said = tuple(Response((i,), str(i), -1.0, False) for i in (7, 8, 9))
    group = Scored("q", (5,), said, (0.0, 1.0, 2.0), greedy=2)
    assert third_response(group) == {"sampled_ids": [7], "greedy_ids": [9]}
    assert third_response(Scored("q", (5,), said, (0.0, 1.0, 2.0))) == {"sampled_ids": [7]}
    with pytest.raises(ValueError, match="no sampled response"):
        third_response(Scored("q", (5,), said[:1], (0.0,), greedy=0))


@pytest.mark.parametrize("conversational", [False, True])
def test_text_with_a_third_response(policy_and_reference, tokenizer, tmp_path, conversational):
    row = {"prompt": "2 + 2 =", "chosen": " 4", "rejected": " 5", "response": " four, I think"}
    rows = [row, row | {"response": " 4"}]
    if conversational:
        roles = {"prompt": "user", "chosen": "assistant", "rejected": "assistant", "response": "assistant"}
        rows = [{name: [{"role": roles[name], "content": text}] for name, text in r.items()} for r in rows]
    data = datasets.Dataset.from_list(rows)
    trainer = made(SELMTrainer, *policy_and_reference, data, tokenizer, tmp_path, alpha=1.0)
    first, second = trainer.train_dataset
    assert tokenizer.decode(first["response_ids"]).startswith(" four, I think")
    assert second["response_ids"] == second["chosen_ids"]  # ended and templated as trl does it
    loss_and_gradients(trainer)


def test_without_a_tokenizer_the_models_own_is_loaded(policy_and_reference, triples, tokenizer, tmp_path):
    policy, reference = policy_and_reference
    wanted = by_hand(policy, copy.deepcopy(reference), triples)
    policy.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    loaded = LlamaForCausalLM.from_pretrained(tmp_path / "model")
    for model in (loaded, str(tmp_path / "model")):
        trainer = made(SELMTrainer, model, copy.deepcopy(reference), triples, None, tmp_path, alpha=ALPHA)
        assert float(loss_and_gradients(trainer)[0]) == pytest.approx(wanted, abs=1e-5)


@pytest.mark.parametrize("precomputed", [False, True])
def test_a_batch_without_a_third_response_is_refused(policy_and_reference, triples, tokenizer, tmp_path, precomputed):
    policy, reference = policy_and_reference
    message = "the batch has no third response: pass processing_class, and no collator but DataCollatorForTriples"
    with pytest.raises(ValueError, match=message):  # a model without a name has no tokenizer to be loaded
        made(SELMTrainer, policy, reference, triples, None, tmp_path, alpha=ALPHA)
    options = {"data_collator": DataCollatorForPreference(pad_token_id=2), "train_dataset": triples}
    settings = {"per_device_train_batch_size": 6, "precompute_ref_log_probs": precomputed}
    for alpha in (ALPHA, 0.0):
        args = config(tmp_path, cls=SELMConfig, alpha=alpha, **settings)
        trainer = SELMTrainer(policy, ref_model=reference, args=args, processing_class=tokenizer, **options)
        if alpha:
            with pytest.raises(ValueError, match=message):
                loss_and_gradients(trainer)
        else:
            loss_and_gradients(trainer)


def test_a_text_response_needs_a_prompt_of_its_own(policy_and_reference, tokenizer, tmp_path):
    row = {"chosen": "What is red? A colour.", "rejected": "What is red? A fish.", "response": "What is red? A hue."}
    data = datasets.Dataset.from_list([row])
    with pytest.raises(ValueError, match="a text response needs a column prompt: split the prompt off"):
        made(SELMTrainer, *policy_and_reference, data, tokenizer, tmp_path, alpha=1.0)
    trainer = made(SELMTrainer, *policy_and_reference, data, tokenizer, tmp_path, alpha=0.0)
    assert "response_ids" not in trainer.train_dataset.column_names  # DPO splits it off as trl does


def test_a_word_that_goes_on_in_the_third_response_is_not_lost(policy_and_reference, tokenizer, tmp_path):
    row = {"prompt": "The answer is un", "chosen": " so", "rejected": " no", "response": "known to us"}
    trainer = made(
        SELMTrainer, *policy_and_reference, datasets.Dataset.from_list([row]), tokenizer, tmp_path, alpha=1.0
    )
    (found,) = trainer.train_dataset
    for name in ("chosen", "rejected", "response"):
        ids = found["prompt_ids"] + found[f"{name}_ids"]
        assert ids == tokenizer(row["prompt"] + row[name] + tokenizer.eos_token).input_ids


def test_a_text_prompt_is_cut_before_its_third_response(policy_and_reference, tokenizer, tmp_path):
    row = {"prompt": "one two three four five six seven", "chosen": " yes", "rejected": " no", "response": " well, no"}
    trainer = made(
        SELMTrainer, *policy_and_reference, datasets.Dataset.from_list([row]), tokenizer, tmp_path, alpha=1.0,
        max_length=8,
    )  # fmt: skip
    (found,) = trainer.train_dataset
    assert tokenizer.decode(found["prompt_ids"]) == " four five six seven"
    batch = next(iter(trainer.get_train_dataloader()))
    assert batch["response_completion_mask"].sum() == len(found["response_ids"]) == 4


def test_bad_settings_and_data(policy_and_reference, triples, tokenizer, tmp_path):
    policy, reference = policy_and_reference
    with pytest.raises(ValueError, match="no third response"):
        made(SELMTrainer, policy, reference, triples.remove_columns("response_ids"), tokenizer, tmp_path, alpha=1.0)
    with pytest.raises(TypeError, match="needs args of SELMConfig"):
        SELMTrainer(policy, ref_model=reference, args=config(tmp_path), train_dataset=triples)
    for settings, message in (
        ({"alpha": -1.0}, "pessimistic"),
        ({"optimism": "wild"}, "sampled, greedy"),
        ({"label_smoothing": 0.6}, r"\[0, 0.5\)"),
        ({"ld_alpha": 0.5}, "reverse KL"),
    ):
        with pytest.raises(ValueError, match=message):
            config(tmp_path, cls=SELMConfig, **settings)


@pytest.mark.parametrize("alpha", [0.0, ALPHA])
def test_prompts_encoded_once_give_the_same_loss_and_gradients(
    policy_and_reference, triples, tokenizer, tmp_path, alpha
):
    found = []
    for share in (False, True):
        policy, reference = copy.deepcopy(policy_and_reference)
        options = {"alpha": alpha, "share_prompts": share, "max_length": 10}
        trainer = made(SELMTrainer, policy, reference, triples, tokenizer, tmp_path, **options)
        found.append((*loss_and_gradients(trainer), {name: v[0] for name, v in trainer._metrics["train"].items()}))
    (apart, gradients, logged), (shared, others, logged_too) = found
    assert float(shared) == pytest.approx(float(apart), abs=1e-6)
    assert max(float((gradients[n] - others[n]).abs().max()) for n in gradients) < 1e-6
    assert logged_too == pytest.approx(logged, abs=1e-4)


@pytest.mark.parametrize("precomputed", [False, True])
def test_trls_dpo_with_shared_prompts_is_trls_dpo(policy_and_reference, triples, tokenizer, tmp_path, precomputed):
    found = []
    for share in (False, True):
        policy, reference = copy.deepcopy(policy_and_reference)
        args = config(
            tmp_path, beta=BETA, per_device_train_batch_size=6, max_steps=1, precompute_ref_log_probs=precomputed
        )
        options = {"train_dataset": triples, "processing_class": tokenizer, "share_prompts": share}
        found.append(loss_and_gradients(TokenDPOTrainer(policy, ref_model=reference, args=args, **options)))
    (apart, gradients), (shared, others) = found
    assert float(shared) == pytest.approx(float(apart), abs=1e-6)
    assert max(float((gradients[n] - others[n]).abs().max()) for n in gradients) < 1e-6


def test_sharing_prompts_needs_full_attention(tokenizer, triples, tmp_path):
    from transformers import MistralConfig, MistralForCausalLM

    small = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = MistralForCausalLM(
        MistralConfig(vocab_size=len(tokenizer), num_key_value_heads=1, sliding_window=8, **small)
    )
    with pytest.raises(ValueError, match="mistral .* cannot share prompts"):
        made(SELMTrainer, model, copy.deepcopy(model), triples, tokenizer, tmp_path, share_prompts=True)
