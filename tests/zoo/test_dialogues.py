"""Exchanges out of records of every shape, and prompts in the tokenizer's template."""

import pytest

from lib.zoo.dialogues import exchanges, prompt_ids


def test_exchanges_of_every_shape():
    records = [
        {
            "conversations": [
                {"from": "human", "value": "q"},
                {"from": "gpt", "value": "a"},
                {"from": "human", "value": "?"},
            ]
        },
        {"conversations": [{"from": "gpt", "value": "begins without a question"}]},
        {"messages": [{"role": "user", "content": "m"}, {"role": "assistant", "content": "n"}]},
        {"question": "1 + 1?", "answer": "2"},
        {"instruction": "Add.", "input": "1, 1", "output": "2"},
        {"instruction": "Sing.", "input": "", "output": "la"},
    ]
    assert list(exchanges(records)) == [("q", "a"), ("m", "n"), ("1 + 1?", "2"), ("Add.\n1, 1", "2"), ("Sing.", "la")]


def test_other_records_are_refused_by_name():
    with pytest.raises(ValueError, match="a record has text: give conversations"):
        list(exchanges([{"text": "x"}]))


def test_prompts_end_where_the_assistant_begins():
    class Tokenizer:
        def apply_chat_template(self, messages, *, add_generation_prompt, tokenize):
            assert add_generation_prompt
            assert not tokenize
            return "|".join(f"{m['role']}:{m['content']}" for m in messages)

        def __call__(self, text, add_special_tokens):
            assert not add_special_tokens
            return type("Encoded", (), {"input_ids": [ord(c) for c in text]})()

    ids = prompt_ids(Tokenizer(), "hi", system="be brief")
    assert "".join(map(chr, ids)) == "system:be brief|user:hi"
