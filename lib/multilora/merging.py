"""Merge baselines other than the sum: TIES, DARE and peft's others, made once into an adapter of its own.

TIES (arXiv:2306.01708) trims each LoRA's change to its largest entries and lets signs vote; DARE (arXiv:2311.03099)
drops entries at random and rescales the rest. Both act on the changes w_i B_i A_i, not on B and A apart.
"""

from collections.abc import Mapping
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

    `density`: share of the entries of each change that is kept. `rank`: of the new adapter (the sum of all ranks
    unless given). Compose it as any other: `compose(pipe, {name: 1.0})`. The active adapters stay as they are.
    Raises ValueError for a combination, density or adapter there is not, or a name that is taken.
    """
    if combination not in COMBINATIONS or not 0 < density <= 1:
        raise ValueError(f"use one of {', '.join(COMBINATIONS)} and a density in (0, 1], not {combination}, {density}.")
    for denoiser in denoisers_of(pipe).values():
        model: Any = unwrapped(denoiser)
        layers = AdapterLayers(model)
        if name in layers.names or not set(weights) <= set(layers.names):
            raise ValueError(f"merging {list(weights)} into {name!r} needs them loaded and it not: {layers.names} are.")
        trained = [(weight, weight.requires_grad) for weight in model.parameters()]
        with layers.restored(), torch.random.fork_rng():
            layers.set(dict.fromkeys(weights, 1.0))
            torch.manual_seed(seed)
            _tuner(model, list(weights)).add_weighted_adapter(
                list(weights), list(weights.values()), name, combination, density=density,
                svd_rank=rank or sum(model.peft_config[n].r for n in weights), svd_full_matrices=False,
            )  # fmt: skip
        for weight, was in trained:
            weight.requires_grad_(was)


def _tuner(model: nn.Module, active: list[str]) -> Any:
    """Return peft's view of a model into which diffusers put the adapters."""
    from peft import LoraModel

    tuner = LoraModel.__new__(LoraModel)
    nn.Module.__init__(tuner)
    tuner.model, tuner.peft_config, tuner.active_adapter = model, model.peft_config, active
    tuner.targeted_module_names, tuner.targeted_parameter_names = [], []
    return tuner
