"""What a scene is made of: five categories as in ComposLoRA, with values a base model knows and values it does not.

*Generic* values are what the base model is trained on. Each *development* and *held-out* value is known to one LoRA
only: settings are chosen on the former, and the results are about the latter.
"""

import torch
from jaxtyping import Int
from torch import Tensor

from lib import TenfoldError
from lib.multilora.testbed import CATEGORIES, Element

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
    """(category, value) of every value of a role; raises TenfoldError for a role there is not."""
    if role not in ROLES:
        raise TenfoldError(f"{role!r} is no role of elements: use one of {', '.join(ROLES)}.")
    return [(category, name) for category in CATEGORIES for name in ELEMENTS[category][role]]


def lora_elements(role: str) -> tuple[Element, ...]:
    """Values of a role as elements of a testbed, one LoRA each; the trigger is the value's own tag."""
    return tuple(Element(category, name, name) for category, name in names_of(role))


def draw_generic(n: int, *, generator: torch.Generator) -> Int[Tensor, "n 5"]:
    """Index of a generic value in each category, drawn evenly."""
    counts = [len(ELEMENTS[c]["generic"]) for c in CATEGORIES]
    return torch.stack([torch.randint(count, (n,), generator=generator) for count in counts], dim=1)


def index_of(category: str, name: str) -> int:
    """Index of a value within its category."""
    return VALUES[category].index(name)


def to_tags(values: Int[Tensor, "n 5"]) -> Int[Tensor, "n 5"]:
    """Tag of each value (row of the table of embeddings)."""
    first = torch.tensor([TAGS[VALUES[c][0]] for c in CATEGORIES])
    return values + first


def null_tags(n: int) -> Int[Tensor, "n 5"]:
    """Tags that say nothing: what classifier-free guidance compares with."""
    return torch.arange(len(CATEGORIES)).repeat(n, 1)
