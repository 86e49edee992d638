"""Retrieval of functions for a question (and plan): a sentence encoder, tuned contrastively, beside BM25.

`F_k = topk cos(E(question, plan), E(function))` of arXiv:2402.11451; in-batch negatives as in DPR (arXiv:2004.04906).
"""

import copy
import random
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from lib.core import training
from lib.core.scoring import mean_pooled
from lib.sciagent.tools import Toolset

TEMPERATURE = 0.05  # of the contrastive loss, as sentence encoders are commonly tuned
LONGEST_TOKENS = 96


def low_precision(encoder: Any, dtype: torch.dtype) -> torch.autocast:
    """Make the context in which an encoder computes in `dtype`; in float32 it changes nothing."""
    device = getattr(getattr(encoder, "model", None), "device", torch.device("cpu")).type
    return torch.autocast(device, dtype=dtype, enabled=dtype != torch.float32)


def words(text: str) -> list[str]:
    """List lower-case words of two letters or more, without the plural's s."""
    return [w.rstrip("s") or w for w in re.findall(r"[a-z]{2,}", text.lower())]


class Index(ABC):
    """Functions by name that queries are scored against."""

    names: list[str]

    @abstractmethod
    def scores(self, queries: Sequence[str]) -> Float[Tensor, "queries functions"]:
        """Score each function for each query, higher for better."""

    def search(self, queries: Sequence[str], k: int) -> list[list[str]]:
        """List the names of the k best functions of each query, best first."""
        best = self.scores(queries).topk(min(k, len(self.names)), dim=1).indices
        return [[self.names[int(j)] for j in row] for row in best.tolist()]


class EncoderIndex(Index):
    """Functions by the embedding of their text; exact search by one matrix product.

    `dtype` is what the encoder computes in ("bfloat16" is faster where the processor has it); vectors are float32.
    `vectors` of the texts are taken where they are known already (an earlier index's), and computed where not. Raises
    ValueError where there is not one for each name.
    """

    def __init__(
        self, encoder: Any, names: Sequence[str], texts: Sequence[str], *, dtype: str = "float32",
        vectors: Float[Tensor, "texts dim"] | None = None,
    ) -> None:  # fmt: skip
        self.encoder, self.names, self.dtype = encoder, list(names), getattr(torch, dtype)
        self.vectors = self._encode(texts) if vectors is None else vectors
        if len(self.vectors) != len(self.names):
            raise ValueError(f"{len(self.vectors)} vectors for {len(self.names)} functions: give one for each")

    def _encode(self, texts: Sequence[str]) -> Float[Tensor, "texts dim"]:
        with low_precision(self.encoder, self.dtype):
            return self.encoder.encode(texts)

    def scores(self, queries: Sequence[str]) -> Float[Tensor, "queries functions"]:
        """Return the cosine of each query with each function."""
        return self._encode(queries) @ self.vectors.T


class WordIndex(Index):
    """Functions by BM25 (Okapi), as a sparse matrix so that a batch of queries is one product."""

    def __init__(self, names: Sequence[str], texts: Sequence[str]) -> None:
        from rank_bm25 import BM25Okapi
        from scipy.sparse import csr_array

        self.names = list(names)
        documents = [words(text) or ["-"] for text in texts]
        bm25 = BM25Okapi(documents)
        self.vocabulary = {word: i for i, word in enumerate(bm25.idf)}
        rows, columns, values = [], [], []
        for row, (frequencies, length) in enumerate(zip(bm25.doc_freqs, bm25.doc_len, strict=True)):
            for word, count in frequencies.items():
                norm = count + bm25.k1 * (1 - bm25.b + bm25.b * length / bm25.avgdl)
                rows.append(row)
                columns.append(self.vocabulary[word])
                values.append(bm25.idf[word] * count * (bm25.k1 + 1) / norm)
        self.weights = csr_array((values, (columns, rows)), shape=(len(self.vocabulary), len(documents)))

    def scores(self, queries: Sequence[str]) -> Float[Tensor, "queries functions"]:
        """Return the BM25 score of each function for each query."""
        from scipy.sparse import csr_array

        entries = [(i, self.vocabulary[w]) for i, q in enumerate(queries) for w in words(q) if w in self.vocabulary]
        rows, columns = zip(*entries, strict=True) if entries else ((), ())
        counts = csr_array((np.ones(len(rows)), (rows, columns)), shape=(len(queries), len(self.vocabulary)))
        return torch.from_numpy((counts @ self.weights).toarray()).float()


