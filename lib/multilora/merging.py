"""Merge baselines other than the sum: TIES, DARE and peft's others, made once into an adapter of its own.

TIES (arXiv:2306.01708) trims each LoRA's change to its largest entries and lets signs vote; DARE (arXiv:2311.03099)
drops entries at random and rescales the rest. Both act on the changes w_i B_i A_i, not on B and A apart.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from lib.multilora.composite import denoisers_of, unwrapped
from lib.multilora.layers import AdapterLayers

COMBINATIONS = ("svd", "cat", "ties_svd", "dare_linear_svd", "dare_ties_svd", "magnitude_prune_svd")


def merge_adapters(
    pipe: Any, weights: Mapping[str, float], name: str, *, combination: str = "ties_svd", density: float = 0.5,
    rank: int | None = None, seed: int = 0,
) -> None:  # fmt: skip
    """Merge loaded LoRAs of a pipeline's denoisers into a new adapter, by peft's `add_weighted_adapter`.

    `combination`: "svd" (the weighted sum) and "cat" (the same, exact, at the sum of all ranks), "ties_svd" (entries
    that agree in sign), "dare_linear_svd" and "dare_ties_svd" (entries dropped at random, by `seed`), or
    "magnitude_prune_svd" (the largest entries). `density`: share of the entries of each change that is kept. `rank`: of
    the new adapter (the sum of all ranks unless given). Compose it as any other: `compose(pipe, {name: 1.0})`. The
    active adapters stay as they are.
    Raises ValueError for a combination, density or adapter there is not, a name that is taken, nothing to merge, DoRA,
    or a rank that is below 1 or above what a convolution has room for, and TypeError for weights without names. Where
    merging fails, nothing of it is left.
    """
    if not isinstance(weights, Mapping):
        raise TypeError(f"weights are adapter names with their LoRA weights, such as {{'hero': 1.0}}, not {weights!r}.")
    if combination not in COMBINATIONS or not 0 < density <= 1:
        raise ValueError(f"use one of {', '.join(COMBINATIONS)} and a density in (0, 1], not {combination}, {density}.")
    if not weights or (rank is not None and rank < 1):
        raise ValueError(f"merge at least one adapter, at a rank of at least 1, not {list(weights)} at {rank}.")
    models: list[Any] = [unwrapped(denoiser) for denoiser in denoisers_of(pipe).values()]
    ranks = [_checked_rank(model, list(weights), name, combination, rank) for model in models]
    trained = [(weight, weight.requires_grad) for model in models for weight in model.parameters()]
    try:
        for model, svd_rank in zip(models, ranks, strict=True):
            layers = AdapterLayers(model)
            with layers.restored(), torch.random.fork_rng():
                layers.set(dict.fromkeys(weights, 1.0))
                torch.manual_seed(seed)
                _tuner(model, list(weights)).add_weighted_adapter(
                    list(weights), list(weights.values()), name, combination, density=density, svd_rank=svd_rank,
                    svd_full_matrices=False,
                )  # fmt: skip
            _unscale(model, name)
    except BaseException:
        for model in models:
            if name in model.peft_config:
                _tuner(model, []).delete_adapter(name)
        raise
    finally:
        for weight, was in trained:
            weight.requires_grad_(was)


def _checked_rank(model: Any, names: list[str], name: str, combination: str, rank: int | None) -> int:
    """Return the rank of a model's new adapter; raises ValueError where the merge cannot be made."""
    layers = AdapterLayers(model)
    if name in layers.names or not set(names) <= set(layers.names):
        raise ValueError(f"merging {names} into {name!r} needs them loaded and it not: {layers.names} are.")
    parts = [(layer, n) for layer in layers.layers for n in names if n in layer.lora_A]
    if special := {n for layer, n in parts if n in layer.lora_variant}:
        raise ValueError(f"{min(special)!r} is no plain LoRA but a variant such as DoRA, which cannot be merged.")
    rank = rank or sum(model.peft_config[n].r for n in names)
    matrices = [(layer.lora_A[n].weight, layer.lora_B[n].weight) for layer, n in parts]
    # A linear layer's matrices may be smaller than the rank, a convolution's may not.
    fits = min((min(a[0].numel(), len(b)) for a, b in matrices if a.ndim > 2), default=rank)
    if combination.endswith("svd") and len(names) > 1 and rank > fits:  # peft scales a single adapter as it is
        raise ValueError(f"a convolution has room for a rank of {fits}, not {rank}: give `rank` a number up to {fits}.")
    return rank


def _unscale(model: Any, name: str) -> None:
    """Give a merged adapter the scaling 1, since its weights hold all of it: peft copies the first one's rsLoRA."""
    model.peft_config[name] = replace(model.peft_config[name], use_rslora=False)
    for layer in AdapterLayers(model).layers:
        if name in layer.scaling:
            layer.use_rslora[name], layer.scaling[name] = False, 1.0


def _tuner(model: nn.Module, active: list[str]) -> Any:
    """Return peft's view of a model into which diffusers put the adapters."""
    from peft import LoraModel

    tuner = LoraModel.__new__(LoraModel)
    nn.Module.__init__(tuner)
    tuner.model, tuner.peft_config, tuner.active_adapter = model, model.peft_config, active
    tuner.targeted_module_names, tuner.targeted_parameter_names = [], []
    return tuner
