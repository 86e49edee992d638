"""SeqBoat as transformers models: the stack, a causal language model that decodes in O(w) memory, and a classifier."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, GenerationMixin, PreTrainedModel
from transformers.utils.generic import ModelOutput

from lib.seqboat.cache import SeqBoatCache
from lib.seqboat.configuration import SeqBoatConfig
from lib.seqboat.layers import LAYERS, Norm
from lib.seqboat.sma import Activation


@dataclass
class SeqBoatOutput(ModelOutput):
    """Last hidden state or logits, the loss where labels were given, each layer's activation, and the cache."""

    loss: Float[Tensor, ""] | None = None
    logits: Tensor | None = None
    last_hidden_state: Tensor | None = None
    cache: SeqBoatCache | None = None
    activations: tuple[Activation, ...] | None = None
    hidden_states: tuple[Tensor, ...] | None = None


class Encoder(nn.Module):
    """Embeds tokens or bytes (a table), or numbers such as pixels and audio (a line x·w + b a channel)."""

    def __init__(self, config: SeqBoatConfig) -> None:
        super().__init__()
        self.config = config
        if config.inputs == "tokens":
            self.table = nn.Embedding(config.vocab_size, config.hidden_size, config.pad_token_id)
        else:
            self.weight, self.offset = (nn.Parameter(torch.empty(config.hidden_size)) for _ in range(2))
        self.position_scale = nn.Parameter(torch.empty(())) if config.absolute_positions else None

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draw the paper's initial values; the table of tokens is drawn by the model."""
        if self.config.inputs == "values":
            nn.init.normal_(self.weight)
            nn.init.normal_(self.offset, std=0.1)
        if self.position_scale is not None:
            full = self.config.layer == "transformer"  # attention alone has no other sense of place
            self.position_scale.fill_(1.0 if full else self.config.hidden_size**-0.5)

    def forward(self, inputs: Tensor, positions: Tensor) -> Float[Tensor, "batch tokens width"]:
        """Return embeddings of tokens [batch, tokens] of integers, or of numbers [batch, tokens]."""
        if self.config.inputs == "tokens":
            embedded = self.table(inputs)
        else:
            embedded = inputs.unsqueeze(-1) * self.weight + self.offset
        if self.position_scale is not None:
            embedded = embedded + self.position_scale * sinusoid(positions, embedded.shape[-1])
        return embedded


def sinusoid(positions: Int[Tensor, "batch tokens"], width: int) -> Float[Tensor, "batch tokens width"]:
    """Return sines and cosines of positions at geometric wavelengths; `width` must be even."""
    half = width // 2
    speeds = torch.exp(torch.arange(half, device=positions.device) * (-math.log(1e4) / max(1, half - 1)))
    angles = positions.unsqueeze(-1) * speeds
    return torch.cat([angles.sin(), angles.cos()], dim=-1)


class SeqBoatPreTrainedModel(PreTrainedModel):
    """What all models share: configuration, initial values and the names by which they are loaded."""

    config: SeqBoatConfig
    config_class = SeqBoatConfig
    base_model_prefix = "model"
    main_input_name = "input_ids"
    _is_stateful = True
    _no_split_modules = ["SeqBoatLayer"]

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Linear maps: truncated normals of 0.02, offsets 0; tokens: width^-½; every other module draws its own."""
        if isinstance(module, nn.Linear):
            nn.init.trunc_normal_(module.weight, std=0.02, a=-0.04, b=0.04)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Embedding):
            nn.init.normal_(module.weight, std=module.embedding_dim**-0.5)
        elif hasattr(module, "reset_parameters"):
            cast(Callable[[], None], module.reset_parameters)()


class SeqBoatModel(SeqBoatPreTrainedModel):
    """The stack without a head."""

    def __init__(self, config: SeqBoatConfig) -> None:
        super().__init__(config)
        self.encoder = Encoder(config)
        self.layers = nn.ModuleList(LAYERS[config.layer](config) for _ in range(config.num_hidden_layers))
        self.final_norm = Norm(config.norm, config.hidden_size, affine=config.final_affine) if config.prenorm else None
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        """Return the table of token embeddings."""
        return self.encoder.table

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replace the table of token embeddings."""
        self.encoder.table = value

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        input_values: Tensor | None = None,
        cache: SeqBoatCache | None = None,
        output_hidden_states: bool | None = None,
        **_: Any,
    ) -> SeqBoatOutput:
        """Run the stack on tokens or values [batch, tokens]; `attention_mask` is 1 (or True) at real ones.

        With a cache the mask may cover the whole text read so far. Raises ValueError without inputs, or where a text
        is longer than its relative positions reach.
        """
        inputs = input_ids if self.config.inputs == "tokens" else input_values
        if inputs is None or inputs.shape[1] == 0:
            name = "input_ids" if self.config.inputs == "tokens" else "input_values"
            raise ValueError(f"the model reads {name} of at least one position a row: give them")
        real = torch.ones(inputs.shape, dtype=torch.bool, device=inputs.device)
        if attention_mask is not None:
            real = attention_mask[:, -inputs.shape[1] :].bool()
        positions = (real.cumsum(1) - 1).clamp(min=0) if cache is None else cache.advance(real)
        reach, tokens = self.config.max_position_embeddings, cache.seen if cache is not None else inputs.shape[1]
        if self.config.layer == "seqboat" and self.config.positions == "relative" and tokens > reach:
            raise ValueError(
                f"{tokens} tokens are more than max_position_embeddings = {reach}: raise it, or use positions 'rotary' "
                "or 'local'"
            )
        hidden = self.encoder(inputs, positions)
        states, activations = [hidden], []
        for index, layer in enumerate(self.layers):
            hidden, of_layer = layer(hidden, real, positions, cache.states[index] if cache is not None else None)
            states.append(hidden)
            activations += of_layer
        if self.final_norm is not None:
            hidden = self.final_norm(hidden, real)
        kept = tuple(states) if output_hidden_states else None
        return SeqBoatOutput(last_hidden_state=hidden, cache=cache, activations=tuple(activations), hidden_states=kept)