class HybridIndex(Index):
    """Both, each query's scores put on one scale (zero mean, unit spread), then added; `weight` is the encoder's."""

    def __init__(self, dense: EncoderIndex, sparse: WordIndex, weight: float = 0.7) -> None:
        self.dense, self.sparse, self.weight, self.names = dense, sparse, weight, dense.names

    def scores(self, queries: Sequence[str]) -> Float[Tensor, "queries functions"]:
        """Return the weighted sum of standardised scores."""
        dense, sparse = (_standardised(index.scores(queries)) for index in (self.dense, self.sparse))
        return self.weight * dense + (1 - self.weight) * sparse


def hybrid(encoder: Any, *, dtype: str = "float32") -> Callable[[Toolset], HybridIndex]:
    """Make what indexes a toolset, for `agent.SciAgent`: an encoder and BM25 over the tools' texts."""

    def index(tools: Toolset) -> HybridIndex:
        names, texts = [tool.name for tool in tools], [tool.indexed() for tool in tools]
        return HybridIndex(EncoderIndex(encoder, names, texts, dtype=dtype), WordIndex(names, texts))

    return index


def rank_odds(found: Sequence[Sequence[str]], wanted: Sequence[Sequence[str]], k: int) -> tuple[float, ...]:
    """Return how often the right function stood at each of the first k ranks, for `agent.Action`.

    `found` are the names that a search gave each question, best first; `wanted` those that serve it. A rank that never
    held one counts as if once in two questions more (add-half), so that none is ruled out.
    """
    rows = zip(found, wanted, strict=True)
    ranks = [next((i for i, name in enumerate(names[:k]) if name in right), k) for names, right in rows]
    return tuple((ranks.count(rank) + 0.5) / (len(ranks) + 1) for rank in range(k))


def _standardised(scores: Float[Tensor, "queries functions"]) -> Float[Tensor, "queries functions"]:
    return (scores - scores.mean(1, keepdim=True)) / scores.std(1, keepdim=True).clamp_min(1e-6)


def tune(
    encoder: Any, queries: Sequence[str], positives: Sequence[str], negatives: Sequence[Sequence[str]], *, steps: int,
    batch_size: int = 32, learning_rate: float = 3e-5, dtype: str = "float32", seed: int = 0, progress: bool = False,
) -> Any:  # fmt: skip
    """Tune a copy of a sentence encoder (`lib.zoo.load_encoder`) so that queries lie near their function's text.

    Each query is told apart from the batch's other functions and from one hard negative of its own (texts in
    `negatives`, which may be empty). Texts of one function are never each other's negatives. `dtype` is what is
    computed in ("bfloat16": half the time where the processor has it); weights are float32.
    """
    tuned = copy.copy(encoder)
    tuned.model = copy.deepcopy(encoder.model)
    draw = random.Random(seed)

    def batches() -> Iterator[list[int]]:
        order: list[int] = []
        for _ in range(steps):
            if len(order) < batch_size:
                order = draw.sample(range(len(queries)), len(queries))
            yield order[:batch_size]
            order = order[batch_size:]

    def loss(batch: list[int]) -> Float[Tensor, ""]:
        with low_precision(tuned, getattr(torch, dtype)):
            return contrastive_loss(tuned, batch, queries, positives, negatives, draw)

    training.train(
        tuned.model, batches(), loss, steps=steps, learning_rate=learning_rate, weight_decay=0.01,
        rate=partial(training.linear_rate, warmup=5), label="tune retriever", progress=progress,
    )  # fmt: skip
    return tuned


def contrastive_loss(
    encoder: Any, batch: Sequence[int], queries: Sequence[str], positives: Sequence[str],
    negatives: Sequence[Sequence[str]], draw: random.Random,
) -> Float[Tensor, ""]:  # fmt: skip
    """Compute the cross-entropy of each query's own function among the batch's functions and hard negatives."""
    hard = [draw.choice(negatives[i]) for i in batch if negatives[i]]
    texts = [positives[i] for i in batch] + hard
    query, function = embed(encoder, [queries[i] for i in batch]), embed(encoder, texts)
    scores = query @ function.T / TEMPERATURE
    repeated = [[texts[j] == texts[i] and i != j for j in range(len(texts))] for i in range(len(batch))]
    same, own = torch.tensor(repeated, device=scores.device), torch.arange(len(batch), device=scores.device)
    return torch.nn.functional.cross_entropy(scores.masked_fill(same, -torch.inf), own)


def embed(encoder: Any, texts: Sequence[str]) -> Float[Tensor, "texts dim"]:
    """Embed texts with gradients: mean over tokens, unit length, as `Encoder.encode` has them without."""
    inputs = encoder.tokenizer(
        list(texts), padding=True, truncation=True, max_length=LONGEST_TOKENS, return_tensors="pt"
    ).to(encoder.model.device)
    pooled = mean_pooled(encoder.model(**inputs).last_hidden_state, inputs["attention_mask"])
    return torch.nn.functional.normalize(pooled, dim=-1)
