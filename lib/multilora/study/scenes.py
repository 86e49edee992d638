"""The scene testbed's images: 32×32, of five categories as in ComposLoRA, where what is in an image is known exactly.

A scene is a figure (character) in clothing, before a background, with an object in the corner and a style over
everything, in one of two looks, *drawn* with outlines or *painted* with shade, as ComposLoRA has an anime and a
realistic setting. *Generic* values are what the base model has words for; each value of a look is known to one LoRA
only: three characters and two of every other category, 22 LoRAs in all. Place, size and colours vary.
"""

from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lib.multilora.study.testbed import CATEGORIES, Element

LOOKS = ("drawn", "painted")
ROLES = ("generic", *LOOKS)
ELEMENTS: dict[str, dict[str, tuple[str, ...]]] = {
    "character": {
        "generic": ("child", "robot", "ghost"), "drawn": ("cat", "rabbit", "wizard"),
        "painted": ("bear", "king", "mushroom"),
    },
    "clothing": {"generic": ("plain", "hoops"), "drawn": ("dots", "checks"), "painted": ("pinstripe", "sash")},
    "style": {"generic": ("daylight", "pastel"), "drawn": ("sepia", "night"), "painted": ("grey", "blueprint")},
    "background": {"generic": ("flat", "fade"), "drawn": ("hills", "bricks"), "painted": ("rays", "bars")},
    "object": {"generic": ("sun", "house"), "drawn": ("moon", "star"), "painted": ("heart", "tree")},
}  # fmt: skip
VALUES = {category: tuple(n for role in ROLES for n in roles[role]) for category, roles in ELEMENTS.items()}
COLUMNS = (*CATEGORIES, "look")  # of a scene's values; the look is told like a prompt's prefix
VALUES["look"] = LOOKS
NULL = len(COLUMNS)  # the first tags stand for "no value given", one a column
TAGS = {name: NULL + i for i, name in enumerate(n for c in COLUMNS for n in VALUES[c])}


def names_of(role: str) -> list[tuple[str, str]]:
    """List (category, value) of every value of a role; raises ValueError for a role there is not."""
    if role not in ROLES:
        raise ValueError(f"{role!r} is no role of elements: use one of {', '.join(ROLES)}")
    return [(category, name) for category in CATEGORIES for name in ELEMENTS[category][role]]


def role_of(category: str, name: str) -> str:
    """Return the role of a value."""
    return next(role for role in ROLES if name in ELEMENTS[category][role])


def lora_elements(look: str) -> tuple[Element, ...]:
    """Return the values of a look as elements of a testbed, one LoRA each; the trigger is the value's own tag."""
    return tuple(Element(category, name, name) for category, name in names_of(look))


def draw_generic(n: int, *, generator: torch.Generator, look: str = "") -> Int[Tensor, "n 6"]:
    """Draw the index of a generic value in each category, evenly, and of a look unless it is given."""
    counts = [*(len(ELEMENTS[c]["generic"]) for c in CATEGORIES), len(LOOKS)]
    values = torch.stack([torch.randint(count, (n,), generator=generator) for count in counts], dim=1)
    if look:
        values[:, -1] = LOOKS.index(look)
    return values


def index_of(category: str, name: str) -> int:
    """Return the index of a value within its category."""
    return VALUES[category].index(name)


def to_tags(values: Int[Tensor, "n 6"]) -> Int[Tensor, "n 6"]:
    """Return the tag of each value (row of the table of embeddings)."""
    return values + torch.tensor([TAGS[VALUES[c][0]] for c in COLUMNS])


def null_tags(n: int) -> Int[Tensor, "n 6"]:
    """Return tags that say nothing: what classifier-free guidance compares with."""
    return torch.arange(len(COLUMNS)).repeat(n, 1)


# --- drawing: background, a figure in its clothing, an object in the corner, a style over everything ---

