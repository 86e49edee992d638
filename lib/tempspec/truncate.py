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
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.initialization import no_init_weights

from lib.tempspec.heads import ReducedHead

HEAD, WEIGHTS = "drafter.json", "model.safetensors"


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
    drafter = _blank(config, target.dtype)
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


def _blank(config: Any, dtype: torch.dtype) -> Any:
    """A model whose weights are still to be loaded: drawing them first would take seconds."""
    with no_init_weights():
        return AutoModelForCausalLM.from_config(config, dtype=dtype)


def save_drafter(drafter: Any, folder: Path | str) -> None:
    """Write a drafter with its reduced head, to be read by `load_drafter`; frozen embeddings are the target's."""
    folder, embeddings, head = Path(folder), drafter.get_input_embeddings(), drafter.get_output_embeddings()
    drafter.config.save_pretrained(folder)
    shared = not embeddings.weight.requires_grad
    left_out = embeddings.weight.data_ptr() if shared else None
    weights = {n: w.clone() for n, w in drafter.state_dict().items() if w.data_ptr() != left_out}
    save_file(weights, folder / WEIGHTS)
    kept = head.token_ids.tolist() if isinstance(head, ReducedHead) else None
    (folder / HEAD).write_text(json.dumps({"token_ids": kept, "target_embeddings": shared}))


def load_drafter(folder: Path | str, target: Any = None, *, dtype: torch.dtype = torch.float32) -> Any:
    """Read what `save_drafter` wrote, taking frozen embeddings from the target.

    Raises FileNotFoundError where there is no drafter, ValueError where it needs its target and none is given.
    """
    folder = Path(folder)
    record = json.loads((folder / HEAD).read_text())
    weights, kept = load_file(folder / WEIGHTS), record["token_ids"]
    drafter = _blank(AutoConfig.from_pretrained(folder), dtype)
    if kept is not None:
        blank = torch.zeros(len(kept), drafter.config.hidden_size, dtype=dtype)
        drafter.set_output_embeddings(ReducedHead(blank, torch.tensor(kept), drafter.config.vocab_size))
    if record["target_embeddings"]:
        if target is None:
            raise ValueError(f"the drafter in {folder.name} was saved without its target's embeddings: pass the target")
        embeddings = drafter.get_input_embeddings().requires_grad_(False)
        embeddings.weight.copy_(target.get_input_embeddings().weight)
        weights |= {n: w for n, w in drafter.state_dict().items() if w.data_ptr() == embeddings.weight.data_ptr()}
    drafter.load_state_dict(weights)
    return drafter.eval()
