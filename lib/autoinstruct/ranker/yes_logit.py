"""The paper's ranker: an encoder-decoder is asked whether the instruction is good; the logit of its "yes" counts."""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from lib.autoinstruct.ranker.scorer import Scorer

QUESTION = "Is this a good instruction to solve the example?"


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