class SeqBoatForCausalLM(SeqBoatPreTrainedModel, GenerationMixin):
    """Causal language model; `generate` keeps O(w) memory a layer and takes the same time for every token."""

    _tied_weights_keys = {"lm_head.weight": "model.encoder.table.weight"}

    def __init__(self, config: SeqBoatConfig) -> None:
        super().__init__(config)
        if not config.is_decoder or config.inputs != "tokens":
            raise ValueError(
                "a causal language model reads tokens from left to right: set is_decoder=True, inputs='tokens'"
            )
        self.model = SeqBoatModel(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        cache: SeqBoatCache | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        num_items_in_batch: Tensor | int | None = None,
        **kwargs: Any,
    ) -> SeqBoatOutput:
        """Return logits [batch, tokens, vocabulary]; with labels (-100 is ignored) the loss in nats a token.

        `num_items_in_batch` is the number of labels over which `Trainer` wants the mean (all accumulated batches).
        """
        if use_cache and cache is None and self._can_cache():
            cache = SeqBoatCache(self.config.num_hidden_layers)
        output = self.model(input_ids=input_ids, attention_mask=attention_mask, cache=cache, **kwargs)
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        output.logits = self.lm_head(output.last_hidden_state[:, kept])
        if labels is not None:
            output.loss = self.loss_function(
                logits=output.logits,
                labels=labels,
                vocab_size=self.config.vocab_size,
                num_items_in_batch=num_items_in_batch,
            )
        return output

    def _can_cache(self) -> bool:
        return self.config.layer == "seqboat" and self.config.window is not None

    def _prepare_cache_for_generation(self, generation_config: Any, model_kwargs: dict, *_: Any, **__: Any) -> None:
        """Give `generate` this model's cache; a baseline or a model without a window reads its text again each time.

        Raises ValueError for a cache that has read all of the text, so that nothing is left to continue from.
        """
        cache, mask = model_kwargs.get("cache"), model_kwargs.get("attention_mask")
        length = getattr(generation_config, "_mask_length", None) if mask is None else mask.shape[1]
        if cache is not None and length is not None and cache.get_seq_length() >= length:
            raise ValueError(
                f"the cache has read {cache.get_seq_length()} tokens of a text of {length}: give at least one token "
                "more, after all that it read or with a mask of the whole text"
            )
        if not self._can_cache():
            model_kwargs["use_cache"] = generation_config.use_cache = False
        elif generation_config.use_cache is not False and model_kwargs.get("cache") is None:
            model_kwargs["cache"] = SeqBoatCache(self.config.num_hidden_layers)


class SeqBoatForSequenceClassification(SeqBoatPreTrainedModel):
    """Classifier: the mean over real positions, a hidden layer with GELU, then a score for each label."""

    accepts_loss_kwargs = False  # Trainer averages over accumulated batches itself

    def __init__(self, config: SeqBoatConfig) -> None:
        super().__init__(config)
        self.num_labels = config.num_labels
        self.model = SeqBoatModel(config)
        self.hidden = nn.Linear(config.hidden_size, config.hidden_size)
        self.score = nn.Linear(config.hidden_size, config.num_labels, bias=False)
        self.post_init()

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        input_values: Tensor | None = None,
        labels: Tensor | None = None,
        **kwargs: Any,
    ) -> SeqBoatOutput:
        """Return logits [batch, labels]; with labels [batch] the loss in nats."""
        output = self.model(input_ids=input_ids, attention_mask=attention_mask, input_values=input_values, **kwargs)
        states = output.last_hidden_state
        weight = torch.ones_like(states[..., :1]) if attention_mask is None else attention_mask.unsqueeze(-1)
        pooled = (states * weight).sum(1) / weight.sum(1).clamp(min=1)
        output.logits = self.score(nn.functional.gelu(self.hidden(pooled)))
        if labels is not None:
            output.loss = nn.functional.cross_entropy(output.logits.float(), labels)
        return output


AutoModelForCausalLM.register(SeqBoatConfig, SeqBoatForCausalLM)
AutoModelForSequenceClassification.register(SeqBoatConfig, SeqBoatForSequenceClassification)
