"""Speed of the parts that a large corpus spends its time in, each against a plain way of doing the same.

Ratios are ours / peer in seconds, so smaller is better.
"""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch

from lib import zoo
from lib.usergpt.compare import bootstrap_weights, nearest_cosine
from lib.usergpt.conversations import ConversationReader, draw
from lib.usergpt.labels import mutual_neighbour_groups


def cases(*, quick: bool = False) -> Iterator[dict[str, Any]]:
    """Yield the cases; `quick` is the smallest."""
    yield _encoding(24 if quick else 192)
    yield _merging(200 if quick else 4000)
    yield _coverage(*(200, 100) if quick else (17_000, 1200))
    yield _resampling(200 if quick else 3000, 20 if quick else 500)


def _encoding(count: int) -> dict[str, Any]:
    """Requests embedded in batches of like length, and in batches as they come (padded to their longest)."""
    encoder = zoo.load_encoder()
    corpus = draw(ConversationReader(zoo.stream_dataset("sharegpt", "test")), count, salt="bench")
    texts = [conversation.excerpt(480) for conversation in corpus]

    def as_they_come() -> torch.Tensor:
        return torch.cat([encoder.encode(texts[i : i + 32], batch_size=32) for i in range(0, len(texts), 32)])

    return {
        "name": f"{count} requests embedded", "unit": "s", "ours": lambda: encoder.encode(texts, batch_size=32),
        "peer": as_they_come, "peer_name": "batches in the corpus's order", "goal": 1.0,
    }  # fmt: skip


def _unit(count: int, seed: int, dim: int = 384) -> np.ndarray:
    found = np.random.default_rng(seed).normal(size=(count, dim)).astype(np.float32)
    return found / np.linalg.norm(found, axis=1, keepdims=True)


def _merging(count: int) -> dict[str, Any]:
    from sklearn.cluster import AgglomerativeClustering

    points = _unit(count // 10, 0).repeat(10, axis=0) + 0.3 * _unit(count // 10 * 10, 1)
    points /= np.linalg.norm(points, axis=1, keepdims=True)
    options: Any = {"n_clusters": None, "distance_threshold": 0.25}
    peer = AgglomerativeClustering(metric="cosine", linkage="average", **options)
    return {
        "name": f"{len(points)} labels merged", "unit": "s",
        "ours": lambda: mutual_neighbour_groups(points, k=5, threshold=0.75), "peer": lambda: peer.fit(points),
        "peer_name": "scikit-learn's average linkage", "goal": 1.0,
    }  # fmt: skip


def _coverage(requests: int, prompts: int) -> dict[str, Any]:
    from sklearn.neighbors import NearestNeighbors

    asked, known = _unit(requests, 2), _unit(prompts, 3)
    peer = NearestNeighbors(n_neighbors=1, metric="cosine").fit(known)
    return {
        "name": f"nearest of {prompts} prompts for {requests} requests", "unit": "s",
        "ours": lambda: nearest_cosine(asked, known), "peer": lambda: peer.kneighbors(asked),
        "peer_name": "scikit-learn's NearestNeighbors", "goal": 1.0,
    }  # fmt: skip


def _resampling(items: int, resamples: int) -> dict[str, Any]:
    labels = np.eye(22)[np.random.default_rng(4).integers(0, 22, items)]
    groups = [str(i // 2) for i in range(items)]
    rows = [np.flatnonzero(np.array(groups) == name) for name in sorted(set(groups))]

    def one_by_one() -> np.ndarray:
        rng = np.random.default_rng(0)
        return np.stack(
            [
                labels[np.concatenate([rows[i] for i in rng.integers(0, len(rows), len(rows))])].mean(axis=0)
                for _ in range(resamples)
            ]
        )

    ours: Callable[[], Any] = lambda: bootstrap_weights(groups, resamples=resamples) @ labels  # noqa: E731
    return {
        "name": f"shares of {items} items in {resamples} resamples of threads", "unit": "s", "ours": ours,
        "peer": one_by_one, "peer_name": "one resample after another", "goal": 1.0,
    }  # fmt: skip
