"""Accept or resample drafted tokens so that what comes out is drawn from the target (arXiv:2211.17192, Algorithm 1).

Symbols: `draft_probs` = q_T, `target_probs` = p_T, both after temperature, top-k and top-p; `drafted` = x_1 … x_gamma.
Greedy decoding is the case of probabilities that are a single one; `verify_greedy` does it without probabilities.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lib.core.generation import draw


@dataclass(frozen=True)
class Verification:
    """Number of drafted tokens accepted in each row, and the token that follows them."""

    accepted: Int[Tensor, " batch"]
    next_token: Int[Tensor, " batch"]


def verify(
    drafted: Int[Tensor, "batch gamma"],
    draft_probs: Float[Tensor, "batch gamma vocab"],
    target_probs: Float[Tensor, "batch gamma+1 vocab"],
    *,
    lengths: Int[Tensor, " batch"] | None = None,
    generator: torch.Generator | None = None,
) -> Verification:
    """Accept the longest prefix that keeps the target's distribution, and draw the token after it.

    x_i is kept with probability min(1, p(x_i) / q(x_i)); the first token refused is replaced by a draw from
    norm(max(0, p - q)); where all are kept the next one is drawn from p. `lengths` says how many tokens of each row are
    drafted (default: all gamma). The noise used here is drawn after, and so apart from, the noise of drafting.
    Raises ValueError where a drafted token has draft probability 0: it cannot have been drawn from `draft_probs`.
    """
    batch, gamma = drafted.shape
    limit = drafted.new_full((batch,), gamma) if lengths is None else lengths.to(drafted.device)
    proposed = torch.arange(gamma, device=drafted.device) < limit[:, None]
    p = target_probs[:, :gamma].gather(-1, drafted[..., None]).squeeze(-1)
    q = draft_probs.gather(-1, drafted[..., None]).squeeze(-1)
    if bool(((q <= 0) & proposed).any()):
        raise ValueError("a drafted token has draft probability 0: pass the distribution that it was drawn from")
    noise = torch.rand(
        (batch, gamma), generator=generator, device=drafted.device if generator is None else generator.device
    )
    kept = (noise.to(q.device) * q < p) & proposed  # u < p / q
    accepted = kept.cumprod(dim=1).sum(dim=1)
    rows = torch.arange(batch, device=drafted.device)
    after = target_probs[rows, accepted]  # [batch, vocab]
    refused = accepted < limit
    if bool(refused.any()):
        drafts = draft_probs[rows, accepted.clamp(max=gamma - 1)]
        residual = (after - drafts).clamp(min=0)
        # p = q up to rounding leaves no residual; a refusal there has probability 0 up to rounding too.
        usable = refused & (residual.sum(-1) > 0)
        after = torch.where(usable[:, None], residual, after)
    return Verification(accepted=accepted, next_token=draw(after, generator=generator))


def verify_greedy(
    drafted: Int[Tensor, "batch gamma"],
    target_choice: Int[Tensor, "batch gamma+1"],
    *,
    lengths: Int[Tensor, " batch"] | None = None,
) -> Verification:
    """Accept drafted tokens while they are the target's own choice (its largest logit), then take its next choice."""
    batch, gamma = drafted.shape
    limit = drafted.new_full((batch,), gamma) if lengths is None else lengths.to(drafted.device)
    proposed = torch.arange(gamma, device=drafted.device) < limit[:, None]
    accepted = ((drafted == target_choice[:, :gamma]) & proposed).cumprod(dim=1).sum(dim=1)
    return Verification(accepted=accepted, next_token=target_choice.gather(1, accepted[:, None]).squeeze(1))