SIZE = 32
EDGE = 0.6  # pixels over which an outline is softened
HUES = torch.tensor(
    [[0.9, 0.2, 0.2], [0.15, 0.6, 0.2], [0.25, 0.4, 0.95], [0.9, 0.5, 0.1], [0.65, 0.25, 0.75], [0.1, 0.6, 0.65]]
)
GROUNDS = torch.tensor(
    [[0.85, 0.8, 0.7], [0.65, 0.75, 0.85], [0.75, 0.85, 0.7], [0.85, 0.7, 0.75], [0.7, 0.7, 0.75], [0.8, 0.85, 0.9]]
)
INK = torch.tensor([0.1, 0.05, 0.15])  # dark on every ground, in every style
LUMA = torch.tensor([0.3, 0.59, 0.11])

Plane = Float[Tensor, "n 32 32"]
Number = float | int
Outline = Callable[[Plane, Plane], Plane]


def _any(*outlines: Plane) -> Plane:
    return torch.stack(outlines).amin(0)


def _disc(u: Plane, v: Plane, a: Number, b: Number, radius: Number, tall: Number = 1.0) -> Plane:
    return torch.hypot(u - a, (v - b) / tall) - radius


def _box(u: Plane, v: Plane, a: Number, b: Number, wide: Number, high: Number) -> Plane:
    return torch.maximum((u - a).abs() - wide, (v - b).abs() - high)


def _peak(u: Plane, v: Plane, a: Number, top: Number, base: Number, wide: Number) -> Plane:
    """Triangle with its tip up: half as wide as `wide` times two at the base."""
    return torch.maximum(v - base, (u - a).abs() - wide * (v - top) / (base - top))


def _stripes(position: Plane, period: float) -> Plane:
    """1 in every other band of half a period, softened over a pixel."""
    return (0.5 + torch.sin(2 * torch.pi * position / period) * period / torch.pi / (2 * EDGE)).clamp(0, 1)


def _cells(x: Plane, y: Plane, cell: float) -> Plane:
    a, b = _stripes(x, 2 * cell), _stripes(y, 2 * cell)
    return a * (1 - b) + b * (1 - a)


def _bricks(x: Plane, y: Plane) -> Plane:
    row = torch.floor(y / 5)
    joint = ((x + 4 * (row % 2)) % 8 < 1.2) | (y % 5 < 1.2)
    return joint.float()


def _round(u: Plane, v: Plane) -> Plane:
    return _disc(u, v, 0, -0.35, 0.45)


def _crown(u: Plane, v: Plane) -> Plane:
    teeth = (((u / 0.28) % 1.0) - 0.5).abs() * 2  # 1 at the tips, 0 between
    return torch.maximum(_box(u, v, 0, -0.85, 0.42, 0.32), -(v + 0.72 + 0.42 * teeth))


