"""Compressed models as transformers models: configs, classes and their registration.

Each supported family gets a `lorc_<family>` model type, so that `save_pretrained`, `from_pretrained`,
`AutoModelForCausalLM` and `generate` work as for any other model; ranks travel in the config, factors in the weights.
"""

from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig
from transformers.models.llama import modeling_llama
from transformers.models.mistral import modeling_mistral
from transformers.models.qwen2 import modeling_qwen2
from transformers.models.qwen3 import modeling_qwen3

from lib.lorc.attention import LowRankAttention
from lib.lorc.cache import LowRankCache
from lib.lorc.configuration import COMPRESSED_PREFIX, LowRankSpec, spec_of
from lib.lorc.rotary import SharedBuffers


class LowRankDecoder:
    """The decoder of a compressed model: makes the cache and says where each row starts."""

    config: Any

    def new_cache(self) -> LowRankCache:
        """Return an empty cache of this model's latents, for decoders that keep one of their own."""
        return LowRankCache(self.config)

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Any = None,
        position_ids: Tensor | None = None,
        cache: Any = None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        **kwargs: Any,
    ) -> Any:
        """Run the decoder as its family does, with a `LowRankCache` where one is wanted and none was given.

        Raises ValueError for a cache of another model, and for positions that have gaps.
        """
        cache = kwargs.pop("past_key_values", None) if cache is None else cache
        use_cache = self.config.use_cache if use_cache is None else use_cache
        if cache is None and use_cache:
            cache = LowRankCache(self.config)
        if cache is not None:
            require_cache_of(self.config, cache)
        given = input_ids if input_ids is not None else inputs_embeds
        if given is None:
            raise ValueError("pass either input_ids or inputs_embeds")
        kwargs["row_starts"] = _row_starts(given, attention_mask, position_ids, cache)
        return cast(Any, super()).forward(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            cache=cache,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            **kwargs,
        )


class LowRankCausalLM:
    """A causal language model whose cache holds latents (arXiv:2410.03111)."""

    config: Any

    def __init__(self, config: Any) -> None:
        cast(Any, super()).__init__(config)
        layers = range(config.num_hidden_layers)
        install(cast(nn.Module, self), [LowRankAttention(config, index, spec_of(config)) for index in layers])

    def _prepare_cache_for_generation(self, generation_config: Any, model_kwargs: dict[str, Any], *args: Any) -> Any:
        if generation_config.cache_implementation not in (None, "dynamic"):
            name = generation_config.cache_implementation
            raise ValueError(f"a compressed model makes its own cache: leave cache_implementation unset, not {name!r}")
        if model_kwargs.get("cache") is None and generation_config.use_cache is not False:
            model_kwargs["cache"] = LowRankCache(self.config)
        return cast(Any, super())._prepare_cache_for_generation(generation_config, model_kwargs, *args)


def install(model: nn.Module, attentions: list[LowRankAttention]) -> None:
    """Put low-rank attention into every layer of a model and turn its decoder into a low-rank one, in place."""
    decoder = cast(Any, model).get_decoder()
    shared = SharedBuffers(decoder.rotary_emb)
    for layer, attention in zip(decoder.layers, attentions, strict=True):
        attention.shared = shared
        layer.self_attn = attention
    if not isinstance(decoder, LowRankDecoder):
        decoder.__class__ = _DECODERS[type(decoder)]


def become_compressed(model: nn.Module, spec: LowRankSpec, attentions: list[LowRankAttention]) -> nn.Module:
    """Turn a model into its compressed class in place, once everything it needs has been computed."""
    config = cast(Any, model).config
    config.__class__ = _CONFIGS[type(config)]
    config.__dict__.pop("model_type", None)  # a config read from a file carries its old type itself
    config.lorc = spec.as_dict()
    model.__class__ = _MODELS[type(model)]
    install(model, attentions)
    return model


def from_pretrained(path: str, **options: Any) -> nn.Module:
    """Load a compressed model that `model.save_pretrained` wrote, from a folder or the hub.

    The same as `AutoModelForCausalLM.from_pretrained` after `import lib.lorc`. Raises ValueError where the checkpoint
    is not a compressed model.
    """
    spec_of(AutoConfig.from_pretrained(path))
    return AutoModelForCausalLM.from_pretrained(path, **options)


