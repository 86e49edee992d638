"""Labels by similarity: a request is compared with the texts that stand for each label of a taxonomy.

No language model. The zero-shot score of a label is the mean of its `nearest` best cosines. Such scores rank labels
well enough but are not probabilities, and some labels are near to everything: a few hundred labels of people teach what
scores are worth, by a logistic regression for each label. `cross_fit` predicts each labelled conversation from the
others, so that quality and corrected shares are never measured on what was fitted.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from lib.core.store import key_of
from lib.usergpt.conversations import Annotation, Conversation, batched
from lib.usergpt.taxonomy import OTHER, GoldLabel, Kind, Taxonomy, Wording, labels_of

SCALE = 20.0  # cosines span a few tenths: brought to units, so that the regression's penalty is of the usual size
STRENGTH = 0.1  # of the regression's penalty, as its inverse
WEIGHT = 0.3  # of the embeddings beside the scores


@runtime_checkable
class SentenceEncoder(Protocol):
    """Anything that gives unit-length embeddings of texts."""

    def encode(self, texts: Sequence[str], *, batch_size: int = 64, progress: bool = False) -> Any:
        """Embeddings [texts, dim]."""
        ...


@dataclass(frozen=True)
class Cut:
    """When a score is a label: at least `threshold`, and at most `margin` below the best; below: abstain."""

    threshold: float
    margin: float = 0.0
    most: int = 3


class LabelSpace:
    """Texts of one kind of label as embeddings; scores texts against each label."""

    def __init__(
        self, taxonomy: Taxonomy, kind: Kind, encoder: SentenceEncoder, *,
        wording: Wording = "examples", nearest: int = 2,
    ) -> None:  # fmt: skip
        texts = taxonomy.texts(kind, wording)
        self.codes, self.nearest = tuple(texts), nearest
        self.sizes = [len(own) for own in texts.values()]
        self.embeddings = encoder.encode([text for own in texts.values() for text in own])

    def scores(self, embeddings: Float[Tensor, "texts dim"]) -> Float[Tensor, "texts labels"]:
        """Score of each label: mean of its `nearest` best cosines."""
        parts = (embeddings @ self.embeddings.T).split(self.sizes, dim=1)
        best = [part.topk(min(self.nearest, part.shape[1]), dim=1).values.mean(dim=1) for part in parts]
        return torch.stack(best, dim=1)


def choose(scores: Float[Tensor, "texts labels"], codes: Sequence[str], cut: Cut) -> list[tuple[str, ...]]:
    """Choose the labels of each text, best first; an empty tuple is an abstention."""
    ranked = scores.sort(dim=1, descending=True)
    chosen = []
    for values, indices in zip(ranked.values[:, : cut.most].tolist(), ranked.indices.tolist(), strict=True):
        lowest = max(cut.threshold, values[0] - cut.margin)
        chosen.append(tuple(codes[i] for i, value in zip(indices, values, strict=False) if value >= lowest))
    return chosen


class EmbeddingAnnotator:
    """Labels conversations by similarity to a taxonomy: several task types or none, one domain or none.

    `characters` of the human turns are read. Raises ValueError for a threshold that no cosine can reach.
    """

    def __init__(
        self, encoder: SentenceEncoder, taxonomy: Taxonomy, *, task_cut: Cut, domain_cut: Cut,
        characters: int = 480, batch_size: int = 64,
    ) -> None:  # fmt: skip
        for cut in (task_cut, domain_cut):
            if not -1 <= cut.threshold < 1 or cut.margin < 0:
                raise ValueError(
                    f"a cut at {cut.threshold} with margin {cut.margin} labels nothing: give a threshold in [-1, 1) "
                    "and a margin from 0"
                )
        self.encoder, self.taxonomy, self.characters, self.batch_size = encoder, taxonomy, characters, batch_size
        self.tasks, self.domains = (LabelSpace(taxonomy, kind, encoder) for kind in ("tasks", "domains"))
        self.task_cut, self.domain_cut = task_cut, domain_cut

    def settings(self) -> str:
        """Name what the labels hang on besides the corpus: of the encoder, its type and its model's name."""
        network = getattr(getattr(self.encoder, "model", None), "config", None)
        encoder = [type(self.encoder).__name__, Path(getattr(network, "name_or_path", "")).name]
        cuts = [[float(cut.threshold), float(cut.margin), cut.most] for cut in (self.task_cut, self.domain_cut)]
        return key_of(encoder, asdict(self.taxonomy), cuts, self.characters)

    def embed(self, conversations: Sequence[Conversation]) -> Float[Tensor, "texts dim"]:
        """Embeddings of the conversations' excerpts."""
        texts = [conversation.excerpt(self.characters) for conversation in conversations]
        return self.encoder.encode(texts, batch_size=self.batch_size)

    def annotate(self, conversations: Iterable[Conversation]) -> Iterator[Annotation]:
        """Yield one annotation for each conversation, batch by batch."""
        for batch in batched(conversations, 8 * self.batch_size):
            embeddings = self.embed(batch)
            tasks = choose(self.tasks.scores(embeddings), self.tasks.codes, self.task_cut)
            domains = choose(self.domains.scores(embeddings), self.domains.codes, self.domain_cut)
            for conversation, task, domain in zip(batch, tasks, domains, strict=True):
                yield Annotation(conversation.id, domain[0] if domain else None, task)


