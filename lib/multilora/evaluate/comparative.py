"""Comparative judge (arXiv:2402.16843): two images side by side, scored on composition and quality, in both orders.

The paper's scheme: from 10 in steps of a half, a missing element costs 3 points of composition, a wrong feature or a
disharmony 1; a deformity costs 3 points of image quality, bad texture, light or colour 2, a small flaw 1.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lib import TenfoldError
from lib.multilora.testbed import Element

ASPECTS = ("composition", "quality")
ATTEMPTS = 10  # as in the paper: an answer whose scores cannot be read is asked for again
SCORE = re.compile(r"image\s*([12])\W+composition\W+(\d+(?:\.\d+)?)\W+quality\W+(\d+(?:\.\d+)?)", re.IGNORECASE)
PROMPT = """You compare two images that were meant to show the same elements:
{elements}

Score each image on two aspects from 0 to 10, in steps of 0.5.
Composition starts at 10. Take off 3 for each element that is missing, 1 for each wrong feature of an element, and 1 \
where elements do not go together.
Quality starts at 10. Take off 3 for each deformed part, 2 for poor texture, lighting or colour, 1 for a smaller flaw.
Be strict, and avoid equal scores unless the images are equally good. Explain in a few sentences, then end with:
Image 1: composition <score>, quality <score>
Image 2: composition <score>, quality <score>"""

Ask = Callable[[str, list[Any]], str]


@dataclass(frozen=True)
class Comparison:
    """Scores of two images in both orders: [order, image, aspect], where order 1 showed the second image first."""

    scores: np.ndarray

    def mean(self, aspect: str) -> tuple[float, float]:
        """Scores of the first and the second image, averaged over both orders."""
        first, second = self.scores[:, :, ASPECTS.index(aspect)].mean(axis=0)
        return float(first), float(second)

    def shown_first_minus_second(self, aspect: str) -> float:
        """How much better an image is scored for being shown first, mean of both orders; 0 for a judge without bias."""
        one, other = self.scores[:, :, ASPECTS.index(aspect)]
        return float((one[0] - one[1] + other[1] - other[0]) / 2)


def compare(ask: Ask, elements: Sequence[Element], first: Any, second: Any) -> Comparison:
    """Compare two images in both orders by a judge's `ask(text, images)`.

    Raises TenfoldError where no answer of ten gives scores that can be read.
    """
    listed = "\n".join(f"- {e.category}: {e.trigger}" for e in elements)
    prompt = PROMPT.format(elements=listed)
    straight = _scores(ask, prompt, [first, second])
    swapped = _scores(ask, prompt, [second, first])
    return Comparison(np.stack([straight, swapped[::-1]]))


def _scores(ask: Ask, prompt: str, images: list[Any]) -> np.ndarray:
    answer = ""
    for _ in range(ATTEMPTS):
        answer = ask(prompt, images)
        scores = read_scores(answer)
        if scores is not None:
            return scores
    raise TenfoldError(
        f"the judge gave no readable scores in {ATTEMPTS} answers (the last: {answer[:80]!r}): try another model."
    )


def read_scores(answer: str) -> np.ndarray | None:
    """Scores [image, aspect] of an answer's last lines, or None where they are missing or outside 0 to 10."""
    found = {int(image): (float(a), float(b)) for image, a, b in SCORE.findall(answer)}
    if set(found) != {1, 2}:
        return None
    scores = np.array([found[1], found[2]])
    return scores if (scores >= 0).all() and (scores <= 10).all() else None


def position_bias(comparisons: Sequence[Comparison], aspect: str) -> list[float]:
    """Bias towards the image shown first, one value a comparison."""
    return [comparison.shown_first_minus_second(aspect) for comparison in comparisons]
