"""The scene testbed's images: 32×32, of five categories as in ComposLoRA, where what is in an image is known exactly.

*Generic* values are what the base model is trained on. Each *development* and *held-out* value is known to one LoRA
only: settings are chosen on the former, and the results are about the latter. Every value is a function of pixel
coordinates; place, size and colours vary.
"""

from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lib.multilora.study.testbed import CATEGORIES, Element

ROLES = ("generic", "development", "held-out")
ELEMENTS: dict[str, dict[str, tuple[str, ...]]] = {
    "character": {"generic": ("disc", "square", "triangle"), "development": ("plus",), "held-out": ("ring", "bowtie")},
    "clothing": {"generic": ("plain", "hoops"), "development": ("pinstripe",), "held-out": ("checks", "sashes")},
    "style": {"generic": ("daylight", "pastel"), "development": ("night",), "held-out": ("grey", "sepia")},
    "background": {"generic": ("flat", "fade"), "development": ("bars",), "held-out": ("tiles", "ripples")},
    "object": {"generic": ("sun", "box"), "development": ("peak",), "held-out": ("saltire", "frame")},
}
VALUES = {category: tuple(n for role in ROLES for n in roles[role]) for category, roles in ELEMENTS.items()}
NULL = len(CATEGORIES)  # the first tags stand for "no value given", one a category
TAGS = {name: NULL + i for i, name in enumerate(n for c in CATEGORIES for n in VALUES[c])}


def names_of(role: str) -> list[tuple[str, str]]:
    """List (category, value) of every value of a role; raises ValueError for a role there is not."""
    if role not in ROLES:
        raise ValueError(f"{role!r} is no role of elements: use one of {', '.join(ROLES)}")
    return [(category, name) for category in CATEGORIES for name in ELEMENTS[category][role]]


def role_of(category: str, name: str) -> str:
    """Return the role of a value."""
    return next(role for role in ROLES if name in ELEMENTS[category][role])


def lora_elements(role: str) -> tuple[Element, ...]:
    """Return values of a role as elements of a testbed, one LoRA each; the trigger is the value's own tag."""
    return tuple(Element(category, name, name) for category, name in names_of(role))


def draw_generic(n: int, *, generator: torch.Generator) -> Int[Tensor, "n 5"]:
    """Draw the index of a generic value in each category, evenly."""
    counts = [len(ELEMENTS[c]["generic"]) for c in CATEGORIES]
    return torch.stack([torch.randint(count, (n,), generator=generator) for count in counts], dim=1)


def index_of(category: str, name: str) -> int:
    """Return the index of a value within its category."""
    return VALUES[category].index(name)


def to_tags(values: Int[Tensor, "n 5"]) -> Int[Tensor, "n 5"]:
    """Return the tag of each value (row of the table of embeddings)."""
    first = torch.tensor([TAGS[VALUES[c][0]] for c in CATEGORIES])
    return values + first


def null_tags(n: int) -> Int[Tensor, "n 5"]:
    """Return tags that say nothing: what classifier-free guidance compares with."""
    return torch.arange(len(CATEGORIES)).repeat(n, 1)


# --- drawing: background, a character in its clothing, an object in the corner, a style over everything ---

SIZE = 32
EDGE = 0.6  # pixels over which an outline is softened
HUES = torch.tensor(
    [[0.9, 0.2, 0.2], [0.2, 0.7, 0.25], [0.25, 0.4, 0.95], [0.9, 0.55, 0.1], [0.7, 0.25, 0.8], [0.1, 0.7, 0.75]]
)
GROUNDS = torch.tensor(
    [[0.85, 0.8, 0.7], [0.65, 0.75, 0.85], [0.75, 0.85, 0.7], [0.85, 0.7, 0.75], [0.7, 0.7, 0.75], [0.8, 0.85, 0.9]]
)
INK = torch.tensor([0.1, 0.05, 0.15])  # dark on every ground, in every style
LUMA = torch.tensor([0.3, 0.59, 0.11])

Plane = Float[Tensor, "n 32 32"]


def _stripes(position: Plane, period: float) -> Plane:
    """1 in every other band of half a period, softened over a pixel."""
    return (0.5 + torch.sin(2 * torch.pi * position / period) * period / torch.pi / (2 * EDGE)).clamp(0, 1)


def _cells(x: Plane, y: Plane, cell: float) -> Plane:
    a, b = _stripes(x, 2 * cell), _stripes(y, 2 * cell)
    return a * (1 - b) + b * (1 - a)


