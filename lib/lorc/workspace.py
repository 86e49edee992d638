"""What the layers of a compressed model share while they run: rotary angles, and memory for one page of keys."""

from math import prod
from typing import Any

import torch
from torch import Tensor

from lib.lorc.rotary import RotaryTable


class Workspace:
    """Angles and scratch buffers, made on demand and never part of a cache or a checkpoint.

    A page of keys lives only until its scores are taken. Reusing its memory saves the page faults that a new allocation
    costs at each page, which is half the time of the reconstruction on a CPU.
    """

    def __init__(self, rotary_embedding: Any) -> None:
        self.angles = RotaryTable(rotary_embedding)
        self._flat: dict[tuple[str, torch.device, torch.dtype], Tensor] = {}

    def scratch(self, name: str, shape: tuple[int, ...], like: Tensor) -> Tensor:
        """Return uninitialised memory of a shape, the same at each call of a name: copy what must outlive the next."""
        key, size = (name, like.device, like.dtype), prod(shape)
        flat = self._flat.get(key)
        if flat is None or flat.numel() < size:
            flat = self._flat[key] = torch.empty(size, dtype=like.dtype, device=like.device)
        return flat[:size].view(shape)
