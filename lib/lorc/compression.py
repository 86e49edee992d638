"""One call that compresses a model's KV cache (arXiv:2410.03111), and the plan that it would follow."""

import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from math import exp, log
from typing import Any, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import PreTrainedConfig

from lib.lorc import budget as budgets
from lib.lorc.attention import KERNELS, PREFIX
from lib.lorc.budget import Spectra, singular_values
from lib.lorc.calibration import Calibration, calibrate
from lib.lorc.configuration import (
    MATRICES,
    Granularity,
    LowRankSpec,
    Matrix,
    Plan,
    attentions,
    check_matrices,
    geometry,
    head_groups,
    projection,
)
from lib.lorc.decomposition import Decomposition, check_plan, decompose_model
from lib.lorc.modeling import Projections, become_compressed, is_compressible, projections
from lib.lorc.perplexity import mean_loss
from lib.lorc.step import Shared

BUDGETS = ("uniform", "progressive", "energy", "sensitivity")


def plan(
    model_or_config: nn.Module | PreTrainedConfig,
    keep: float | int = 0.6,
    *,
    budget: str = "progressive",
    granularity: Granularity = "joint",
    matrices: Sequence[str] = MATRICES,
    log_conditions: Float[Tensor, " layers"] | None = None,
    decomposition: Decomposition | None = None,
) -> Plan:
    """Choose the ranks of every layer without touching the model (the rank budgets of arXiv:2410.03111).

    `keep` is the fraction of the cache to keep, over the `matrices` named. A uniform plan needs sizes only, so a config
    or a model on the `meta` device will do; a progressive one needs weights, or `log_conditions` (log kappa_k + log
    kappa_v per layer); a sensitivity plan needs a `decomposition` made with gradients.
    Raises ValueError for a bad `keep`, an unsupported family, or a budget whose numbers are not at hand.
    """
    sizes, chosen = geometry(model_or_config), check_matrices(matrices)
    step = head_groups(granularity, sizes.kv_heads)
    if budget not in BUDGETS:
        raise ValueError(f"budget must be one of {', '.join(BUDGETS)}, got {budget!r}")
    if budget == "uniform":
        return budgets.uniform(sizes.layers, sizes.width, keep=keep, matrices=chosen, step=step)
    if budget == "progressive":
        if log_conditions is None:
            log_conditions = _spectra(model_or_config, budget).log_condition_numbers()
        if len(log_conditions) != sizes.layers:
            raise ValueError(f"log_conditions has {len(log_conditions)} values for {sizes.layers} layers")
        return budgets.progressive(log_conditions, sizes.width, keep=keep, matrices=chosen, step=step)
    if budget == "energy":
        spectra = decomposition.spectra if decomposition else _spectra(model_or_config, budget)
        return budgets.energy(spectra, keep=keep, matrices=chosen, step=step)
    if decomposition is None or not decomposition.weighted:
        raise ValueError("the sensitivity budget needs gradients: whiten with batches, or calibrate(sensitivity=True)")
    gains: dict[Matrix, Tensor] = {matrix: decomposition.spectra.of(matrix).square() for matrix in chosen}
    return budgets.by_gain(gains, keep=keep, step=step)


FIXED_ROPE = ("default", "linear", "llama3", "yarn")
BREAKS = 1.5  # times the perplexity of the original, above which a compressed model is called broken


