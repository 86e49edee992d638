"""One forward pass where trl expects the pair's: third responses ride along as further rows."""

from typing import Any

import torch
from torch import Tensor

from lib.selm.collator import joined


class JoinedForward:
    """Stands in for the model in trl's loss: runs all rows at once and hands back those of the pair.

    One pass a step keeps distributed wrappers (DDP, FSDP) in step and fills the batch better. `log_probs` are those of
    every row [2B + n], summed over response tokens, with their gradient.
    """

    def __init__(self, model: Any, third: dict[str, Tensor], *, pad_token_id: int) -> None:
        self.model, self.third, self.pad_token_id = model, third, pad_token_id
        self.log_probs = torch.empty(0)

    def __call__(self, input_ids: Tensor, attention_mask: Tensor, labels: Tensor | None = None, **options: Any) -> Any:
        """Outputs of the pair's rows."""
        if labels is None:  # trl asks for the logits of the pair once more where outputs are to be returned
            return self.model(input_ids=input_ids, attention_mask=attention_mask, **options)
        pair = {"input_ids": input_ids, "attention_mask": attention_mask, "completion_mask": (labels != -100).long()}
        batch = joined(pair, self.third, self.pad_token_id)
        all_labels = batch["input_ids"].masked_fill(batch["completion_mask"] == 0, -100)
        outputs = self.model(
            input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], labels=all_labels, **options
        )
        self.log_probs = outputs.log_probs.sum(dim=1)
        rows, added = input_ids.shape[0], batch["input_ids"].shape[1] - input_ids.shape[1]
        for name, value in list(outputs.items()):
            if isinstance(value, Tensor) and value.ndim >= 2:
                outputs[name] = value[:rows, : value.shape[1] - added]
        return outputs
