"""Examples out of records of the usual shapes: labelled texts, images and recordings, as hub data sets have them."""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch

from lib.seqboat.tasks.examples import Examples, padded
from lib.seqboat.tasks.text import encode_bytes


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
    pixels = torch.tensor(np.stack(rows)).flatten(1)
    return Examples(pixels, torch.ones_like(pixels, dtype=torch.bool), torch.tensor(labels))


def waveforms(records: Iterable[Mapping[str, Any]], *, length: int) -> Examples:
    """Return recordings `{audio: {array}, label}` as samples, cut or padded with silence to `length`."""
    sounds, labels = [], []
    for record in records:
        array = np.asarray(record["audio"]["array"], np.float32)[:length]
        sounds.append(np.pad(array, (0, length - len(array))))
        labels.append(int(record["label"]))
    values = torch.tensor(np.stack(sounds))
    return Examples(values, torch.ones_like(values, dtype=torch.bool), torch.tensor(labels))
