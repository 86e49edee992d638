"""Packed rows against separate ones: hidden states see the prompt and their own response, at their own positions."""

import torch

from lib.preference.packing import pack

IDS = [[5, 6, 7, 10, 11], [5, 6, 7, 12], [8, 13, 14, 15], [5, 6, 7, 10]]
PROMPTS = [3, 3, 1, 3]


def batch():
    longest = max(map(len, IDS))
    filled = {"input_ids": [], "attention_mask": [], "completion_mask": []}
    for ids, prompt in zip(IDS, PROMPTS, strict=True):
        rest = [0] * (longest - len(ids))
        filled["input_ids"].append(ids + rest)
        filled["attention_mask"].append([1] * len(ids) + rest)
        filled["completion_mask"].append([0] * prompt + [1] * (len(ids) - prompt) + rest)
    return {name: torch.tensor(rows) for name, rows in filled.items()}


def test_sequences_of_one_prompt_share_a_row_at_their_own_positions():
    packed = pack(batch(), 0)
    assert packed.inputs["input_ids"].tolist() == [[5, 6, 7, 10, 11, 7, 12, 7, 10], [8, 13, 14, 15, 0, 0, 0, 0, 0]]
    assert packed.inputs["position_ids"][0].tolist() == [0, 1, 2, 3, 4, 2, 3, 2, 3]
    assert packed.inputs["labels"][0].tolist() == [-100, -100, -100, 10, 11, -100, 12, -100, 10]


def test_a_response_sees_its_prompt_and_itself_only():
    mask = pack(batch(), 0).inputs["attention_mask"][0, 0]
    assert mask[6].nonzero().flatten().tolist() == [0, 1, 5, 6]  # token 12: the prompt without 10, 11
    assert mask[4].nonzero().flatten().tolist() == [0, 1, 2, 3, 4]
    assert mask.diagonal().all()


def test_values_come_back_where_they_were_scored():
    packed = pack(batch(), 0)
    labels = packed.inputs["labels"][:, 1:]
    back = packed.unpack(labels)
    wanted = torch.where(batch()["completion_mask"][:, 1:] == 1, batch()["input_ids"][:, 1:], 0)
    assert back.equal(wanted)


def test_a_sequence_that_is_all_response_keeps_its_first_token_as_the_prompt():
    one = {name: torch.ones(1, 3, dtype=torch.long) for name in ("attention_mask", "completion_mask")}
    packed = pack(one | {"input_ids": torch.tensor([[4, 5, 6]])}, 0)
    assert packed.inputs["input_ids"].tolist() == [[4, 5, 6]]
    assert packed.unpack(packed.inputs["labels"][:, 1:]).tolist() == [[5, 6]]