# Outlines in units of the figure's radius, negative inside.
OUTLINES: dict[str, Callable[[Plane, Plane], Plane]] = {
    "disc": lambda u, v: torch.hypot(u, v) - 1,
    "square": lambda u, v: torch.maximum(u.abs(), v.abs()) - 0.88,
    "triangle": lambda u, v: torch.maximum(v - 0.8, u.abs() - 0.58 * (v + 1)),
    "plus": lambda u, v: torch.minimum(
        torch.maximum(u.abs() - 0.4, v.abs() - 1), torch.maximum(v.abs() - 0.4, u.abs() - 1)
    ),
    "ring": lambda u, v: (torch.hypot(u, v) - 0.75).abs() - 0.3,
    "bowtie": lambda u, v: torch.maximum(u.abs() - 1, v.abs() - 0.85 * u.abs() - 0.1),
    "sun": lambda u, v: torch.hypot(u, v) - 1,
    "box": lambda u, v: torch.maximum(u.abs(), v.abs()) - 0.9,
    "peak": lambda u, v: torch.maximum(v - 0.9, u.abs() - 0.6 * (v + 1)),
    "saltire": lambda u, v: torch.maximum(
        torch.minimum((u - v).abs(), (u + v).abs()) - 0.35, torch.maximum(u.abs(), v.abs()) - 1
    ),
    "frame": lambda u, v: (torch.maximum(u.abs(), v.abs()) - 0.85).abs() - 0.25,
}
CLOTHES: dict[str, Callable[[Plane, Plane], Plane]] = {
    "plain": lambda x, y: torch.zeros_like(x),
    "hoops": lambda x, y: _stripes(y, 5.0),
    "pinstripe": lambda x, y: _stripes(x, 5.0),
    "checks": lambda x, y: _cells(x, y, 3.0),
    "sashes": lambda x, y: _stripes((x + y) / 2**0.5, 5.0),
}
BACKGROUNDS: dict[str, Callable[[Plane, Plane], Plane]] = {
    "flat": lambda x, y: torch.zeros_like(x),
    "fade": lambda x, y: (y + SIZE / 2) / SIZE,
    "bars": lambda x, y: _stripes(x, 10.0),
    "tiles": lambda x, y: _cells(x, y, 6.0),
    "ripples": lambda x, y: _stripes(torch.hypot(x, y), 8.0),
}
STYLES: dict[str, Callable[[Tensor], Tensor]] = {
    "daylight": lambda image: image,
    "pastel": lambda image: 0.5 + 0.5 * image,
    "night": lambda image: image * torch.tensor([0.25, 0.3, 0.55]).view(3, 1, 1),
    "grey": lambda image: torch.einsum("c,nchw->nhw", LUMA, image)[:, None].expand(-1, 3, -1, -1),
    "sepia": lambda image: (
        torch.einsum("c,nchw->nhw", LUMA, image)[:, None] * torch.tensor([1.0, 0.75, 0.45]).view(3, 1, 1)
    ),
}


def render(values: Int[Tensor, "n 5"], *, generator: torch.Generator) -> Float[Tensor, "n 3 32 32"]:
    """Render scenes given by the index of a value in each category, in [−1, 1]; place, size and colours are drawn."""
    n = len(values)
    grid = torch.arange(SIZE) - (SIZE - 1) / 2
    y, x = grid.view(1, SIZE, 1).expand(n, SIZE, SIZE), grid.view(1, 1, SIZE).expand(n, SIZE, SIZE)
    character, clothing, style, background, thing = (values[:, i] for i in range(len(CATEGORIES)))
    ground = GROUNDS[torch.randint(len(GROUNDS), (n,), generator=generator)]
    shift = _uniform(n, 2, generator=generator)
    pattern = _by_value(BACKGROUNDS, "background", background, x + 2 * shift[0], y + 2 * shift[1])
    image = _blend(ground, 0.55 * ground, pattern)

    place, size = _uniform(n, 2, generator=generator), 9 + 0.8 * _uniform(n, 1, generator=generator)[0]
    dx, dy = x + 1.0 - 1.5 * place[0], y - 2.0 - 1.5 * place[1]
    inside = _mask(_by_value(OUTLINES, "character", character, dx / size, dy / size), size)
    hue = HUES[torch.randint(len(HUES), (n,), generator=generator)]
    dressed = _blend(hue, 0.2 * hue, _by_value(CLOTHES, "clothing", clothing, dx, dy))
    image = image + inside[:, None] * (dressed - image)

    place, size = _uniform(n, 2, generator=generator), torch.full((n, 1, 1), 4.5)
    dx, dy = x - 10.5 - place[0], y + 10.5 - place[1]
    inside = _mask(_by_value(OUTLINES, "object", thing, dx / size, dy / size), size)
    image = image + inside[:, None] * (INK.view(1, 3, 1, 1) - image)

    styled = torch.empty_like(image)
    for index, name in enumerate(VALUES["style"]):
        rows = style == index
        styled[rows] = STYLES[name](image[rows])
    return 2 * styled - 1


def _uniform(n: int, count: int, *, generator: torch.Generator) -> list[Float[Tensor, "n 1 1"]]:
    return list(2 * torch.rand(count, n, 1, 1, generator=generator) - 1)


def _by_value(functions: dict, category: str, values: Int[Tensor, " n"], x: Plane, y: Plane) -> Plane:
    """Plane of each scene by the function of its value."""
    plane = torch.empty(x.shape)
    for index, name in enumerate(VALUES[category]):
        rows = values == index
        plane[rows] = functions[name](x[rows], y[rows])
    return plane


def _mask(outline: Plane, size: Float[Tensor, "n 1 1"]) -> Plane:
    return torch.sigmoid(-outline * size / EDGE * 2)


def _blend(first: Float[Tensor, "n 3"], second: Float[Tensor, "n 3"], share: Plane) -> Float[Tensor, "n 3 32 32"]:
    return first[:, :, None, None] + share[:, None] * (second - first)[:, :, None, None]


def specimens(category: str, number: int, *, generator: torch.Generator) -> dict[str, list[Tensor]]:
    """Draw so many scenes of each value of a category, in other respects generic: pictures (32, 32, 3) from 0 to 1."""
    drawn = {}
    for name in VALUES[category]:
        values = draw_generic(number, generator=generator)
        values[:, CATEGORIES.index(category)] = index_of(category, name)
        drawn[name] = list((render(values, generator=generator).permute(0, 2, 3, 1) + 1) / 2)
    return drawn
