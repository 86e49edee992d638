"""Acceptance without decoding, and what it is worth: the formulas of arXiv:2211.17192, sections 3.2 to 3.4.

Symbols: alpha = acceptance of one drafted token = sum_x min(p_T(x), q_T(x)); gamma = tokens drafted a block;
c = seconds of a drafter's step over seconds of a target's step; tau = tokens gained a block.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from lib.tempspec.warping import Warping


def acceptance(
    target_logits: Float[Tensor, "tokens vocab"],
    draft_logits: Float[Tensor, "tokens kept"],
    warping: Warping,
    *,
    kept: Tensor | None = None,
) -> Float[Tensor, " tokens"]:
    """Return the chance that a drafted token is accepted after each given prefix; at T = 0, whether both choices agree.

    `kept` are the token ids of a reduced draft vocabulary.
    """
    p, q = warping.probs(target_logits), warping.probs(draft_logits)
    return torch.minimum(p if kept is None else p[..., kept], q).sum(-1)


def block_efficiency(alpha: float, gamma: int) -> float:
    """Tokens gained a block when every token is accepted independently with probability alpha: Eq. (1)."""
    _check(alpha, gamma)
    return gamma + 1.0 if alpha == 1 else (1 - alpha ** (gamma + 1)) / (1 - alpha)


def speedup(alpha: float, gamma: int, cost: float, *, verify: float = 1.0) -> float:
    """Speed over plain decoding: Theorem 3.8, tau / (gamma c + v); v is a pass of gamma + 1 tokens over one of one.

    The paper takes v = 1; on a processor that is not idle while decoding it is more.
    """
    return block_efficiency(alpha, gamma) / (gamma * cost + verify)


def best_gamma(alpha: float, cost: float, *, longest: int = 16) -> int:
    """Block length with the largest modelled speed, 0 where drafting never pays."""
    return max(range(longest + 1), key=lambda gamma: speedup(alpha, gamma, cost))


def _check(alpha: float, gamma: int) -> None:
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha is {alpha}: an acceptance rate lies between 0 and 1")
    if gamma < 0:
        raise ValueError(f"gamma is {gamma}: draft 0 tokens or more")
