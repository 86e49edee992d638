"""Into GRIN and back: dense models by upcycling, published PhiMoE weights by name, other mixtures by their routers."""

from functools import cache
from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import AutoConfig
from transformers.modeling_layers import GradientCheckpointingLayer

from lib.grin.configuration import GrinConfig
from lib.grin.modeling import GrinForCausalLM
from lib.grin.routing import Router, Routing, route_named

UPCYCLED_KEYS = (
    "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
    "num_key_value_heads", "max_position_embeddings", "rms_norm_eps", "rope_parameters", "tie_word_embeddings",
    "pad_token_id", "bos_token_id", "eos_token_id", "initializer_range", "attention_bias", "hidden_act",
    "attention_dropout",
)  # fmt: skip
FAMILIES = ("llama", "mistral", "qwen2")
MIXTURES = ("mixtral", "olmoe", "phimoe", "qwen2_moe", "qwen3_moe")


def from_phimoe(source: str | nn.Module, **options: Any) -> GrinForCausalLM:
    """Return a GRIN model with the weights of a PhiMoE checkpoint (folder or hub name) or model, by name.

    The same logits in evaluation; `options` go to `from_pretrained`. Raises ValueError for any other model type.
    """
    config = AutoConfig.from_pretrained(source) if isinstance(source, str) else cast(Any, source).config
    if config.model_type != "phimoe":
        raise ValueError(f"only PhiMoE weights load by name, got a {config.model_type!r} model: see `route_by_grin`")
    fields = {key: value for key, value in config.to_dict().items() if key not in ("model_type", "architectures")}
    grin = GrinConfig(**fields)
    if isinstance(source, str):
        return GrinForCausalLM.from_pretrained(source, config=grin, **options)
    return _filled(grin, {name: weight.clone() for name, weight in source.state_dict().items()}).train(source.training)


def upcycle(
    dense: nn.Module, num_experts: int, *, top_k: int = 2, router_std: float = 0.02, **changes: Any
) -> GrinForCausalLM:
    """Return a mixture of `num_experts` copies of a dense model's feed-forward layers (sparse upcycling).

    Each weight is near 1 and weights sum up to `top_k` (Algorithm 3), so the copies' outputs are divided by it: where
    one expert survives at every choice the logits are the dense model's. `changes` go to `GrinConfig`. Source:
    arXiv:2212.05055 for the idea. Raises ValueError for a family other than Llama, Mistral and Qwen2, or for a model of
    these that a GRIN decoder cannot hold (biases in the feed-forward layers, windows in some layers only).
    """
    config: Any = dense.config
    _check_dense(config)
    fields = {key: getattr(config, key) for key in UPCYCLED_KEYS if hasattr(config, key)}
    fields |= {"sliding_window": getattr(config, "sliding_window", None)}
    # Deviation: the paper's model has LayerNorm; a Llama keeps its RMSNorm, or its function would change.
    fields |= {"norm": "rms", "num_local_experts": num_experts, "num_experts_per_tok": top_k}
    if config.model_type == "qwen2":  # biases on queries, keys and values; the output's, which it lacks, start at 0
        fields["attention_bias"] = True
    grin = GrinConfig(**(fields | changes))
    grin.head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    state = _stacked({**dense.state_dict()}, config.num_hidden_layers, num_experts, top_k)
    like = state["model.embed_tokens.weight"]
    for layer in range(config.num_hidden_layers):
        router = torch.randn(num_experts, config.hidden_size, device="cpu") * router_std
        state[f"model.layers.{layer}.mlp.router.weight"] = router.to(like)
        if config.model_type == "qwen2":
            state[f"model.layers.{layer}.self_attn.o_proj.bias"] = like.new_zeros(config.hidden_size)
    return _filled(grin, state).train(dense.training)


def _check_dense(config: Any) -> None:
    if config.model_type not in FAMILIES:
        raise ValueError(f"only {', '.join(FAMILIES)} models can be upcycled, got {config.model_type!r}")
    if getattr(config, "mlp_bias", False):
        raise ValueError("experts have no biases, but this model's feed-forward layers do (mlp_bias)")
    if len(set(getattr(config, "layer_types", None) or ())) > 1:
        raise ValueError(
            "a GRIN decoder has one window for all layers, but this model has windows in some of them only"
        )
    if (kind := config.rope_parameters["rope_type"]) != "default":
        raise ValueError(f"a GRIN decoder has plain rotary positions, but this model scales them ({kind!r})")


def _stacked(state: dict[str, Tensor], layers: int, experts: int, top_k: int) -> dict[str, Tensor]:
    """Return a copy of a state with each layer's feed-forward weights `experts` times, the last divided by `top_k`."""
    made = {name: weight.clone() for name, weight in state.items() if ".mlp." not in name}
    for layer in range(layers):
        at = f"model.layers.{layer}.mlp."
        gate, up, down = (state[f"{at}{name}_proj.weight"] for name in ("gate", "up", "down"))
        made[f"{at}experts.gate_up_proj"] = torch.cat([gate, up]).repeat(experts, 1, 1)
        made[f"{at}experts.down_proj"] = (down / top_k).repeat(experts, 1, 1)
    return made


