"""Acceptance without decoding, and what it is worth: the formulas of arXiv:2211.17192, sections 3.2 to 3.4.

Symbols: alpha = acceptance of one drafted token = sum_x min(p_T(x), q_T(x)); gamma = tokens drafted a block;
c = seconds of a drafter's step over seconds of a target's step; tau = tokens gained a block.
"""

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lib.tempspec.heads import reduced_logits
from lib.tempspec.lessons import Batch, Example, collate
from lib.tempspec.warping import Warping


def acceptance(
    target_logits: Float[Tensor, "tokens vocab"],
    draft_logits: Float[Tensor, "tokens kept"],
    kept: Int[Tensor, " kept"] | None = None,
    *,
    warping: Warping,
) -> Float[Tensor, " tokens"]:
    """Return the chance that a drafted token is accepted after each given prefix; at T = 0, whether both choices agree.

    `kept` are the token ids of a reduced draft vocabulary.
    """
    return _overlap(warping.probs(target_logits), warping.probs(draft_logits), kept)


def _overlap(p: Tensor, q: Tensor, kept: Tensor | None) -> Tensor:
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
    found: dict[Hashable, list[Tensor]] = {name: [] for name in drafters}
    for place in range(0, len(examples), batch_size):
        batch = collate(examples[place : place + batch_size], target.device)
        owner = batch.scored.nonzero()[:, 0]
        p = warping.probs(_logits(target, batch)[0])
        for name, drafter in drafters.items():
            logits, kept = _logits(drafter, batch)
            alpha = _overlap(p, warping.probs(logits), kept)
            total = alpha.new_zeros(len(batch.tokens)).index_add(0, owner, alpha)
            found[name].append((total / batch.scored.sum(1)).cpu())
    return {name: torch.cat(parts) for name, parts in found.items()}


def _logits(model: Any, batch: Batch) -> tuple[Tensor, Tensor | None]:
    hidden = model.get_decoder()(batch.tokens, use_cache=False).last_hidden_state[batch.scored]
    return reduced_logits(model.get_output_embeddings(), hidden)


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
