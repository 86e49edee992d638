"""Scores of a padded batch are those of each row by the model's own forward pass."""

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from lib.core import scoring
from lib.core.scoring import by_length, head_logits, log_probs, mean_pooled, padded, scored_batch, scored_states

ROWS = [[1, 2, 3, 4, 5], [6, 7], [8, 9, 10, 1], [3, 3]]
STARTS = [3, 1, 0, 1]


def test_rows_are_padded_on_the_side_asked_for():
    ids, present = padded([[5, 6], [7]], side="left", value=9)
    assert ids.tolist() == [[5, 6], [9, 7]]
    assert present.tolist() == [[True, True], [False, True]]
    ids, present = padded([torch.tensor([5, 6]), [7], []], side="right")
    assert ids.tolist() == [[5, 6], [7, 0], [0, 0]]
    assert present.tolist() == [[True, True], [True, False], [False, False]]
    with pytest.raises(ValueError, match="side is 'middle'"):
        padded([[1]], side="middle")


def test_batches_hold_similar_lengths_within_their_limit():
    lengths = [5, 1, 3, 9, 2, 2]
    assert by_length(lengths, rows=4) == [[1, 4, 5, 2], [0, 3]]
    assert by_length(lengths, tokens=6) == [[1, 4, 5], [2], [0], [3]]
    assert by_length([], rows=2) == []
    for options in ({}, {"rows": 2, "tokens": 2}, {"rows": 0}, {"tokens": 0}):
        with pytest.raises(ValueError, match="most rows or the most tokens"):
            by_length(lengths, **options)


def test_logits_are_the_familys_own(any_family):
    ids = torch.tensor(ROWS[:1])
    with torch.inference_mode():
        hidden = scoring.decoder_of(any_family)(input_ids=ids).last_hidden_state
        wanted = any_family(ids).logits
        torch.testing.assert_close(head_logits(any_family, hidden), wanted, rtol=1e-5, atol=1e-6)
        assert head_logits(any_family, hidden[:, -1]).dtype == torch.float32


SMALL = {
    "vocab_size": 11, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4,
    "initializer_range": 0.6, "eos_token_id": None, "bos_token_id": None, "pad_token_id": 0,
}  # fmt: skip
ODD_HEADS = {
    "recurrent_gemma": {"num_key_value_heads": 1, "lru_width": 16, "logits_soft_cap": 0.5},
    "hyperclovax": {"num_key_value_heads": 2, "logits_scaling": 0.2},
    "xlstm": {
        "num_heads": 2, "output_logit_soft_cap": 0.5, "chunkwise_kernel": "chunkwise--native_autograd",
        "sequence_kernel": "native_sequence__native", "step_kernel": "native",
    },
}  # fmt: skip


@pytest.mark.parametrize("kind", ODD_HEADS)
def test_logits_are_the_familys_own_where_the_scale_or_cap_has_another_name_or_sense(kind):
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **SMALL, **ODD_HEADS[kind])).eval()
    with torch.inference_mode():
        hidden = scoring.decoder_of(model)(input_ids=torch.tensor(ROWS[:1]), use_cache=False).last_hidden_state
        wanted = model(torch.tensor(ROWS[:1]), use_cache=False).logits
        torch.testing.assert_close(head_logits(model, hidden), wanted, rtol=1e-5, atol=1e-6)


def test_what_counts_is_every_token_from_the_start_but_the_first():
    batch = scored_batch(ROWS, STARTS)
    assert batch.targets.tolist() == [4, 5, 7, 9, 10, 1, 3]
    assert batch.owners.tolist() == [0, 0, 1, 2, 2, 2, 3]
    assert batch.sums(torch.arange(7.0)).tolist() == [1, 2, 12, 6]


@pytest.mark.parametrize("head_rows", [2, 1024])
def test_log_probabilities_are_the_models_own(any_family, head_rows, monkeypatch):
    monkeypatch.setattr(scoring, "HEAD_ROWS", head_rows)
    batch = scored_batch(ROWS, STARTS)
    with torch.inference_mode():
        found = log_probs(any_family, scored_states(any_family, batch), batch.targets)
        wanted = []
        for row, start in zip(ROWS, STARTS, strict=True):
            law = any_family(torch.tensor([row])).logits[0, :-1].log_softmax(-1)
            wanted.append(law.gather(-1, torch.tensor(row[1:])[:, None])[max(start - 1, 0) :, 0])
    torch.testing.assert_close(found, torch.cat(wanted), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(batch.sums(found).float(), torch.stack([w.sum() for w in wanted]), rtol=1e-4, atol=1e-5)


def test_a_score_takes_gradients(llama):
    batch = scored_batch(ROWS, STARTS)
    log_probs(llama, scored_states(llama, batch), batch.targets).sum().backward()
    assert all(weight.grad is not None for weight in llama.model.layers.parameters())
    llama.zero_grad(set_to_none=True)


def test_the_mean_leaves_padding_out():
    hidden = torch.tensor([[[1.0, 2.0], [3.0, 6.0], [50.0, 50.0]], [[1.0, 1.0], [1.0, 1.0], [4.0, 4.0]]])
    counted = torch.tensor([[True, True, False], [True, True, True]])
    wanted = torch.tensor([[2.0, 4.0], [2.0, 2.0]])
    torch.testing.assert_close(mean_pooled(hidden, counted), wanted)
    torch.testing.assert_close(mean_pooled(hidden.bfloat16(), counted.long()), wanted)
