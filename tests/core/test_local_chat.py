"""A local model that answers as an endpoint does."""

from types import SimpleNamespace

import pytest
import torch
from transformers import AutoModelForCausalLM, BloomConfig

from lib import zoo
from lib.core.chat import Chat, ChatFailed, Decoding
from lib.core.local_chat import LocalChat

PROMPTS = ["Say hello.", "Name a colour that begins with an r.", "word " * 9000]


@pytest.fixture(scope="module")
def lm():
    return zoo.load_lm("smollm2-135m-instruct")


def test_a_reply_is_the_same_whatever_is_asked_beside_it_and_another_attempt_draws_anew(lm):
    chat, warm = LocalChat(*lm, prefill="So", batch_rows=2), Decoding(temperature=0.4, max_tokens=6, n=2)
    assert isinstance(chat, Chat)
    first, second, failed = chat.complete_many(PROMPTS, warm)
    assert [len(reply.texts) for reply in (first, second)] == [2, 2]
    assert all(text.startswith("So") for text in first.texts)
    assert failed.reason.startswith("a prompt of 9")
    assert [chat.complete(PROMPTS[0], warm), *chat.complete_many(PROMPTS[1:2], warm)] == [first, second]
    assert chat.complete(PROMPTS[0], warm, attempt=1) != first
    assert LocalChat(*lm, prefill="So", seed=1).complete(PROMPTS[0], warm) != first
    with pytest.raises(ChatFailed, match="does not fit"):
        chat.complete(PROMPTS[2], warm)
    with pytest.raises(ValueError, match="leave out stop"):
        chat.complete_many(PROMPTS[:1], Decoding(stop=("x",)))


def test_greedy_replies_are_those_of_generate_with_a_shared_beginning_or_none(lm):
    network, tokenizer = lm
    guide = "You answer in as few words as you can, and you never explain what you say. " * 6
    questions = [
        [{"role": "system", "content": guide}, {"role": "user", "content": "Name the capital of France."}],
        "Which day comes after Monday?",
        [{"role": "system", "content": guide}, {"role": "user", "content": "How many legs has a spider, and an ant?"}],
    ]
    found = LocalChat(network, tokenizer).complete_many(questions, Decoding(temperature=0.0, max_tokens=12))
    for question, reply in zip(questions, found, strict=True):
        turns = [{"role": "user", "content": question}] if isinstance(question, str) else question
        ids = tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_tensors="pt", return_dict=True)
        made = network.generate(**ids, max_new_tokens=12, do_sample=False)[0, ids["input_ids"].shape[1] :]
        assert reply.text == tokenizer.decode(made, skip_special_tokens=True)
        assert reply.tokens == len(made)


def test_alternatives_are_told_as_an_endpoint_tells_them(lm):
    chat = LocalChat(*lm)
    (told,) = chat.complete_many(PROMPTS[:1], Decoding(temperature=0, max_tokens=2, logprobs=3))
    ((first, _),) = told.logprobs
    assert [row["token"] for row in first["top_logprobs"]][0] == first["token"]
    assert len(first["top_logprobs"]) == 3
    assert first["logprob"] == first["top_logprobs"][0]["logprob"] <= 0


def test_draws_follow_the_models_law(lm):
    network, tokenizer = lm
    chat = LocalChat(network, tokenizer, template=False, batch_rows=500)
    (reply,) = chat.complete_many(["The sky is"], Decoding(temperature=0.7, max_tokens=1, n=2000))
    with torch.inference_mode():
        logits = network(**tokenizer("The sky is", return_tensors="pt")).logits[0, -1]
    law = (logits / 0.7).softmax(-1)
    token = int(law.argmax())
    share = sum(text == tokenizer.decode([token]) for text in reply.texts) / 2000
    assert abs(share - float(law[token])) < 4 * (float(law[token]) * (1 - float(law[token])) / 2000) ** 0.5


class Letters:
    """A tokenizer of one letter a token, which hides none; `end` is the token that ends a text."""

    def __init__(self, end=None):
        self.eos_token_id = end

    def __call__(self, text, add_special_tokens):
        return SimpleNamespace(input_ids=["abcdefghijk".index(letter) for letter in text])

    def convert_ids_to_tokens(self, ids):
        return ["abcdefghijk"[token] for token in ids]

    def batch_decode(self, rows, skip_special_tokens):
        return ["".join(self.convert_ids_to_tokens(row)) for row in rows]


def test_nothing_is_told_of_tokens_behind_a_replys_end(llama):
    chat = LocalChat(llama, Letters(end=3), template=False)
    replies = chat.complete_many(["ab", "cab", "e", "fgh", "kab", "hh"], Decoding(n=2, max_tokens=12, logprobs=2))
    assert {end for reply in replies for end in reply.finish} == {"stop", "length"}
    for reply in replies:
        assert ["".join(place["token"] for place in told) for told in reply.logprobs] == list(reply.texts)


def test_a_model_without_a_longest_text_and_a_tokenizer_without_an_end_write_to_the_limit():
    torch.manual_seed(0)
    config = BloomConfig(vocab_size=11, hidden_size=16, n_layer=2, n_head=4, bos_token_id=None, eos_token_id=None)
    chat = LocalChat(AutoModelForCausalLM.from_config(config).eval(), Letters(), template=False)
    reply = chat.complete("abc", Decoding(max_tokens=8))
    assert (len(reply.text), reply.finish, reply.tokens) == (8, ("length",), 8)