def require_cache_of(config: PreTrainedConfig, cache: object) -> None:
    """Raise ValueError where a cache was made for another model than the one of this config."""
    if not isinstance(cache, LowRankCache):
        raise ValueError(f"a compressed model needs a LowRankCache of its own config, not a {type(cache).__name__}")
    spec = spec_of(config)
    if (cache.spec.plan, cache.spec.sink_tokens, cache.spec.int8) != (spec.plan, spec.sink_tokens, spec.int8):
        raise ValueError("this LowRankCache was made for a model with other ranks: make one from this model's config")


def _row_starts(given: Tensor, mask: Any, position_ids: Tensor | None, cache: LowRankCache | None) -> Tensor | None:
    """Return the index of each row's first real token, or None where no row is padded on the left."""
    past = 0 if cache is None else cache.get_seq_length()
    new, starts = given.shape[1], None if cache is None else cache.starts
    padded = isinstance(mask, Tensor) and mask.ndim == 2
    # A row whose first chunks are all padding has not started yet: look again.
    if padded and (past == 0 or (starts is not None and bool((starts >= past).any()))):
        starts = torch.where(mask.any(-1), mask.long().argmax(-1), mask.shape[1])
        starts = starts if bool(starts.any()) else None
        if cache is not None:
            cache.starts = starts
    if position_ids is not None and position_ids.shape[-1] == new:
        _check_positions(position_ids, mask[:, -new:].bool() if padded else None, starts, past)
    return starts


def _check_positions(position_ids: Tensor, real: Tensor | None, starts: Tensor | None, past: int) -> None:
    """Raise ValueError where positions are not the cache index minus one shift a row: keys are rotated by index."""
    index = past + torch.arange(position_ids.shape[-1], device=position_ids.device)
    shift = index - position_ids
    fits = shift == 0
    if starts is not None:
        fits = fits.all(-1, keepdim=True) | (shift == starts[:, None].to(shift.device))
    fits = fits if real is None else fits | ~real
    if not bool(fits.all()):
        raise ValueError("position_ids with gaps or restarts do not fit a compressed cache: pad on the left instead")


def _families() -> tuple[dict[type, type], dict[type, type], dict[type, type]]:
    """Make and register the config, decoder and model of every family; return them by the classes they come from."""
    configs, decoders, models = {}, {}, {}
    modules = {"Llama": modeling_llama, "Mistral": modeling_mistral, "Qwen2": modeling_qwen2, "Qwen3": modeling_qwen3}
    for family, module in modules.items():
        base_config = getattr(module, f"{family}Config")
        base_decoder, base_model = getattr(module, f"{family}Model"), getattr(module, f"{family}ForCausalLM")
        record = {"_can_record_outputs": {**base_decoder._can_record_outputs, "attentions": LowRankAttention}}
        kind = COMPRESSED_PREFIX + family.lower()
        fields = {"__annotations__": {"lorc": dict | None}, "lorc": None, "model_type": kind}
        config = _subclass(f"Lorc{family}Config", (base_config,), fields)
        decoder = _subclass(f"Lorc{family}Model", (LowRankDecoder, base_decoder), record)
        members = {"config_class": config, **record}
        model = _subclass(f"Lorc{family}ForCausalLM", (LowRankCausalLM, base_model), members)
        configs[base_config], decoders[base_decoder], models[base_model] = config, decoder, model
        AutoConfig.register(kind, cast(Any, config))
        AutoModelForCausalLM.register(cast(Any, config), model)
    return configs, decoders, models


def _subclass(name: str, bases: tuple[type, ...], members: dict[str, Any]) -> type:
    made = type(name, bases, {"__module__": __name__, "__doc__": f"{bases[-1].__name__} with LoRC's cache.", **members})
    globals()[name] = made  # so that pickle and copy find it by name
    return made


_CONFIGS, _DECODERS, _MODELS = _families()
