"""Handwritten digits read pixel by pixel: scikit-learn's 1,797 scans of 8 × 8 (from the UCI repository)."""

import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from lib.seqboat.tasks.examples import Examples


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
    whole = Examples(pixels, torch.ones_like(pixels, dtype=torch.bool), torch.tensor(labels))
    return whole.select(torch.tensor(train)), whole.select(torch.tensor(test))
