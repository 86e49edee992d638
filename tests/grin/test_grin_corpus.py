"""Domains by their rules, the cut tokenizer on real conversations, and windows."""

import pytest
import torch

from lib import zoo
from lib.grin.study import corpus
from lib.grin.study.corpus import DOMAINS, domain_of


@pytest.mark.parametrize(
    ("text", "domain"),
    [
        ("Please fix this:\n```\nx = 1\n```", "code"),
        ("import os\ndef f(x):\n    return x\n", "code"),
        ("Solve the quadratic equation. Its equation has roots: derive the polynomial.", "mathematics"),
        ("Ho bisogno di un piano per la mia azienda, non so come fare e non ho tempo per la riunione", "language"),
        ("재해 및 보안 사고 대응 작업은 일반적으로 운영팀의", "language"),
        ("The history of the city begins with a small harbour and the people who built it.", "prose"),
    ],
)  # fmt: skip
def test_a_text_gets_its_domain(text, domain):
    assert domain_of(text) == domain


@pytest.fixture(scope="module")
def material():
    _, tokenizer = zoo.load_lm("smollm2-135m-instruct")
    return tokenizer, list(zoo.load_dataset("sharegpt", split="test", limit=300))


def test_the_cut_tokenizer_loses_nothing_and_is_as_small_as_asked(material):
    tokenizer, records = material
    small = corpus.small_tokenizer(tokenizer, 1024)
    assert small.get_vocab_size() == 1024
    for record in records[:100]:
        text = corpus.conversation_text(record)[:2000]
        ids = small.encode(text, add_special_tokens=False).ids
        assert small.decode(ids) == text
        assert max(ids, default=0) < 1024


def test_windows_are_whole_and_balanced_where_asked(material):
    tokenizer, records = material
    small = corpus.small_tokenizer(tokenizer, 512)
    found = corpus.build_corpus(records, small, length=32, windows_per_document=2)
    assert found.windows.shape == (len(found.domains), 32)
    assert torch.bincount(found.documents).max() == 2
    even = corpus.build_corpus(records, small, length=32, windows_per_document=2, documents_per_domain=1)
    assert even.domains.tolist().count(0) == 2
    assert len(even.windows) == 2 * len(DOMAINS)
    assert set(even.of_domain("prose").domains.tolist()) == {DOMAINS.index("prose")}
    for message, call in {
        "too few documents": lambda: corpus.build_corpus(records[:5], small, length=32, documents_per_domain=4),
        "the vocabulary must be in": lambda: corpus.small_tokenizer(tokenizer, 10),
        "domain must be one of": lambda: found.of_domain("poems"),
        "no domain": lambda: domain_of("123"),
    }.items():
        with pytest.raises(ValueError, match=message):
            call()
