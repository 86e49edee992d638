"""Pathfinder: are two dots the ends of one dashed curve? (arXiv:1805.08315; in the Long Range Arena, 2011.04006.)

An image holds two long dashed curves and shorter ones that distract. A dot sits on two ends: of the same long curve
(label 1) or of different ones (label 0). Images are drawn here, after the description, not taken from the arena.
"""

import math
import random
from dataclasses import dataclass

import numpy as np
import torch
from tqdm import tqdm

from lib.seqboat.tasks.examples import Examples

DASH, GAP, TURN, MARGIN = 3.0, 2.0, 0.45, 2  # pixels, pixels, radians a dash, pixels between curves
TRIES = 400


@dataclass(frozen=True)
class Curve:
    """Dashes from (x, y) to (x, y)."""

    dashes: list[tuple[float, float, float, float]]

    @property
    def ends(self) -> list[tuple[float, float]]:
        """Return its two ends."""
        return [self.dashes[0][:2], self.dashes[-1][2:]]


def generate_pathfinder(
    count: int,
    *,
    side: int = 32,
    dashes: int | None = None,
    distractors: int = 2,
    seed: int = 0,
    progress: bool = False,
) -> Examples:
    """Return images of `side` × `side` pixels as sequences of values in 0..1, half of each label in random order.

    `dashes` of a long curve: as many as half the side allows, where none is given; a side of 128 is 16,384 positions.
    Raises ValueError for a side under 16, or where curves of that many dashes find no room.
    """
    if side < 16:
        raise ValueError(f"an image needs a side of at least 16 pixels, got {side}")
    long = dashes if dashes is not None else max(2, round(0.75 * side / (DASH + GAP)))
    rng = random.Random(seed)
    labels = [i % 2 for i in range(count)]
    rng.shuffle(labels)
    images = [_image(rng, side, long, distractors, label) for label in tqdm(labels, "Pathfinder", disable=not progress)]
    pixels = torch.tensor(np.stack(images)).flatten(1)
    return Examples(pixels, torch.ones_like(pixels, dtype=torch.bool), torch.tensor(labels))


def _image(rng: random.Random, side: int, dashes: int, distractors: int, label: int) -> np.ndarray:
    for _ in range(TRIES):
        image, taken = np.zeros((side, side), np.float32), np.zeros((side, side), bool)
        curves = [_place(rng, image, taken, n) for n in [dashes, dashes] + [max(1, dashes // 3)] * distractors]
        if curves[0] is not None and curves[1] is not None:
            first, second = curves[0].ends, curves[1].ends
            chosen = first if label else [rng.choice(first), rng.choice(second)]
            for x, y in chosen:
                _dot(image, x, y)
            return image
    raise ValueError(
        f"curves of {dashes} dashes find no room on {side} × {side} pixels: ask for fewer, or a larger side"
    )


def _place(rng: random.Random, image: np.ndarray, taken: np.ndarray, dashes: int) -> Curve | None:
    """Draw a curve where there is room, and mark its surroundings as taken; None where no try succeeds."""
    side = len(image)
    for _ in range(TRIES):
        curve = _wander(rng, side, dashes)
        points = [] if curve is None else [p for dash in curve.dashes for p in _pixels(dash)]
        if curve is not None and not any(taken[y, x] for x, y in points):
            for x, y in points:
                image[y, x] = 1.0
                taken[max(0, y - MARGIN) : y + MARGIN + 1, max(0, x - MARGIN) : x + MARGIN + 1] = True
            return curve
    return None


def _wander(rng: random.Random, side: int, dashes: int) -> Curve | None:
    """Return a smooth dashed walk that stays inside and does not come back to itself, or None."""
    x, y, angle = rng.uniform(2, side - 3), rng.uniform(2, side - 3), rng.uniform(0, 2 * math.pi)
    made: list[tuple[float, float, float, float]] = []
    for _ in range(dashes):
        to_x, to_y = x + DASH * math.cos(angle), y + DASH * math.sin(angle)
        close = any(math.hypot(to_x - a, to_y - b) < 2 * MARGIN for *_, a, b in made[:-1])
        if close or not (2 <= to_x <= side - 3 and 2 <= to_y <= side - 3):
            return None
        made.append((x, y, to_x, to_y))
        angle += rng.gauss(0, TURN)
        x, y = to_x + GAP * math.cos(angle), to_y + GAP * math.sin(angle)
    return Curve(made)


def _pixels(dash: tuple[float, float, float, float]) -> list[tuple[int, int]]:
    x, y, to_x, to_y = dash
    steps = math.ceil(DASH * 2)
    return [(round(x + (to_x - x) * i / steps), round(y + (to_y - y) * i / steps)) for i in range(steps + 1)]


def _dot(image: np.ndarray, x: float, y: float) -> None:
    row, column = round(y), round(x)
    image[max(0, row - 1) : row + 2, max(0, column - 1) : column + 2] = 1.0