def indicator(labels: Sequence[GoldLabel], codes: Sequence[str], kind: Kind) -> Float[np.ndarray, "items labels"]:
    """Give 1 where an item carries a label [items, labels]."""
    return np.array([[float(code in labels_of(label, kind)) for code in codes] for label in labels])


def features(space: LabelSpace, embeddings: Float[Tensor, "items dim"]) -> Float[np.ndarray, "items features"]:
    """What a calibration reads: scores beside the embeddings, by the weight of greatest agreement within `gold`."""
    return np.hstack([space.scores(embeddings).numpy(), WEIGHT * np.asarray(embeddings)])


class Calibration:
    """Probability of each label from zero-shot scores; a label with fewer than two examples gets its frequency."""

    def fit(self, scores: Float[np.ndarray, "items scores"], labels: Float[np.ndarray, "rows labels"]) -> "Calibration":
        """Fit on labelled items; raises ValueError where scores and labels are not of the same items."""
        from sklearn.linear_model import LogisticRegression

        if len(scores) != len(labels):
            raise ValueError(f"{len(scores)} scores and {len(labels)} labels: give one row of each an item")
        self.models: list[Any] = []
        for column in labels.T:
            if 2 <= column.sum() <= len(column) - 2:
                model = LogisticRegression(C=STRENGTH, max_iter=1000).fit(SCALE * scores, column)
            else:
                model = float(column.mean())
            self.models.append(model)
        return self

    def predict(self, scores: Float[np.ndarray, "items scores"]) -> Float[np.ndarray, "items labels"]:
        """Probability of each label [items, labels]."""
        columns = [
            np.full(len(scores), model) if isinstance(model, float) else model.predict_proba(SCALE * scores)[:, 1]
            for model in self.models
        ]
        return np.stack(columns, axis=1)


def cross_fit(
    scores: Float[np.ndarray, "items scores"],
    labels: Float[np.ndarray, "items labels"],
    *,
    folds: int = 10,
    seed: int = 0,
) -> Float[np.ndarray, "items labels"]:
    """Give the probabilities of each item from a calibration that was fitted on the other folds [items, labels]."""
    fold = np.random.default_rng(seed).permutation(len(scores)) % folds
    predicted = np.zeros_like(labels)
    for part in range(folds):
        fitted = Calibration().fit(scores[fold != part], labels[fold != part])
        predicted[fold == part] = fitted.predict(scores[fold == part])
    return predicted


def main_labels(probabilities: Float[np.ndarray, "items labels"], codes: Sequence[str]) -> list[str]:
    """Name the most probable label of each item."""
    return [codes[int(i)] for i in probabilities.argmax(axis=1)]


class CalibratedAnnotator:
    """An `EmbeddingAnnotator` that was taught by labelled conversations: the most probable domain, and the task types
    that are at least `threshold` probable (always the most probable one).
    """

    def __init__(
        self, base: EmbeddingAnnotator, conversations: Sequence[Conversation], gold: Sequence[GoldLabel], *,
        threshold: float = 0.3,
    ) -> None:  # fmt: skip
        self.base, self.threshold, embeddings = base, threshold, base.embed(conversations)
        self.codes = {"tasks": (*base.tasks.codes, OTHER), "domains": (*base.domains.codes, OTHER)}
        truth = indicator(gold, self.codes["tasks"], "tasks"), indicator(gold, self.codes["domains"], "domains")
        self.tasks = Calibration().fit(features(base.tasks, embeddings), truth[0])
        self.domains = Calibration().fit(features(base.domains, embeddings), truth[1])
        self.taught = [[c.id, label.domain, *label.tasks] for c, label in zip(conversations, gold, strict=True)]

    def settings(self) -> str:
        """Name what the labels hang on besides the corpus: the base, and the labels that it was taught by."""
        return key_of("calibrated", self.base.settings(), float(self.threshold), self.taught)

    def annotate(self, conversations: Iterable[Conversation]) -> Iterator[Annotation]:
        """Yield one annotation for each conversation, batch by batch."""
        for batch in batched(conversations, 8 * self.base.batch_size):
            embeddings = self.base.embed(batch)
            tasks = self.tasks.predict(features(self.base.tasks, embeddings))
            domains = main_labels(self.domains.predict(features(self.base.domains, embeddings)), self.codes["domains"])
            for conversation, domain, row in zip(batch, domains, tasks, strict=True):
                order = row.argsort()[::-1][:3]
                kept = [self.codes["tasks"][i] for i in order if i == order[0] or row[i] >= self.threshold]
                named = tuple(code for code in kept if code != OTHER)
                yield Annotation(conversation.id, None if domain == OTHER else domain, named)
