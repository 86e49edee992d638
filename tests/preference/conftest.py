"""A tiny policy with the real tokenizer, and policies small enough to enumerate what they can say."""

import pytest
import torch
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from lib.zoo.models import converted


@pytest.fixture(scope="session")
def tokenizer():
    found = AutoTokenizer.from_pretrained(converted("smollm2-135m-instruct"))
    found.padding_side = "left"
    return found


def tiny(vocab, *, seed=0, layers=2, hidden=16, scale=0.6):
    config = LlamaConfig(
        vocab_size=vocab, hidden_size=hidden, intermediate_size=2 * hidden, num_hidden_layers=layers,
        num_attention_heads=2, num_key_value_heads=1, max_position_embeddings=128, initializer_range=scale,
        bos_token_id=0, eos_token_id=1, pad_token_id=2, tie_word_embeddings=True,
    )  # fmt: skip
    torch.manual_seed(seed)
    return LlamaForCausalLM(config).eval()


@pytest.fixture
def tiny_policy(tokenizer):
    model = tiny(len(tokenizer), scale=0.05)
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    return model


class Words:
    """Tokenizer stub for enumerable models: token i is the word `i`."""

    eos_token_id = 1

    def batch_decode(self, rows, skip_special_tokens=True):
        return [" ".join(str(t) for t in row if not (skip_special_tokens and t == 1)) for row in rows]


@pytest.fixture
def enumerable():
    model = tiny(5, scale=1.0)
    model.generation_config.eos_token_id = 1
    return model, Words()


@pytest.fixture(name="tiny", scope="session")
def tiny_factory():
    return tiny
