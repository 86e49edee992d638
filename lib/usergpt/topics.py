"""Unsupervised topics as a second view: clusters of embeddings with names from class TF-IDF, in a hierarchy.

Names are the words whose frequency in a cluster stands out against the other clusters (class TF-IDF,
arXiv:2203.05794); verbs of requests ("write", "explain") are left out, since they name tasks. Clusters below a minimum
size are never shown: their members stand as one remainder.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from lib.core.chat import ChatFailed
from lib.usergpt.chat_annotator import ChatModel
from lib.usergpt.privacy import mask

VERBS = frozenset(
    "write create make give generate explain tell show summarize summarise translate rewrite rephrase paraphrase fix "
    "debug implement add change convert update find list describe suggest recommend design plan analyze analyse "
    "compare discuss evaluate review rate help build develop code program improve edit correct proofread answer solve "
    "calculate compute extract classify categorize identify provide draft outline continue finish complete expand "
    "elaborate act pretend play imagine use turn format sort remove replace modify refactor optimize optimise test "
    "check verify recount name define teach simplify shorten draw sketch prepare organize schedule estimate "
    "predict".split()
)
WISHES = frozenset(
    "using used please like want need know let sure does did doing going new good make thank thanks".split()
)
NAME = """These are requests of many people to an AI assistant, all about one topic (frequent words: {words}):
{listed}

Give the topic a short name of two to five words, in English, that would tell a stranger what these people want. Name no
person, firm or place. Answer with the name only."""
HIDDEN = -1  # members of clusters that are too small to be shown
SCRIPTS = (r"\b[a-zà-ÿ]{3,}\b", r"\b[^\W\d_]{3,}\b")  # words in Latin script, and in any


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
    namer: ChatModel | None = None,
) -> Topics:
    """Find the topics of texts by k-means on unit embeddings, joined by Ward linkage of their centres into branches.

    A `namer` names them in place of their words.

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
    names = _named(texts, member, namer)
    if len(shown) > branches:
        tree = AgglomerativeClustering(branches).fit_predict(fitted.cluster_centers_[shown])
    else:
        tree = np.arange(len(shown))
    places = zip(shown.tolist(), tree.tolist(), strict=True)
    found = Topics(member, tuple(Cluster(n, int(sizes[n]), names[n], branch) for n, branch in places), {})
    return replace(found, branches=_named(texts, found.branch_of(), namer))


def _named(texts: Sequence[str], member: Int[np.ndarray, "texts"], namer: ChatModel | None) -> dict[int, str]:
    words = name_clusters(texts, member)
    return words if namer is None else name_by_model(namer, texts, member, words)


def name_clusters(
    texts: Sequence[str], member: Int[np.ndarray, "texts"], *, words: int = 3, texts_at_least: int = 3
) -> dict[int, str]:
    """Name each cluster: its `words` of greatest class TF-IDF, each used by `texts_at_least` texts.

    They are in Latin script, or in any where a cluster has too few such; one without words is "topic" and its number.
    """
    found: dict[int, list[str]] = {number: [] for number in np.unique(member).tolist() if number != HIDDEN}
    masked = [mask(text) for text in texts]
    for script in SCRIPTS:
        if any(len(own) < words for own in found.values()):
            more = _standing_out(masked, member, list(found), script, words, texts_at_least)
            found = {number: max(own, more[number], key=len) for number, own in found.items()}
    return {number: ", ".join(own) or f"topic {number}" for number, own in found.items()}


def _standing_out(
    texts: Sequence[str], member: Int[np.ndarray, "texts"], numbers: Sequence[int], script: str, words: int, least: int
) -> dict[int, list[str]]:
    """Words of a script that each cluster holds, of greatest class TF-IDF."""
    from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS, CountVectorizer

    counter = CountVectorizer(
        stop_words=sorted(ENGLISH_STOP_WORDS | VERBS | WISHES), token_pattern=script, binary=True,
        min_df=min(least, max(1, len(texts) // 20)), max_df=0.5, max_features=8000,
    )  # fmt: skip
    try:
        table = counter.fit_transform(texts)
    except ValueError:  # no word is in so many texts
        return {number: [] for number in numbers}
    vocabulary = counter.get_feature_names_out()
    counts = np.stack([np.asarray(table[np.flatnonzero(member == n)].sum(axis=0)).ravel() for n in numbers])
    share = counts / counts.sum(axis=1, keepdims=True).clip(1)
    weight = np.log1p(counts.sum() / len(numbers) / counts.sum(axis=0).clip(1))
    best = (share * weight).argsort(axis=1)[:, ::-1][:, :words]
    rows = zip(numbers, best, counts, strict=True)
    return {number: [str(vocabulary[i]) for i in row if own[i]] for number, row, own in rows}


def name_by_model(
    model: ChatModel, texts: Sequence[str], member: Int[np.ndarray, "texts"], words: Mapping[int, str]
) -> dict[int, str]:
    """Let a chat model name each cluster from eight of its masked texts; where it says nothing short, `words` stay."""
    prompts, names = [], {}
    for number, frequent in words.items():
        own = np.flatnonzero(member == number)
        picked = own[np.linspace(0, len(own) - 1, min(8, len(own))).astype(int)]
        listed = "\n".join(f"- {mask(texts[int(i)])[:200]}" for i in picked)
        prompts.append(NAME.format(words=frequent, listed=listed))
    for (number, frequent), reply in zip(words.items(), model.complete_many(prompts), strict=True):
        said = "" if isinstance(reply, ChatFailed) else reply.text.strip().split("\n")[0].strip(" \"'*.#-")
        names[number] = said if 2 < len(said) <= 60 else frequent
    return names


def flat_map(
    embeddings: Float[np.ndarray, "texts dim"], *, seed: int = 0, perplexity: float = 30.0
) -> Float[np.ndarray, "texts 2"]:
    """Place texts on a plane (t-SNE of their first principal components): for the eye only."""
    from sklearn.decomposition import PCA
    from sklearn.manifold import TSNE

    reduced = PCA(min(30, *embeddings.shape), random_state=seed).fit_transform(embeddings)
    return TSNE(perplexity=min(perplexity, (len(embeddings) - 1) / 3), random_state=seed).fit_transform(reduced)
