"""Tasks that are drawn by rules, so that their length and difficulty can be set: recall, ListOps and Pathfinder.

Recall (multi-query associative recall, arXiv:2312.04927, among tokens that mean nothing): pairs of a value and its key
stand anywhere in a row of noise, and at the end the keys come once more, in another order; the value of each is asked
for. A window of consecutive tokens, or a chunk, reaches the pairs in short rows only; one that skips the noise reaches
them in all. The value stands before its key, so that the key's state holds both: what is looked up is then a token of
the same kind as what looks it up. The row never shows an answer, but noise in its place: shown, the answers given leave
fewer values for the last questions, and a model that binds no key to its value was right on two of three. In training a
small share of the noise after noise is to be told too: a token on which the unit's output changes no loss gives the
configurator no reason to skip it. What follows a key is not: once the answers are right, that alone moves the decision
on keys, and teaches the configurator to skip those as well.

ListOps by the rules of the Long Range Arena (arXiv:2011.04006, section 2.2.1; arXiv:1804.06028). A node is a digit with
probability ¾ (always at the greatest depth), else an operator over 2 to `max_arguments` nodes: MIN, MAX, MED (the
median, rounded down) and SM (the sum modulo 10); the answer is one of ten digits. Trees are drawn until their length,
in tokens, lies strictly between the given bounds; no tree comes twice.

Pathfinder (arXiv:1805.08315; in the arena too): are two dots the ends of one dashed curve? An image holds two long
dashed curves and shorter ones that distract. A dot sits on two ends: of the same long curve (label 1) or of different
ones (label 0). Images are drawn here, after the description, not taken from the arena.
"""

import math
import random
from collections.abc import Sequence
from statistics import median

import numpy as np
import torch
from tqdm import tqdm

from lib.seqboat.study.corpus import Examples, padded

TOKENS = ("<pad>", *"0123456789", "[MIN", "[MAX", "[MED", "[SM", "]")
OPERATORS = {"[MIN": min, "[MAX": max, "[MED": lambda v: int(median(v)), "[SM": lambda v: sum(v) % 10}
DIGIT_SHARE = 0.75
_ID = {token: number for number, token in enumerate(TOKENS)}
DASH, GAP, TURN, MARGIN = 3.0, 2.0, 0.45, 2  # pixels, pixels, radians a dash, pixels between curves
TRIES = 400
Curve = list[tuple[float, float, float, float]]  # dashes from (x, y) to (x, y)


NOISE = 4  # different tokens that mean nothing


class _TooLong(Exception):
    pass