def compress(
    model: nn.Module,
    keep: float | int = 0.6,
    *,
    budget: str | None = None,
    granularity: Granularity = "joint",
    matrices: Sequence[str] = MATRICES,
    ranks: Plan | tuple[Sequence[int], Sequence[int]] | None = None,
    whiten: Calibration | Iterable[Int[Tensor, "_ _"]] | Int[Tensor, "_ _"] | None = None,
    sink_tokens: int = 0,
    bits: int = 16,
    held_out: Iterable[Int[Tensor, "_ _"]] | Int[Tensor, "_ _"] | None = None,
    max_loss: float | None = None,
    decomposition: Decomposition | None = None,
) -> nn.Module:
    """Compress the KV cache of a model in place and return it (arXiv:2410.03111).

    Attention then caches latents of r_k + r_v numbers a token and layer in a `LowRankCache`, which `generate` makes by
    itself. No calibration and no training by default. `ranks` (a plan, or the k and the v ranks) overrides `keep` and
    `budget`, which is "progressive", the paper's, without calibration text, and "sensitivity" with it, which measured
    best; `granularity` is "joint", "head", or the number of heads that share a basis; a `decomposition` made before
    stands for it and for `whiten`, so that many plans cost one.

    Extensions beyond the paper, all off by default: `whiten` (token id batches, or a `Calibration`) weighs errors by
    real inputs, and by the loss where gradients were measured; `budget="sensitivity"` spends one budget over all
    matrices by them; `sink_tokens` first positions keep full rank; `bits` = 8 or 4 rounds latents, evenly spread.

    What it costs is measured where there is text: loss in nats a token before and after on `held_out`, or else on the
    last eighth of the rows of `whiten`, which then does not calibrate. Both are in `model.config.lorc["made_with"]`; a
    model whose perplexity rises by half is warned of, and one that loses more than `max_loss` nats a token is refused.

    Raises ValueError for a bad `keep` or ranks, an unsupported or already compressed model, `meta` weights, or a loss
    above `max_loss`, and TypeError for text that is no token ids; the model is untouched then.
    """
    attentions(model)
    _require_supported(model)
    if sink_tokens < 0:
        raise ValueError(f"sink_tokens is a number of positions and cannot be negative, got {sink_tokens}")
    if bits not in (16, 8, 4):
        raise ValueError(f"bits must be 16, 8 or 4, got {bits}")
    if decomposition is not None:
        granularity = _granularity_of(model, decomposition)
    given = _plan_of_ranks(model, ranks, granularity) if ranks is not None else None
    text, held = _split(whiten, held_out)
    if max_loss is not None and not held:
        raise ValueError("max_loss needs text to measure on: pass held_out, or whiten with two rows or more")
    budget = budget or ("progressive" if whiten is None else "sensitivity")
    calibration = whiten if isinstance(whiten, Calibration) else None
    if whiten is not None and calibration is None and not text:
        raise ValueError("whiten holds no text to calibrate on: give rows of two tokens or more")
    if text:
        calibration = calibrate(model, text, skip=sink_tokens, sensitivity=budget == "sensitivity")
    bases = decomposition or decompose_model(model, granularity=granularity, calibration=calibration)
    followed = given or plan(
        model, keep, budget=budget, granularity=granularity, matrices=matrices, decomposition=bases
    )
    made_with: dict[str, Any] = {
        "keep": None if given else keep,
        "budget": None if given else budget,
        "calibration_tokens": calibration.tokens if calibration else 0,
        "sensitivity": bases.weighted,
    }
    spec = LowRankSpec(followed, bases.groups, sink_tokens, bits, made_with)
    # Unchanged weights are shared with the model, which is not touched before all of this is done.
    shared = Shared(cast(Any, model).get_decoder().rotary_emb, sink_tokens)
    made = _filled(model, spec, shared, bases)
    if held:
        made_with |= _measured(model, made, held, max_loss)
    return become_compressed(model, spec, shared, made)


def _split(
    whiten: Calibration | Iterable[Tensor] | Tensor | None, held_out: Iterable[Tensor] | Tensor | None
) -> tuple[list[Tensor], list[Tensor]]:
    """Return the rows to calibrate on and those to measure on: the last eighth of the rows if none are given.

    A row of one token, as the rest of a text that was cut into equal parts, teaches nothing and is left out.
    """
    text = [] if whiten is None or isinstance(whiten, Calibration) else _rows(whiten)
    if held_out is not None:
        return text, _rows(held_out)
    last = len(text) // 8 or int(len(text) > 1)
    return text[: len(text) - last], text[len(text) - last :]


def _rows(batches: Iterable[Tensor] | Tensor) -> list[Tensor]:
    batches = list(batches)
    if strange := [type(batch).__name__ for batch in batches if not isinstance(batch, Tensor)]:
        raise TypeError(
            "whiten and held_out take tensors of token ids, such as tokenizer([text], return_tensors='pt')"
            f".input_ids.split(512, dim=1), not {strange[0]}"
        )
    return [row for batch in batches if batch.shape[-1] > 1 for row in batch.reshape(-1, batch.shape[-1]).split(1)]


