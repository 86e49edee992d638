"""A sentence encoder that shares nothing with a neural one, to see which results hang on the encoder."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from sklearn.decomposition import TruncatedSVD
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.pipeline import make_pipeline
from torch import Tensor


class WordEncoder:
    """Latent semantic analysis: TF-IDF of words and word pairs, reduced by a truncated SVD of a corpus.

    Raises ValueError for a corpus of fewer texts than dimensions.
    """

    def __init__(self, corpus: Sequence[str], *, dim: int = 128, seed: int = 0) -> None:
        if len(corpus) <= dim:
            raise ValueError(f"{len(corpus)} texts cannot span {dim} dimensions: give more texts, or a smaller dim")
        words = TfidfVectorizer(sublinear_tf=True, min_df=2, max_df=0.5, ngram_range=(1, 2), max_features=50_000)
        self.pipeline = make_pipeline(words, TruncatedSVD(dim, random_state=seed)).fit(corpus)

    def encode(
        self, texts: Sequence[str], *, batch_size: int = 64, progress: bool = False
    ) -> Float[Tensor, "texts dim"]:
        """Embeddings [texts, dim]; a text of unknown words only is the zero vector."""
        return torch.nn.functional.normalize(torch.from_numpy(self.pipeline.transform(list(texts))).float(), dim=-1)
