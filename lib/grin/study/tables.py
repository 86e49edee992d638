"""Tidy frames of what trained models show: sums over the tokens of an enumerable problem, and loads of experts."""

from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Int
from torch import Tensor

from lib.grin.modeling import GrinForCausalLM
from lib.grin.study.probe import routing_profile


def over_tokens(tokens: pd.DataFrame) -> pd.DataFrame:
    """Sum what was enumerated on each token of a model: a row for each estimator, target, stage and seed (the index).

    A token has the norms of its error (`bias`), of the exact gradient (`norm`) and of the mean gradient (`size`), the
    `dot` product of the latter two, and the standard `deviation`, all in nats per unit of score. The sums of bias, norm
    and deviation come back with the number of `tokens`, and with the `cosine` of mean and exact gradient, the tokens'
    gradients laid end to end as one vector.
    """
    names, found = ["estimator", "target", "stage"], {}
    for key, part in tokens.groupby(names):
        models = part.groupby("seed")
        cosine = models[["dot", "size", "norm"]].apply(_cosine)
        found[key] = models[["bias", "norm", "deviation"]].sum().assign(cosine=cosine, tokens=models.size())
    return pd.concat(found, names=names)


def _cosine(part: pd.DataFrame) -> float:
    product: Any = part["dot"].sum()
    return product / np.sqrt((part["size"] ** 2).sum() * (part["norm"] ** 2).sum())


def expert_loads(model: GrinForCausalLM, windows: Int[Tensor, "windows length"]) -> pd.DataFrame:
    """Return the share of each layer's dispatches that each expert gets, in columns `layer`, `expert` and `load`."""
    profile = pd.DataFrame(routing_profile(model, windows).cpu().double().numpy())
    return profile.rename_axis("layer").reset_index().melt("layer", var_name="expert", value_name="load")
