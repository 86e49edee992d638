"""The cheap variant: input and instruction are embedded apart by a frozen encoder, and only a small head is trained."""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from lib.autoinstruct.ranker.scorer import Scorer


class FrozenHead(Scorer):
    """Two-layer head on the embeddings a of the input and b of the instruction: [a, b, a * b, |a - b|]."""

    def __init__(self, encoder: Any, *, width: int = 64, dropout: float = 0.1) -> None:
        super().__init__()
        self.encoder = encoder
        dim = encoder.model.config.hidden_size
        self.layers = nn.Sequential(nn.Linear(4 * dim, width), nn.GELU(), nn.Dropout(dropout), nn.Linear(width, 1))

    def prepare(self, pairs: Sequence[tuple[str, str]], *, progress: bool = False) -> list[Tensor]:
        """Features of the pairs [pairs, 4 dim]; each different text is embedded once."""
        texts = list(dict.fromkeys(text for pair in pairs for text in pair))
        embedded = self.encoder.encode(texts, progress=progress)
        place = {text: row for row, text in enumerate(texts)}
        a, b = (embedded[[place[pair[side]] for pair in pairs]] for side in (0, 1))
        scale = embedded.shape[1] ** 0.5  # unit vectors have tiny entries
        return [torch.cat([a, b, scale * a * b, (a - b).abs()], dim=-1) * scale]

    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, features: Float[Tensor, "pairs features"]
    ) -> Float[Tensor, " pairs"]:
        """Scores from features."""
        return self.layers(features)[:, 0]
