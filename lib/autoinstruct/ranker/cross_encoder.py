"""The cross-encoder: a sentence encoder reads input and instruction together; its upper layers and a head are trained.

Deviation: the paper trains all of FLAN-T5-Large. Here the lower layers stay as they are, so that they run once a pair.
"""

import contextlib
import copy
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from tqdm import tqdm

from lib.autoinstruct.ranker.scorer import Scorer


class CrossEncoder(Scorer):
    """BERT-like encoder on `input [SEP] instruction`, mean over tokens, one linear score.

    Of the input at most `input_tokens` are read, and of a long instruction its beginning and its end. `dtype` is the
    number format of matrix products; weights stay in float32.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        *,
        trained_layers: int = 2,
        max_tokens: int = 80,
        input_tokens: int = 24,
        batch_size: int = 64,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__()
        layers = getattr(getattr(model, "encoder", None), "layer", None)
        if layers is None or not hasattr(model, "embeddings"):
            raise ValueError(f"{type(model).__name__} is no BERT-like encoder: use MiniLM, BERT, or a FLAN-T5 by name")
        if not 0 < trained_layers <= len(layers):
            raise ValueError(f"trained_layers = {trained_layers}: the encoder has {len(layers)} layers")
        self.tokenizer, self.batch_size, self.dtype = tokenizer, batch_size, dtype
        self.max_tokens, self.input_tokens = max_tokens, input_tokens
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
        ids, kinds, present = self._encode(pairs)
        hidden = torch.zeros(len(pairs), self.max_tokens, self.head.in_features, dtype=torch.bfloat16)
        order, device = present.sum(-1).argsort(), self.head.weight.device
        for rows in tqdm(order.split(self.batch_size), desc="prepare pairs", disable=not progress):
            longest = int(present[rows].sum(-1).max())
            near = [tensor[rows, :longest].to(device) for tensor in (ids, kinds, present)]
            with self._products():
                states = self.embeddings(input_ids=near[0], token_type_ids=near[1])
                states = _through(self.lower, states, near[2])
            hidden[rows, :longest] = states.to("cpu", torch.bfloat16)
        return [hidden, present]

    def _encode(self, pairs: Sequence[tuple[str, str]]) -> tuple[Tensor, Tensor, Tensor]:
        """Token ids, token types and presence [pairs, max_tokens] of `[CLS] input [SEP] instruction [SEP]`."""
        shape = (len(pairs), self.max_tokens)
        ids, kinds = torch.full(shape, self.tokenizer.pad_token_id), torch.zeros(shape, dtype=torch.long)
        present = torch.zeros(shape, dtype=torch.bool)
        texts = {text for pair in pairs for text in pair}
        known = {text: self.tokenizer(text, add_special_tokens=False, truncation=False).input_ids for text in texts}
        start, end = self.tokenizer.cls_token_id, self.tokenizer.sep_token_id
        for row, (text, instruction) in enumerate(pairs):
            first = [start, *known[text][: self.input_tokens], end]
            second = [*_ends(known[instruction], self.max_tokens - len(first) - 1), end]
            ids[row, : len(first) + len(second)] = torch.tensor(first + second)
            kinds[row, len(first) : len(first) + len(second)] = 1
            present[row, : len(first) + len(second)] = True
        return ids, kinds, present

    def _products(self) -> Any:
        low = self.dtype != torch.float32
        return torch.autocast(self.head.weight.device.type, self.dtype) if low else contextlib.nullcontext()

    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, hidden: Float[Tensor, "pairs tokens dim"], present: Bool[Tensor, "pairs tokens"]
    ) -> Float[Tensor, " pairs"]:
        """Scores from the lower layers' hidden states."""
        longest, device = int(present.sum(-1).max()), self.head.weight.device
        hidden, present = hidden[:, :longest].to(device).float(), present[:, :longest].to(device)
        with self._products():
            states = _through(self.upper, hidden, present)
        pooled = (states.float() * present[..., None]).sum(1) / present.sum(1, keepdim=True)
        return self.head(pooled)[:, 0]


def _ends(ids: list[int], room: int) -> list[int]:
    """Ids cut in the middle where they are more than there is room for: an answer's form often stands at the end."""
    if len(ids) <= room:
        return ids
    tail = room // 2
    return [*ids[: room - tail], *ids[len(ids) - tail :]]


def _through(layers: Any, hidden: Tensor, present: Tensor) -> Tensor:
    mask = present[:, None, None]  # True: attend
    for layer in layers:
        output = layer(hidden, attention_mask=mask)
        hidden = output[0] if isinstance(output, tuple) else output
    return hidden
