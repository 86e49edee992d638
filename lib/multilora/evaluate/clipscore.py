"""CLIPScore: 100 × the cosine of an image's and its prompt's CLIP embeddings, at least 0 (arXiv:2104.08718)."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import cosine_similarity, interpolate

from lib.zoo import hub

MEAN = (0.48145466, 0.4578275, 0.40821073)  # of CLIP's training images
DEVIATION = (0.26862954, 0.26130258, 0.27577711)


class ClipScorer:
    """Scores images against prompts by a CLIP model, by default the paper's ViT-B/16."""

    def __init__(self, model: Any, tokenizer: Any) -> None:
        self.model, self.tokenizer = model.eval(), tokenizer

    @classmethod
    def from_hub(cls, name: str = "openai/clip-vit-base-patch16") -> "ClipScorer":
        """Scorer by hub name or folder; raises TenfoldError where the hub does not give it."""
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
        """Images as CLIP takes them: short side resized, centre cut out, normalised."""
        side = self.model.config.vision_config.image_size
        height, width = images.shape[-2:]
        scale = side / min(height, width)
        size = (max(side, round(height * scale)), max(side, round(width * scale)))
        resized = interpolate((images + 1) / 2, size=size, mode="bicubic", antialias=True).clamp(0, 1)
        top, left = (size[0] - side) // 2, (size[1] - side) // 2
        cut = resized[..., top : top + side, left : left + side]
        return (cut - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(DEVIATION).view(3, 1, 1)
