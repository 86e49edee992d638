"""What a comparative judge is asked through: a vision-language model behind an OpenAI-compatible address."""

import base64
import io
import os
from dataclasses import dataclass
from typing import Any

from jaxtyping import Float
from torch import Tensor

from lib.zoo.endpoint import chat_completion


@dataclass(frozen=True)
class VisionModel:
    """Where the model answers; the key is read from the environment variable `key_from`, never written down."""

    url: str
    model: str
    key_from: str = "OPENAI_API_KEY"
    temperature: float = 1.0  # the paper's
    seconds: float = 120.0
    tries: int = 3

    def ask(self, text: str, images: list[Float[Tensor, "3 height width"]]) -> str:
        """Answer to a text followed by images in [−1, 1]; raises EndpointFailed where none comes."""
        content: list[dict[str, Any]] = [{"type": "text", "text": text}]
        content += [{"type": "image_url", "image_url": {"url": data_url(image)}} for image in images]
        messages = [{"role": "user", "content": content}]
        request = {"model": self.model, "temperature": self.temperature, "messages": messages}
        options = {"key": os.environ.get(self.key_from), "tries": self.tries, "seconds": self.seconds}
        return chat_completion(self.url, request, **options).texts[0]


def data_url(image: Float[Tensor, "3 height width"]) -> str:
    """Image in [−1, 1] as a PNG inside a URL."""
    from PIL import Image

    pixels = ((image.clamp(-1, 1) + 1) * 127.5).round().byte().permute(1, 2, 0).cpu().numpy()
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
