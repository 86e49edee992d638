"""What the parts of speculative decoding cost on this machine, each timed alone: the c and v of the cost model."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from statistics import median
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor, nn

from lib.core.generation import Context, Warping
from lib.tempspec.drafters import Drafter, Prefix
from lib.tempspec.metrics import speedup
from lib.tempspec.shape import Shape


@dataclass(frozen=True)
class Costs:
    """Seconds of one drafted token, and of the target's pass over n tokens with its vocabulary head, n = 1, 2, …"""

    draft: float
    target: dict[int, float]

    @property
    def ratio(self) -> float:
        """Return seconds of a drafter's step over a target's step (c)."""
        return self.draft / self.target[1]

    def speedup(self, alpha: float, gamma: int) -> float:
        """Return the modelled speed over plain decoding, every token accepted with probability alpha."""
        return speedup(alpha, gamma, self.ratio, verify=self.target[gamma + 1] / self.target[1])


@torch.inference_mode()
def measure_costs(
    target: Any,
    drafter: Drafter,
    tokens: Int[Tensor, " prefix"],
    *,
    longest: int = 8,
    repeats: int = 9,
    warping: Warping = Warping(1.0),  # noqa: B008 - frozen
) -> Costs:
    """Time the parts after a prefix of real tokens: medians of repeats, each of them in an order of its own.

    Drift then meets all parts alike, and none always follows the draft (in a fixed order, on a busy machine, a plain
    step once seemed to take as long as two passes of four tokens). A drafted token's cost is that of the second and
    later ones of a block, plus its share of reading the prefix.
    """
    context = Context(target, 1, layers=drafter.layers)
    step = context.read(tokens[None])
    # The newest token has no features yet.
    features = None if step.features is None else nn.functional.pad(step.features, (0, 0, 0, 1))
    prefix = Prefix(
        torch.cat([tokens, tokens[:1]])[None], torch.tensor([len(tokens) + 1], device=tokens.device), features
    )
    drafter.begin(target, 1)
    drafter.propose(prefix, longest, shape=Shape(longest), warping=warping)  # reads the prefix

    def passing(count: int) -> None:
        seen = context.read(tokens[None, :count])
        warping.probs(context.logits(seen.hidden))
        context.rollback(torch.tensor([count], device=tokens.device))

    def drafting() -> None:
        drafter.propose(prefix, 4, shape=Shape(4), warping=warping)

    parts: list[Callable[[], None]] = [drafting, *(partial(passing, count) for count in range(1, longest + 2))]
    times: list[list[float]] = [[] for _ in parts]
    for repeat in range(repeats):
        for part in torch.randperm(len(parts), generator=torch.Generator().manual_seed(repeat)).tolist():
            times[part].append(_seconds(parts[part]))
    draft, *passes = map(median, times)
    return Costs(draft / 4, dict(enumerate(passes, 1)))


def _seconds(call: Callable[[], Any]) -> float:
    began = time.perf_counter()
    call()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - began
