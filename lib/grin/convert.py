"""Into GRIN models: published PhiMoE weights by name, and dense Llama-like models by upcycling."""

from typing import Any, cast

import torch
from torch import nn
from transformers import AutoConfig

from lib.grin.configuration import GrinConfig
from lib.grin.modeling import GrinForCausalLM

UPCYCLED_KEYS = (
    "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
    "num_key_value_heads", "max_position_embeddings", "rms_norm_eps", "rope_parameters", "tie_word_embeddings",
    "pad_token_id", "bos_token_id", "eos_token_id", "initializer_range", "attention_bias", "hidden_act",
)  # fmt: skip
FAMILIES = ("llama", "mistral")


def from_phimoe(source: str | nn.Module, **options: Any) -> GrinForCausalLM:
    """Return a GRIN model with the weights of a PhiMoE checkpoint (folder or hub name) or model, by name.

    The same logits in evaluation; `options` go to `from_pretrained`. Raises ValueError for any other model type.
    """
    config = AutoConfig.from_pretrained(source) if isinstance(source, str) else cast(Any, source).config
    if config.model_type != "phimoe":
        raise ValueError(f"only PhiMoE weights load by name, got a {config.model_type!r} model")
    fields = {key: value for key, value in config.to_dict().items() if key not in ("model_type", "architectures")}
    grin = GrinConfig(**fields)
    if isinstance(source, str):
        return GrinForCausalLM.from_pretrained(source, config=grin, **options)
    model: Any = GrinForCausalLM(grin)
    model.load_state_dict(source.state_dict())
    return model.to(next(source.parameters()).dtype).train(source.training)


def upcycle(
    dense: nn.Module, num_experts: int, *, top_k: int = 2, router_std: float = 0.02, **changes: Any
) -> GrinForCausalLM:
    """Return a mixture of `num_experts` copies of a dense model's feed-forward layers (sparse upcycling).

    Each weight is near 1 and weights sum up to `top_k` (Algorithm 3), so the copies' outputs are divided by it: where
    one expert survives at every choice the logits are the dense model's. `changes` go to `GrinConfig`. Source:
    arXiv:2212.05055 for the idea. Raises ValueError for a family other than Llama and Mistral.
    """
    config: Any = dense.config
    if config.model_type not in FAMILIES:
        raise ValueError(f"only {' and '.join(FAMILIES)} models can be upcycled, got {config.model_type!r}")
    fields = {key: getattr(config, key) for key in UPCYCLED_KEYS if hasattr(config, key)}
    fields |= {"sliding_window": getattr(config, "sliding_window", None)}
    # Deviation: the paper's model has LayerNorm; a Llama keeps its RMSNorm, or its function would change.
    fields |= {"norm": "rms", "num_local_experts": num_experts, "num_experts_per_tok": top_k}
    grin = GrinConfig(**(fields | changes))
    grin.head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    weights = next(dense.parameters())
    made: Any = GrinForCausalLM(grin)
    model = made.to(device=weights.device, dtype=weights.dtype)
    state = _stacked({**dense.state_dict()}, config.num_hidden_layers, num_experts, top_k)
    missing, unexpected = model.load_state_dict(state, strict=False)
    left = [key for key in missing if not key.endswith("router.weight")] + unexpected
    if left:
        raise ValueError(f"the dense model's weights do not fit: {', '.join(left[:3])}")
    for layer in model.model.layers:
        nn.init.normal_(layer.mlp.router.weight, std=router_std)
    return model.train(dense.training)


def _stacked(state: dict[str, torch.Tensor], layers: int, experts: int, top_k: int) -> dict[str, torch.Tensor]:
    """Replace each layer's feed-forward weights by `experts` copies, the last one divided by `top_k`."""
    for layer in range(layers):
        at = f"model.layers.{layer}.mlp."
        gate, up, down = (state.pop(f"{at}{name}_proj.weight") for name in ("gate", "up", "down"))
        state[f"{at}experts.gate_up_proj"] = torch.cat([gate, up]).expand(experts, -1, -1).clone()
        state[f"{at}experts.down_proj"] = (down / top_k).expand(experts, -1, -1).clone()
    return state
