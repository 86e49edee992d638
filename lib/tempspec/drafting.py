"""What a drafter is: it reads the verified prefix and proposes tokens with the probabilities they were drawn from.

A drafter may be anything that keeps this contract; `verify` makes the output exact whatever it proposes.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lib.tempspec.warping import Warping


@dataclass
class Prefix:
    """Verified tokens of each row, from its first real one: `tokens[b, :lengths[b]]`; what follows is not defined.

    `features[b, i]` are the target's hidden states at token i, known for all but the newest token.
    """

    tokens: Int[Tensor, "batch capacity"]
    lengths: Int[Tensor, " batch"]
    features: Float[Tensor, "batch capacity width"] | None = None

    def since(self, first: Int[Tensor, " batch"]) -> Int[Tensor, "batch count"]:
        """Positions from `first` of each row to its newest token, moved to the right end; -1 is padding."""
        count = max(int((self.lengths - first).max()), 1)
        positions = self.lengths[:, None] + torch.arange(-count, 0, device=self.tokens.device)
        return torch.where(positions >= first[:, None], positions, -1)


@dataclass(frozen=True)
class Proposal:
    """Drafted tokens and their draft probabilities over the target's vocabulary; `lengths` counts those of each row.

    `confidence` guesses each token's chance of acceptance from what was known before the token was drawn.
    """

    tokens: Int[Tensor, "batch gamma"]
    probs: Float[Tensor, "batch gamma vocab"]
    lengths: Int[Tensor, " batch"]
    confidence: Float[Tensor, "batch gamma"]


# Whether to draft another token, given the confidence (mean over rows) of those drafted so far.
KeepGoing = Callable[[list[float]], bool]


@runtime_checkable
class Drafter(Protocol):
    """Proposes tokens; `layers` are the target's hidden states that it wants to see."""

    layers: tuple[int, ...]

    def begin(self, target: Any, batch: int) -> None:
        """Start on a new batch of prompts for a target model."""
        ...

    def propose(
        self,
        prefix: Prefix,
        gamma: int,
        *,
        warping: Warping,
        generator: torch.Generator | None = None,
        keep_going: KeepGoing | None = None,
    ) -> Proposal:
        """Propose up to gamma tokens after the prefix; `keep_going` may end the block earlier."""
        ...