def _filled(config: GrinConfig, state: dict[str, Tensor]) -> GrinForCausalLM:
    """Return a model that holds the weights given, without drawing any first; ValueError where they do not fit."""
    with torch.device("meta"):
        model: Any = GrinForCausalLM(config)
    missing, unexpected = model.load_state_dict(state, strict=False, assign=True)
    model.tie_weights()
    if left := [key for key in missing if not (key == "lm_head.weight" and config.tie_word_embeddings)] + unexpected:
        raise ValueError(f"the model's weights do not fit: {', '.join(left[:3])}")
    device = state["model.embed_tokens.weight"].device
    model.model.rotary_emb = type(model.model.rotary_emb)(config).to(device)  # its frequencies are in no state
    return model


class GrinGate:
    """What `route_by_grin` mixes into a router's class: experts chosen by GRIN, in the form that its block expects."""

    weight: Tensor
    total: float
    routing: Routing | None

    def forward(self, hidden: Float[Tensor, "*tokens width"]) -> tuple[Tensor, Tensor, Tensor]:
        """Return scores, weights and chosen experts of each token."""
        self.routing = routing = Router.forward(cast(Router, self), hidden.flatten(0, -2))
        return routing.scores, (routing.weights * self.total).to(hidden.dtype), routing.indices

    def __getstate__(self) -> dict[str, Any]:
        """Leave the last pass's routing, which holds its graph, out of copies and pickles."""
        return self.__dict__ | {"routing": None}

    def __reduce__(self) -> Any:
        """Copy and pickle by the class that was there before, since the mixed one is in no module."""
        return _empty_gate, (type(self).__mro__[2],), self.__getstate__()


@cache
def _gate_class(base: type) -> Any:
    return type(f"Grin{base.__name__}", (GrinGate, base), {})


def _empty_gate(base: type) -> Any:
    made = _gate_class(base)
    return made.__new__(made)


def _refuse_reentrant(layer: Any, _: Any) -> None:
    """Raise ValueError where a decoder layer is about to train by reentrant checkpointing."""
    if layer.training and layer.gradient_checkpointing and torch.is_grad_enabled():
        options = getattr(layer._gradient_checkpointing_func, "keywords", {"use_reentrant": False})
        if options.get("use_reentrant") is not False:  # torch's own default is reentrant
            raise ValueError("reentrant checkpointing loses the balance loss's gradient: set use_reentrant=False")


def route_by_grin(
    model: nn.Module, *, router: str = "sparsemixer_v2", jitter_eps: float = 0.1, total: float | None = None
) -> list[Any]:
    """Give a Mixtral, OLMoE, Qwen-MoE or PhiMoE model GRIN's routing, in place; return its gates in layer order.

    Weights, names and all other modules stay, so that `save_pretrained` writes a checkpoint of the model's own family,
    and `route_as_before` is exact. GRIN's weights, each near 1, are scaled so that they sum up to `total` where one
    expert survives at every choice: to `top_k` in PhiMoE, to 1 where the family's gates do. Where those sum up to no
    constant (OLMoE) `total` must be given: their mean sum on text is what keeps the layer's size.

    The gates hold their last `routing`, so that `balance_loss` can be added globally; the family's own balance loss is
    not. Reentrant checkpointing, in which that loss has no gradient, is refused with a ValueError in training. Raises
    ValueError for another family, an unknown `router`, a negative `jitter_eps`, without a `total` that is needed, or
    where GRIN routes already.
    """
    route = route_named(router)
    if not jitter_eps >= 0:
        raise ValueError(f"jitter_eps must be at least 0, got {jitter_eps}")
    config: Any = model.config
    if config.model_type not in MIXTURES:
        raise ValueError(f"only {', '.join(MIXTURES)} models take GRIN's routing, got {config.model_type!r}")
    gates: list[Any] = [
        module.router if config.model_type == "phimoe" else module.gate
        for module in model.modules()
        if hasattr(module, "experts")
    ]
    if any(isinstance(gate, GrinGate) for gate in gates):
        raise ValueError("the model is routed by GRIN already")
    top_k = config.num_experts_per_tok
    if config.model_type == "phimoe":
        total = float(top_k) if total is None else total
    elif config.model_type == "mixtral" or config.norm_topk_prob:
        total = 1.0 if total is None else total
    if total is None:
        raise ValueError("this model's gates sum up to no constant: give their mean sum on your text as `total`")
    for gate in gates:
        gate.__class__ = _gate_class(type(gate))
        gate.route, gate.jitter_eps, gate.total, gate.routing = route, jitter_eps, total / top_k, None
    for layer in model.modules():
        if isinstance(layer, GradientCheckpointingLayer):
            layer.register_forward_pre_hook(_refuse_reentrant)
    return gates


def route_as_before(model: nn.Module) -> None:
    """Give a model that `route_by_grin` changed its own routing again, with the weights as they are now, in place."""
    for module in model.modules():
        for key in [key for key, hook in module._forward_pre_hooks.items() if hook is _refuse_reentrant]:
            del module._forward_pre_hooks[key]
        if isinstance(module, GrinGate):
            module.__class__ = type(module).__mro__[2]
            for name in ("route", "jitter_eps", "total", "routing"):
                delattr(module, name)
