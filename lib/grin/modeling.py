"""GRIN's language model as a transformers model: PhiMoE's decoder with our router, dropless experts, global balance.

The decoder (pre-norm LayerNorm, RoPE, grouped-query attention; arXiv:2409.12136, section 3) is transformers' PhiMoE,
and parameters keep its names, so that published weights load by name. With one expert a model is dense.
"""

from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM
from transformers import initialization as init
from transformers.conversion_mapping import get_checkpoint_conversion_mapping, register_checkpoint_conversion_mapping
from transformers.modeling_outputs import MoeCausalLMOutputWithPast
from transformers.models.phimoe import modeling_phimoe
from transformers.utils.generic import can_return_tuple

from lib.grin.balance import balance_loss, over_workers, z_loss
from lib.grin.configuration import GrinConfig
from lib.grin.experts import Experts
from lib.grin.routing import Router, Routing, route_named


class GrinBlock(nn.Module):
    """Sparse feed-forward block: router, then dropless experts; keeps the routing of its last forward pass."""

    def __init__(self, config: GrinConfig) -> None:
        super().__init__()
        self.router = Router(
            config.hidden_size,
            config.num_local_experts,
            top_k=config.num_experts_per_tok,
            jitter_eps=config.router_jitter_noise,
            route=route_named(config.router, expert_gradient=config.expert_gradient),
        )
        self.experts = Experts(
            config.hidden_size, config.intermediate_size, config.num_local_experts, activation=config.hidden_act
        )
        self.routing: Routing | None = None

    def forward(self, hidden_states: Tensor) -> Tensor:
        """Return the block's output for hidden states [batch, tokens, width]."""
        # Deviation: input_jitter_noise, 0 in the released configuration, is not applied.
        flat = hidden_states.flatten(0, 1)
        self.routing = self.router(flat)
        return self.experts(flat, self.routing).view_as(hidden_states)

    def __getstate__(self) -> dict[str, Any]:
        """Leave the last pass's routing, which holds its graph, out of copies and pickles."""
        return self.__dict__ | {"routing": None}


class GrinDecoderLayer(modeling_phimoe.PhimoeDecoderLayer):
    """PhiMoE's decoder layer with a GRIN block."""

    def __init__(self, config: GrinConfig, layer_idx: int) -> None:
        super(modeling_phimoe.PhimoeDecoderLayer, self).__init__()
        self.hidden_size = config.hidden_size
        self.self_attn = modeling_phimoe.PhimoeAttention(config, layer_idx)
        self.mlp = GrinBlock(config)
        self.input_layernorm = _norm(config)
        self.post_attention_layernorm = _norm(config)


class GrinPreTrainedModel(modeling_phimoe.PhimoePreTrainedModel):
    """What all GRIN models share: configuration class and initialisation."""

    config: GrinConfig
    config_class = GrinConfig
    _no_split_modules = ["GrinDecoderLayer"]
    _can_record_outputs = {"hidden_states": GrinDecoderLayer, "attentions": modeling_phimoe.PhimoeAttention}

    def activation_checkpointing_enable(
        self, activation_checkpointing_kwargs: dict[str, Any] | None = None, **options: Any
    ) -> None:
        """Recompute activations in the backward pass; raises ValueError for the reentrant kind.

        A reentrant pass routes without a graph, so that the balance loss would silently lose its gradient.
        """
        kwargs = {"use_reentrant": False} | (activation_checkpointing_kwargs or {})  # torch's own default is reentrant
        if kwargs["use_reentrant"] is not False:
            raise ValueError("reentrant checkpointing loses the balance loss's gradient: set use_reentrant=False")
        super().activation_checkpointing_enable(kwargs, **options)

    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, Experts):
            init.normal_(module.gate_up_proj, mean=0.0, std=self.config.initializer_range)
            init.normal_(module.down_proj, mean=0.0, std=self.config.initializer_range)


class GrinModel(GrinPreTrainedModel, modeling_phimoe.PhimoeModel):
    """The decoder without a head."""

    def __init__(self, config: GrinConfig) -> None:
        super(modeling_phimoe.PhimoeModel, self).__init__(config)
        self.padding_idx, self.vocab_size = config.pad_token_id, config.vocab_size
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size, config.pad_token_id)
        self.layers = nn.ModuleList(GrinDecoderLayer(config, index) for index in range(config.num_hidden_layers))
        self.norm = _norm(config)
        self.rotary_emb = modeling_phimoe.PhimoeRotaryEmbedding(config=config)
        self.gradient_checkpointing = False
        self.post_init()


