"""A drafter cut out of its target: a few of its layers, and a head over its most frequent tokens.

It needs no training to begin with and shares the target's tokenizer and embeddings; `distill` makes it better. More
than half of a small drafter's time is its full head. Tokens outside the reduced one have draft probability 0, which
keeps speculative sampling exact: the residual can still produce them.
"""

import copy
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from jaxtyping import Float, Int
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.initialization import no_init_weights

from lib.core.scoring import head_logits

HEAD, WEIGHTS = "drafter.json", "model.safetensors"


class ReducedHead(nn.Module):
    """Logits over `token_ids` of a larger vocabulary; `forward` gives the others -inf, as any full head could.

    Raises ValueError for token ids that repeat or lie outside the vocabulary.
    """

    token_ids: Tensor

    def __init__(self, weight: Float[Tensor, "kept hidden"], token_ids: Int[Tensor, " kept"], vocab_size: int) -> None:
        super().__init__()
        if len(token_ids.unique()) != len(token_ids) or len(token_ids) != len(weight):
            raise ValueError("a reduced head needs one row of weights for each of its token ids, none twice")
        if int(token_ids.min()) < 0 or int(token_ids.max()) >= vocab_size:
            raise ValueError(f"a token id lies outside the vocabulary of {vocab_size}")
        self.weight = nn.Parameter(weight.clone())
        self.register_buffer("token_ids", token_ids.clone())
        self.vocab_size = vocab_size

    def reduced(self, hidden: Float[Tensor, "*rows hidden"]) -> Float[Tensor, "*rows kept"]:
        """Return the logits of the kept tokens only."""
        return nn.functional.linear(hidden, self.weight)

    def forward(self, hidden: Float[Tensor, "*rows hidden"]) -> Float[Tensor, "*rows vocab"]:
        """Return logits over the whole vocabulary, -inf for tokens that were not kept."""
        return widen(self.reduced(hidden), self.token_ids, self.vocab_size, -torch.inf)


def widen(
    values: Float[Tensor, "*rows kept"], token_ids: Int[Tensor, " kept"] | None, vocab_size: int, fill: float = 0.0
) -> Float[Tensor, "*rows vocab"]:
    """Spread values of the kept tokens (None: the first ones) over the whole vocabulary."""
    if token_ids is None:
        return nn.functional.pad(values, (0, vocab_size - values.shape[-1]), value=fill)
    whole = values.new_full((*values.shape[:-1], vocab_size), fill)
    whole[..., token_ids] = values
    return whole


def step_bytes(model: Any) -> int:
    """Return the bytes of weights that one step reads: all but the embeddings, of which it looks one row up."""
    embeddings = model.get_input_embeddings().weight
    head = model.get_output_embeddings()
    tied = head is not None and getattr(head, "weight", None) is embeddings
    sizes = {id(w): w.numel() * w.element_size() for w in model.parameters()}
    return max(sum(sizes.values()) - (0 if tied else sizes.get(id(embeddings), 0)), 1)


def known_logits(model: Any, hidden: Float[Tensor, "*rows hidden"]) -> tuple[Tensor, Tensor | None]:
    """Return a model's logits over the tokens that its head knows, and their ids (None: the whole vocabulary)."""
    head = model.get_output_embeddings()
    if isinstance(head, ReducedHead):  # with what the family does behind its head
        view = SimpleNamespace(config=model.config, get_output_embeddings=lambda: head.reduced)
        return head_logits(view, hidden), head.token_ids
    return head_logits(model, hidden), None


def frequent_tokens(texts: Iterable[Sequence[int] | Tensor], count: int, vocab_size: int) -> Int[Tensor, " count"]:
    """Return the ids of the `count` most frequent tokens, ascending; those never met fill up by smallest id.

    Raises ValueError where `count` is not between 1 and the vocabulary's size.
    """
    if not 1 <= count <= vocab_size:
        raise ValueError(f"count is {count}: keep between 1 and {vocab_size} tokens")
    met = torch.zeros(vocab_size, dtype=torch.long)
    for tokens in texts:
        met += torch.bincount(torch.as_tensor(tokens, dtype=torch.long), minlength=vocab_size)
    return met.argsort(descending=True, stable=True)[:count].sort().values


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
    """Return the target's weights under the names of the shorter model."""
    weights = {}
    for name, weight in target.state_dict().items():
        before, marker, inside = name.partition("layers.")
        if not marker:
            weights[name] = weight
            continue
        number, _, rest = inside.partition(".")
        for new, old in enumerate(chosen):
            if old == int(number):
                weights[f"{before}layers.{new}.{rest}"] = weight
    return weights


def _blank(config: Any, dtype: torch.dtype) -> Any:
    """Make a model whose weights are still to be loaded: drawing them first would take seconds."""
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
