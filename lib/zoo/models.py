"""Language models and sentence encoders by short name (from `data/raw/`), local folder or Hugging Face hub name."""

import contextlib
import os
import re
import shutil
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jaxtyping import Float
from torch import Tensor

from lib import FULL_DISK, TenfoldError, refuse_unwritable, unwritable
from lib.zoo.assets import ASSETS, fingerprint, made_once, moved_by, require
from lib.zoo.hub import from_hub

LANGUAGE_MODELS = ("smollm2-135m-instruct", "qwen2.5-coder-0.5b-instruct", "qwen2.5-coder-1.5b-instruct")
ENCODERS = ("minilm",)


def load_lm(name: str, dtype: Any = None, device: str | None = None) -> tuple[Any, Any]:
    """Causal language model in eval mode and its tokenizer (padding on the left).

    `dtype` is a torch dtype or its name (default: float32 for a short name, the checkpoint's own otherwise). Raises
    TenfoldError where the name is unknown, or the model is neither here nor to be fetched, and ValueError for a name
    of no dtype.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    wanted = _torch_dtype(dtype) or (torch.float32 if name in LANGUAGE_MODELS else "auto")
    source = str(converted(name, wanted)) if name in LANGUAGE_MODELS else name
    with quiet():
        model: Any = from_hub(AutoModelForCausalLM.from_pretrained, source, LANGUAGE_MODELS, dtype=wanted)
        tokenizer = from_hub(AutoTokenizer.from_pretrained, source, LANGUAGE_MODELS)
    model.config.name_or_path = tokenizer.name_or_path = name
    tokenizer.padding_side = "left"
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    if (head := model.get_output_embeddings()) is not None:
        head.register_forward_pre_hook(_in_one_piece)
    model.eval()
    return (model.to(device) if device else model), tokenizer


def _in_one_piece(_: Any, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Copies a view of states (the last of each row, as `logits_to_keep` and `generate` take it) before the head.

    PyTorch on the CPU multiplies such a view row by row, copying the head's weights for each: 100 times slower in
    bfloat16.
    """
    return tuple(tensor.contiguous() for tensor in inputs)


def _torch_dtype(dtype: Any) -> Any:
    import torch

    if not isinstance(dtype, str) or dtype == "auto":
        return dtype
    found = getattr(torch, dtype, None)
    if not (isinstance(found, torch.dtype) and found.is_floating_point):
        raise ValueError(f"{dtype!r} is no dtype of weights: give float32, bfloat16 or float16")
    return found


def converted(name: str, dtype: Any = None) -> Path:
    """Folder of a short-named model as safetensors: the GGUF weights, dequantised once.

    They are kept in float32, from which every other `dtype` is rounded on loading; of a large model also in bfloat16
    alone, at half the disk, where nothing has asked for more. Raises TenfoldError where the model cannot be fetched or
    the cache's folder cannot be written.
    """
    import torch
    from safetensors import SafetensorError

    from lib.zoo import gguf

    exact = made_once(fingerprint(name).replace(":", "-"))
    if exact.exists():
        return exact
    halved = ASSETS[name].joined is not None and dtype == torch.bfloat16
    folder = exact.with_name(f"{exact.name}-bfloat16") if halved else exact
    if folder.exists():
        return folder
    (raw,) = require(name).glob("*.gguf")
    refuse_unwritable(folder.parent, moved_by(folder))
    building = folder.with_name(f".{folder.name}.{uuid.uuid4().hex[:8]}")
    try:
        with quiet():
            gguf.convert(raw, building, dtype=torch.bfloat16 if halved else torch.float32)
        with contextlib.suppress(OSError):  # another process may have finished first
            os.rename(building, folder)
    except (OSError, SafetensorError) as error:
        if not isinstance(error, OSError):  # safetensors tells the system's error in its text only
            number = re.search(r"os error (\d+)", str(error))
            error = OSError(int(number[1]) if number else 0, str(error))
        if error.errno not in FULL_DISK:
            raise
        raise unwritable(folder.parent, moved_by(folder), error) from None
    finally:
        shutil.rmtree(building, ignore_errors=True)
    return folder


class Encoder:
    """Sentence encoder: mean pooling over tokens, unit length (Reimers & Gurevych, arXiv:1908.10084)."""

    def __init__(self, model: Any, tokenizer: Any) -> None:
        self.model, self.tokenizer = model, tokenizer

    def encode(
        self, texts: Sequence[str], *, batch_size: int = 64, progress: bool = False
    ) -> Float[Tensor, "texts dim"]:
        """Embeddings [texts, dim] on the CPU, float32, each of length 1; long texts are cut at the model's limit."""
        import torch
        from tqdm import tqdm

        order = sorted(range(len(texts)), key=lambda i: len(texts[i]))  # similar lengths share a batch
        found = torch.zeros(len(texts), self.model.config.hidden_size)
        batches = [order[i : i + batch_size] for i in range(0, len(order), batch_size)]
        for batch in tqdm(batches, desc="encode", disable=not progress):
            found[batch] = self._embed([texts[i] for i in batch])
        return found

    def _embed(self, texts: list[str]) -> Tensor:
        import torch

        limit = min(self.tokenizer.model_max_length, self.model.config.max_position_embeddings)
        inputs = self.tokenizer(texts, padding=True, truncation=True, max_length=limit, return_tensors="pt")
        inputs = inputs.to(self.model.device)
        with torch.inference_mode():
            hidden = self.model(**inputs).last_hidden_state.float()  # [batch, tokens, dim]
        mask = inputs["attention_mask"].unsqueeze(-1)
        return torch.nn.functional.normalize((hidden * mask).sum(1) / mask.sum(1), dim=-1).cpu()


