"""What rankers have in common: pairs are prepared once (the frozen part), then scored by the part that is trained."""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn


class Scorer(nn.Module):
    """A model of (input, instruction) pairs. `prepare` runs what is frozen, `forward` what is trained."""

    def prepare(self, pairs: Sequence[tuple[str, str]], *, progress: bool = False) -> list[Tensor]:
        """Tensors of the pairs, which share their first axis."""
        raise NotImplementedError

    def forward(self, *prepared: Tensor) -> Float[Tensor, " pairs"]:
        """Score of each prepared pair; only differences between instructions of one input mean something."""
        raise NotImplementedError

    def trainable(self) -> list[nn.Parameter]:
        """Parameters that training moves."""
        return [weight for weight in self.parameters() if weight.requires_grad]


class Prepared:
    """Prepared pairs, found again by their texts: one preparation serves many trainings."""

    def __init__(self, scorer: Scorer, pairs: Sequence[tuple[str, str]], *, progress: bool = False) -> None:
        self.index = {pair: row for row, pair in enumerate(dict.fromkeys(pairs))}
        self.tensors = scorer.prepare(list(self.index), progress=progress)

    def take(self, pairs: Sequence[tuple[str, str]]) -> list[Tensor]:
        """Tensors of some of the pairs; raises ValueError for one that was not prepared."""
        try:
            rows = torch.tensor([self.index[pair] for pair in pairs])
        except KeyError as error:
            raise ValueError(f"the pair {error.args[0]!r} was not prepared: prepare all pairs first") from None
        return [tensor[rows] for tensor in self.tensors]


def load_scorer(
    name: str, *, device: str | None = None, trained_layers: int = 2, max_tokens: int = 80, dtype: str = "float32"
) -> Scorer:
    """Ranker on a pretrained model: the "yes" logit of an encoder-decoder (FLAN-T5), else a cross-encoder.

    `name` is a short name, a folder or a hub name; raises TenfoldError where it is not to be had. `trained_layers` and
    `dtype` (of matrix products) are the cross-encoder's; of an encoder-decoder all layers are trained.
    """
    from transformers import AutoConfig, AutoModelForSeq2SeqLM, AutoTokenizer

    from lib.autoinstruct.ranker.cross_encoder import CrossEncoder
    from lib.autoinstruct.ranker.yes_logit import YesLogit
    from lib.zoo.hub import from_hub
    from lib.zoo.models import ENCODERS, load_encoder

    if name not in ENCODERS and from_hub(AutoConfig.from_pretrained, name, ENCODERS).is_encoder_decoder:
        model = from_hub(AutoModelForSeq2SeqLM.from_pretrained, name, ENCODERS)
        tokenizer = from_hub(AutoTokenizer.from_pretrained, name, ENCODERS)
        return YesLogit(model.to(device), tokenizer, max_tokens=max_tokens)
    encoder = load_encoder(name, device=device)
    options: dict[str, Any] = {"trained_layers": trained_layers, "max_tokens": max_tokens}
    return CrossEncoder(encoder.model, encoder.tokenizer, dtype=getattr(torch, dtype), **options)
