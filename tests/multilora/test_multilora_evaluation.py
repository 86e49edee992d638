"""The comparative judge against a local endpoint that looks at the images, and CLIPScore on a tiny model."""

import base64
import io
import json
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import numpy as np
import pytest
import torch
from PIL import Image

from lib import TenfoldError
from lib.core.chat import ChatClient
from lib.multilora.study.evaluation import (
    ATTEMPTS,
    ClipScorer,
    Comparison,
    compare,
    outcomes,
    position_bias,
    read_scores,
    vision_judge,
)
from lib.multilora.study.testbed import Element

ELEMENTS = (Element("character", "hero", "silver hair"), Element("object", "umbrella", "red umbrella"))
BIAS = 1.5


def answer(scores):
    lines = [f"Image {i}: composition {c}, quality {q}" for i, (c, q) in enumerate(scores, start=1)]
    return "Both show the hero.\n" + "\n".join(lines)


class Judge(BaseHTTPRequestHandler):
    """Scores an image by its brightness, and the one shown first by a bias more; garbage first, as models do."""

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.asked.append((self.path, self.headers.get("Authorization"), body))
        text, *images = body["messages"][0]["content"]
        if len(self.server.asked) <= self.server.garbage:
            said = "I cannot tell."
        else:
            pixels = [np.asarray(Image.open(io.BytesIO(self.decoded(image)))).mean() / 255 for image in images]
            said = answer([(round(2 * 8 * p) / 2 + BIAS * (i == 0), 5 - i) for i, p in enumerate(pixels)])
        reply = json.dumps({"choices": [{"message": {"content": said}}]}).encode()
        self.send_response(200)
        self.end_headers()
        self.wfile.write(reply)

    def decoded(self, image):
        return base64.b64decode(image["image_url"]["url"].split(",")[1])

    def log_message(self, *args):
        pass


@pytest.fixture
def server():
    server = HTTPServer(("127.0.0.1", 0), Judge)
    server.asked, server.garbage = [], 0
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()


def ask(server):
    url = f"http://127.0.0.1:{server.server_port}/v1"
    return vision_judge(ChatClient(url=url, model="eyes", key_variable="TENFOLD_TEST_KEY", seconds=10.0))


def test_both_orders_are_averaged_and_the_position_bias_is_found(server, monkeypatch):
    monkeypatch.setenv("TENFOLD_TEST_KEY", "secret")
    dark, light = torch.full((3, 8, 8), -0.5), torch.full((3, 8, 8), 0.5)
    comparison = compare(ask(server), ELEMENTS, dark, light)
    assert comparison.mean("composition") == (2 + BIAS / 2, 6 + BIAS / 2)
    assert comparison.shown_first_minus_second("composition") == BIAS
    assert comparison.mean("quality") == (4.5, 4.5)
    assert position_bias([comparison], "quality") == [1.0]
    path, key, body = server.asked[0]
    assert (path, key, body["model"], body["temperature"]) == ("/v1/chat/completions", "Bearer secret", "eyes", 1.0)
    assert "object: red umbrella" in body["messages"][0]["content"][0]["text"]


def test_unreadable_answers_are_asked_for_again_up_to_ten_times(server):
    image = torch.zeros(3, 8, 8)
    server.garbage = 4
    compare(ask(server), ELEMENTS, image, image)
    assert len(server.asked) == 4 + 2
    server.garbage = 1000
    with pytest.raises(TenfoldError, match=f"in {ATTEMPTS} answers"):
        compare(ask(server), ELEMENTS, image, image)


@pytest.mark.parametrize(
    ("text", "scores"),
    [
        (
            "**Image 1**: composition **8.5**, quality 7\n**Image 2**: Composition: 3, Quality: 9.5",
            [[8.5, 7], [3, 9.5]],
        ),
        (
            "Image 1: Composition Quality: 8.5/10, Image Quality: 9/10\nImage 2: Composition Quality: 10/10, "
            "Image Quality: 7.5 / 10",
            [[8.5, 9], [10, 7.5]],
        ),
        (
            "Image 1:\n- Composition: 8/10\n- Quality: 9/10\nImage 2:\n- Composition: 3\n- Quality: 9.5",
            [[8, 9], [3, 9.5]],
        ),
        ("Image 1: composition 8, quality 7", None),
        ("Image 1: composition 8, quality 7\nImage 2: composition 11, quality 2", None),
    ],
)
def test_scores_are_read_from_the_last_lines(text, scores):
    found = read_scores(text)
    assert (found is None) if scores is None else np.array_equal(found, scores)


def test_wins_ties_and_losses_are_counted_both_ways_round():
    def pair(straight, swapped):  # composition of (first, second) image, in each order
        return Comparison(np.array([[[a, 5.0] for a in scores] for scores in (straight, swapped)]))

    rows = outcomes([pair((8, 6), (6, 8)), pair((7, 7), (9, 8))], "composition")
    assert [row["order"] for row in rows] == ["shown first", "shown second", "both"]
    assert [(row["win"], row["tie"], row["loss"]) for row in rows] == [(0.5, 0.5, 0), (0.5, 0, 0.5), (0.5, 0.25, 0.25)]
    assert outcomes([pair((8, 6), (6, 8))], "quality")[2]["tie"] == 1.0


def test_clipscore_is_the_scaled_cosine_of_the_models_embeddings():
    from transformers import CLIPConfig, CLIPModel, CLIPTokenizer

    letters = list("abcdefghijklmnopqrstuvwxyz")
    words = ["<|startoftext|>", "<|endoftext|>", *letters, *(letter + "</w>" for letter in letters)]
    tokenizer = CLIPTokenizer(vocab={w: i for i, w in enumerate(words)}, merges=[], model_max_length=12)
    small = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = small | {"vocab_size": len(words), "max_position_embeddings": 12, "bos_token_id": 0, "eos_token_id": 1}
    torch.manual_seed(0)
    model = CLIPModel(
        CLIPConfig(text_config=text, vision_config=small | {"image_size": 16, "patch_size": 8}, projection_dim=8)
    )
    scorer = ClipScorer(model, tokenizer)
    images = torch.rand(3, 3, 40, 24) * 2 - 1
    prompts = ["a cat", "dog", "a dog"]
    scores = scorer(images, prompts)
    assert scorer.prepared(images).shape == (3, 3, 16, 16)
    for i, prompt in enumerate(prompts):
        ids = tokenizer([prompt], return_tensors="pt").input_ids
        output = model(pixel_values=scorer.prepared(images[i : i + 1]), input_ids=ids)
        expected = 100 * max(0.0, float(output.image_embeds[0] @ output.text_embeds[0]))
        assert float(scores[i]) == pytest.approx(expected, abs=1e-3)


def test_without_the_hub_clipscore_says_so():
    with pytest.raises(TenfoldError, match="cannot be reached"):
        ClipScorer.from_hub()