def _measured(model: nn.Module, made: Projections, held: list[Tensor], max_loss: float | None) -> dict[str, float]:
    """Return the loss before and after; warn where the model breaks, raise ValueError above `max_loss`."""
    before = mean_loss(model, held)
    with _swapped(model, made):
        after = mean_loss(model, held)
    cost = after - before
    if max_loss is not None and not cost <= max_loss:
        raise ValueError(
            f"the compressed model loses {cost:.3g} nats a token on held-out text, more than max_loss = {max_loss:g}: "
            "keep more, or whiten with text and spare a sink token"
        )
    if not cost <= log(BREAKS):
        warnings.warn(
            f"The compressed model's perplexity on held-out text is {exp(min(after, 700)):.3g}, that of the original "
            f"{exp(before):.3g}: keep more, whiten with text, or spare a sink token.",
            stacklevel=3,
        )
    return {"loss_before": before, "loss_after": after}


@contextmanager
def _swapped(model: nn.Module, made: Projections) -> Iterator[None]:
    """Run a model with low-rank projections inside the block."""
    layers = attentions(model)
    old = [{name: getattr(layer, name) for name in pair} for layer, pair in zip(layers, made, strict=True)]
    try:
        for layer, pair in zip(layers, made, strict=True):
            for name, each in pair.items():
                setattr(layer, name, each)
        yield
    finally:
        for layer, pair in zip(layers, old, strict=True):
            for name, each in pair.items():
                setattr(layer, name, each)


def _granularity_of(model: nn.Module, decomposition: Decomposition) -> int:
    """Return the number of heads that share a basis; raises ValueError for a decomposition of another model."""
    sizes, basis = geometry(model), decomposition.k[0]
    made = (len(decomposition.k), basis.singular_values.numel())
    if made != (sizes.layers, sizes.width):
        raise ValueError(
            f"the decomposition is of {made[0]} layers of width {made[1]}, the model of {sizes.layers} of {sizes.width}"
        )
    return sizes.kv_heads // decomposition.groups


def _plan_of_ranks(
    model: nn.Module, ranks: Plan | tuple[Sequence[int], Sequence[int]], granularity: Granularity
) -> Plan:
    """Return a plan of the ranks given; raises ValueError where they do not fit the model."""
    sizes = geometry(model)
    step = head_groups(granularity, sizes.kv_heads)
    given = ranks
    if not isinstance(given, Plan):
        ranks_k, ranks_v = given
        given = Plan(tuple(ranks_k), tuple(ranks_v), width=sizes.width, step=step)
    check_plan(model, given, groups=step)
    return given


def _require_supported(model: nn.Module) -> None:
    """Raise ValueError for another kind of model, keys that cannot be rotated later, or another kernel of attention."""
    if not is_compressible(model):
        raise ValueError(
            f"{type(model).__name__} is not a plain causal language model of transformers: load it with "
            "AutoModelForCausalLM, and merge adapters before (merge_and_unload)"
        )
    config = cast(Any, model).config
    _require_fixed_rope(config)
    if config._attn_implementation.removeprefix(PREFIX) not in KERNELS:
        raise ValueError(f"load the model with attn_implementation='sdpa', not {config._attn_implementation!r}")


def _require_fixed_rope(config: Any) -> None:
    """Raise ValueError where the angles change with the length, since keys are rotated when they are used."""
    parameters = config.rope_parameters or {}
    nested = [each for each in parameters.values() if isinstance(each, dict)] or [parameters]  # one a layer type
    for each in nested:
        kind = each.get("rope_type", "default")
        if kind not in FIXED_ROPE:
            raise ValueError(
                f"{kind!r} RoPE changes its angles with the length, so keys cannot be rotated later: not supported"
            )


def _filled(model: nn.Module, spec: LowRankSpec, shared: Shared, bases: Decomposition) -> Projections:
    """Return the low-rank projections of every layer with their factors."""
    with torch.device("meta"):
        made = projections(model, spec, shared)
    for index, (attention, pair) in enumerate(zip(attentions(model), made, strict=True)):
        for matrix in MATRICES:
            if (each := pair.get(f"{matrix}_proj")) is not None:
                old = projection(attention, matrix)
                each.load(bases.of(matrix)[index], old.bias, like=old.weight)
    return made


def _spectra(model_or_config: nn.Module | PreTrainedConfig, budget: str) -> Spectra:
    if isinstance(model_or_config, PreTrainedConfig):
        raise ValueError(f"a {budget} plan needs the weights: pass the model, log_conditions, or budget='uniform'")
    return singular_values(model_or_config)
