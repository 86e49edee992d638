"""Labels of people teach zero-shot scores what they are worth: a logistic regression for each label.

Scores by similarity rank labels well enough but are not probabilities, and some labels are near to everything. A few
hundred labelled conversations mend that. `cross_fit` predicts each labelled one from the others, so that quality and
corrected shares are never measured on what was fitted.
"""

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
from jaxtyping import Float

from lib import TenfoldError
from lib.usergpt.annotation import Annotation
from lib.usergpt.conversations import Conversation, batched
from lib.usergpt.gold import GoldLabel, labels_of
from lib.usergpt.taxonomy import OTHER, Kind
from lib.usergpt.zero_shot import EmbeddingAnnotator

SCALE = 20.0  # cosines span a few tenths: brought to units, so that the regression's penalty is of the usual size


def indicator(labels: Sequence[GoldLabel], codes: Sequence[str], kind: Kind) -> Float[np.ndarray, "items labels"]:
    """1 where an item carries a label [items, labels]."""
    place = {code: i for i, code in enumerate(codes)}
    found = np.zeros((len(labels), len(codes)))
    for row, label in enumerate(labels):
        for code in labels_of(label, kind):
            found[row, place[code]] = 1.0
    return found


class Calibration:
    """Probability of each label from zero-shot scores; a label with fewer than two examples gets its frequency."""

    def __init__(self, *, strength: float = 0.1) -> None:
        self.strength = strength
        self.models: list = []

    def fit(self, scores: Float[np.ndarray, "items scores"], labels: Float[np.ndarray, "rows labels"]) -> "Calibration":
        """Fit on labelled items; raises TenfoldError where scores and labels are not of the same items."""
        from sklearn.linear_model import LogisticRegression

        if len(scores) != len(labels):
            raise TenfoldError(f"{len(scores)} scores and {len(labels)} labels: give one row of each an item.")
        self.models = []
        for column in labels.T:
            if 2 <= column.sum() <= len(column) - 2:
                model = LogisticRegression(C=self.strength, max_iter=1000).fit(SCALE * scores, column)
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
    """Probabilities of each item from a calibration that was fitted on the other folds [items, labels]."""
    fold = np.random.default_rng(seed).permutation(len(scores)) % folds
    found = np.zeros_like(labels)
    for part in range(folds):
        found[fold == part] = (
            Calibration().fit(scores[fold != part], labels[fold != part]).predict(scores[fold == part])
        )
    return found


def main_labels(probabilities: Float[np.ndarray, "items labels"], codes: Sequence[str]) -> list[str]:
    """Most probable label of each item."""
    return [codes[int(i)] for i in probabilities.argmax(axis=1)]


class CalibratedAnnotator:
    """An `EmbeddingAnnotator` that was taught by labelled conversations: the most probable domain, and the task types
    that are at least `threshold` probable (always the most probable one).
    """

    def __init__(
        self,
        base: EmbeddingAnnotator,
        conversations: Sequence[Conversation],
        gold: Sequence[GoldLabel],
        *,
        threshold: float = 0.3,
    ) -> None:
        self.base, self.threshold = base, threshold
        self.codes = {"tasks": (*base.tasks.codes, OTHER), "domains": (*base.domains.codes, OTHER)}
        scores = self.scores(conversations)
        self.tasks = Calibration().fit(scores["tasks"], indicator(gold, self.codes["tasks"], "tasks"))
        self.domains = Calibration().fit(scores["domains"], indicator(gold, self.codes["domains"], "domains"))

    def scores(self, conversations: Sequence[Conversation]) -> dict[str, np.ndarray]:
        """Zero-shot scores of conversations for both kinds of label."""
        embeddings = self.base.embed(conversations)
        return {
            "tasks": self.base.tasks.scores(embeddings).numpy(),
            "domains": self.base.domains.scores(embeddings).numpy(),
        }

    def annotate(self, conversations: Iterable[Conversation]) -> Iterator[Annotation]:
        """Yield one annotation for each conversation, batch by batch."""
        for batch in batched(conversations, 8 * self.base.batch_size):
            scores = self.scores(batch)
            tasks = self.tasks.predict(scores["tasks"])
            domains = main_labels(self.domains.predict(scores["domains"]), self.codes["domains"])
            for conversation, domain, row in zip(batch, domains, tasks, strict=True):
                order = row.argsort()[::-1][:3]
                kept = [self.codes["tasks"][i] for i in order if i == order[0] or row[i] >= self.threshold]
                named = tuple(code for code in kept if code != OTHER)
                yield Annotation(conversation.id, None if domain == OTHER else domain, named)
