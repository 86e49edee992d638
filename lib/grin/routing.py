"""What a router decides, and the four ways to decide it (arXiv:2409.12136; v1: arXiv:2310.00811).

Symbols: `scores` = z, `indices` = D, `probs` = MaskedSoftmax(z), `weights` = what multiplies Expert_D(x).
A sparse mixer samples D and evaluates the loss at a shrunk or the full output, h = p_D Expert_D(x), so that in
expectation the chain rule integrates f along the ray from 0 to h: f(h) - f(0), which plain gating leaves out.
"""

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lib.grin.masking import gumbel_sample, masked_softmax, surviving
from lib.grin.quadrature import HEUN, HEUN_CONSISTENT, MIDPOINT, Quadrature

ExpertGradient = Literal["code", "algorithm"]


@dataclass(frozen=True)
class Routing:
    """Decision for each token: the chosen experts, their weights and what they were drawn from.

    `survivors` counts the experts that could have been drawn at each choice. `output_scale` is set where a scale has to
    act on the weighted expert output in the forward pass only (Algorithm 1's expert gradient).
    """

    weights: Float[Tensor, "tokens k"]
    indices: Int[Tensor, "tokens k"]
    probs: Float[Tensor, "tokens k experts"]
    survivors: Int[Tensor, "tokens k"]
    scores: Float[Tensor, "tokens experts"]
    output_scale: Float[Tensor, "tokens k"] | None = None


Route = Callable[..., Routing]


def sparsemixer_v2(
    scores: Float[Tensor, "tokens experts"],
    *,
    top_k: int,
    jitter_eps: float,
    training: bool,
    generator: torch.Generator | None = None,
    expert_gradient: ExpertGradient = "code",
    euler_at_argmax: bool = True,
) -> Routing:
    """Route by SparseMixer-v2, GRIN's router: Algorithms 1 and 3 of arXiv:2409.12136 (read in the paper and code).

    In training an expert is drawn from the masked softmax and its output scaled by 1, or by 1/3 with probability 3/4
    where it is not the argmax; the gradient ignores the scale. In evaluation the argmax is taken with weight p.
    Raises ValueError for a top_k outside 1..experts or a negative jitter_eps.
    """
    options = {"expert_gradient": expert_gradient, "euler_at_argmax": euler_at_argmax}
    return _sparsemixer(scores, HEUN, top_k, jitter_eps, training, generator, **options)


def sparsemixer_v2_consistent(
    scores: Float[Tensor, "tokens experts"],
    *,
    top_k: int,
    jitter_eps: float,
    training: bool,
    generator: torch.Generator | None = None,
    expert_gradient: ExpertGradient = "code",
    euler_at_argmax: bool = True,
) -> Routing:
    """Route by SparseMixer-v2*, which also counts the gate's own gradient: Algorithm 2 of arXiv:2409.12136 (read).

    Temperature 2, full output with probability 5/8, gradient doubled. Raises ValueError as `sparsemixer_v2`.
    """
    options = {"expert_gradient": expert_gradient, "euler_at_argmax": euler_at_argmax}
    return _sparsemixer(scores, HEUN_CONSISTENT, top_k, jitter_eps, training, generator, **options)


def sparsemixer_v1(
    scores: Float[Tensor, "tokens experts"],
    *,
    top_k: int,
    jitter_eps: float,
    training: bool,
    generator: torch.Generator | None = None,
    expert_gradient: ExpertGradient = "code",
    euler_at_argmax: bool = True,
) -> Routing:
    """Route by SparseMixer v1, the mid-point rule of arXiv:2310.00811 (read in its code): scale 1/2 or 1, gradient x 2.

    Raises ValueError as `sparsemixer_v2`.
    """
    # Deviation: v1's learned per-dimension factor on the output is left out, as v2 does; and top_k may exceed 1.
    options = {"expert_gradient": expert_gradient, "euler_at_argmax": euler_at_argmax}
    return _sparsemixer(scores, MIDPOINT, top_k, jitter_eps, training, generator, **options)


def gshard(
    scores: Float[Tensor, "tokens experts"],
    *,
    top_k: int,
    jitter_eps: float,
    training: bool,
    generator: torch.Generator | None = None,
) -> Routing:
    """Route by conventional top-k gating, the paper's control: gates are a softmax over all experts, D a constant.

    In training the scores are multiplied by U(1 - r, 1 + r). Source: the baseline in the authors' code (read there for
    top-1). Raises ValueError as `sparsemixer_v2`.
    """
    _check(scores, top_k, jitter_eps)
    noisy = scores
    if training and jitter_eps > 0:
        noise = torch.empty_like(scores).uniform_(1 - jitter_eps, 1 + jitter_eps, generator=generator)
        noisy = scores * noise
    probs = noisy.softmax(dim=-1)
    weights, indices = probs.topk(top_k, dim=-1)
    left = scores.shape[-1] - torch.arange(top_k, device=scores.device)
    return Routing(
        weights=weights, indices=indices, probs=probs.unsqueeze(1).expand(-1, top_k, -1),
        survivors=left.expand(len(scores), -1), scores=scores,
    )  # fmt: skip


