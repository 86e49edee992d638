"""Zero-shot labels by similarity: a request is compared with the texts that stand for each label of a taxonomy.

No training, no language model: what the `cpu` profile uses where a small chat model cannot annotate. The score of a
label is the mean of its `nearest` best cosines; labels that are near to everything are held back by `centre`.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from lib import TenfoldError
from lib.usergpt.annotation import Annotation
from lib.usergpt.conversations import Conversation, batched
from lib.usergpt.encoders import SentenceEncoder
from lib.usergpt.taxonomy import Kind, Taxonomy, Wording


@dataclass(frozen=True)
class Cut:
    """When a score is a label: at least `threshold`, and at most `margin` below the best; below: abstain."""

    threshold: float
    margin: float = 0.0
    most: int = 3


class LabelSpace:
    """Texts of one kind of label as embeddings; scores texts against each label."""

    def __init__(
        self,
        taxonomy: Taxonomy,
        kind: Kind,
        encoder: SentenceEncoder,
        *,
        wording: Wording = "examples",
        nearest: int = 2,
    ) -> None:
        texts = taxonomy.texts(kind, wording)
        self.codes, self.nearest = tuple(texts), nearest
        self.sizes = [len(found) for found in texts.values()]
        self.embeddings = encoder.encode([text for found in texts.values() for text in found])
        self.centre: Tensor | None = None

    def scores(self, embeddings: Float[Tensor, "texts dim"]) -> Float[Tensor, "texts labels"]:
        """Score of each label: mean of its `nearest` best cosines, less the label's mean over `fit_centre`'s texts."""
        parts = (embeddings @ self.embeddings.T).split(self.sizes, dim=1)
        best = [part.topk(min(self.nearest, part.shape[1]), dim=1).values.mean(dim=1) for part in parts]
        found = torch.stack(best, dim=1)
        return found if self.centre is None else found - self.centre

    def fit_centre(self, embeddings: Float[Tensor, "texts dim"]) -> None:
        """Take each label's mean score over a sample of texts as its zero (needs no labels)."""
        self.centre = None
        self.centre = self.scores(embeddings).mean(dim=0)


def choose(scores: Float[Tensor, "texts labels"], codes: Sequence[str], cut: Cut) -> list[tuple[str, ...]]:
    """Labels of each text, best first; an empty tuple is an abstention."""
    ranked = scores.sort(dim=1, descending=True)
    found = []
    for values, indices in zip(ranked.values[:, : cut.most].tolist(), ranked.indices.tolist(), strict=True):
        keep = [v >= max(cut.threshold, values[0] - cut.margin) for v in values]
        found.append(tuple(codes[i] for i, kept in zip(indices, keep, strict=False) if kept))
    return found


class EmbeddingAnnotator:
    """Labels conversations by similarity to a taxonomy: several task types or none, one domain or none.

    `characters` of the human turns are read. Raises TenfoldError for a threshold that no cosine can reach.
    """

    def __init__(
        self,
        encoder: SentenceEncoder,
        taxonomy: Taxonomy,
        *,
        task_cut: Cut,
        domain_cut: Cut,
        wording: Wording = "examples",
        characters: int = 480,
        batch_size: int = 64,
    ) -> None:
        for cut in (task_cut, domain_cut):
            if not -1 <= cut.threshold < 1 or cut.margin < 0:
                raise TenfoldError(
                    f"a cut at {cut.threshold} with margin {cut.margin} labels nothing: give a threshold in [-1, 1) "
                    "and a margin from 0."
                )
        self.encoder, self.characters, self.batch_size = encoder, characters, batch_size
        self.tasks = LabelSpace(taxonomy, "tasks", encoder, wording=wording)
        self.domains = LabelSpace(taxonomy, "domains", encoder, wording=wording)
        self.task_cut, self.domain_cut = task_cut, domain_cut

    def embed(self, conversations: Sequence[Conversation], *, progress: bool = False) -> Float[Tensor, "texts dim"]:
        """Embeddings of the conversations' excerpts."""
        texts = [conversation.excerpt(self.characters) for conversation in conversations]
        return self.encoder.encode(texts, batch_size=self.batch_size, progress=progress)

    def from_embeddings(self, identities: Sequence[str], embeddings: Float[Tensor, "texts dim"]) -> list[Annotation]:
        """Annotations of conversations whose embeddings are known."""
        tasks = choose(self.tasks.scores(embeddings), self.tasks.codes, self.task_cut)
        domains = choose(self.domains.scores(embeddings), self.domains.codes, self.domain_cut)
        rows = zip(identities, tasks, domains, strict=True)
        return [Annotation(identity, domain[0] if domain else None, task) for identity, task, domain in rows]

    def annotate(self, conversations: Iterable[Conversation]) -> Iterator[Annotation]:
        """Yield one annotation for each conversation, batch by batch."""
        for batch in batched(conversations, 8 * self.batch_size):
            yield from self.from_embeddings([c.id for c in batch], self.embed(batch))
