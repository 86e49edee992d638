"""What a router decides, and the four ways to decide it (arXiv:2409.12136; v1: arXiv:2310.00811).

Symbols: `scores` = z, `jitter_eps` = r, `indices` = D, `probs` = MaskedSoftmax(z), `weights` = what multiplies
Expert_D(x). A sparse mixer samples D among the experts whose score is relatively close to the best one, and evaluates
the loss at a shrunk or the full output, h = p_D Expert_D(x), so that in expectation the chain rule integrates f along
the ray from 0 to h: f(h) - f(0), which plain gating leaves out.

That integral is a quadrature rule (appendix A): Euler uses f'(h) h, exact for linear f; the mid-point rule f'(h/2) h,
for quadratic f; Heun's third-order rule (1/4 f'(h) + 3/4 f'(h/3)) h, for cubic f. One node is drawn per token, so that
the expectation is the rule.
"""

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

ExpertGradient = Literal["code", "algorithm"]


@dataclass(frozen=True)
class Quadrature:
    """A two-node rule: the full output with probability `full`, else the output shrunk to `shrunk`.

    `gradient` multiplies the gradient; `temperature` divides the scores before the softmax.
    """

    shrunk: float
    full: float
    gradient: float = 1.0
    temperature: float = 1.0

    @torch.no_grad()
    def draw(
        self,
        euler: Bool[Tensor, "tokens 1"],
        *,
        dtype: torch.dtype = torch.float32,
        generator: torch.Generator | None = None,
    ) -> Float[Tensor, "tokens 1"]:
        """Return a node for each token: 1 where `euler`, else 1 with probability `full` and `shrunk` otherwise."""
        drawn = torch.empty(euler.shape, device=euler.device).uniform_(generator=generator)
        whole = euler | (drawn > 1 - self.full)
        # Deviation: the published code scales by 0.3333 + 0.6667 B; here by exactly 1/3 or 1.
        return torch.where(whole, 1.0, self.shrunk).to(dtype)


# v2 detaches the gate (Eq. 7): only f(h) - f(0) is left, by Heun's rule as it stands.
HEUN = Quadrature(shrunk=1 / 3, full=1 / 4)
# v2* keeps it (Eq. 4): f'(h) h more, so 5/4 f'(h) + 3/4 f'(h/3) = 2 (5/8 f'(h) + 3/8 f'(h/3)).
HEUN_CONSISTENT = Quadrature(shrunk=1 / 3, full=5 / 8, gradient=2.0, temperature=2.0)
# v1 (arXiv:2310.00811) likewise with the mid-point rule: f'(h) + f'(h/2) = 2 (1/2 f'(h) + 1/2 f'(h/2)).
MIDPOINT = Quadrature(shrunk=1 / 2, full=1 / 2, gradient=2.0)


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


def sparsemixer(
    scores: Float[Tensor, "tokens experts"],
    *,
    rule: Quadrature = HEUN,
    top_k: int,
    jitter_eps: float,
    training: bool,
    generator: torch.Generator | None = None,
    expert_gradient: ExpertGradient = "code",
    euler_at_argmax: bool = True,
) -> Routing:
    """Choose `top_k` experts one after the other without replacement (Algorithm 3), each by a quadrature rule.

    In training an expert is drawn from the masked softmax and its output scaled by 1, or by a number drawn by the rule
    where it is not the argmax. The router's gradient ignores the scale; that of the experts has it (`code`) or not
    (`algorithm`). In evaluation the argmax is taken with weight p. Raises ValueError for a top_k outside 1..experts or
    a negative jitter_eps. Source: Algorithms 1 to 3 of arXiv:2409.12136 (read in the paper and the code).
    """
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


def _by(rule: Quadrature, description: str) -> Route:
    route = partial(sparsemixer, rule=rule)
    route.__doc__ = description
    return route


sparsemixer_v2 = _by(
    HEUN, "Route by SparseMixer-v2, GRIN's router (Algorithm 1): whole outputs with probability 1/4, else a third."
)
sparsemixer_v2_consistent = _by(
    HEUN_CONSISTENT, "Route by SparseMixer-v2*, which counts the gate's own gradient too (Algorithm 2)."
)
# Deviation: v1's learned per-dimension factor on the output is left out, as v2 does; and top_k may exceed 1.
sparsemixer_v1 = _by(MIDPOINT, "Route by SparseMixer v1, the mid-point rule of arXiv:2310.00811 (read in its code).")


