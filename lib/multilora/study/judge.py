"""Judge of scenes with exact ground truth: each category's value, or none (reject), and how spoilt the image is.

It is trained on renders, some of them spoilt with a known severity: a judge that has seen only clean renders would name
a value for noise, blur, two scenes in one or displaced patches too, with confidence.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, cross_entropy, fold, grid_sample, interpolate, unfold

from lib.multilora.study.denoiser import load_single
from lib.multilora.study.scenes import COLUMNS, VALUES, render
from lib.multilora.study.testbed import CATEGORIES

REJECTED_FROM = 0.5  # severity from which no value is to be named
KNOWN_UP_TO = 0.25  # severity up to which the values are; between the two nothing is taught


# --- spoilt renders: a generated image fails in ways no render does ---

Images = Float[Tensor, "n 3 32 32"]
Severity = Float[Tensor, " n"]
PATCH = 4


def _wide(severity: Severity) -> Tensor:
    return severity.view(-1, 1, 1, 1)


def noise(images: Images, severity: Severity, *, generator: torch.Generator) -> Images:
    """Add independent noise at every pixel."""
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
    """Take patches from other places of the image, more of them with severity."""
    patches = unfold(images, PATCH, stride=PATCH)  # n, 48, 64
    taken = torch.rand(len(images), 64, generator=generator) < 0.5 * severity[:, None]
    order = torch.rand(len(images), 64, generator=generator).argsort(dim=1)
    moved = patches.gather(2, order[:, None].expand_as(patches))
    return fold(torch.where(taken[:, None], moved, patches), 32, PATCH, stride=PATCH)


def warped(images: Images, severity: Severity, *, generator: torch.Generator) -> Images:
    """Displace smoothly, at random, by up to five pixels."""
    field = torch.randn(len(images), 2, 5, 5, generator=generator)
    field = interpolate(field, size=(32, 32), mode="bicubic", align_corners=True).permute(0, 2, 3, 1)
    lines = torch.linspace(-1, 1, 32)
    grid = torch.stack(torch.meshgrid(lines, lines, indexing="xy"), dim=-1)
    field = field * (5 / 16 / 2) * severity.view(-1, 1, 1, 1)
    return grid_sample(images, grid + field, padding_mode="border", align_corners=True)


def blotched(images: Images, severity: Severity, *, generator: torch.Generator) -> Images:
    """Add low-frequency stains of colour."""
    stains = torch.randn(len(images), 3, 6, 6, generator=generator)
    return images + 0.7 * _wide(severity) * interpolate(stains, size=(32, 32), mode="bicubic", align_corners=True)


Corruption = Callable[..., Images]
SEEN: tuple[Corruption, ...] = (noise, blur, crossfade, displaced, blotched)
UNSEEN: tuple[Corruption, ...] = (warped,)  # never trained on: does the scale hold for a new way to fail?


def corrupt(
    images: Images, severity: Severity, *, generator: torch.Generator, kinds: tuple[Corruption, ...] = SEEN
) -> Images:
    """Spoil images, each in a way drawn for it, as badly as `severity` in [0, 1] says; 0 leaves it as it is."""
    kind = torch.randint(len(kinds), (len(images),), generator=generator)
    spoilt = images.clone()
    for index, how in enumerate(kinds):
        rows = kind == index
        if rows.any():
            spoilt[rows] = how(images[rows], severity[rows], generator=generator)
    return spoilt.clamp(-1, 1)


# --- the judge ---


@dataclass(frozen=True)
class Verdict:
    """Probabilities of each category's values with the reject class last, and each image's quality from 0 to 10."""

    probabilities: list[Float[Tensor, "n _"]]
    quality: Float[Tensor, " n"]

    def present(self, values: Int[Tensor, "n 5"]) -> Bool[Tensor, "n 5"]:
        """Whether each category shows the wanted value: it is likelier than all others and the reject class."""
        return torch.stack([p.argmax(1) == values[:, i] for i, p in enumerate(self.probabilities)], dim=1)

    @property
    def rejected(self) -> Bool[Tensor, "n 5"]:
        """Whether the judge names no value."""
        return torch.stack([p.argmax(1) == p.shape[1] - 1 for p in self.probabilities], dim=1)


class SceneJudge(nn.Module):
    """Convolutional classifier with a head a category and one for severity."""

    def __init__(self, width: int = 24) -> None:
        super().__init__()
        sizes = [len(VALUES[c]) + 1 for c in CATEGORIES]
        blocks, inputs = [nn.PixelUnshuffle(2)], 12  # lossless, and the widest plane is a quarter as large
        for outputs, pool in ((2 * width, 1), (2 * width, 2), (4 * width, 2)):
            blocks += [nn.Conv2d(inputs, outputs, 3, padding=1), nn.BatchNorm2d(outputs), nn.ReLU(), nn.MaxPool2d(pool)]
            inputs = outputs
        self.body = nn.Sequential(*blocks, nn.Flatten(), nn.Linear(4 * width * 16, 128), nn.ReLU())
        self.heads = nn.ModuleList(nn.Linear(128, size) for size in sizes)
        self.severity = nn.Linear(128, 1)

    def forward(self, images: Float[Tensor, "n 3 32 32"]) -> tuple[list[Tensor], Float[Tensor, " n"]]:
        """Return logits a category, and severity."""
        features = self.body(images)
        return [head(features) for head in self.heads], torch.sigmoid(self.severity(features)).squeeze(1)

    @torch.no_grad()
    def judge(self, images: Float[Tensor, "n 3 32 32"]) -> Verdict:
        """Judge images; quality is 10 for a clean render and 0 for the worst corruption, linear in severity."""
        self.eval()
        logits, severity = self(images)
        return Verdict([part.softmax(1) for part in logits], 10 * (1 - severity))


@dataclass(frozen=True)
class JudgedScenes:
    """Scenes of all values evenly, the severity with which each is spoilt, and the class each head should give."""

    images: Float[Tensor, "n 3 32 32"]
    severity: Float[Tensor, " n"]
    classes: Int[Tensor, "n 5"]
    values: Int[Tensor, "n 5"]


def scenes_to_judge(n: int, *, generator: torch.Generator, clean: float = 0.4, kinds: tuple = ()) -> JudgedScenes:
    """Render values drawn evenly, a share of them clean and the others spoilt; −1 is a class that is not taught."""
    columns = [torch.randint(len(VALUES[c]), (n,), generator=generator) for c in COLUMNS]
    images = render(torch.stack(columns, dim=1), generator=generator)
    values = torch.stack(columns[: len(CATEGORIES)], dim=1)
    severity = torch.rand(n, generator=generator)
    severity[torch.rand(n, generator=generator) < clean] = 0
    spoilt = corrupt(images, severity, generator=generator, **({"kinds": kinds} if kinds else {}))
    rejected = torch.tensor([len(VALUES[c]) for c in CATEGORIES]).expand(n, -1)
    classes = torch.where(severity[:, None] > KNOWN_UP_TO, torch.full_like(values, -1), values)
    classes = torch.where(severity[:, None] >= REJECTED_FROM, rejected, classes)
    return JudgedScenes(spoilt, severity, classes, values)


def lesson(judge: SceneJudge, n: int, *, generator: torch.Generator) -> Float[Tensor, ""]:
    """Return the loss of naming, or rejecting, and of telling the severity on n renders, clean and spoilt."""
    batch = scenes_to_judge(n, generator=generator)
    logits, severity = judge(batch.images)
    named = sum(cross_entropy(part, batch.classes[:, i], ignore_index=-1) for i, part in enumerate(logits))
    return named + 10 * (severity - batch.severity).square().mean()


def examine(judge: SceneJudge, kinds: Sequence[Corruption], *, images: int, seed: int) -> list[dict[str, Any]]:
    """Examine a judge on new renders: a row for clean ones and one for each kind of corruption.

    Share of values named where they should be, share rejected where they should be, and Spearman's correlation of
    quality with the true severity (turned round, so that 1 is perfect).
    """
    from scipy.stats import spearmanr

    generator, rows = torch.Generator().manual_seed(seed), []
    for kind in (None, *kinds):
        spoilt: dict[str, Any] = {"clean": 1.0} if kind is None else {"clean": 0.0, "kinds": (kind,)}
        drawn = scenes_to_judge(images, generator=generator, **spoilt)
        verdict = judge.judge(drawn.images)
        known, bad = drawn.severity <= KNOWN_UP_TO, drawn.severity >= REJECTED_FROM
        row: dict[str, Any] = {"renders": "clean" if kind is None else kind.__name__}
        row["named rightly"] = float(verdict.present(drawn.values)[known].float().mean())
        if kind is not None:
            row["rejected"] = float(verdict.rejected[bad].float().mean())
            row["quality follows severity"] = float(spearmanr(verdict.quality, -drawn.severity).statistic)
        rows.append(row)
    return rows


@lru_cache(maxsize=1)
def load_judge(file: Path) -> SceneJudge:
    """Judge from its file."""
    judge = SceneJudge()
    judge.load_state_dict(load_single(file))
    return judge.eval()
