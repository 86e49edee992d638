"""A tiny policy with the real tokenizer, and triples of token ids in which y is a third, the chosen or the rejected."""

import copy

import datasets
import pytest
import torch
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from lib.zoo.models import converted


@pytest.fixture(scope="session")
def tokenizer():
    found = AutoTokenizer.from_pretrained(converted("smollm2-135m-instruct"))
    found.padding_side = "left"
    return found


def tiny(vocab, seed=0, scale=0.05):
    torch.manual_seed(seed)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=vocab, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
            num_key_value_heads=1, max_position_embeddings=128, initializer_range=scale, tie_word_embeddings=True,
            bos_token_id=0, eos_token_id=1, pad_token_id=2,
        )
    ).eval()  # fmt: skip


@pytest.fixture(name="tiny", scope="session")
def tiny_factory():
    return tiny


@pytest.fixture
def policy_and_reference(tokenizer):
    reference = tiny(len(tokenizer))
    policy = copy.deepcopy(reference)
    generator = torch.Generator().manual_seed(1)
    for p in policy.parameters():
        p.data += 0.02 * torch.randn(p.shape, generator=generator)
    return policy, reference


@pytest.fixture(scope="session")
def triples():
    rows, generator = [], torch.Generator().manual_seed(0)
    for i in range(6):
        ids = torch.randint(5, 400, (24,), generator=generator).tolist()
        row = {"prompt_ids": ids[: 2 + i % 2], "chosen_ids": ids[4:8], "rejected_ids": ids[8 : 10 + i % 3]}
        own = ids[14 : 17 + 2 * (i % 4)]  # up to 9 tokens: longer than the pair
        rows.append(row | {"response_ids": [own, row["chosen_ids"], row["rejected_ids"]][i % 3 if i < 5 else 0]})
    return datasets.Dataset.from_list(rows)
