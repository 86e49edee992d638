"""What the parts of speculative decoding cost on this machine, each timed alone: the c and v of the cost model."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor, nn

from lib.tempspec.context import Context
from lib.tempspec.drafting import Drafter, Prefix
from lib.tempspec.metrics import speedup
from lib.tempspec.warping import Warping


@dataclass(frozen=True)
class Costs:
    """Seconds of one drafted token, and of the target's pass over n tokens with its vocabulary head, n = 1, 2, …"""

    draft: float
    target: dict[int, float]

    @property
    def ratio(self) -> float:
        """Seconds of a drafter's step over a target's step (c)."""
        return self.draft / self.target[1]

    def speedup(self, alpha: float, gamma: int) -> float:
        """Modelled speed over plain decoding in the same loop, every token accepted with probability alpha."""
        return speedup(alpha, gamma, self.ratio, verify=self.target[gamma + 1] / self.target[1])

    def best(self, alpha: float) -> tuple[int, float]:
        """Block length with the largest modelled speed, and that speed."""
        return max(((g, self.speedup(alpha, g)) for g in range(max(self.target))), key=lambda pair: pair[1])


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
    """Time the parts after a prefix of real tokens: medians, the lengths taken in turn so that drift meets all alike.

    A drafted token's cost is that of the second and later ones of a block, plus its share of reading the prefix.
    """
    context = Context(target, 1, layers=drafter.layers)
    step = context.extend(tokens[None])
    # The newest token has no features yet.
    features = None if step.features is None else nn.functional.pad(step.features, (0, 0, 0, 1))
    prefix = Prefix(
        torch.cat([tokens, tokens[:1]])[None], torch.tensor([len(tokens) + 1], device=tokens.device), features
    )
    drafter.begin(target, 1)
    drafter.propose(prefix, longest, warping=warping)  # reads the prefix

    def passing(count: int) -> None:
        seen = context.extend(tokens[None, :count])
        warping.probs(target.get_output_embeddings()(seen.hidden))
        context.forget(torch.tensor([count], device=tokens.device))

    times: dict[int, list[float]] = {count: [] for count in range(1, longest + 2)}
    drafts = []
    for _ in range(repeats):
        for count, found in times.items():
            found.append(_seconds(lambda count=count: passing(count)))
        drafts.append(_seconds(lambda: drafter.propose(prefix, 4, warping=warping)) / 4)
    return Costs(median(drafts), {count: median(found) for count, found in times.items()})


def _seconds(call: Callable[[], Any]) -> float:
    began = time.perf_counter()
    call()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - began
