"""A vision-language model behind an OpenAI-compatible `/chat/completions` address: hosted, or your own server."""

import base64
import io
import json
import os
import urllib.error
import urllib.request
from dataclasses import dataclass
from typing import Any

from jaxtyping import Float
from torch import Tensor

from lib import TenfoldError


@dataclass(frozen=True)
class Endpoint:
    """Where the model answers; the key is read from the environment variable `key_from`, never written down."""

    url: str
    model: str
    key_from: str = "OPENAI_API_KEY"
    temperature: float = 1.0
    seconds: float = 120.0

    def ask(self, text: str, images: list[Float[Tensor, "3 height width"]]) -> str:
        """Answer to a text followed by images in [−1, 1]; raises TenfoldError where the endpoint does not answer."""
        content: list[dict[str, Any]] = [{"type": "text", "text": text}]
        content += [{"type": "image_url", "image_url": {"url": data_url(image)}} for image in images]
        body = {
            "model": self.model, "temperature": self.temperature, "messages": [{"role": "user", "content": content}]
        }  # fmt: skip
        headers = {"Content-Type": "application/json"}
        if os.environ.get(self.key_from):
            headers["Authorization"] = f"Bearer {os.environ[self.key_from]}"
        request = urllib.request.Request(
            self.url.rstrip("/") + "/chat/completions", json.dumps(body).encode(), headers, method="POST"
        )
        try:
            with urllib.request.urlopen(request, timeout=self.seconds) as response:
                return json.load(response)["choices"][0]["message"]["content"]
        except (urllib.error.URLError, TimeoutError, KeyError, IndexError, ValueError) as error:
            raise TenfoldError(
                f"the judge {self.model!r} did not answer ({error}): check its address, and the key in {self.key_from}."
            ) from None


def data_url(image: Float[Tensor, "3 height width"]) -> str:
    """Image in [−1, 1] as a PNG inside a URL."""
    from PIL import Image

    pixels = ((image.clamp(-1, 1) + 1) * 127.5).round().byte().permute(1, 2, 0).cpu().numpy()
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
