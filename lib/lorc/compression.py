"""One call that compresses a model's KV cache (arXiv:2410.03111), and the plan that it would follow."""

from collections.abc import Iterable, Sequence
from typing import Any, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import PreTrainedConfig

from lib.lorc import budget as budgets
from lib.lorc.attention import LowRankAttention
from lib.lorc.budget import Spectra, singular_values
from lib.lorc.calibration import Calibration, calibrate
from lib.lorc.configuration import (
    MATRICES,
    LowRankSpec,
    Matrix,
    Plan,
    attentions,
    check_granularity,
    check_matrices,
    geometry,
    projection,
)
from lib.lorc.decomposition import Decomposition, check_plan, decompose_model
from lib.lorc.modeling import become_compressed
from lib.lorc.rotary import require_fixed_rope

BUDGETS = ("uniform", "progressive", "energy", "sensitivity")
KERNELS = ("sdpa", "eager")


def plan(
    model_or_config: nn.Module | PreTrainedConfig,
    keep: float | int = 0.6,
    *,
    budget: str = "progressive",
    granularity: str = "joint",
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
    step = sizes.kv_heads if check_granularity(granularity) == "head" else 1
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


def compress(
    model: nn.Module,
    keep: float | int = 0.6,
    *,
    budget: str = "progressive",
    granularity: str = "joint",
    matrices: Sequence[str] = MATRICES,
    ranks: Plan | tuple[Sequence[int], Sequence[int]] | None = None,
    whiten: Calibration | Iterable[Int[Tensor, "_ _"]] | Int[Tensor, "_ _"] | None = None,
    scale_by_norm: bool = False,
    sink_tokens: int = 0,
    int8: bool = False,
) -> nn.Module:
    """Compress the KV cache of a Llama-family model in place and return it (arXiv:2410.03111).

    Attention then caches latents of r_k + r_v numbers a token and layer in a `LowRankCache`, which `generate` makes by
    itself. No calibration and no training by default. `ranks` (a plan, or the k and the v ranks) overrides `keep` and
    `budget`.

    Extensions beyond the paper, all off by default: `whiten` (token id batches, or a `Calibration`) weighs errors by
    real inputs, and by the loss where gradients were measured; `budget="sensitivity"` spends one budget over all
    matrices by them; `scale_by_norm` weighs inputs by the RMSNorm gain instead; `sink_tokens` first positions keep full
    rank; `int8` rounds latents to bytes.

    Raises ValueError for a bad `keep` or ranks, an unsupported or already compressed model, QK-norm with K named, or
    `meta` weights; the model is untouched then.
    """
    attentions(model)
    _require_supported(model, check_matrices(matrices))
    if sink_tokens < 0:
        raise ValueError(f"sink_tokens is a number of positions and cannot be negative, got {sink_tokens}")
    given = _plan_of_ranks(model, ranks, granularity) if ranks is not None else None
    if whiten is None or isinstance(whiten, Calibration):
        calibration = whiten
    else:
        calibration = calibrate(model, whiten, skip=sink_tokens, sensitivity=budget == "sensitivity")
    bases = decompose_model(model, granularity=granularity, calibration=calibration, scale_by_norm=scale_by_norm)
    options: dict[str, Any] = {"budget": budget, "granularity": granularity, "matrices": matrices}
    followed = given or plan(model, keep, decomposition=bases, **options)
    spec = LowRankSpec(
        plan=followed,
        granularity=check_granularity(granularity),
        biases=tuple(name for name in "qkvo" if getattr(attentions(model)[0], f"{name}_proj").bias is not None),
        sink_tokens=sink_tokens,
        int8=int8,
        made_with={
            "keep": None if given else keep,
            "budget": None if given else budget,
            "calibration_tokens": calibration.tokens if calibration else 0,
            "sensitivity": bases.weighted,
            "scale_by_norm": scale_by_norm,
        },
    )
    # Unchanged weights are shared with the model, which is not touched before all of this is done.
    converted = [_converted(attention, layer, spec, bases) for layer, attention in enumerate(attentions(model))]
    return become_compressed(model, spec, converted)


def _plan_of_ranks(model: nn.Module, ranks: Plan | tuple[Sequence[int], Sequence[int]], granularity: str) -> Plan:
    """Return a plan of the ranks given; raises ValueError where they do not fit the model."""
    sizes = geometry(model)
    step = sizes.kv_heads if check_granularity(granularity) == "head" else 1
    given = ranks
    if not isinstance(given, Plan):
        ranks_k, ranks_v = given
        given = Plan(tuple(ranks_k), tuple(ranks_v), width=sizes.width, step=step)
    check_plan(model, given, groups=step)
    if any(rank < given.width for rank in given.ranks_k):
        _require_supported(model, MATRICES)
    return given


def _require_supported(model: nn.Module, matrices: Sequence[Matrix]) -> None:
    """Raise ValueError where attention cannot be replaced: QK-norm or length-dependent RoPE on K, other kernels."""
    config = cast(Any, model).config
    if "k" in matrices and geometry(config).key_norm:
        raise ValueError(f"{config.model_type} normalises its keys, so only V can be compressed: use matrices=('v',)")
    # Keys that keep their rank are still rotated by their index in the cache.
    require_fixed_rope(config)
    if config._attn_implementation not in KERNELS:
        raise ValueError(f"load the model with attn_implementation='sdpa', not {config._attn_implementation!r}")


def _converted(old: Any, index: int, spec: LowRankSpec, decomposition: Decomposition) -> LowRankAttention:
    """Return the low-rank form of an attention module: which weights are shared, factored or folded."""
    like = cast(Tensor, old.q_proj.weight)
    with torch.device("meta"):
        new = LowRankAttention(old.config, index, spec)
    new.q_proj, new.q_norm, new.k_norm = old.q_proj, getattr(old, "q_norm", None), getattr(old, "k_norm", None)
    for matrix in MATRICES:
        factors = new.keys if matrix == "k" else new.values
        if factors is None:
            setattr(new, f"{matrix}_proj", projection(old, matrix))
        else:
            factors.load(decomposition.of(matrix)[index], projection(old, matrix).bias, like=like)
    new.o_proj = _absorb(old, new, index, spec, decomposition) if new.absorbed else old.o_proj
    return new.train(old.training)


def _absorb(old: Any, new: LowRankAttention, index: int, spec: LowRankSpec, decomposition: Decomposition) -> nn.Linear:
    """Fold U_v into W_o head by head, and the bias of V into a bias of W_o (arXiv:2410.03111)."""
    weight = cast(Tensor, old.o_proj.weight).detach()
    # In float64, so that a float64 model equals its replaced weights to float64's rounding.
    up = decomposition.v[index].up.double().to(weight.device)
    # Sinks need the whole basis; without them W_o keeps the columns of the rank alone.
    up = up if spec.sink_tokens else up[:, :, : spec.plan.ranks_v[index] // up.shape[0]]
    heads = weight.double().unflatten(1, (new.query_heads, new.head_dim))
    folded = torch.einsum("Dhd,hdr->Dhr", heads, up.repeat_interleave(new.num_key_value_groups, dim=0)).flatten(1)
    with torch.device("meta"):
        output = nn.Linear(folded.shape[1], folded.shape[0], bias=new.o_proj.bias is not None)
    output.weight = nn.Parameter(folded.to(weight))
    if output.bias is not None:
        shift = torch.zeros(weight.shape[0]).to(up) if old.o_proj.bias is None else old.o_proj.bias.double()
        if old.v_proj.bias is not None:
            values = old.v_proj.bias.double().unflatten(0, (new.kv_heads, new.head_dim))
            shift = shift + weight.double() @ values.repeat_interleave(new.num_key_value_groups, dim=0).flatten()
        output.bias = nn.Parameter(shift.detach().to(weight))
    return output


def _spectra(model_or_config: nn.Module | PreTrainedConfig, budget: str) -> Spectra:
    if isinstance(model_or_config, PreTrainedConfig):
        raise ValueError(f"a {budget} plan needs the weights: pass the model, log_conditions, or budget='uniform'")
    return singular_values(model_or_config)
