"""Judges of composed images: a comparative vision-language model, and CLIPScore.

Comparative judge (arXiv:2402.16843): two images side by side, scored on composition and quality, in both orders.

The paper's scheme: from 10 in steps of a half, a missing element costs 3 points of composition, a wrong feature or a
disharmony 1; a deformity costs 3 points of image quality, bad texture, light or colour 2, a small flaw 1.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import cosine_similarity

from lib import TenfoldError
from lib.core.chat import ChatClient, user_message
from lib.multilora.study.testbed import Element
from lib.zoo import hub

ASPECTS = ("composition", "quality")
ATTEMPTS = 10  # as in the paper: an answer whose scores cannot be read is asked for again
NUMBER = r"\W+(\d+(?:\.\d+)?)(?:\s*/\s*10)?"  # "8.5", or the published form "8.5/10"
SCORE = re.compile(
    rf"image\s*([12])\W+composition(?:\s+quality)?{NUMBER}\W+(?:image\s+)?quality{NUMBER}", re.IGNORECASE
)
PROMPT = """You compare two images that were meant to show the same elements:
{elements}

Score each image on two aspects from 0 to 10, in steps of 0.5.
Composition starts at 10. Take off 3 for each element that is missing, 1 for each wrong feature of an element, and 1 \
where elements do not go together.
Quality starts at 10. Take off 3 for each deformed part, 2 for poor texture, lighting or colour, 1 for a smaller flaw.
Be strict, and avoid equal scores unless the images are equally good. Explain in a few sentences, then end with:
Image 1: composition <score>/10, quality <score>/10
Image 2: composition <score>/10, quality <score>/10"""

Ask = Callable[[str, list[Any]], str]


@dataclass(frozen=True)
class Comparison:
    """Scores of two images in both orders: [order, image, aspect], where order 1 showed the second image first."""

    scores: np.ndarray

    def mean(self, aspect: str) -> tuple[float, float]:
        """Return the scores of the first and the second image, averaged over both orders."""
        first, second = self.scores[:, :, ASPECTS.index(aspect)].mean(axis=0)
        return float(first), float(second)

    def margins(self, aspect: str) -> np.ndarray:
        """Return the first image's score less the second's: where it was shown first, and where it was shown second."""
        first, second = self.scores[:, :, ASPECTS.index(aspect)].T
        return first - second

    def shown_first_minus_second(self, aspect: str) -> float:
        """Return how much better an image is scored for being shown first, mean of both orders; 0 without bias."""
        straight, swapped = self.margins(aspect)
        return float((straight - swapped) / 2)


def outcomes(comparisons: Sequence[Comparison], aspect: str) -> list[dict[str, Any]]:
    """Return the shares of comparisons that the first image wins, ties and loses, for each order and both together."""
    margins = np.stack([comparison.margins(aspect) for comparison in comparisons])
    rows = []
    for order, column in (("shown first", margins[:, 0]), ("shown second", margins[:, 1]), ("both", margins)):
        shares = {"win": (column > 0).mean(), "tie": (column == 0).mean(), "loss": (column < 0).mean()}
        rows.append({"order": order, "aspect": aspect, **{name: float(share) for name, share in shares.items()}})
    return rows


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
    """Read the scores [image, aspect] off an answer's last lines; None where they are missing or outside 0 to 10."""
    by_image = {int(image): (float(a), float(b)) for image, a, b in SCORE.findall(answer)}
    if set(by_image) != {1, 2}:
        return None
    scores = np.array([by_image[1], by_image[2]])
    return scores if (scores >= 0).all() and (scores <= 10).all() else None


def position_bias(comparisons: Sequence[Comparison], aspect: str) -> list[float]:
    """Return the bias towards the image shown first, one value a comparison."""
    return [comparison.shown_first_minus_second(aspect) for comparison in comparisons]


def vision_judge(client: ChatClient) -> Ask:
    """Return what a comparison is asked through: a vision-language model behind an OpenAI-compatible address.

    Images are tensors in [−1, 1]. Each question is another attempt: an answer without readable scores must not come
    again.
    """
    attempts = count()

    def ask(text: str, images: list[Float[Tensor, "3 height width"]]) -> str:
        return client.complete([user_message(text, [picture(image) for image in images])], attempt=next(attempts)).text

    return ask


def picture(image: Float[Tensor, "3 height width"]) -> Any:
    """Return a tensor in [−1, 1] as a PIL image."""
    from PIL import Image

    return Image.fromarray(((image.clamp(-1, 1) + 1) * 127.5).round().byte().permute(1, 2, 0).cpu().numpy())


# --- CLIPScore: 100 × the cosine of an image's and its prompt's CLIP embeddings, at least 0 (arXiv:2104.08718) ---


class ClipScorer:
    """Scores images against prompts by a CLIP model, by default the paper's ViT-B/16."""

    def __init__(self, model: Any, tokenizer: Any) -> None:
        self.model, self.tokenizer = model.eval(), tokenizer

    @classmethod
    def from_hub(cls, name: str = "openai/clip-vit-base-patch16") -> "ClipScorer":
        """Load a scorer by hub name or folder; raises TenfoldError where the hub does not give it."""
        from transformers import AutoTokenizer, CLIPModel

        return cls(
            hub.from_hub(CLIPModel.from_pretrained, name, ()), hub.from_hub(AutoTokenizer.from_pretrained, name, ())
        )

    @torch.inference_mode()
    def __call__(self, images: Float[Tensor, "n 3 height width"], prompts: list[str]) -> Float[Tensor, " n"]:
        """Score of each image in [−1, 1] against its prompt."""
        pixels = self.prepared(images)
        text = self.tokenizer(prompts, padding=True, truncation=True, return_tensors="pt")
        output = self.model(pixel_values=pixels, input_ids=text.input_ids, attention_mask=text.attention_mask)
        return 100 * cosine_similarity(output.image_embeds, output.text_embeds).clamp(min=0)

    def prepared(self, images: Float[Tensor, "n 3 height width"]) -> Float[Tensor, "n 3 side side"]:
        """Return images as CLIP takes them: short side resized, centre cut out, normalised."""
        from transformers import CLIPImageProcessor

        side = self.model.config.vision_config.image_size
        processor = CLIPImageProcessor(size={"shortest_edge": side}, crop_size={"height": side, "width": side})
        return processor([picture(image) for image in images], return_tensors="pt")["pixel_values"]