ROUTES: dict[str, Route] = {
    "sparsemixer_v2": sparsemixer_v2,
    "sparsemixer_v2_consistent": sparsemixer_v2_consistent,
    "sparsemixer_v1": sparsemixer_v1,
    "gshard": gshard,
}


def route_named(name: str, *, expert_gradient: str = "code") -> Route:
    """Return a route of `ROUTES` with its expert gradient bound; raises ValueError for an unknown name or gradient."""
    if name not in ROUTES:
        raise ValueError(f"router must be one of {', '.join(ROUTES)}, got {name!r}")
    if expert_gradient not in ("code", "algorithm"):
        raise ValueError(f"expert_gradient must be 'code' or 'algorithm', got {expert_gradient!r}")
    return ROUTES[name] if name == "gshard" else partial(ROUTES[name], expert_gradient=expert_gradient)


def joined(parts: Sequence[Routing]) -> Routing:
    """Return routings of several groups of tokens as one, in their order."""
    fields: dict[str, Any] = {}
    for name in (field.name for field in dataclasses.fields(Routing)):
        values = [getattr(part, name) for part in parts]
        fields[name] = None if values[0] is None else torch.cat(values)
    return Routing(**fields)


def _sparsemixer(
    scores: Tensor,
    rule: Quadrature,
    top_k: int,
    jitter_eps: float,
    training: bool,
    generator: torch.Generator | None,
    *,
    expert_gradient: ExpertGradient,
    euler_at_argmax: bool,
) -> Routing:
    """Choose top_k experts one after the other without replacement (Algorithm 3), each by its quadrature rule."""
    _check(scores, top_k, jitter_eps)
    tempered = scores / rule.temperature if rule.temperature != 1 else scores
    chosen: Tensor | None = None
    parts = []
    for _ in range(top_k):
        kept = surviving(scores, jitter_eps=jitter_eps, chosen=chosen)
        probs = masked_softmax(tempered, kept)
        best = probs.argmax(dim=-1, keepdim=True)
        index = gumbel_sample(tempered, kept, generator=generator) if training else best
        weight, scale = probs.gather(-1, index), torch.ones_like(probs[:, :1])
        if training:
            euler = index == best if euler_at_argmax else torch.zeros_like(index, dtype=torch.bool)
            scale = rule.draw(euler, dtype=probs.dtype, generator=generator)
            weight, scale = _with_gradient(weight, scale, rule.gradient, expert_gradient)
        parts.append((weight, index, probs, kept.sum(-1, keepdim=True), scale))
        mark = torch.zeros_like(kept).scatter(-1, index, True)
        chosen = mark if chosen is None else chosen | mark
    weights, indices, probs, survivors, scales = zip(*parts, strict=True)
    return Routing(
        weights=torch.cat(weights, -1), indices=torch.cat(indices, -1), probs=torch.stack(probs, 1),
        survivors=torch.cat(survivors, -1), scores=scores,
        output_scale=torch.cat(scales, -1) if training and expert_gradient == "algorithm" else None,
    )  # fmt: skip


def _with_gradient(
    weight: Tensor, scale: Tensor, coefficient: float, expert_gradient: ExpertGradient
) -> tuple[Tensor, Tensor]:
    """Return a weight of value scale x p_D whose derivative with respect to p_D is the rule's coefficient.

    `code`: the weight holds the scale, so the expert's gradient is scaled too. `algorithm`: the weight is coefficient
    x p_D, and what is left of the scale acts on the output in the forward pass (Algorithm 1: y = h + detach(s h - h)).
    """
    grown = coefficient * weight
    if expert_gradient == "algorithm":
        return grown, scale / coefficient
    return grown + (scale * weight - grown).detach(), torch.ones_like(scale)


def _check(scores: Tensor, top_k: int, jitter_eps: float) -> None:
    if not 1 <= top_k <= scores.shape[-1]:
        raise ValueError(f"top_k must be between 1 and the {scores.shape[-1]} experts, got {top_k}")
    if jitter_eps < 0:
        raise ValueError(f"jitter_eps must not be negative, got {jitter_eps}")
