"""SVD-LLM and Palu, derived from their papers for the projections that LoRC compresses, at equal values a token.

Both decompose W L with L L^T = E[x x^T], as the whitened bases here do. They differ in who keeps how much: SVD-LLM
(arXiv:2403.07378) gives every matrix the same rank, Palu (arXiv:2407.21118) ranks in proportion to the Fisher
information of its weights, the sum of the squared gradients of the loss on real text, and decomposes groups of four
heads together, which on models with fewer key-value heads is all of them.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, cast

import numpy as np
import pandas as pd
import torch
from jaxtyping import Int
from torch import Tensor, nn

from lib.core.scoring import head_logits
from lib.lorc.calibration import calibrate
from lib.lorc.compression import compress
from lib.lorc.configuration import MATRICES, Plan, attentions, geometry, projection
from lib.lorc.decomposition import decompose_model
from lib.lorc.study.evaluation import Setting, Testbed, testbed, text_tokens, twin

GROUP = 4  # heads that Palu decomposes together
SINKS = {"": 0, ", first position whole": 1}  # as published, and with what LoRC's extension does for the first position


def fisher_information(model: nn.Module, batches: Sequence[Int[Tensor, "_ _"]]) -> np.ndarray:
    """Sum of squared gradients of the loss over each W_k and W_v [2, layers]: the empirical Fisher information.

    One gradient a row of text, whose next tokens are the labels. Weights keep no gradient afterwards.
    """
    weights = [projection(attention, matrix).weight for matrix in MATRICES for attention in attentions(model)]
    asked = {id(weight) for weight in weights}
    before = {parameter: parameter.requires_grad for parameter in model.parameters()}
    squares = np.zeros(len(weights))
    try:
        for parameter in before:
            parameter.requires_grad_(id(parameter) in asked)
        for row in (row for batch in batches for row in batch.split(1)):
            hidden = cast(Any, model).get_decoder()(row, use_cache=False).last_hidden_state
            loss = nn.functional.cross_entropy(head_logits(model, hidden[0, :-1]).float(), row[0, 1:])
            squares += [float(g.float().square().sum()) for g in torch.autograd.grad(loss, weights)]
    finally:
        for parameter, needed in before.items():
            parameter.requires_grad_(needed)
    return squares.reshape(len(MATRICES), -1)


def palu_plan(information: np.ndarray, width: int, keep: float, *, step: int = 1) -> Plan:
    """Ranks in proportion to `information` [2, layers], in multiples of `step`; what is over the width goes elsewhere.

    The sum of all ranks is the multiple of `step` nearest to keep x 2 x layers x width.
    """
    share, most = information.ravel() / information.sum(), width // step
    total = round(keep * share.size * most)
    low, high = 0.0, float(total / share[share > 0].min())
    for _ in range(200):  # the scale at which the clipped shares spend the budget
        middle = (low + high) / 2
        low, high = (middle, high) if np.clip(share * middle, 1, most).sum() < total else (low, middle)
    exact = np.clip(share * high, 1, most)
    ranks = np.floor(exact + 1e-9)
    for place in np.argsort(ranks - exact, kind="stable")[: int(total - ranks.sum())]:
        ranks[place] += 1
    k, v = (ranks * step).astype(int).reshape(information.shape)
    return Plan(tuple(map(int, k)), tuple(map(int, v)), width, step)


def compared(name: str, setting: Setting, keeps: Sequence[float], progress: Callable[..., Any] = list) -> pd.DataFrame:
    """Score both peers at every kept ratio, with and without the first position whole: a row a document."""
    bed = testbed(name, setting)
    sizes, parts = geometry(bed.lm), []
    text = text_tokens(setting.dataset, bed.tokenizer, setting.calibration_rows * setting.calibration_tokens)
    batches = text.view(setting.calibration_rows, setting.calibration_tokens).to(setting.device).split(4)
    information = fisher_information(bed.lm, batches)
    group = min(GROUP, sizes.kv_heads)
    granularity: Any = "joint" if sizes.kv_heads % group or group == sizes.kv_heads else group
    step = 1 if granularity == "joint" else sizes.kv_heads // group
    jobs = [(peer, sinks, keep) for sinks in SINKS for peer in ("SVD-LLM", "Palu") for keep in keeps]
    bases: dict[tuple[Any, str], Any] = {}
    for peer, sinks, keep in progress(jobs):
        grouped = granularity if peer == "Palu" else "joint"
        if (grouped, sinks) not in bases:
            bases = {(grouped, sinks): _whitened(bed, batches, SINKS[sinks], grouped)}
        ranks = palu_plan(information, sizes.width, keep, step=step) if peer == "Palu" else None
        options: dict[str, Any] = {"ranks": ranks} if ranks else {"keep": keep, "budget": "uniform"}
        options |= {"granularity": grouped, "decomposition": bases[grouped, sinks], "sink_tokens": SINKS[sinks]}
        parts.append(bed.score(compress(twin(bed.lm), **options)).assign(way=peer + sinks, keep=keep))
    return pd.concat(parts).assign(model=name)


def _whitened(bed: Testbed, batches: Sequence[Tensor], skip: int, granularity: Any) -> Any:
    moments = replace(calibrate(bed.lm, batches, skip=skip), gradients=None)
    return decompose_model(bed.lm, granularity=granularity, calibration=moments)
