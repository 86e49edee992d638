"""A drafter cut out of its target: a few of its layers and a head over its most frequent tokens.

It needs no training to begin with and shares the target's tokenizer and embeddings; `distill` makes it better.
"""

import copy
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

from lib.tempspec.heads import ReducedHead
from lib.zoo.models import quiet

HEAD = "drafter.json"


def truncate(
    target: Any, layers: Sequence[int], vocab_size: int | None = None, *, token_ids: Int[Tensor, " kept"] | None = None
) -> Any:
    """Make a causal language model of some of the target's layers, in the target's dtype, sharing nothing with it.

    Its embeddings are frozen: they are most of its weights, and good already.
    `token_ids` are the tokens that its head keeps (see `frequent_tokens`); `vocab_size` alone keeps the smallest ids,
    which are the most frequent ones of a byte-pair vocabulary. Raises ValueError for layers that the target lacks.
    """
    depth = target.config.num_hidden_layers
    chosen = [layer % depth if -depth <= layer < 0 else layer for layer in layers]
    if not chosen or any(not 0 <= layer < depth for layer in chosen):
        raise ValueError(f"layers are {list(layers)}: choose some of 0 to {depth - 1}")
    config = copy.deepcopy(target.config)
    config.num_hidden_layers = len(chosen)
    config.tie_word_embeddings = False
    if getattr(config, "layer_types", None):
        config.layer_types = [target.config.layer_types[layer] for layer in chosen]
    drafter: Any = AutoModelForCausalLM.from_config(config, dtype=target.dtype)
    drafter.load_state_dict(_chosen_weights(target, chosen))
    if token_ids is None and vocab_size is not None:
        token_ids = torch.arange(vocab_size)
    if token_ids is not None:
        weight = target.get_output_embeddings().weight.detach()
        kept = token_ids.to(weight.device)
        drafter.set_output_embeddings(ReducedHead(weight[kept], kept, config.vocab_size))
    drafter.get_input_embeddings().requires_grad_(False)
    return drafter.to(target.device).eval()


def _chosen_weights(target: Any, chosen: list[int]) -> dict[str, Tensor]:
    """The target's weights under the names of the shorter model."""
    weights = {}
    for name, weight in target.state_dict().items():
        parts = name.split(".")
        if "layers" in parts:
            place = parts.index("layers") + 1
            if int(parts[place]) not in chosen:
                continue
            for new, old in enumerate(chosen):
                if old == int(parts[place]):
                    weights[".".join([*parts[:place], str(new), *parts[place + 1 :]])] = weight
        else:
            weights[name] = weight
    return weights


def save_drafter(drafter: Any, folder: Path | str) -> None:
    """Write a truncated model with its reduced head, to be read by `load_drafter`."""
    head = drafter.get_output_embeddings()
    with quiet():
        drafter.save_pretrained(folder)
    kept = head.token_ids.tolist() if isinstance(head, ReducedHead) else None
    (Path(folder) / HEAD).write_text(json.dumps({"token_ids": kept}))


def load_drafter(folder: Path | str, *, dtype: torch.dtype = torch.float32) -> Any:
    """Read what `save_drafter` wrote; raises FileNotFoundError where that is not the case."""
    from safetensors.torch import load_file

    folder = Path(folder)
    kept = json.loads((folder / HEAD).read_text())["token_ids"]
    drafter: Any = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder), dtype=dtype)
    if kept is not None:
        blank = torch.zeros(len(kept), drafter.config.hidden_size, dtype=dtype)
        drafter.set_output_embeddings(ReducedHead(blank, torch.tensor(kept), drafter.config.vocab_size))
    drafter.load_state_dict({name: w for file in folder.glob("*.safetensors") for name, w in load_file(file).items()})
    drafter.get_input_embeddings().requires_grad_(False)
    return drafter.eval()
