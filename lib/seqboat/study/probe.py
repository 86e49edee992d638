"""What a trained model does: how far back it looks, and what a training step holds in memory."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from lib.seqboat.cache import Past
from lib.seqboat.gau import GatedAttentionUnit
from lib.seqboat.layers import SeqBoatLayer
from lib.seqboat.sma import Compression


@dataclass(frozen=True)
class Spans:
    """Of one layer's active tokens, in original tokens: how far back the window reaches, and the mean distance looked.

    Tokens whose window is not full yet (fewer than w active ones before them) are left out.
    """

    reach: Float[Tensor, "queries"]
    distance: Float[Tensor, "queries"]


@torch.inference_mode()
def attention_spans(model: Any, input_ids: Tensor) -> list[Spans]:
    """Return each layer's spans on texts [batch, tokens] without padding.

    Raises ValueError unless the model is a causal SeqBoat with a window and softmax attention.
    """
    stack = getattr(model, "model", model)
    config = stack.config
    if config.layer != "seqboat" or not config.is_decoder or config.window is None:
        raise ValueError("spans are those of a causal SeqBoat with a window")
    if config.attention_function != "softmax":
        raise ValueError("the mean distance is taken over softmax weights: the model has other ones")
    states = stack(input_ids=input_ids, output_hidden_states=True).hidden_states
    return [_layer_spans(layer, x, config.window) for layer, x in zip(stack.layers, states, strict=False)]


def _layer_spans(layer: SeqBoatLayer, x: Tensor, window: int) -> Spans:
    real = torch.ones(x.shape[:2], dtype=torch.bool, device=x.device)
    state = layer.state_of(x, real)
    packed = Compression.of(layer.sma.configurator(state, real)[0].active)
    unit = cast(GatedAttentionUnit, layer.sma.experts[0])
    distance = mean_distance(unit, packed.compress(state), packed.index, packed.mask)
    if packed.index.shape[1] <= window:
        return Spans(distance.new_zeros(0), distance.new_zeros(0))
    full = packed.mask[:, window:]
    reach = packed.index[:, window:] - packed.index[:, :-window]
    return Spans(reach[full].float(), distance[:, window:][full])


def mean_distance(
    unit: GatedAttentionUnit,
    x: Float[Tensor, "batch kept width"],
    positions: Int[Tensor, "batch kept"],
    mask: Bool[Tensor, "batch kept"],
) -> Float[Tensor, "batch kept"]:
    """Return how many original tokens back a causal query looks, on average over its attention weights."""
    shared = nn.functional.silu(unit.base(x))[..., : unit.key_width]
    queries, keys = unit.queries_and_keys(shared, positions)
    at = torch.stack([positions.float(), torch.ones_like(positions).float()], dim=-1)
    summed, total = unit.attend(queries, Past(keys, at, positions, mask)).unbind(-1)
    return (positions - summed / total.clamp(min=1e-9)) * mask


def saved_bytes(step: Callable[[], Any]) -> int:
    """Return the bytes that autograd keeps for the backward pass of one forward pass, each storage counted once.

    Parameters and inputs are counted where they are kept. The same on every machine, unlike a process's peak memory.
    """
    kept: dict[int, Tensor] = {}

    def pack(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        held = step()
    size = sum(tensor.untyped_storage().nbytes() for tensor in kept.values())
    del held
    return size
