"""Spoilt renders with a known severity: the judge learns to reject them, and image quality is scaled by them.

A generated image fails in ways no render does (noise, blur, two scenes in one, displaced patches). A judge that has
seen only clean renders would still name a value for each of these, with confidence.
"""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import avg_pool2d, fold, grid_sample, interpolate, unfold

Images = Float[Tensor, "n 3 32 32"]
Severity = Float[Tensor, " n"]
PATCH = 4


def _wide(severity: Severity) -> Tensor:
    return severity.view(-1, 1, 1, 1)


def noise(images: Images, severity: Severity, *, generator: torch.Generator) -> Images:
    """Independent noise at every pixel."""
    return images + 0.8 * _wide(severity) * torch.randn(images.shape, generator=generator)


def blur(images: Images, severity: Severity, *, generator: torch.Generator) -> Images:
    """Blend with a strongly blurred copy."""
    soft = avg_pool2d(images, 9, stride=1, padding=4, count_include_pad=False)
    return images + _wide(severity) * (soft - images)


def crossfade(images: Images, severity: Severity, *, generator: torch.Generator) -> Images:
    """Blend with another scene, at most half and half."""
    other = images[torch.randperm(len(images), generator=generator)]
    return images + 0.5 * _wide(severity) * (other - images)


def displaced(images: Images, severity: Severity, *, generator: torch.Generator) -> Images:
    """Patches taken from other places of the image, more of them with severity."""
    patches = unfold(images, PATCH, stride=PATCH)  # n, 48, 64
    taken = torch.rand(len(images), 64, generator=generator) < 0.5 * severity[:, None]
    order = torch.rand(len(images), 64, generator=generator).argsort(dim=1)
    moved = patches.gather(2, order[:, None].expand_as(patches))
    return fold(torch.where(taken[:, None], moved, patches), 32, PATCH, stride=PATCH)


def warped(images: Images, severity: Severity, *, generator: torch.Generator) -> Images:
    """Smooth random displacement of up to five pixels."""
    field = torch.randn(len(images), 2, 5, 5, generator=generator)
    field = interpolate(field, size=(32, 32), mode="bicubic", align_corners=True).permute(0, 2, 3, 1)
    lines = torch.linspace(-1, 1, 32)
    grid = torch.stack(torch.meshgrid(lines, lines, indexing="xy"), dim=-1)
    field = field * (5 / 16 / 2) * severity.view(-1, 1, 1, 1)
    return grid_sample(images, grid + field, padding_mode="border", align_corners=True)


def blotched(images: Images, severity: Severity, *, generator: torch.Generator) -> Images:
    """Low-frequency stains of colour."""
    stains = torch.randn(len(images), 3, 6, 6, generator=generator)
    return images + 0.7 * _wide(severity) * interpolate(stains, size=(32, 32), mode="bicubic", align_corners=True)


Corruption = Callable[..., Images]
SEEN: tuple[Corruption, ...] = (noise, blur, crossfade, displaced, blotched)
UNSEEN: tuple[Corruption, ...] = (warped,)  # never trained on: does the scale hold for a new way to fail?


def corrupt(
    images: Images, severity: Severity, *, generator: torch.Generator, kinds: tuple[Corruption, ...] = SEEN
) -> Images:
    """Images spoilt in a way drawn for each, as badly as `severity` in [0, 1] says; 0 leaves an image as it is."""
    kind = torch.randint(len(kinds), (len(images),), generator=generator)
    spoilt = images.clone()
    for index, how in enumerate(kinds):
        rows = kind == index
        if rows.any():
            spoilt[rows] = how(images[rows], severity[rows], generator=generator)
    return spoilt.clamp(-1, 1)
