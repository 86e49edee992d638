"""The cross-encoder: a sentence encoder reads input and instruction together; its upper layers and a head are trained.

Deviation: the paper trains all of FLAN-T5-Large. Here the lower layers stay as they are, so that they run once a pair.
"""

import copy
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from tqdm import tqdm

from lib.autoinstruct.ranker.scorer import Scorer


class CrossEncoder(Scorer):
    """BERT-like encoder on `input [SEP] instruction`, mean over tokens, one linear score."""

    def __init__(
        self, model: Any, tokenizer: Any, *, trained_layers: int = 2, max_tokens: int = 80, batch_size: int = 64
    ) -> None:
        super().__init__()
        layers = getattr(getattr(model, "encoder", None), "layer", None)
        if layers is None or not hasattr(model, "embeddings"):
            raise ValueError(f"{type(model).__name__} is no BERT-like encoder: use MiniLM, BERT, or a FLAN-T5 by name")
        if not 0 < trained_layers <= len(layers):
            raise ValueError(f"trained_layers = {trained_layers}: the encoder has {len(layers)} layers")
        self.tokenizer, self.max_tokens, self.batch_size = tokenizer, max_tokens, batch_size
        split = len(layers) - trained_layers
        self.embeddings, self.lower = model.embeddings, layers[:split]
        for weight in (*self.embeddings.parameters(), *self.lower.parameters()):
            weight.requires_grad_(False)
        self.upper = copy.deepcopy(layers[split:])  # trained: the encoder that was passed stays as it was
        self.upper.requires_grad_(True)
        self.head = nn.Linear(model.config.hidden_size, 1, device=model.device)

    @torch.inference_mode()
    def prepare(self, pairs: Sequence[tuple[str, str]], *, progress: bool = False) -> list[Tensor]:
        """Hidden states below the trained layers [pairs, tokens, dim] in bfloat16, and where tokens are."""
        self.eval()
        inputs = self.tokenizer(
            [text for text, _ in pairs], [text for _, text in pairs], padding="max_length", truncation="longest_first",
            max_length=self.max_tokens, return_tensors="pt",
        )  # fmt: skip
        present = inputs["attention_mask"].bool()
        hidden = torch.zeros(len(pairs), self.max_tokens, self.head.in_features, dtype=torch.bfloat16)
        order = present.sum(-1).argsort()
        device = self.head.weight.device
        for rows in tqdm(order.split(self.batch_size), desc="prepare pairs", disable=not progress):
            longest = int(present[rows].sum(-1).max())
            ids, kinds = (inputs[name][rows, :longest].to(device) for name in ("input_ids", "token_type_ids"))
            states = self.embeddings(input_ids=ids, token_type_ids=kinds)
            states = _through(self.lower, states, present[rows, :longest].to(device))
            hidden[rows, :longest] = states.to("cpu", torch.bfloat16)
        return [hidden, present]

    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, hidden: Float[Tensor, "pairs tokens dim"], present: Bool[Tensor, "pairs tokens"]
    ) -> Float[Tensor, " pairs"]:
        """Scores from the lower layers' hidden states."""
        longest, device = int(present.sum(-1).max()), self.head.weight.device
        hidden, present = hidden[:, :longest].to(device).float(), present[:, :longest].to(device)
        states = _through(self.upper, hidden, present)
        pooled = (states * present[..., None]).sum(1) / present.sum(1, keepdim=True)
        return self.head(pooled)[:, 0]


def _through(layers: Any, hidden: Tensor, present: Tensor) -> Tensor:
    mask = torch.zeros(present.shape, dtype=hidden.dtype, device=hidden.device)
    mask = mask.masked_fill(~present, torch.finfo(hidden.dtype).min)[:, None, None]
    for layer in layers:
        output = layer(hidden, attention_mask=mask)
        hidden = output[0] if isinstance(output, tuple) else output
    return hidden
