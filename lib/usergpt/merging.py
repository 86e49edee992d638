"""From free-form labels to few: synonyms, union of nearest neighbours, rare labels to their nearest cluster.

The paper's post-processing (section 3) without its manual cleaning; it gives no encoder, k or threshold, so these are
parameters here. Two labels are joined where each is among the other's k nearest and their cosine is at least the
threshold (one-sided neighbours would chain everything to the commonest label).
"""

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

SYNONYMS = {
    "summarisation": "summarization", "summary": "summarization", "summarizing": "summarization",
    "q&a": "question answering", "qa": "question answering", "answering questions": "question answering",
    "proofreading": "editing", "rewriting": "editing", "paraphrasing": "editing", "rephrasing": "editing",
    "coding": "programming", "code writing": "code generation", "programming assistance": "coding assistance",
    "coding help": "coding assistance", "bug fixing": "debugging", "troubleshooting": "debugging",
    "brainstorming": "idea generation", "ideation": "idea generation", "recommendation": "advice",
    "suggestion": "advice", "recommendations": "advice", "email": "e-mail", "mail": "e-mail",
    "translating": "translation", "explaining": "explanation", "assessment": "evaluation", "review": "evaluation",
}  # fmt: skip


@dataclass(frozen=True)
class Merge:
    """Cluster name of each distinct label, and how many were left after each step."""

    names: dict[str, str]
    counts: dict[str, int]

    def compression(self, step: str = "rare joined") -> float:
        """Distinct labels before over after a step (all steps by default)."""
        return self.counts["raw"] / self.counts[step]


def synonym(label: str) -> str:
    """Bring a label to its common form: whole label first, then word by word, plurals of the last word dropped."""
    label = " ".join(re.findall(r"[\w&+#-]+", label.lower()))
    label = SYNONYMS.get(label) or " ".join(SYNONYMS.get(word, word) for word in label.split())
    return re.sub(r"(?<=[a-z]{3})(?<![sui])s$", "", label)


def mutual_neighbour_groups(embeddings: Float[np.ndarray, "labels dim"], *, k: int, threshold: float) -> list[int]:
    """Number the group of each label: connected where each is among the other's `k` nearest with cosine ≥ threshold."""
    from scipy.sparse import csr_matrix
    from scipy.sparse.csgraph import connected_components
    from sklearn.neighbors import NearestNeighbors

    count = len(embeddings)
    if count < 2:
        return list(range(count))
    search = NearestNeighbors(n_neighbors=min(k + 1, count), metric="cosine").fit(embeddings)
    distances, neighbours = search.kneighbors(embeddings)
    rows = np.repeat(np.arange(count), neighbours.shape[1])
    near = (distances.ravel() <= 1 - threshold) & (rows != neighbours.ravel())
    graph = csr_matrix((np.ones(near.sum()), (rows[near], neighbours.ravel()[near])), shape=(count, count))
    return connected_components(graph.multiply(graph.T), directed=False)[1].tolist()


def merge_labels(
    counts: Mapping[str, int],
    embeddings: Mapping[str, np.ndarray],
    *,
    k: int = 5,
    threshold: float = 0.75,
    rare_below: int = 3,
) -> Merge:
    """Merge labels with their counts; `embeddings` holds a unit vector for the common form of each.

    A cluster is named by its commonest label. Raises ValueError for no labels at all.
    """
    if not counts:
        raise ValueError("there are no labels to merge: annotate some conversations first")
    common = {label: synonym(label) for label in counts}
    totals: Counter[str] = Counter()
    for label, count in counts.items():
        totals[common[label]] += count
    forms = sorted(totals)
    vectors = np.stack([embeddings[form] for form in forms])
    groups = np.array(mutual_neighbour_groups(vectors, k=k, threshold=threshold))
    weights = np.array([totals[form] for form in forms], dtype=float)
    joined = _join_rare(vectors, groups, weights, rare_below)
    group_of = dict(zip(forms, joined, strict=True))
    heads = {
        group_of[form]: form for form in sorted(forms, key=lambda form: (totals[form], form))
    }  # the last one stays
    steps = {
        "raw": len(counts), "synonyms": len(forms), "neighbours joined": len(set(groups.tolist())),
        "rare joined": len(set(joined)),
    }  # fmt: skip
    return Merge({label: heads[group_of[form]] for label, form in common.items()}, steps)


def _join_rare(vectors: np.ndarray, groups: np.ndarray, weights: np.ndarray, rare_below: int) -> list[int]:
    """Groups after those with fewer than `rare_below` uses moved to the nearest one that has enough."""
    count = int(groups.max()) + 1
    size = np.bincount(groups, weights=weights, minlength=count)
    kept = np.flatnonzero(size >= rare_below)
    if not len(kept):
        return groups.tolist()
    centres = np.zeros((count, vectors.shape[1]))
    np.add.at(centres, groups, vectors * weights[:, None])
    centres /= np.linalg.norm(centres, axis=1, keepdims=True).clip(1e-12)
    nearest = kept[(centres @ centres[kept].T).argmax(axis=1)]
    return np.where(size[groups] >= rare_below, groups, nearest[groups]).tolist()
