"""`make rehearse`: every notebook with the gpu profile's parameters, to its last cell, on a machine without a GPU.

Names and switches are those of the gpu profile, numbers those of the smoke profile where `notebooks/rehearsal.toml` has
no other; it also says what stands for each model and data set of the hub: a tiny random model of the same class, rows
with the same columns. The kernel pretends an accelerator (`lib.lab.accelerator`), so that
a tensor left on the CPU fails as it would on a GPU; one scripted server stands for the endpoints. What a rehearsal
cannot show is memory and speed.
"""

import itertools
import json
import os
import tempfile
import threading
import time
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from zlib import crc32

from lib import TenfoldError
from lib.lab import paths

VARIABLE = "TENFOLD_REHEARSAL"
TOKENIZER, WORDPIECES = "smollm2-135m-instruct", "minilm"  # whose tokenizers the stand-ins take


def script() -> dict[str, Any]:
    """What `notebooks/rehearsal.toml` says: parameters by paper, models, data sets, replies of the endpoint."""
    path = paths.notebooks_dir() / "rehearsal.toml"
    try:
        return tomllib.loads(path.read_text(encoding="utf8"))
    except (OSError, tomllib.TOMLDecodeError) as error:
        raise TenfoldError(f"{path.name} cannot be read ({error}): mend it.") from None


@dataclass(frozen=True)
class Rehearsed:
    """How one notebook ended: its minutes, and the reason where a cell or one of its checks failed."""

    paper: str
    minutes: float
    reason: str = ""


def rehearse(papers: list[str], *, echo: bool = False) -> Iterator[Rehearsed]:
    """Run the notebooks of some papers (all where none is named) on stand-ins, into `figures/rehearsal`."""
    from lib.lab import profiles, runner

    told = script()
    with _stage() as folder, _endpoint(told["replies"]) as url:
        for paper in papers or list(paths.paper_notebooks()):
            began, reason = time.monotonic(), ""
            try:
                parameters = profiles.load("gpu").parameters(paper, cut(paper, told, url))
                notebook, results = paths.notebook_of(paper), folder / paper
                runner.run_notebook(notebook, results, profile="gpu", parameters=parameters, echo=echo)
                reason = failed_checks(paper, results)
            except TenfoldError as error:
                reason = str(error)
            yield Rehearsed(paper, (time.monotonic() - began) / 60, reason)


def failed_checks(paper: str, results: Path) -> str:
    """Name the failed checks of a finished notebook, of those that hold at any size: empty where there are none."""
    from lib.lab import claims, papers
    from lib.lab.run import RESULTS

    anywhere = {check.id for check in papers.load(paper).checks if claims.decides(check, "smoke")}
    checks = json.loads((results / RESULTS).read_text(encoding="utf8"))["checks"]
    failed = [check for check in checks if check["id"] in anywhere and check["passed"] is False]
    said = ", ".join(f"{check['id']} ({check['estimate']})" for check in failed)
    return f"it reaches its last cell, but these checks fail: {said}" if failed else ""


def cut(paper: str, told: dict[str, Any], url: str) -> dict[str, Any]:
    """What a rehearsal changes in the gpu profile's parameters: numbers, endpoints and the device."""
    from lib.lab import profiles

    gpu, smoke = (profiles.load(name).values.get(paper, {}) for name in ("gpu", "smoke"))
    numbers = {name: value for name, value in smoke.items() if name in gpu and _numeric(value) and _numeric(gpu[name])}
    endpoints = {name: url for name in told["endpoints"] if name in gpu}
    files = {name: _written(name, text) for name, text in told["files"].items() if name in gpu}
    return numbers | endpoints | files | {"device": "cuda"} | told["parameters"].get(paper, {})


def _written(name: str, text: str) -> str:
    place = paths.cache_dir() / f"{name}.toml"
    place.write_text(text, encoding="utf8")
    return str(place)


def _numeric(value: Any) -> bool:
    items = value if isinstance(value, list) else [value]
    return all(isinstance(item, int | float) and not isinstance(item, bool) for item in items)