# Outlines in units of ten pixels from the figure's middle, negative inside: the head, and what is on it in the hue.
HEADS: dict[str, tuple[Outline, Outline | None]] = {
    "child": (_round, None),
    "robot": (
        lambda u, v: _box(u, v, 0, -0.35, 0.45, 0.36),
        lambda u, v: _any(_box(u, v, 0, -0.9, 0.07, 0.25), _disc(u, v, 0, -1.15, 0.17)),
    ),
    "ghost": (lambda u, v: _any(_disc(u, v, 0, -0.25, 0.68), _box(u, v, 0, 0.4, 0.68, 0.6)), None),
    "cat": (lambda u, v: _any(_round(u, v), *(_peak(u, v, a, -1.1, -0.45, 0.24) for a in (-0.3, 0.3))), None),
    "rabbit": (lambda u, v: _any(_round(u, v), *(_disc(u, v, a, -0.95, 0.14, 3.0) for a in (-0.24, 0.24))), None),
    "wizard": (_round, lambda u, v: _any(_peak(u, v, 0, -1.5, -0.6, 0.5), _box(u, v, 0, -0.6, 0.65, 0.08))),
    "bear": (lambda u, v: _any(_round(u, v), *(_disc(u, v, a, -0.75, 0.24) for a in (-0.42, 0.42))), None),
    "king": (_round, _crown),
    "mushroom": (
        lambda u, v: _disc(u, v, 0, -0.25, 0.42),
        lambda u, v: torch.maximum(_disc(u, v, 0, -0.4, 0.95, 0.8), v + 0.42),
    ),
}  # fmt: skip
OBJECTS: dict[str, Outline] = {
    "sun": lambda u, v: torch.hypot(u, v) - 0.75 - 0.28 * torch.cos(8 * torch.atan2(v, u)),
    "house": lambda u, v: _any(_box(u, v, 0, 0.45, 0.65, 0.5), _peak(u, v, 0, -1.0, 0.0, 1.0)),
    "moon": lambda u, v: torch.maximum(_disc(u, v, 0, 0, 1.0), -_disc(u, v, 0.5, -0.2, 0.8)),
    "star": lambda u, v: torch.hypot(u, v) - 0.68 - 0.42 * torch.cos(5 * (torch.atan2(v, u) + torch.pi / 2)),
    "heart": lambda u, v: _any(
        *(_disc(u, v, a, -0.35, 0.52) for a in (-0.45, 0.45)),
        torch.maximum(0.75 * u.abs() + 0.75 * v - 0.68, -v - 0.25),
    ),
    "tree": lambda u, v: _any(_peak(u, v, 0, -1.1, 0.45, 0.85), _box(u, v, 0, 0.7, 0.2, 0.35)),
}
CLOTHES: dict[str, Outline] = {
    "plain": lambda x, y: torch.zeros_like(x),
    "hoops": lambda x, y: _stripes(y, 4.5),
    "dots": lambda x, y: torch.sigmoid(4 * (1.3 - torch.hypot(x % 4 - 2, y % 4 - 2))),
    "checks": lambda x, y: _cells(x, y, 2.6),
    "pinstripe": lambda x, y: _stripes(x, 4.0),
    "sash": lambda x, y: torch.sigmoid(4 * (2.2 - (x + y - 4).abs())),
}
BACKGROUNDS: dict[str, Outline] = {
    "flat": lambda x, y: torch.zeros_like(x),
    "fade": lambda x, y: (y + SIZE / 2) / SIZE,
    "hills": lambda x, y: torch.sigmoid(3 * (y - 1 + 4.5 * torch.sin(2 * torch.pi * x / 15))),
    "bricks": _bricks,
    "rays": lambda x, y: _stripes(torch.atan2(y, x) * 8, 2 * torch.pi * 8 / 10),
    "bars": lambda x, y: _stripes(x, 9.0),
}


def _grey(image: Tensor) -> Tensor:
    return torch.einsum("c,nchw->nhw", LUMA, image)[:, None]


def _tint(*colour: Number) -> Tensor:
    return torch.tensor(colour).view(3, 1, 1)


STYLES: dict[str, Callable[[Tensor], Tensor]] = {
    "daylight": lambda image: image,
    "pastel": lambda image: 0.5 + 0.5 * image,
    "sepia": lambda image: _grey(image) * _tint(1.0, 0.75, 0.45),
    "night": lambda image: image * _tint(0.25, 0.3, 0.6),
    "grey": lambda image: _grey(image).expand(-1, 3, -1, -1),
    "blueprint": lambda image: _tint(0.05, 0.15, 0.55) + (1 - _grey(image)) * _tint(0.8, 0.8, 0.45),
}


