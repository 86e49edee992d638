"""Retrieval against brute force, its metrics by hand, and what tuning must do."""

import random

import numpy as np
import pytest
import torch
from rank_bm25 import BM25Okapi

from lib.sciagent import retriever
from lib.sciagent.study import evaluation

TEXTS = ["drag of a sphere", "pressure drop in a pipe", "heat of a pipe wall", "interest on a loan", "pipe pipe drag"]
NAMES = [f"f{i}" for i in range(len(TEXTS))]
QUERIES = ["the drag on spheres", "drop of pressure along pipes", "loan", "nothing known qqq"]


def test_sparse_scores_are_those_of_rank_bm25():
    index = retriever.WordIndex(NAMES, TEXTS)
    peer = BM25Okapi([retriever.words(t) for t in TEXTS])
    wanted = np.stack([peer.get_scores(retriever.words(q)) for q in QUERIES])
    np.testing.assert_allclose(index.scores(QUERIES).numpy(), wanted, rtol=1e-5, atol=1e-6)


def test_ranks_and_metrics_against_brute_force():
    draw = random.Random(0)
    found = [draw.sample(NAMES, 4) for _ in range(50)]
    wanted = [tuple(draw.sample(NAMES, draw.choice((1, 2)))) for _ in range(50)]
    rank = evaluation.ranks(found, wanted)
    for k in (1, 2, 3, 4):
        brute = [all(w in f[:k] for w in ws) for f, ws in zip(found, wanted, strict=True)]
        assert evaluation.hit_at(rank, k).tolist() == [float(b) for b in brute]
    brute = [
        1 / (1 + max(f.index(w) for w in ws)) if set(ws) <= set(f) else 0.0 for f, ws in zip(found, wanted, strict=True)
    ]
    np.testing.assert_allclose(evaluation.reciprocal(rank), brute)


class WordVectors:
    """Stands for a sentence encoder: bags of hashed words, unit length."""

    def encode(self, texts, *, progress=False):
        vectors = torch.zeros(len(texts), 64)
        for i, text in enumerate(texts):
            for word in retriever.words(text):
                vectors[i, sum(map(ord, word)) % 64] += 1
        return torch.nn.functional.normalize(vectors, dim=-1)


def test_dense_search_is_the_exact_nearest():
    encoder = WordVectors()
    index = retriever.EncoderIndex(encoder, NAMES, TEXTS)
    cosines = encoder.encode(QUERIES[:3]) @ encoder.encode(TEXTS).T
    for names, row in zip(index.search(QUERIES[:3], 2), cosines, strict=True):
        assert [row[NAMES.index(n)] for n in names] == sorted(row, reverse=True)[:2]


def test_the_hybrids_ends_are_its_parts():
    dense, sparse = retriever.EncoderIndex(WordVectors(), NAMES, TEXTS), retriever.WordIndex(NAMES, TEXTS)
    queries = QUERIES[:3]
    assert retriever.HybridIndex(dense, sparse, weight=1.0).search(queries, 1) == dense.search(queries, 1)
    assert retriever.HybridIndex(dense, sparse, weight=0.0).search(queries, 1) == sparse.search(queries, 1)


@pytest.fixture(scope="module")
def encoder():
    from transformers import BertConfig, BertModel, BertTokenizerFast

    from lib.zoo.models import Encoder

    vocabulary = [
        "[PAD]",
        "[UNK]",
        "[CLS]",
        "[SEP]",
        "[MASK]",
        *sorted({w for t in (*TEXTS, *QUERIES) for w in t.split()}),
    ]
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(vocabulary), hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32,
        max_position_embeddings=64,
    )  # fmt: skip
    tokenizer = BertTokenizerFast(vocab={w: i for i, w in enumerate(vocabulary)})
    return Encoder(BertModel(config).eval(), tokenizer)


def test_embeddings_with_gradients_are_those_without(encoder):
    torch.testing.assert_close(retriever.embed(encoder, TEXTS).detach(), encoder.encode(TEXTS), atol=1e-5, rtol=1e-5)


def test_half_precision_changes_cosines_by_little(encoder):
    whole = retriever.EncoderIndex(encoder, NAMES, TEXTS)
    half = retriever.EncoderIndex(encoder, NAMES, TEXTS, dtype="bfloat16")
    assert half.vectors.dtype == torch.float32
    again = retriever.EncoderIndex(encoder, NAMES, TEXTS, vectors=whole.vectors)
    assert again.vectors is whole.vectors
    with pytest.raises(ValueError, match="give one for each"):
        retriever.EncoderIndex(encoder, NAMES, TEXTS, vectors=whole.vectors[1:])
    torch.testing.assert_close(half.scores(QUERIES), whole.scores(QUERIES), atol=0.03, rtol=0)


def test_tuning_brings_queries_to_their_functions_and_leaves_the_encoder_alone(encoder):
    queries, positives = ["the drag on", "loan", "pressure along"], [TEXTS[0], TEXTS[3], TEXTS[1]]
    before = encoder.encode(queries)
    tuned = retriever.tune(
        encoder, queries, positives, [[TEXTS[4]], [], [TEXTS[2]]], steps=40, batch_size=3, learning_rate=3e-3
    )
    cosines = tuned.encode(queries) @ tuned.encode(TEXTS).T
    assert cosines.argmax(1).tolist() == [0, 3, 1]
    torch.testing.assert_close(encoder.encode(queries), before)


def test_one_functions_texts_are_never_each_others_negatives(encoder):
    rng = random.Random(0)
    once = retriever.contrastive_loss(encoder, [0], ["loan"], [TEXTS[3]], [[]], rng)
    twice = retriever.contrastive_loss(encoder, [0, 1], ["loan", "loan"], [TEXTS[3]] * 2, [[], []], rng)
    torch.testing.assert_close(once, twice)
    assert float(once.detach()) == pytest.approx(0.0, abs=1e-6)


def test_the_contrastive_loss_by_hand(encoder):
    queries, positives, negatives = ["the drag on", "loan"], [TEXTS[0], TEXTS[3]], [[TEXTS[4]], [TEXTS[2]]]
    found = retriever.contrastive_loss(encoder, [0, 1], queries, positives, negatives, random.Random(0))
    cosines = encoder.encode(queries) @ encoder.encode([*positives, TEXTS[4], TEXTS[2]]).T
    powers = (cosines / 0.05).exp()
    expected = -(powers.diagonal() / powers.sum(1)).log().mean()
    torch.testing.assert_close(found.detach(), expected, atol=1e-4, rtol=1e-4)


def test_rank_odds_are_the_shares_of_right_ranks_and_rule_none_out():
    found = [["a", "b", "c"], ["b", "a", "c"], ["c", "b", "a"], ["x", "y", "z"]]
    odds = retriever.rank_odds(found, [("a",), ("b",), ("b",), ("q",)], 3)
    assert odds == pytest.approx((2.5 / 5, 1.5 / 5, 0.5 / 5))
