"""Examples of a task as tensors, and as rows for `transformers.Trainer`."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor


@dataclass(frozen=True)
class Examples:
    """Rows of tokens (integers) or values (numbers), which of their positions are real, and their labels.

    `labels` is one class a row; for language modelling the tokens are their own labels, and `labels` is None.
    """

    inputs: Tensor
    real: Bool[Tensor, "rows length"]
    labels: Int[Tensor, "rows"] | None = None

    def __len__(self) -> int:
        return len(self.inputs)

    def __getitem__(self, row: int) -> dict[str, Tensor]:
        """Return a row as keyword arguments of a model."""
        return {name: part[row] for name, part in self.batch(slice(None)).items()}

    def __getitems__(self, rows: Sequence[int]) -> dict[str, Tensor]:
        """Return a batch at once, cut to its longest row."""
        return self.batch(torch.as_tensor(rows))

    def batch(self, rows: Any) -> dict[str, Tensor]:
        """Return rows as keyword arguments of a model, cut to the longest of them."""
        real = self.real[rows]
        longest = int(real.sum(1).max())
        inputs, real = self.inputs[rows][:, :longest], real[:, :longest]
        name = "input_values" if inputs.is_floating_point() else "input_ids"
        labels = inputs.masked_fill(~real, -100) if self.labels is None else self.labels[rows]
        return {name: inputs, "attention_mask": real, "labels": labels}

    def select(self, rows: Any) -> "Examples":
        """Return chosen rows."""
        return Examples(self.inputs[rows], self.real[rows], None if self.labels is None else self.labels[rows])


def padded(rows: Sequence[Sequence[int]], labels: Sequence[int] | None) -> Examples:
    """Return rows of unequal length as examples, padded with 0 at their end; raises ValueError without rows."""
    if not rows:
        raise ValueError("there are no examples: ask for more rows, or for shorter ones")
    lengths = torch.tensor([len(row) for row in rows])
    inputs = torch.zeros(len(rows), int(lengths.max()), dtype=torch.long)
    for index, row in enumerate(rows):
        inputs[index, : len(row)] = torch.as_tensor(row)
    real = torch.arange(inputs.shape[1]) < lengths.unsqueeze(1)
    return Examples(inputs, real, None if labels is None else torch.tensor(labels))