def gshard(
    scores: Float[Tensor, "tokens experts"],
    *,
    top_k: int,
    jitter_eps: float,
    training: bool,
    generator: torch.Generator | None = None,
    normalize: bool = False,
) -> Routing:
    """Route by conventional top-k gating, the paper's control: gates are a softmax over all experts, D a constant.

    In training the scores are multiplied by U(1 - r, 1 + r). `normalize` divides a token's gates by their sum, as
    GShard itself does (arXiv:2006.16668, Algorithm 1; from memory) and Mixtral; a single gate is then always 1, and
    the router learns from the balance loss alone. Source: the baseline in the authors' code (read there for top-1,
    without `normalize`). Raises ValueError as `sparsemixer`.
    """
    _check(scores, top_k, jitter_eps)
    noisy = scores
    if training and jitter_eps > 0:
        noise = torch.empty_like(scores).uniform_(1 - jitter_eps, 1 + jitter_eps, generator=generator)
        noisy = scores * noise
    probs = noisy.softmax(dim=-1)
    weights, indices = probs.topk(top_k, dim=-1)
    if normalize:
        weights = weights / weights.sum(-1, keepdim=True)
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
    "gshard_normalized": partial(gshard, normalize=True),
}


def route_named(name: str, *, expert_gradient: str = "code") -> Route:
    """Return a route of `ROUTES` with its expert gradient bound; raises ValueError for an unknown name or gradient."""
    if name not in ROUTES:
        raise ValueError(f"router must be one of {', '.join(ROUTES)}, got {name!r}")
    if expert_gradient not in ("code", "algorithm"):
        raise ValueError(f"expert_gradient must be 'code' or 'algorithm', got {expert_gradient!r}")
    return ROUTES[name] if name.startswith("gshard") else partial(ROUTES[name], expert_gradient=expert_gradient)


class Router(nn.Linear):
    """Scores z = x W^T in float32, routed by `route` (arXiv:2409.12136, section 2.1: linear, no bias; read)."""

    def __init__(
        self, width: int, experts: int, *, top_k: int = 2, jitter_eps: float = 0.1, route: Route = sparsemixer_v2
    ) -> None:
        super().__init__(width, experts, bias=False)
        if not 1 <= top_k <= experts:
            raise ValueError(f"top_k must be between 1 and the {experts} experts, got {top_k}")
        self.top_k, self.jitter_eps, self.route = top_k, jitter_eps, route

    def forward(self, hidden: Float[Tensor, "tokens width"]) -> Routing:
        """Return the routing of hidden states; sampled in training, the argmax in evaluation."""
        with torch.autocast(hidden.device.type, enabled=False):
            exact = torch.promote_types(hidden.dtype, torch.float32)  # scores a hair apart decide who survives
            scores = F.linear(hidden.to(exact), self.weight.to(exact))
            return self.route(scores, top_k=self.top_k, jitter_eps=self.jitter_eps, training=self.training)


def concatenated(parts: Sequence[Routing]) -> Routing:
    """Return routings of several groups of tokens as one, in their order."""
    fields: dict[str, Any] = {}
    for name in (field.name for field in dataclasses.fields(Routing)):
        values = [getattr(part, name) for part in parts]
        fields[name] = None if values[0] is None else torch.cat(values)
    return Routing(**fields)


@torch.no_grad()
def surviving(
    scores: Float[Tensor, "tokens experts"],
    *,
    jitter_eps: float,
    chosen: Bool[Tensor, "tokens experts"] | None = None,
) -> Bool[Tensor, "tokens experts"]:
    """Return which experts may be sampled: (z* - z_i) / max(|z_i|, z*) <= 2 r, z* the best that is not yet chosen.

    The rule does not depend on the scale of z, but adding a constant to all scores changes who survives. Experts that
    are already `chosen` never do; where all scores are 0 all others do. Source: the published code's form of the mask
    of arXiv:2409.12136, appendix A (read in the code).
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
