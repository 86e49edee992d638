"""ComposLoRA's combinatorics: sets of k LoRAs with a character and at most one of each category (arXiv:2402.16843).

Names, triggers and files come from the user's own TOML file; none of the paper's LoRAs lies here. The file:

    [anime]                      # a style of the testbed: base model, settings and prompt parts
    model = "owner/name"
    prefix = "masterpiece, best quality"
    negative = "low quality"

    [[anime.loras]]
    category = "character"       # character, clothing, style, background or object
    name = "hero"
    trigger = "hero, silver hair"
    file = "hero.safetensors"
"""

import itertools
import tomllib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from lib import TenfoldError

CATEGORIES = ("character", "clothing", "style", "background", "object")  # the paper's order of turns


@dataclass(frozen=True)
class Element:
    """One LoRA of the testbed: the category it belongs to, its adapter name, trigger words and file."""

    category: str
    name: str
    trigger: str
    file: str = ""


@dataclass(frozen=True)
class Setting:
    """A style of the testbed (the paper has anime and realistic): its LoRAs, prompt parts and pipeline options."""

    name: str
    elements: tuple[Element, ...]
    prefix: str = ""
    negative: str = ""
    options: dict[str, Any] = field(default_factory=dict)

    def prompt(self, combination: tuple[Element, ...]) -> str:
        """Join style prefix and all trigger words by commas."""
        return ", ".join(filter(None, [self.prefix, *(element.trigger for element in combination)]))


def combinations(elements: tuple[Element, ...], k: int) -> Iterator[tuple[Element, ...]]:
    """Yield sets of k elements with one character and at most one of every other category, in the order of turns.

    Raises TenfoldError for a k that no set can have.
    """
    by_category = {c: [e for e in elements if e.category == c] for c in CATEGORIES}
    others = [c for c in CATEGORIES[1:] if by_category[c]]
    if not 1 <= k <= 1 + len(others) or not by_category["character"]:
        raise TenfoldError(
            f"no set of {k} has one character and one of each other category: k is 1 to {1 + len(others)} here, "
            f"with {len(by_category['character'])} characters."
        )
    for chosen in itertools.combinations(others, k - 1):
        yield from itertools.product(*(by_category[c] for c in ("character", *chosen)))


def spread(sets: Sequence[Any], number: int) -> list[Any]:
    """Pick so many of the sets, spread evenly over all there are."""
    places = np.linspace(0, len(sets) - 1, min(number, len(sets))).round().astype(int)
    return [sets[place] for place in places]


def load_testbed(path: str | Path) -> list[Setting]:
    """Load the settings of a TOML file; raises TenfoldError where one lacks what it needs, naming the entry."""
    try:
        content = tomllib.loads(Path(path).read_text(encoding="utf8"))
    except (OSError, tomllib.TOMLDecodeError) as error:
        raise TenfoldError(
            f"{path} is no testbed ({error}): see lib/multilora/study/testbed.py for its form."
        ) from None
    return [_setting(name, dict(entry), Path(path).parent) for name, entry in content.items()]


def _setting(name: str, entry: dict[str, Any], folder: Path) -> Setting:
    elements = []
    for number, raw in enumerate(entry.pop("loras", []), start=1):
        missing = [key for key in ("category", "name", "trigger") if not raw.get(key)]
        if missing or raw["category"] not in CATEGORIES:
            wrong = f"lacks {missing[0]!r}" if missing else f"has the category {raw['category']!r}"
            raise TenfoldError(
                f"LoRA {number} of [{name}] {wrong}: give category (one of {', '.join(CATEGORIES)}), name and trigger."
            )
        file = str(folder / raw["file"]) if raw.get("file") else ""
        elements.append(Element(raw["category"], raw["name"], raw["trigger"], file))
    names = [element.name for element in elements]
    if not names or len(set(names)) < len(names):
        raise TenfoldError(f"[{name}] needs LoRAs, each with a name of its own, not {names}.")
    prefix, negative = entry.pop("prefix", ""), entry.pop("negative", "")
    return Setting(name, tuple(elements), prefix, negative, entry)
