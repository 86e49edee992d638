"""Speed of the parts that a large corpus spends its time in, each against a plain way of doing the same.

Real requests, embeddings and gold labels throughout. Ratios are ours / peer in seconds, so smaller is better.
"""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch

from lib import zoo
from lib.core.statistics import bootstrap_weights
from lib.usergpt.conversations import ConversationReader, draw
from lib.usergpt.merging import mutual_neighbour_groups
from lib.usergpt.study.comparison import nearest_cosine
from lib.usergpt.taxonomy import OTHER, load_gold, load_taxonomy


def cases(*, quick: bool = False) -> Iterator[dict[str, Any]]:
    """Yield the cases; `quick` is the smallest."""
    yield _encoding(24 if quick else 192)
    points = _embeddings(60 if quick else 3000)
    yield _merging(points)
    yield _coverage(points, points[: len(points) // 3])
    yield _resampling(20 if quick else 500)


def _requests(count: int, characters: int) -> list[str]:
    corpus = draw(ConversationReader(zoo.stream_dataset("sharegpt", "test")), count, salt="bench")
    return [conversation.excerpt(characters) for conversation in corpus]


def _encoding(count: int) -> dict[str, Any]:
    """Requests embedded in batches of like length, and in batches as they come (padded to their longest)."""
    encoder, texts = zoo.load_encoder(), _requests(count, 480)

    def as_they_come() -> torch.Tensor:
        return torch.cat([encoder.encode(texts[i : i + 32], batch_size=32) for i in range(0, len(texts), 32)])

    return {
        "name": f"{count} requests embedded", "unit": "s", "ours": lambda: encoder.encode(texts, batch_size=32),
        "peer": as_they_come, "peer_name": "batches in the corpus's order", "goal": 1.0,
    }  # fmt: skip


def _embeddings(count: int) -> np.ndarray:
    """Unit embeddings [count, dim] of the first words of real requests, as short as free-form labels are."""
    points = zoo.load_encoder().encode(_requests(count, 40), batch_size=64).float().numpy()
    return points / np.linalg.norm(points, axis=1, keepdims=True)


def _merging(points: np.ndarray) -> dict[str, Any]:
    from sklearn.cluster import AgglomerativeClustering

    options: Any = {"n_clusters": None, "distance_threshold": 0.25}
    peer = AgglomerativeClustering(metric="cosine", linkage="average", **options)
    return {
        "name": f"{len(points)} labels merged", "unit": "s",
        "ours": lambda: mutual_neighbour_groups(points, k=5, threshold=0.75), "peer": lambda: peer.fit(points),
        "peer_name": "scikit-learn's average linkage", "goal": 1.0,
    }  # fmt: skip


def _coverage(asked: np.ndarray, known: np.ndarray) -> dict[str, Any]:
    from sklearn.neighbors import NearestNeighbors

    peer = NearestNeighbors(n_neighbors=1, metric="cosine").fit(known)
    return {
        "name": f"nearest of {len(known)} prompts for {len(asked)} requests", "unit": "s",
        "ours": lambda: nearest_cosine(asked, known), "peer": lambda: peer.kneighbors(asked),
        "peer_name": "scikit-learn's NearestNeighbors", "goal": 1.0,
    }  # fmt: skip


def _resampling(resamples: int) -> dict[str, Any]:
    """Shares of the gold labels' task types with intervals over threads: one matrix product, and a loop of draws."""
    taxonomy = load_taxonomy()
    gold = load_gold(taxonomy)
    codes = [*taxonomy.codes("tasks"), OTHER]
    labels = np.array([[code in label.tasks for code in codes] for label in gold.values()], dtype=np.float64)
    groups = [name.rsplit("_", 1)[0] for name in gold]
    rows = [np.flatnonzero(np.array(groups) == name) for name in sorted(set(groups))]

    def one_by_one() -> np.ndarray:
        rng = np.random.default_rng(0)
        drawn = (rng.integers(0, len(rows), len(rows) - 1) for _ in range(resamples))
        return np.stack([labels[np.concatenate([rows[i] for i in picked])].mean(axis=0) for picked in drawn])

    ours: Callable[[], Any] = lambda: bootstrap_weights(groups, resamples=resamples) @ labels  # noqa: E731
    return {
        "name": f"shares of {len(labels)} labels in {resamples} resamples of threads", "unit": "s", "ours": ours,
        "peer": one_by_one, "peer_name": "one resample after another", "goal": 1.0,
    }  # fmt: skip
