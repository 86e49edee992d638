"""Distances between the target's and the drafter's next-token distributions, on the target's largest logits only.

Both distributions are coarsened to the target's top-k tokens and one outcome for the rest, so a divergence here is a
lower bound of the whole one. Symbols: p = target, q = drafter, both at the temperature that the answer was sampled at;
`rest` = 1 - sum over the top k. arXiv:2410.10141 trains on sampled answers (`ce`); the others are those of
arXiv:2310.08461 (DistillSpec).
"""

from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor

FLOOR = 1e-8


def _forward_kl(log_p: Tensor, log_q: Tensor) -> Tensor:
    return (log_p.exp() * (log_p - log_q)).sum(-1)


def _jensen_shannon(log_p: Tensor, log_q: Tensor) -> Tensor:
    middle = torch.logaddexp(log_p, log_q) - torch.log(torch.tensor(2.0))
    return (_forward_kl(log_p, middle) + _forward_kl(log_q, middle)) / 2


DIVERGENCES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "fkl": _forward_kl,
    "rkl": lambda log_p, log_q: _forward_kl(log_q, log_p),
    "jsd": _jensen_shannon,
    "tvd": lambda log_p, log_q: (log_p.exp() - log_q.exp()).abs().sum(-1) / 2,
}
LOSSES = ("ce", *DIVERGENCES)


def divergence(
    name: str, target_log_probs: Float[Tensor, "tokens top"], draft_log_probs: Float[Tensor, "tokens top"]
) -> Float[Tensor, " tokens"]:
    """Return the divergence of each token's distributions, given both log-probabilities of the target's top tokens.

    Raises ValueError for an unknown name.
    """
    if name not in DIVERGENCES:
        raise ValueError(f"loss is {name!r}: use one of {', '.join(LOSSES)}")
    return DIVERGENCES[name](with_rest(target_log_probs), with_rest(draft_log_probs))


def with_rest(log_probs: Float[Tensor, "tokens top"]) -> Float[Tensor, "tokens top+1"]:
    """Append the log-probability of everything else; a token without probability counts as 1e-8."""
    rest = (1 - log_probs.exp().sum(-1, keepdim=True)).clamp(min=FLOOR).log()
    return torch.cat([log_probs, rest], dim=-1).clamp(min=torch.log(torch.tensor(FLOOR)).item())


def draft_log_probs(
    logits: Float[Tensor, "tokens kept"],
    kept: Int[Tensor, " kept"] | None,
    wanted: Int[Tensor, "tokens top"],
    temperature: Float[Tensor, " tokens"],
    vocab_size: int,
) -> Float[Tensor, "tokens top"]:
    """Log-probabilities that a drafter gives to the wanted tokens; -inf where its reduced head lacks them."""
    log_q = (logits.float() / temperature[:, None]).log_softmax(-1)
    if kept is None:
        return log_q.gather(-1, wanted)
    place = torch.full((vocab_size,), -1, dtype=torch.long, device=kept.device)
    place[kept] = torch.arange(len(kept), device=kept.device)
    columns = place[wanted]
    return log_q.gather(-1, columns.clamp(min=0)).masked_fill(columns < 0, -torch.inf)