def render(values: Int[Tensor, "n 6"], *, generator: torch.Generator) -> Float[Tensor, "n 3 32 32"]:
    """Render scenes given by the index of a value in each category, in [−1, 1]; place, size and colours are drawn."""
    n = len(values)
    grid = torch.arange(SIZE) - (SIZE - 1) / 2
    y, x = grid.view(1, SIZE, 1).expand(n, SIZE, SIZE), grid.view(1, 1, SIZE).expand(n, SIZE, SIZE)
    character, clothing, style, background, thing, look = (values[:, i] for i in range(len(COLUMNS)))
    painted = look.view(-1, 1, 1).float()
    ground = GROUNDS[torch.randint(len(GROUNDS), (n,), generator=generator)]
    shift = _uniform(n, 2, generator=generator)
    pattern = _by_value(BACKGROUNDS, "background", background, x + 2 * shift[0], y + 2 * shift[1])
    image = _blend(ground, 0.55 * ground, pattern)
    image = image * (1 - 0.3 * painted * (torch.hypot(x, y) / 22) ** 2)[:, None]

    place, size = _uniform(n, 2, generator=generator), 10 + 0.7 * _uniform(n, 1, generator=generator)[0]
    dx, dy = x + 3.5 - 1.2 * place[0], y - 4.0 - 1.2 * place[1]
    u, v = dx / size, dy / size
    heads = {name: head for name, (head, _) in HEADS.items()}
    tops = {name: top or (lambda u, v: torch.full_like(u, 9.0)) for name, (_, top) in HEADS.items()}
    head, top = (_by_value(parts, "character", character, u, v) for parts in (heads, tops))
    body = _any(_box(u, v, 0, 0.55, 0.5, 0.52), _box(u, v, 0, 0.3, 0.78, 0.1))
    hue = HUES[torch.randint(len(HUES), (n,), generator=generator)]
    shade = (1 - 0.45 * painted * (0.5 + 0.5 * (u + v)).clamp(0, 1))[:, None]
    dressed = _blend(hue, 0.2 * hue, _by_value(CLOTHES, "clothing", clothing, dx, dy))
    light, plain = ((1 - a + a * hue)[:, :, None, None].expand_as(dressed) for a in (0.35, 1.0))
    line = 0.09 * (1 - painted)  # width of the drawn look's outline
    ink = INK.view(1, 3, 1, 1).expand_as(image)
    eyes = _any(*(_disc(u, v, a, -0.32, 0.09) for a in (-0.17, 0.17)))
    for outline, colour in ((head, light), (body, dressed), (top, plain)):
        image = _over(image, ink, _mask(outline - line, size))
        image = _over(image, colour * shade, _mask(outline, size))
    image = _over(image, ink, _mask(eyes, size))

    place, size = _uniform(n, 2, generator=generator), torch.full((n, 1, 1), 4.6)
    u, v = (x - 9.8 - place[0]) / size, (y + 9.8 - place[1]) / size
    image = _over(image, ink, _mask(_by_value(OBJECTS, "object", thing, u, v), size))

    styled = torch.empty_like(image)
    for index, name in enumerate(VALUES["style"]):
        rows = style == index
        styled[rows] = STYLES[name](image[rows])
    return (2 * styled - 1).clamp(-1, 1)


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


def _over(image: Tensor, colour: Tensor, mask: Plane) -> Tensor:
    return image + mask[:, None] * (colour - image)


def _blend(first: Float[Tensor, "n 3"], second: Float[Tensor, "n 3"], share: Plane) -> Float[Tensor, "n 3 32 32"]:
    return first[:, :, None, None] + share[:, None] * (second - first)[:, :, None, None]


def specimens(category: str, number: int, *, generator: torch.Generator) -> dict[str, list[Tensor]]:
    """Draw so many scenes of each value of a category, in other respects generic: pictures (32, 32, 3) from 0 to 1."""
    drawn = {}
    for name in VALUES[category]:
        role = role_of(category, name)
        values = draw_generic(number, generator=generator, look=role if role in LOOKS else "")
        values[:, CATEGORIES.index(category)] = index_of(category, name)
        drawn[name] = list((render(values, generator=generator).permute(0, 2, 3, 1) + 1) / 2)
    return drawn
