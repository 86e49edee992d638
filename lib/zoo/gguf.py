"""GGUF files as safetensors: dequantised tensor by tensor, so that memory holds one shard and never the whole model.

transformers' own `GgufConfig(dequantize=True)` gives the same weights, but holds all of them in float32 at once, twice
over while it saves. Names and permutations are its own tables; only the loop is ours.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jaxtyping import Shaped
from torch import Tensor

SHARD_BYTES = 256 * 2**20  # an embedding of 150,000 words is a shard of its own


def name_of(path: Path) -> str:
    """Read `general.name` of a GGUF file: what its maker calls the model."""
    from gguf import GGUFReader

    field = GGUFReader(path).fields.get("general.name")
    return str(field.contents()) if field else "a model without a name"


def convert(path: Path, folder: Path, *, dtype: Any) -> None:
    """Write a model's weights, configuration and tokenizer as a checkpoint that `from_pretrained` reads.

    Weights are dequantised in float32 and rounded to `dtype` once. Raises ValueError where the file lacks a weight of
    the architecture it names.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GenerationConfig

    config = AutoConfig.from_pretrained(path.parent, gguf_file=path.name)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    folder.mkdir(parents=True, exist_ok=True)
    _write_shards(_tensors(path, model, dtype), folder, wanted=_stored_names(model))
    tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    tokenizer.save_pretrained(folder)
    config.dtype, config.architectures = dtype, [type(model).__name__]
    config.save_pretrained(folder)
    GenerationConfig.from_model_config(config).save_pretrained(folder)


def _stored_names(model: Any) -> set[str]:
    """Names of all weights of a model that a checkpoint holds: a tied head is not written twice."""
    tied = set(getattr(model, "all_tied_weights_keys", {}) or {}) if model.config.tie_word_embeddings else set()
    return {name for name, _ in model.named_parameters(remove_duplicate=False)} - tied


def _tensors(path: Path, model: Any, dtype: Any) -> Iterator[tuple[str, Shaped[Tensor, "..."]]]:
    """Weights one after another, under the model's names, in its layout."""
    import torch
    from gguf import GGUFReader, dequantize
    from tqdm import tqdm
    from transformers.modeling_gguf_pytorch_utils import TENSOR_PROCESSORS, TensorProcessor, get_gguf_hf_weights_map

    processor = TENSOR_PROCESSORS.get(model.config.model_type, TensorProcessor)(config=model.config.to_dict())
    names = get_gguf_hf_weights_map(model, processor)
    for tensor in tqdm(GGUFReader(path).tensors, desc=f"convert {path.stem}", mininterval=2.0):
        weights = dequantize(tensor.data, tensor.tensor_type)
        made = processor.process(weights=weights, name=tensor.name, tensor_key_mapping=names, parsed_parameters={})
        if made.name in names:
            yield names[made.name], torch.from_numpy(made.weights.copy()).to(dtype)


def _write_shards(tensors: Iterator[tuple[str, Tensor]], folder: Path, *, wanted: set[str]) -> None:
    """Save tensors as numbered shards and the index of them; raises ValueError where a wanted one never came."""
    import json

    from safetensors.torch import save_file

    index: dict[str, str] = {}
    shard: dict[str, Tensor] = {}
    total = 0

    def flush() -> None:
        name = f"model-{len(set(index.values())) + 1:05d}.safetensors"
        save_file(shard, folder / name, metadata={"format": "pt"})
        index.update(dict.fromkeys(shard, name))
        shard.clear()

    for name, tensor in tensors:
        if name not in wanted:
            continue
        if shard and sum(t.nbytes for t in shard.values()) + tensor.nbytes > SHARD_BYTES:
            flush()
        shard[name], total = tensor.contiguous(), total + tensor.nbytes
    flush()
    if lacking := sorted(wanted - index.keys()):
        raise ValueError(f"the GGUF file lacks {lacking[0]} ({len(lacking)} weights are missing): it is another model.")
    text = json.dumps({"metadata": {"total_size": total}, "weight_map": index}, indent=1)
    (folder / "model.safetensors.index.json").write_text(text, encoding="utf8")