@contextmanager
def _stage() -> Iterator[Path]:
    """A folder for the results, apart from those of the profiles, and a cache that is thrown away."""
    folder = paths.figures_dir() / "rehearsal"
    changed = {VARIABLE: "1", "HF_HUB_OFFLINE": "1", "TORCH_COMPILE_DISABLE": "1", "TENFOLD_FIGURES": str(folder)}
    with tempfile.TemporaryDirectory(prefix="tenfold-rehearsal-") as cache:
        changed |= {"TENFOLD_CACHE": cache}
        before = {key: os.environ.get(key) for key in changed}
        os.environ.update(changed)
        try:
            yield folder
        finally:
            for key, value in before.items():
                os.environ.pop(key, None) if value is None else os.environ.__setitem__(key, value)


@contextmanager
def _endpoint(replies: dict[str, str]) -> Iterator[str]:
    """A server of the OpenAI chat protocol: the reply whose name stands in the question, or else the one for ""."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            question = json.dumps(body["messages"])
            reply = next((text for words, text in replies.items() if words and words in question), replies[""])
            choice = {"message": {"role": "assistant", "content": reply}, "finish_reason": "stop"}
            choices = [choice] * body.get("n", 1)
            answer = json.dumps({"choices": choices, "usage": {"completion_tokens": 8}}).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1"
    finally:
        server.shutdown()


# --- in the kernel: stand-ins for what the hub would give ----------------------------------------------------------


def begin() -> None:
    """Pretend an accelerator in this process, and give stand-ins in place of everything of the hub."""
    from lib.lab import accelerator
    from lib.zoo import hub

    if hub.stand_in is None:
        told = script()
        hub.stand_in = StandIns(told)
        _list_cards(told["cards"])
        accelerator.pretend()


def _list_cards(counts: dict[str, int]) -> None:
    """Let the hub list as many data sets with each tag on their cards as `counts` says."""
    from huggingface_hub import DatasetInfo, HfApi

    cards = [DatasetInfo(id=f"{tag}-{i}", tags=[tag]) for tag, count in counts.items() for i in range(count)]
    HfApi.list_datasets = lambda self, **options: iter(cards)


class StandIns:
    """Gives what a `from_pretrained` or `load_dataset` of the hub would give: the same class, tiny and random."""

    def __init__(self, told: dict[str, Any]) -> None:
        self.models, self.datasets = told["models"], told["datasets"]

    def __call__(self, load: Any, name: str, **options: Any) -> Any:
        """Return the stand-in for what `load(name, **options)` gives; refuse a name that the script does not have."""
        owner = getattr(load, "__self__", None)
        kind = getattr(owner, "__name__", "")
        where = self.models if kind else self.datasets
        if name not in where:
            raise TenfoldError(f"notebooks/rehearsal.toml has no stand-in for {name!r}: say its type or columns there.")
        if not kind:
            return rows_like(where[name], options.get("split", "train"), streaming=options.get("streaming", False))
        return self.model(owner, kind, where[name], options.get("dtype"))

    def model(self, owner: Any, kind: str, settings: dict[str, Any], dtype: Any) -> Any:
        """Return a configuration, tokenizer, pipeline or model by the class that would be loaded."""
        import torch

        if kind == "StableDiffusionPipeline":
            return pipeline_like(owner, dtype)
        if kind == "AutoencoderKL":
            return autoencoder_like().to(dtype)
        config = config_like(settings)
        if kind == "AutoTokenizer":
            return tokenizer_like(settings)
        if kind == "AutoConfig":
            return config
        torch.manual_seed(0)
        made = owner.from_config(config) if kind.startswith("Auto") else owner(config)
        own = getattr(torch, settings.get("dtype", "bfloat16"))
        return made.to(dtype if isinstance(dtype, torch.dtype) else own).eval()


def tokenizer_like(settings: dict[str, Any]) -> Any:
    """Return a real tokenizer in place of the model's own: word pieces for encoders, byte pairs otherwise."""
    from transformers import AutoTokenizer

    from lib.zoo.assets import require
    from lib.zoo.models import converted

    if settings["type"] in ("roberta", "clip"):
        return AutoTokenizer.from_pretrained(str(require(WORDPIECES)))
    tokenizer = AutoTokenizer.from_pretrained(str(converted(TOKENIZER)))
    if settings["type"] == "t5":
        tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    return tokenizer


