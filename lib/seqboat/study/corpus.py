"""Tasks of real data as examples: digits read pixel by pixel, bytes of conversations, records of hub data sets.

The digits are scikit-learn's 1,797 scans of 8 × 8 (from the UCI repository). Tasks that are drawn by rules are in
`lib.seqboat.study.generated`.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Int
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor

BYTES = 257  # 256 bytes after the padding, 0


@dataclass(frozen=True)
class Examples:
    """Rows of tokens (integers) or values (numbers), which of their positions are real, and their labels.

    `labels` is one class a row, or for each token what it should have been told to be (-100: nothing is asked); for
    language modelling the tokens are their own labels, and `labels` is None.
    """

    inputs: Tensor
    real: Bool[Tensor, "rows length"]
    labels: Int[Tensor, "rows *length"] | None = None

    def __len__(self) -> int:
        return len(self.inputs)

    @classmethod
    def of_one_length(cls, inputs: Tensor, labels: Any = None) -> "Examples":
        """Return rows without padding as examples."""
        real = torch.ones_like(inputs, dtype=torch.bool)
        return cls(inputs, real, None if labels is None else torch.as_tensor(labels))

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
        labels = labels if labels.ndim == 1 else labels[:, :longest]
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


def sequential_digits(*, scale: int = 1, test_share: float = 0.25, seed: int = 0) -> tuple[Examples, Examples]:
    """Return training and test digits as sequences of (8·scale)² pixels, standardised by the training pixels.

    Each pixel becomes `scale` × `scale` of them, so a larger scale is a longer way between the same strokes. The split
    is stratified by digit. Raises ValueError for a scale below 1.
    """
    if scale < 1:
        raise ValueError(f"scale must be at least 1, got {scale}")
    images, labels = load_digits(return_X_y=True)
    pixels = torch.tensor(images, dtype=torch.float32).view(-1, 8, 8)
    pixels = pixels.repeat_interleave(scale, 1).repeat_interleave(scale, 2).flatten(1)
    rows = list(range(len(pixels)))
    train, test = train_test_split(rows, test_size=test_share, random_state=seed, stratify=labels)
    pixels = (pixels - pixels[train].mean()) / pixels[train].std()
    whole = Examples.of_one_length(pixels, labels)
    return whole.select(torch.tensor(train)), whole.select(torch.tensor(test))


def encode_bytes(text: str) -> list[int]:
    """Return the UTF-8 bytes of a text, each one higher, so that 0 is free for padding."""
    return [byte + 1 for byte in text.encode("utf8")]


def byte_windows(records: Iterable[Mapping[str, Any]], *, length: int, count: int) -> Examples:
    """Return windows of `length` bytes of conversations (or of `{text}`) laid end to end, for language modelling.

    Raises ValueError where the records hold too few bytes.
    """
    stream: list[int] = []
    for record in records:
        if len(stream) >= length * count:
            break
        turns = [record["text"]] if "text" in record else [turn["value"].strip() for turn in record["conversations"]]
        stream += encode_bytes("\n\n".join(turns) + "\n\n\n")
    if len(stream) < length * count:
        raise ValueError(
            f"the records hold {len(stream)} bytes, fewer than {count} windows of {length}: read more records"
        )
    return Examples.of_one_length(torch.tensor(stream[: length * count]).view(count, length))


def labelled_bytes(records: Iterable[Mapping[str, Any]], *, length: int) -> Examples:
    """Return texts `{text, label}` as bytes, cut to `length`."""
    rows = [(encode_bytes(record["text"][:length])[:length], int(record["label"])) for record in records]
    return padded([row for row, _ in rows], [label for _, label in rows])


def grey_pixels(records: Iterable[Mapping[str, Any]]) -> Examples:
    """Return images `{img or image, label}` as sequences of grey pixels, (grey - .48) / .24 as the paper has them."""
    rows, labels = [], []
    for record in records:
        image = record["img"] if "img" in record else record["image"]
        rows.append((np.asarray(image.convert("L"), np.float32) / 255 - 0.48) / 0.24)
        labels.append(int(record["label"]))
    return Examples.of_one_length(torch.tensor(np.stack(rows)).flatten(1), labels)


def waveforms(records: Iterable[Mapping[str, Any]], *, length: int) -> Examples:
    """Return recordings `{audio: {array}, label}` as samples, cut or padded with silence to `length`."""
    sounds, labels = [], []
    for record in records:
        array = np.asarray(record["audio"]["array"], np.float32)[:length]
        sounds.append(np.pad(array, (0, length - len(array))))
        labels.append(int(record["label"]))
    return Examples.of_one_length(torch.tensor(np.stack(sounds)), labels)