class GrinForCausalLM(GrinPreTrainedModel, modeling_phimoe.PhimoeForCausalLM):
    """GRIN's causal language model; with labels it returns the loss, and `aux_loss`, the mean balance loss."""

    def __init__(self, config: GrinConfig) -> None:
        super(modeling_phimoe.PhimoeForCausalLM, self).__init__(config)
        self.model = GrinModel(config)
        self.vocab_size = config.vocab_size
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=config.lm_head_bias)
        self.router_aux_loss_coef = config.router_aux_loss_coef
        self.num_experts, self.num_experts_per_tok = config.num_local_experts, config.num_experts_per_tok
        self.post_init()

    def routings(self) -> list[Routing]:
        """Return each layer's routing in the last forward pass; raises ValueError before the first."""
        routings = [cast(Any, layer).mlp.routing for layer in self.model.layers]
        if any(routing is None for routing in routings):
            raise ValueError("the model has not routed anything yet: run it first")
        return routings

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Any = None,
        labels: Tensor | None = None,
        balance_counts: list[Tensor] | None = None,
        output_router_logits: bool | None = None,
        **kwargs: Any,
    ) -> MoeCausalLMOutputWithPast:
        """Run the model; in training the loss includes the balance and z-losses, in evaluation it does not.

        `balance_counts`: each layer's dispatches over all workers and micro-batches of a step, where the balance loss
        should be global over gradient accumulation too; None counts this micro-batch over the workers.
        `num_items_in_batch`: the number of labels over which `Trainer` wants the mean (all accumulated micro-batches);
        the balance and z-losses then count by this micro-batch's share of them.
        """
        kwargs.pop("return_dict", None)
        output: Any = cast(Any, super()).forward(
            input_ids=input_ids, attention_mask=attention_mask, labels=labels, output_router_logits=False, **kwargs
        )
        if output_router_logits or self.config.output_router_logits:
            output.router_logits = tuple(routing.scores for routing in self.routings())
        part = _part(labels, **kwargs) if labels is not None and self.training else 1.0
        if labels is not None and self.num_experts > 1:
            output.aux_loss = self._balance(attention_mask, balance_counts)
            if self.training:
                output.loss = output.loss + part * self.config.router_aux_loss_coef * output.aux_loss
        if labels is not None and self.training and self.config.router_z_loss_coef:
            z = torch.stack([z_loss(routing.scores) for routing in self.routings()]).mean()
            output.loss = output.loss + part * self.config.router_z_loss_coef * z
        return output

    def _balance(self, attention_mask: Any, counts: list[Tensor] | None) -> Tensor:
        """Mean over layers of the balance loss of real tokens."""
        mask = attention_mask.flatten().bool() if isinstance(attention_mask, Tensor) else None
        mask = None if mask is None or bool(mask.all()) else mask
        given = counts or [None] * len(self.model.layers)
        shards = self.config.balance_shards if self.training else 1
        losses = [
            balance_loss(routing, counts=count, mask=mask, shards=shards)
            for routing, count in zip(self.routings(), given, strict=True)
        ]
        return torch.stack(losses).mean()


def _part(
    labels: Tensor, num_items_in_batch: Any = None, shift_labels: Tensor | None = None, **_: Any
) -> Tensor | float:
    """Return which part of a step's labels a worker's micro-batch has, in the mean over workers; 1 where it is alone.

    The mean, since each worker's balance loss is its part of the global one already. Counted as `Trainer` counts.
    """
    if num_items_in_batch is None:
        return 1.0
    counted = (labels[..., 1:] if shift_labels is None else shift_labels).ne(-100).sum()
    items, workers = over_workers(torch.stack([counted, torch.ones_like(counted)]))
    return items / workers / num_items_in_batch


def _norm(config: GrinConfig) -> nn.Module:
    if config.norm == "rms":
        return nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
    return nn.LayerNorm(config.hidden_size, eps=config.rms_norm_eps)


AutoModelForCausalLM.register(GrinConfig, GrinForCausalLM)
# Checkpoints hold one matrix an expert, as published PhiMoE weights do.
register_checkpoint_conversion_mapping("grin", get_checkpoint_conversion_mapping("phimoe") or [], overwrite=True)
