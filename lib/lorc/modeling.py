"""Compressed models as transformers models: configs, classes and their registration.

Each supported family gets a `lorc_<family>` model type, so that `save_pretrained`, `from_pretrained`,
`AutoModelForCausalLM` and `generate` work as for any other model; ranks travel in the config, factors in the weights.
"""

from importlib import import_module
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig
from transformers.utils.output_capturing import _CAN_RECORD_REGISTRY

from lib.lorc.attention import KERNELS, PREFIX
from lib.lorc.cache import LowRankCache
from lib.lorc.configuration import COMPRESSED_PREFIX, MATRICES, SUPPORTED, LowRankSpec, projection, spec_of
from lib.lorc.projection import LowRankProjection
from lib.lorc.step import Shared, Step

Projections = list[dict[str, LowRankProjection]]


class LowRankDecoder:
    """The decoder of a compressed model: makes the cache and says where each row starts."""

    config: Any
    shared: Shared

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

        Raises ValueError for a cache of another model.
        """
        cache = kwargs.pop("past_key_values", None) if cache is None else cache
        use_cache = self.config.use_cache if use_cache is None else use_cache
        checkpointed = use_cache and cast(Any, self).training and cast(Any, self).is_gradient_checkpointing
        if cache is None and use_cache and not checkpointed:  # layers that run again would fill it twice
            cache = LowRankCache(self.config)
        given = input_ids if input_ids is not None else inputs_embeds
        if given is None:
            raise ValueError("pass either input_ids or inputs_embeds")
        if cache is not None:
            require_cache_of(self.config, cache)
            if position_ids is not None:
                cache.place(position_ids, len(given))
        if not self.config._attn_implementation.startswith(PREFIX):
            raise ValueError("a compressed model needs its own attention: choose it by model.set_attn_implementation")
        step = Step(cache, 0 if cache is None else cache.get_seq_length(), _row_starts(given, attention_mask, cache))
        self.shared.step = step
        try:
            return cast(Any, super()).forward(
                input_ids=input_ids,
                attention_mask=attention_mask,
                position_ids=position_ids,
                cache=cache,
                inputs_embeds=inputs_embeds,
                use_cache=use_cache,
                latents=step,
                **kwargs,
            )
        finally:
            # A backward pass through checkpoints runs layers again, so only a cache's step is over.
            self.shared.step = None if cache is not None else step


class LowRankCausalLM:
    """A causal language model whose cache holds latents (arXiv:2410.03111)."""

    config: Any

    def __init__(self, config: Any) -> None:
        cast(Any, super()).__init__(config)
        spec = spec_of(config)
        shared = Shared(cast(Any, self).get_decoder().rotary_emb, spec.sink_tokens)
        install(cast(nn.Module, self), shared, projections(cast(nn.Module, self), spec, shared))

    def set_attn_implementation(self, attn_implementation: Any, *args: Any, **kwargs: Any) -> None:
        """Choose the kernel that reads prompts: `sdpa` or `eager`; raises ValueError for any other."""
        if attn_implementation not in KERNELS:
            raise ValueError(f"a compressed model attends with {' or '.join(KERNELS)}, not {attn_implementation!r}")
        self.config._attn_implementation_internal = PREFIX + attn_implementation

    def _prepare_cache_for_generation(self, generation_config: Any, model_kwargs: dict[str, Any], *args: Any) -> Any:
        if generation_config.cache_implementation not in (None, "dynamic"):
            name = generation_config.cache_implementation
            raise ValueError(f"a compressed model makes its own cache: leave cache_implementation unset, not {name!r}")
        if model_kwargs.get("cache") is None and generation_config.use_cache is not False:
            model_kwargs["cache"] = LowRankCache(self.config)
        return cast(Any, super())._prepare_cache_for_generation(generation_config, model_kwargs, *args)


def is_compressible(model: nn.Module) -> bool:
    """Say whether a model is of a class, of one of transformers' families, that has a compressed one."""
    return type(model) in _MODELS


def projections(model: nn.Module, spec: LowRankSpec, shared: Shared) -> Projections:
    """Return each layer's low-rank projections without their weights; a matrix at full rank and 16 bits has none."""
    made: Projections = []
    for index, layer in enumerate(cast(Any, model).get_decoder().layers):
        pair = {}
        for matrix in MATRICES:
            rank = spec.plan.ranks(matrix)[index]
            if rank < spec.plan.width or spec.bits < 16:
                old = projection(layer.self_attn, matrix)
                rest = spec.sink_tokens > 0 and rank < spec.plan.width
                pair[f"{matrix}_proj"] = LowRankProjection(
                    old, rank, shared, groups=spec.groups, bits=spec.bits, rest=rest
                )
        made.append(pair)
    return made


