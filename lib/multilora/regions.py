"""Where each LoRA acts: masks in image space, carried to the places of a denoiser's output.

With masks M_i(p) in [0, 1] and shares r_i of mean 1, T(p) = Σ_i r_i M_i(p), composite becomes

    ẽ(p) = [Σ_i r_i M_i(p) e_i(p)] / max(1, T(p)) + max(0, 1 − T(p)) e_0(p),  e_0 the model without any LoRA:

the mean of those that act at a place; the paper's, where masks are 1. Switch has M_i e_i + (1 − M_i) e_0 in i's turn.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import interpolate

from lib import TenfoldError

Share = float | Tensor


def region(
    left: float | int, top: float | int, right: float | int, bottom: float | int, *, soft: float | int = 0.0,
    size: int = 256,
) -> Float[Tensor, "size size"]:  # fmt: skip
    """Return the mask of a rectangle, given in parts of the image's width and height (0 to 1), for any aspect.

    The edge rises over `soft`, half of it outside; edges at the image's border do not fall. Raises ValueError where
    there is no inside.
    """
    if not (left < right and top < bottom and soft >= 0):
        raise ValueError(
            f"a region needs left < right, top < bottom, soft ≥ 0, not {(left, top, right, bottom, soft)}."
        )
    at = (torch.arange(size) + 0.5) / size

    def rise(low: float | int, high: float | int) -> Tensor:
        width = max(soft, 1 / size)
        up = torch.ones(size) if low <= 0 else ((at - low) / width + 0.5).clamp(0, 1)
        down = torch.ones(size) if high >= 1 else ((high - at) / width + 0.5).clamp(0, 1)
        return up * down

    return rise(top, bottom)[:, None] * rise(left, right)


class Shares:
    """Shares of the adapters in the sum of predictions: numbers that add up to one, or maps over the output's places.

    # Deviation: the paper has (1/k) Σ w_i e_i with all w_i = 1; unequal w_i would change the size of the noise.
    """

    def __init__(
        self, names: list[str], shares: Mapping[str, float] | None = None, masks: Mapping[str, Any] | None = None
    ) -> None:
        self.shares, self._maps, self._ids = dict(shares) if shares is not None else dict.fromkeys(names, 1.0), {}, None
        if sorted(self.shares) != sorted(names) or min(self.shares.values()) < 0 or not sum(self.shares.values()):
            raise ValueError(f"shares must give each of {names} a number ≥ 0, not all zero.")
        if strangers := set(masks or ()) - set(names):
            raise ValueError(f"masks name {min(strangers)!r}, which has no weight here: they may name {names}.")
        self.masks = {name: checked_mask(name, mask) for name, mask in (masks or {}).items()}

    def at(self, names: Sequence[str], sample: Tensor, kwargs: Mapping[str, Any]) -> list[Share]:
        """Return the share of each adapter of a call, and last that of the base model where it has any."""
        total = sum(self.shares[name] for name in names)
        ratios = [self.shares[name] / total for name in names]
        if not any(name in self.masks for name in names):
            return list(ratios)
        ids = kwargs.get("img_ids")
        key = (*names, *sample.shape[1:], sample.device, sample.dtype)
        if key not in self._maps or ids is not self._ids:  # packed images of two shapes may have as many tokens
            self._maps = {key: self._mapped(names, ratios, sample, ids)}  # the last one only: a run has one size
            self._ids = ids
        return self._maps[key]

    def _mapped(self, names: Sequence[str], ratios: list[float], sample: Tensor, ids: Tensor | None) -> list[Share]:
        one = torch.ones(1, 1)
        maps = [self.masks.get(name, one).to(sample.device) for name in names]
        masks = torch.stack([len(names) * r * _placed(m, sample, ids) for r, m in zip(ratios, maps, strict=True)])
        total = masks.sum(0)
        shares = [*(masks / total.clamp(min=1)), (1 - total).clamp(min=0)]
        if float(shares[-1].max()) < 1e-3:  # not worth a pass
            shares = list(masks / total)
        return [share.to(sample.dtype) for share in shares]


def _placed(mask: Tensor, sample: Tensor, ids: Tensor | None) -> Tensor:
    """Carry a mask to a sample's places: height × width of an image or video, the tokens of a packed image."""
    if sample.ndim >= 4:
        return _resized(mask, *sample.shape[-2:])
    if ids is None:
        raise TenfoldError("masks need a denoiser of images, or of tokens that come with their places (img_ids).")
    rows, columns = ids.reshape(-1, ids.shape[-1])[: sample.shape[1], 1:3].long().T
    return _resized(mask, int(rows.max()) + 1, int(columns.max()) + 1)[rows, columns, None]


def _resized(mask: Tensor, height: int, width: int) -> Tensor:
    return interpolate(mask[None, None], size=(height, width), mode="area")[0, 0]  # the mean over a place's pixels


def checked_mask(name: str, mask: Any) -> Float[Tensor, "height width"]:
    """Return a mask (tensor, array or grey picture of any size) as numbers from 0 to 1; raises ValueError otherwise."""
    pixels = mask.convert("L") if hasattr(mask, "convert") else mask
    array = None if isinstance(pixels, Tensor) else np.array(pixels)
    if array is not None and array.dtype.kind not in "biuf":
        raise ValueError(f"the mask of {name!r} is no picture but {mask!r}: open a file first, by PIL.Image.open.")
    values = pixels if array is None else torch.as_tensor(array)
    values = values.float() / (255 if values.dtype == torch.uint8 else 1)
    values = values.squeeze()
    if values.ndim != 2 or not values.numel() or not bool(((values >= 0) & (values <= 1)).all()):
        raise ValueError(f"the mask of {name!r} is no picture of height x width with values from 0 to 1.")
    return values
