"""Acceptance without decoding, and what it is worth: the formulas of arXiv:2211.17192, sections 3.2 to 3.4.

Symbols: alpha = acceptance of one drafted token = sum_x min(p_T(x), q_T(x)); gamma = tokens drafted a block;
c = seconds of a drafter's step over seconds of a target's step; tau = tokens gained a block.
"""

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lib.core.generation import Warping
from lib.core.scoring import scored_states
from lib.tempspec.answers import Example, collate
from lib.tempspec.modeling import known_logits


def acceptance(
    p: Float[Tensor, "tokens vocab"], q: Float[Tensor, "tokens kept"], kept: Int[Tensor, " kept"] | None = None
) -> Float[Tensor, " tokens"]:
    """Return the chance that a token drafted from q is accepted by p; at T = 0, whether both choices agree.

    `kept` are the token ids of a reduced draft vocabulary.
    """
    return torch.minimum(p if kept is None else p[..., kept], q).sum(-1)


@torch.inference_mode()
def teacher_forced_acceptance(
    target: Any,
    drafters: Mapping[Hashable, Any],
    examples: Sequence[Example],
    temperature: float,
    *,
    batch_size: int = 8,
) -> dict[Hashable, Float[Tensor, " examples"]]:
    """Return each drafter's mean acceptance over the answer tokens of each example, the target running once for all.

    Drafters are causal language models. The answers should be the target's own at that temperature: then the mean is
    the acceptance of a block's first token.
    """
    warping = Warping(temperature)
    means: dict[Hashable, list[Tensor]] = {name: [] for name in drafters}
    for place in range(0, len(examples), batch_size):
        batch = collate(examples[place : place + batch_size], target.device)
        p = warping.probs(known_logits(target, scored_states(target, batch))[0])
        for name, drafter in drafters.items():
            logits, kept = known_logits(drafter, scored_states(drafter, batch))
            alpha = acceptance(p, warping.probs(logits), kept)
            total = alpha.new_zeros(len(batch.ids)).index_add(0, batch.owners, alpha)
            means[name].append((total / batch.scored.sum(1)).cpu())
    return {name: torch.cat(parts) for name, parts in means.items()}


def block_efficiency(alpha: float, gamma: int) -> float:
    """Return tokens gained a block when every token is accepted independently with probability alpha: Eq. (1).

    Raises ValueError for an alpha outside [0, 1] or a negative gamma.
    """
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha is {alpha}: an acceptance rate lies between 0 and 1")
    if gamma < 0:
        raise ValueError(f"gamma is {gamma}: draft 0 tokens or more")
    return gamma + 1.0 if alpha == 1 else (1 - alpha ** (gamma + 1)) / (1 - alpha)


def speedup(alpha: float, gamma: int, cost: float, *, verify: float = 1.0) -> float:
    """Return speed over plain decoding: Theorem 3.8, tau / (gamma c + v); v is a pass of gamma + 1 tokens over one.

    The paper takes v = 1; on a processor that is not idle while decoding it is more.
    """
    return block_efficiency(alpha, gamma) / (gamma * cost + verify)