def install(model: nn.Module, shared: Shared, made: Projections) -> None:
    """Put low-rank projections into every layer of a model and turn its decoder into a low-rank one, in place."""
    decoder = cast(Any, model).get_decoder()
    decoder.shared = shared
    for layer, pair in zip(decoder.layers, made, strict=True):
        layer.self_attn.shared = shared
        for name, each in pair.items():
            setattr(layer.self_attn, name, each.train(model.training))
    name = decoder.config._attn_implementation.removeprefix(PREFIX)
    decoder.config._attn_implementation_internal = PREFIX + name
    if not isinstance(decoder, LowRankDecoder):
        _become(decoder, _DECODERS[type(decoder)])


def become_compressed(model: nn.Module, spec: LowRankSpec, shared: Shared, made: Projections) -> nn.Module:
    """Turn a model into its compressed class in place, once everything it needs has been computed."""
    config = cast(Any, model).config
    config.__class__ = _CONFIGS[type(config)]
    config.__dict__.pop("model_type", None)  # a config read from a file carries its old type itself
    config.lorc = spec.as_dict()
    _become(model, _MODELS[type(model)])
    install(model, shared, made)
    return model


def _become(model: Any, kind: type) -> None:
    """Change a model's class in place; what its outputs can hold (hidden states) is said by class, at construction."""
    model.__class__ = kind
    _CAN_RECORD_REGISTRY[model] = model._can_record_outputs


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
    if (cache.spec.plan, cache.spec.sink_tokens, cache.spec.bits) != (spec.plan, spec.sink_tokens, spec.bits):
        raise ValueError("this LowRankCache was made for a model with other ranks: make one from this model's config")


def _row_starts(given: Tensor, mask: Any, cache: LowRankCache | None) -> Tensor | None:
    """Return the index of each row's first real token, or None where no row is padded on the left."""
    past = 0 if cache is None else cache.get_seq_length()
    starts = None if cache is None else cache.starts
    # A row whose first chunks are all padding has not started yet: look again.
    if (
        isinstance(mask, Tensor)
        and mask.ndim == 2
        and (past == 0 or (starts is not None and bool((starts >= past).any())))
    ):
        starts = torch.where(mask.any(-1), mask.long().argmax(-1), mask.shape[1])
        starts = starts if bool(starts.any()) else None
        if cache is not None:
            cache.starts = starts
    return starts


def _families() -> tuple[dict[type, type], dict[type, type], dict[type, type]]:
    """Make and register the config, decoder and model of every family; return them by the classes they come from."""
    configs, decoders, models = {}, {}, {}
    for kind in SUPPORTED:
        folder = kind.removesuffix("_text")
        module = import_module(f"transformers.models.{folder}.modeling_{folder}")
        base_model = next(
            each
            for name, each in vars(module).items()
            if name.endswith("ForCausalLM") and each.config_class.model_type == kind
        )
        base_config = base_model.config_class
        base_decoder = getattr(module, base_model.__name__.replace("ForCausalLM", "TextModel"), None) or getattr(
            module, base_model.__name__.replace("ForCausalLM", "Model")
        )
        name = base_model.__name__.removesuffix("ForCausalLM")
        fields = {"__annotations__": {"lorc": dict | None}, "lorc": None, "model_type": COMPRESSED_PREFIX + kind}
        config = _subclass(f"Lorc{name}Config", (base_config,), fields)
        decoder = _subclass(f"Lorc{name}Model", (LowRankDecoder, base_decoder), {})
        model = _subclass(f"Lorc{name}ForCausalLM", (LowRankCausalLM, base_model), {"config_class": config})
        configs[base_config], decoders[base_decoder], models[base_model] = config, decoder, model
        AutoConfig.register(COMPRESSED_PREFIX + kind, cast(Any, config))
        AutoModelForCausalLM.register(cast(Any, config), model)
    return configs, decoders, models


def _subclass(name: str, bases: tuple[type, ...], members: dict[str, Any]) -> type:
    made = type(name, bases, {"__module__": __name__, "__doc__": f"{bases[-1].__name__} with LoRC's cache.", **members})
    globals()[name] = made  # so that pickle and copy find it by name
    return made


_CONFIGS, _DECODERS, _MODELS = _families()
