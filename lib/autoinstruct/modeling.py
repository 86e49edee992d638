"""Rankers: models that say from an example and an instruction alone how well the instruction will do on it.

`YesLogit` is the paper's. Deviation: `CrossEncoder` trains the upper layers of a sentence encoder in place of all of
FLAN-T5-Large, so that the lower layers run once a pair; `FrozenHead` is cheaper still and trains a small head only.
"""

import contextlib
import copy
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from tqdm import tqdm

from lib.core.scoring import mean_pooled

QUESTION = "Is this a good instruction to solve the example?"


class Scorer(nn.Module):
    """A model of (input, instruction) pairs. `prepare` runs what is frozen, `forward` what is trained."""

    def prepare(self, pairs: Sequence[tuple[str, str]], *, progress: bool = False) -> list[Tensor]:
        """Tensors of the pairs, which share their first axis."""
        raise NotImplementedError

    def forward(self, *prepared: Tensor) -> Float[Tensor, " pairs"]:
        """Score of each prepared pair; only differences between instructions of one input mean something."""
        raise NotImplementedError


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
        places = model.embeddings.position_embeddings
        room = places.num_embeddings - (0 if places.padding_idx is None else places.padding_idx + 1)
        if max_tokens > room:
            raise ValueError(f"max_tokens = {max_tokens}: {type(model).__name__} reads {room}, so give at most that")
        self.kinds = min(2, model.config.type_vocab_size)  # RoBERTa has one for both texts
        self.tokenizer, self.batch_size, self.dtype = tokenizer, batch_size, dtype
        self.max_tokens, self.input_tokens = max_tokens, input_tokens
        split = len(layers) - trained_layers
        self.embeddings, self.lower = model.embeddings, layers[:split]
        for weight in (*self.embeddings.parameters(), *self.lower.parameters()):
            weight.requires_grad_(False)
        self.upper = copy.deepcopy(layers[split:])  # trained: the encoder that was passed stays as it was
        self.upper.requires_grad_(True)
        self.head = nn.Linear(model.config.hidden_size, 1, device=model.device)

    @torch.no_grad()
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
            kinds[row, len(first) : len(first) + len(second)] = self.kinds - 1
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
        return self.head(mean_pooled(states, present))[:, 0]


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


class YesLogit(Scorer):
    """Logit of "yes" at the first decoder step (FLAN-T5-Large in the paper), all weights trained."""

    def __init__(self, model: Any, tokenizer: Any, *, max_tokens: int = 512) -> None:
        super().__init__()
        self.model, self.tokenizer, self.max_tokens = model, tokenizer, max_tokens
        # The paper's code fixes the id 4273; the tokenizer knows it.
        self.yes = int(tokenizer("yes", add_special_tokens=False).input_ids[0])

    def prepare(self, pairs: Sequence[tuple[str, str]], *, progress: bool = False) -> list[Tensor]:
        """Token ids and mask of the question on each pair."""
        texts = [f"Example: {text}\nInstruction: {instruction}\n{QUESTION}" for text, instruction in pairs]
        inputs = self.tokenizer(
            texts, padding=True, truncation=True, max_length=self.max_tokens, padding_side="right", return_tensors="pt"
        )
        return [inputs["input_ids"], inputs["attention_mask"].bool()]

    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, ids: Int[Tensor, "pairs tokens"], present: Bool[Tensor, "pairs tokens"]
    ) -> Float[Tensor, " pairs"]:
        """Logit of "yes" as the first word of the answer."""
        device, longest = self.model.device, int(present.sum(-1).max())
        ids, present = ids[:, :longest].to(device), present[:, :longest].to(device)
        start = torch.full((len(ids), 1), self.model.config.decoder_start_token_id, device=device)
        return self.model(input_ids=ids, attention_mask=present.long(), decoder_input_ids=start).logits[:, 0, self.yes]


def load_scorer(
    name: str, *, device: str | None = None, trained_layers: int = 2, max_tokens: int = 80, dtype: str = "float32"
) -> Scorer:
    """Load a ranker on a pretrained model: the "yes" logit of an encoder-decoder (FLAN-T5), else a cross-encoder.

    `name` is a short name, a folder or a hub name; raises TenfoldError where it is not to be had. `trained_layers` and
    `dtype` (of matrix products) are the cross-encoder's; of an encoder-decoder all layers are trained.
    """
    from transformers import AutoConfig, AutoModelForSeq2SeqLM, AutoTokenizer

    from lib.zoo.hub import from_hub
    from lib.zoo.models import ENCODERS, load_encoder

    if name not in ENCODERS and from_hub(AutoConfig.from_pretrained, name, ENCODERS).is_encoder_decoder:
        model = from_hub(AutoModelForSeq2SeqLM.from_pretrained, name, ENCODERS)
        tokenizer = from_hub(AutoTokenizer.from_pretrained, name, ENCODERS)
        return YesLogit(model.to(device), tokenizer, max_tokens=max_tokens)
    encoder = load_encoder(name, device=device)
    options: dict[str, Any] = {"trained_layers": trained_layers, "max_tokens": max_tokens}
    return CrossEncoder(encoder.model, encoder.tokenizer, dtype=getattr(torch, dtype), **options)