def config_like(settings: dict[str, Any]) -> Any:
    """Return the configuration class of the model's type with a width of 32 and the script's own values."""
    from transformers import CONFIG_MAPPING

    tokenizer = tokenizer_like(settings)
    small = {
        "vocab_size": len(tokenizer), "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 4096,
        "pad_token_id": tokenizer.pad_token_id, "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
    }  # fmt: skip
    if settings["type"] == "t5":
        small = {
            "vocab_size": len(tokenizer), "d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4,
            "decoder_start_token_id": 0, "pad_token_id": tokenizer.pad_token_id, "eos_token_id": 0,
        }  # fmt: skip
    return CONFIG_MAPPING[settings["type"]](**(small | {k: v for k, v in settings.items() if k != "type"}))


def autoencoder_like() -> Any:
    """Return an autoencoder of images as Stable Diffusion has it, to half the side."""
    from diffusers import AutoencoderKL

    sizes: Any = {"block_out_channels": (8, 8), "latent_channels": 4, "norm_num_groups": 4}  # diffusers says (int,)
    kinds: Any = {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}
    return AutoencoderKL(**sizes, **kinds)


def pipeline_like(owner: Any, dtype: Any) -> Any:
    """Return a pipeline of Stable Diffusion's parts, which takes a random LoRA in place of each file."""
    import torch
    from diffusers import DPMSolverMultistepScheduler, UNet2DConditionModel
    from peft import LoraConfig
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    torch.manual_seed(0)
    letters = [chr(ord("a") + i) for i in range(26)]
    words = ["<|startoftext|>", "<|endoftext|>", *letters, *(letter + "</w>" for letter in letters)]
    text = CLIPTextConfig(
        vocab_size=len(words), hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
        max_position_embeddings=16, bos_token_id=0, eos_token_id=1,
    )  # fmt: skip
    unet = UNet2DConditionModel(
        block_out_channels=(8, 16), layers_per_block=1, sample_size=8, norm_num_groups=4, attention_head_dim=4,
        cross_attention_dim=16, down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
    )  # fmt: skip
    made = owner(
        vae=autoencoder_like(), text_encoder=CLIPTextModel(text), unet=unet, scheduler=DPMSolverMultistepScheduler(),
        tokenizer=CLIPTokenizer(vocab={word: i for i, word in enumerate(words)}, merges=[], model_max_length=16),
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    ).to(dtype)  # fmt: skip
    recipe = LoraConfig(r=2, target_modules=r".*(to_q|to_k|to_v)$", init_lora_weights=False)
    made.load_lora_weights = lambda file, adapter_name: made.unet.add_adapter(recipe, adapter_name=adapter_name)
    return made


def rows_like(columns: dict[str, str], split: str, *, streaming: bool) -> Any:
    """Rows with the columns that a data set of the hub has, their texts taken from conversations that are here."""
    import datasets

    from lib.zoo.datasets import stream_dataset

    count = int(columns.get("rows", 240))
    part = crc32(split.encode()) % 7  # other splits hold other rows
    turns = (t["value"] for r in stream_dataset("sharegpt", "all") for t in r["conversations"] if len(t["value"]) > 40)
    texts = list(itertools.islice(turns, part * (2 * count + 2), (part + 1) * (2 * count + 2)))
    made = [
        {name: value_like(kind, texts, number) for name, kind in columns.items() if name != "rows"}
        for number in range(count)
    ]
    return iter(made) if streaming else datasets.Dataset.from_list(made)


def value_like(kind: str, texts: list[str], number: int) -> Any:
    """Return one value of a column: text, answer, id, label:N, task:N, messages, turns, image:SIDE, audio:LENGTH."""
    import numpy as np

    kind, _, size = kind.partition(":")
    text, answer = texts[2 * number][:600], texts[2 * number + 1][:600]
    if kind == "image":
        from PIL import Image

        random = np.random.default_rng(number)
        return Image.fromarray(random.integers(0, 256, (int(size), int(size), 3), dtype=np.uint8))
    messages = [{"role": "user", "content": text}, {"role": "assistant", "content": answer}]
    return {
        "text": text, "answer": answer, "id": f"row-{number}", "messages": messages, "conversation": messages,
        "texts": [answer], "empty": "", "label": number % int(size or 2), "task": f"task{number % int(size or 8):03}",
        "language": "English", "sum": f"{answer[:80]} #### {number}",
        "audio": {"array": np.sin(np.arange(int(size or 1)) * (number + 1) / 50).astype("float32").tolist(),
                  "sampling_rate": 16_000} if kind == "audio" else None,
    }[kind]  # fmt: skip
