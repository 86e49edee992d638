"""Answer likelihoods against the model's own logits, one document at a time."""

from collections.abc import Callable
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from lib.lorc import Document, answer_documents, document_nll, token_log_likelihoods


def documents() -> list[Document]:
    generator = torch.Generator().manual_seed(0)
    made = []
    for length, context in ((9, 3), (14, 10), (5, 0), (14, 1)):
        tokens = torch.randint(1, 61, (length,), generator=generator)
        made.append(Document(tokens=tokens, scored=torch.arange(length) >= context))
    return made


def test_batching_and_padding_change_nothing(make_model: Callable[..., nn.Module]) -> None:
    model, given = make_model(), documents()
    scores = document_nll(model, given, batch_size=3, progress=False)
    for index, document in enumerate(given):
        with torch.no_grad():
            logits = model(input_ids=document.tokens[None]).logits[0, :-1].log_softmax(-1)
        values = logits.gather(-1, document.tokens[1:, None]).squeeze(-1)[document.scored[1:]]
        assert float(scores.nll[index]) == pytest.approx(-float(values.sum()), rel=1e-5)
        assert int(scores.tokens[index]) == len(values)
        (alone,) = token_log_likelihoods(model, [document])
        torch.testing.assert_close(alone, values, atol=1e-5, rtol=1e-4)
    mean = scores.nll.sum() / scores.tokens.sum()
    assert scores.perplexity == pytest.approx(float(mean.exp()))


def test_a_document_without_a_scored_token_is_refused(make_model: Callable[..., nn.Module]) -> None:
    first_only = Document(tokens=torch.tensor([3, 4]), scored=torch.tensor([True, False]))
    for given in ([], [first_only]):
        with pytest.raises(ValueError, match="at least one scored token"):
            document_nll(make_model(), given, progress=False)


class Letters:
    """A tokenizer of one token a character."""

    def apply_chat_template(self, messages: list[dict[str, str]], **_: object) -> str:
        return "<" + messages[0]["content"] + ">"

    def __call__(self, text: str, **_: object) -> SimpleNamespace:
        return SimpleNamespace(input_ids=[ord(letter) % 61 for letter in text])


def test_answers_are_scored_and_questions_are_context() -> None:
    records = [
        {"conversations": [{"from": "gpt", "value": "no question"}, {"from": "human", "value": "late"}]},
        {"conversations": [{"from": "human", "value": "ab"}, {"from": "gpt", "value": "cde"}]},
        {"conversations": [{"from": "human", "value": "ab"}, {"from": "gpt", "value": "c"}]},
        {"conversations": []},
    ]
    made = answer_documents(records, Letters(), limit=5, max_tokens=6, min_answer=2)
    assert len(made) == 1
    assert made[0].tokens.tolist() == [ord(letter) % 61 for letter in "<ab>cd"]
    assert made[0].scored.tolist() == [False] * 4 + [True] * 2
    with pytest.raises(ValueError, match="no record holds a question"):
        answer_documents(records, Letters(), limit=5, max_tokens=3)