def generate_recall(
    count: int, *, lengths: Sequence[int], pairs: int, values: int, noise_asked: float = 0.0, seed: int = 0
) -> Examples:
    """Return `count` rows, of each of the lengths in turn, for causal models, with the values asked for as labels.

    A label stands on the token after its key, which is noise. `noise_asked` is the share of the noise after noise,
    before the questions, that is labelled besides, with itself. Tokens: 0 pads, then noise, `values` keys and as many
    values; a length named twice has twice the rows. Raises ValueError for lengths that hold no pairs twice or more
    pairs than keys.
    """
    if min(lengths) < 4 * pairs or pairs > values:
        raise ValueError(f"{pairs} pairs of {values} keys need rows of at least {4 * pairs} tokens, and no more pairs")
    draw = torch.Generator().manual_seed(seed)
    inputs, labels = torch.zeros(count, max(lengths), dtype=torch.long), torch.full((count, max(lengths)), -100)
    ends = torch.tensor([lengths[row % len(lengths)] for row in range(count)])
    for row, end in enumerate(ends.tolist()):
        body = end - 2 * pairs
        inputs[row, :end] = torch.randint(1, 1 + NOISE, (end,), generator=draw)
        keys = torch.randperm(values, generator=draw)[:pairs] + 1 + NOISE
        asked = torch.randint(values, (pairs,), generator=draw) + 1 + NOISE + values
        places = 2 * torch.randperm(body // 2, generator=draw)[:pairs]
        inputs[row, places], inputs[row, places + 1] = asked, keys
        order = torch.randperm(pairs, generator=draw)
        inputs[row, body:end:2] = keys[order]
        labels[row, body + 1 : end : 2] = asked[order]
        noise = inputs[row, :body] <= NOISE
        told = (torch.rand(body, generator=draw) < noise_asked) & noise & noise.roll(1)
        labels[row, :body][told] = inputs[row, :body][told]
    return Examples(inputs, torch.arange(max(lengths)) < ends.unsqueeze(1), labels)


def generate_listops(
    count: int,
    *,
    length: tuple[int, int] = (500, 2000),
    max_depth: int = 10,
    max_arguments: int = 10,
    seed: int = 0,
    progress: bool = False,
) -> Examples:
    """Return `count` different expressions and their values; the defaults are the arena's.

    Raises ValueError for bounds without a length between them, fewer than 2 arguments, or where a hundred thousand
    draws in a row give no new tree.
    """
    low, high = length
    if high - low < 2 or max_arguments < 2 or max_depth < 1:
        raise ValueError(f"no tree has a length strictly between {low} and {high}, or operators have too few arguments")
    rng = random.Random(seed)
    trees: dict[tuple[int, ...], int] = {}
    misses = 0
    with tqdm(total=count, desc="ListOps", disable=not progress, mininterval=1.0) as bar:
        while len(trees) < count:
            tokens, value = _tree(rng, high, max_depth, max_arguments)
            if low < len(tokens) < high and tuple(tokens) not in trees:
                trees[tuple(tokens)] = value
                misses = 0
                bar.update()
            elif (misses := misses + 1) > 100_000:
                raise ValueError(f"trees of depth {max_depth} hardly reach lengths from {low} to {high}: allow others")
    return padded(list(trees), list(trees.values()))


def _tree(rng: random.Random, longest: int, max_depth: int, max_arguments: int) -> tuple[list[int], int]:
    """Draw one tree; an empty one where it grew too long, as it would be rejected anyway."""
    tokens: list[int] = []

    def grow(depth: int) -> int:
        if len(tokens) >= longest:
            raise _TooLong
        if depth >= max_depth or rng.random() < DIGIT_SHARE:
            digit = rng.randrange(10)
            tokens.append(_ID[str(digit)])
            return digit
        name = rng.choice(list(OPERATORS))
        tokens.append(_ID[name])
        value = OPERATORS[name]([grow(depth + 1) for _ in range(rng.randint(2, max_arguments))])
        tokens.append(_ID["]"])
        return value

    try:
        value = grow(1)
    except _TooLong:
        return [], 0
    return tokens, value


def generate_pathfinder(
    count: int,
    *,
    side: int = 32,
    dashes: int | None = None,
    distractors: int = 2,
    seed: int = 0,
    progress: bool = False,
) -> Examples:
    """Return images of `side` × `side` pixels as sequences of (value - .5) / .5, half of each label in random order.

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
    return Examples.of_one_length((pixels - 0.5) / 0.5, labels)  # as the paper's scripts have it


def _image(rng: random.Random, side: int, dashes: int, distractors: int, label: int) -> np.ndarray:
    for _ in range(TRIES):
        image, taken = np.zeros((side, side), np.float32), np.zeros((side, side), bool)
        curves = [_place(rng, image, taken, n) for n in [dashes, dashes] + [max(1, dashes // 3)] * distractors]
        ends = [[curve[0][:2], curve[-1][2:]] for curve in curves[:2] if curve is not None]
        if len(ends) == 2:
            first, second = ends
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
        points = [] if curve is None else [p for dash in curve for p in _pixels(dash)]
        if curve is not None and not any(taken[y, x] for x, y in points):
            for x, y in points:
                image[y, x] = 1.0
                taken[max(0, y - MARGIN) : y + MARGIN + 1, max(0, x - MARGIN) : x + MARGIN + 1] = True
            return curve
    return None


def _wander(rng: random.Random, side: int, dashes: int) -> Curve | None:
    """Return a smooth dashed walk that stays inside and does not come back to itself, or None."""
    x, y, angle = rng.uniform(2, side - 3), rng.uniform(2, side - 3), rng.uniform(0, 2 * math.pi)
    made: Curve = []
    for _ in range(dashes):
        to_x, to_y = x + DASH * math.cos(angle), y + DASH * math.sin(angle)
        close = any(math.hypot(to_x - a, to_y - b) < 2 * MARGIN for *_, a, b in made[:-1])
        if close or not (2 <= to_x <= side - 3 and 2 <= to_y <= side - 3):
            return None
        made.append((x, y, to_x, to_y))
        angle += rng.gauss(0, TURN)
        x, y = to_x + GAP * math.cos(angle), to_y + GAP * math.sin(angle)
    return made


def _pixels(dash: tuple[float, float, float, float]) -> list[tuple[int, int]]:
    x, y, to_x, to_y = dash
    steps = math.ceil(DASH * 2)
    return [(round(x + (to_x - x) * i / steps), round(y + (to_y - y) * i / steps)) for i in range(steps + 1)]


def _dot(image: np.ndarray, x: float, y: float) -> None:
    row, column = round(y), round(x)
    image[max(0, row - 1) : row + 2, max(0, column - 1) : column + 2] = 1.0