def load_encoder(name: str = "minilm", device: str | None = None, dtype: Any = "float32") -> Encoder:
    """Sentence encoder by short name, folder or hub name; raises TenfoldError as `load_lm` does."""
    from transformers import AutoModel, AutoTokenizer

    source = str(require(name)) if name in ENCODERS else name
    with quiet():
        model: Any = from_hub(AutoModel.from_pretrained, source, ENCODERS, dtype=_torch_dtype(dtype)).eval()
        tokenizer = from_hub(AutoTokenizer.from_pretrained, source, ENCODERS)
    return Encoder(model.to(device) if device else model, tokenizer)


@contextlib.contextmanager
def quiet():
    """Silence transformers' loading bars and notices inside a block."""
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


def describe(name: str) -> str:
    """One line on a model or data set for a plan: what it is, and whether it is here."""
    from lib.zoo.assets import is_here

    if name in ASSETS:
        asset = ASSETS[name]
        return f"{name}: {asset.what} ({'here' if is_here(asset) else f'{asset.megabytes} MB to fetch'})"
    return f"{name}: {summary(name)}" if name in SHAPES else f"{name}: from the Hugging Face hub"


# Shapes of hub models that the `gpu` profile names, so that their plans can be made without a hub: the numbers of
# their public configurations.
SHAPES: dict[str, dict[str, Any]] = {
    "HuggingFaceH4/mistral-7b-sft-beta": {
        "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32,
        "num_key_value_heads": 8, "vocab_size": 32000, "max_position_embeddings": 32768,
    },
    "JackFram/llama-68m": {
        "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 2, "num_attention_heads": 12,
        "num_key_value_heads": 12, "vocab_size": 32000, "max_position_embeddings": 2048,
    },
    "meta-llama/Llama-2-7b-chat-hf": {
        "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "num_attention_heads": 32,
        "num_key_value_heads": 32, "vocab_size": 32000, "max_position_embeddings": 4096,
    },
    "meta-llama/Llama-2-13b-chat-hf": {
        "hidden_size": 5120, "intermediate_size": 13824, "num_hidden_layers": 40, "num_attention_heads": 40,
        "num_key_value_heads": 40, "vocab_size": 32000, "max_position_embeddings": 4096,
    },
    "meta-llama/Meta-Llama-3-8B-Instruct": {
        "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32,
        "num_key_value_heads": 8, "vocab_size": 128256, "max_position_embeddings": 8192,
    },
    "meta-llama/Meta-Llama-3-70B-Instruct": {
        "hidden_size": 8192, "intermediate_size": 28672, "num_hidden_layers": 80, "num_attention_heads": 64,
        "num_key_value_heads": 8, "vocab_size": 128256, "max_position_embeddings": 8192,
    },
    "mistralai/Mistral-7B-v0.1": {
        "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32,
        "num_key_value_heads": 8, "vocab_size": 32000, "max_position_embeddings": 32768,
    },
    "Qwen/Qwen2.5-7B-Instruct": {
        "hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28, "num_attention_heads": 28,
        "num_key_value_heads": 4, "vocab_size": 152064, "max_position_embeddings": 32768,
    },
}  # fmt: skip


def meta_lm(name: str) -> Any:
    """Model of a known shape on the meta device: every shape and count, no weights; raises TenfoldError if unknown."""
    import torch
    from transformers import AutoModelForCausalLM, LlamaConfig

    if name not in SHAPES:
        raise TenfoldError(f"the shape of {name!r} is not known: add its configuration to lib/zoo/models.py.")
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(LlamaConfig(**SHAPES[name]))


def parameter_count(shape: dict[str, Any]) -> int:
    """Parameters of an untied Llama-family model, counted from its shape."""
    hidden, inner, layers = shape["hidden_size"], shape["intermediate_size"], shape["num_hidden_layers"]
    kv_width = hidden // shape["num_attention_heads"] * shape["num_key_value_heads"]
    layer = 2 * hidden * hidden + 2 * hidden * kv_width + 3 * hidden * inner + 2 * hidden
    return layers * layer + 2 * shape["vocab_size"] * hidden + hidden


def summary(name: str) -> str:
    """Parameters and bf16 memory of a known hub model."""
    count = parameter_count(SHAPES[name])
    return f"{count / 1e9:.1f} B parameters, {2 * count / 2**30:.0f} GiB in bf16, from the Hugging Face hub"
