"""Unsupervised topics as a second view: clusters of embeddings with names from class TF-IDF, in a hierarchy.

Names are the words whose frequency in a cluster stands out against the other clusters (class TF-IDF,
arXiv:2203.05794); verbs of requests ("write", "explain") are left out, since they name tasks. Clusters below a minimum
size are never shown: their members stand as one remainder.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from lib.usergpt.privacy import mask
from lib.usergpt.study.requests import VERBS

WISHES = frozenset(
    "using used please like want need know let sure does did doing going new good make thank thanks".split()
)
HIDDEN = -1  # members of clusters that are too small to be shown


@dataclass(frozen=True)
class Cluster:
    """One cluster: its number, size, name, and the branch of the hierarchy it hangs on."""

    number: int
    size: int
    name: str
    branch: int


@dataclass(frozen=True)
class Topics:
    """Cluster of each text (HIDDEN where it is too small), the clusters, and the names of the branches."""

    member: np.ndarray
    clusters: tuple[Cluster, ...]
    branches: dict[int, str]

    def branch_of(self) -> Int[np.ndarray, "texts"]:
        """Branch of each text, HIDDEN where its cluster is too small."""
        place = {cluster.number: cluster.branch for cluster in self.clusters}
        return np.array([place.get(int(m), HIDDEN) for m in self.member])


def find_topics(
    embeddings: Float[np.ndarray, "texts dim"],
    texts: Sequence[str],
    *,
    clusters: int = 40,
    branches: int = 8,
    minimum: int = 10,
    seed: int = 0,
) -> Topics:
    """Find the topics of texts by k-means on unit embeddings, joined by Ward linkage of their centres into branches.

    Raises ValueError for fewer texts than clusters, or a minimum that hides everything.
    """
    from sklearn.cluster import AgglomerativeClustering, KMeans

    if len(texts) < clusters:
        raise ValueError(f"{len(texts)} texts do not make {clusters} clusters: ask for fewer")
    options: Any = {"n_init": 2}  # the stub knows only its text values
    fitted = KMeans(clusters, random_state=seed, **options)
    assigned = fitted.fit_predict(embeddings)
    sizes = np.bincount(assigned, minlength=clusters)
    shown = np.flatnonzero(sizes >= minimum)
    if len(shown) == 0:
        raise ValueError(f"no cluster has {minimum} members: ask for fewer clusters or a smaller minimum")
    member = np.where(sizes[assigned] >= minimum, assigned, HIDDEN)
    names = name_clusters(texts, member)
    if len(shown) > branches:
        tree = AgglomerativeClustering(branches).fit_predict(fitted.cluster_centers_[shown])
    else:
        tree = np.arange(len(shown))
    place = dict(zip(shown.tolist(), tree.tolist(), strict=True))
    listed = tuple(Cluster(number, int(sizes[number]), names[number], place[number]) for number in shown.tolist())
    branch = np.array([place.get(int(m), HIDDEN) for m in member])
    return Topics(member, listed, name_clusters(texts, branch))


def name_clusters(
    texts: Sequence[str], member: Int[np.ndarray, "texts"], *, words: int = 3, texts_at_least: int = 3
) -> dict[int, str]:
    """Name each cluster: its Latin-script `words` of greatest class TF-IDF, each used by `texts_at_least` texts."""
    from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS, CountVectorizer

    counter = CountVectorizer(
        stop_words=sorted(ENGLISH_STOP_WORDS | VERBS | WISHES), token_pattern=r"\b[a-zà-ÿ]{3,}\b", binary=True,
        min_df=min(texts_at_least, max(1, len(texts) // 20)), max_df=0.5, max_features=8000,
    )  # fmt: skip
    table = counter.fit_transform([mask(text) for text in texts])
    vocabulary = counter.get_feature_names_out()
    numbers = [number for number in np.unique(member).tolist() if number != HIDDEN]
    counts = np.stack([np.asarray(table[np.flatnonzero(member == n)].sum(axis=0)).ravel() for n in numbers])
    share = counts / counts.sum(axis=1, keepdims=True).clip(1)
    weight = np.log1p(counts.sum() / len(numbers) / counts.sum(axis=0).clip(1))
    best = (share * weight).argsort(axis=1)[:, ::-1][:, :words]
    return {number: ", ".join(vocabulary[row]) for number, row in zip(numbers, best, strict=True)}


def flat_map(
    embeddings: Float[np.ndarray, "texts dim"], *, seed: int = 0, perplexity: float = 30.0
) -> Float[np.ndarray, "texts 2"]:
    """Place texts on a plane (t-SNE of their first principal components): for the eye only."""
    from sklearn.decomposition import PCA
    from sklearn.manifold import TSNE

    reduced = PCA(min(30, *embeddings.shape), random_state=seed).fit_transform(embeddings)
    return TSNE(perplexity=min(perplexity, (len(embeddings) - 1) / 3), random_state=seed).fit_transform(reduced)
