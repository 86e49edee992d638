"""Acceptance without decoding, and what it is worth: the formulas of arXiv:2211.17192, sections 3.2 to 3.4.

Symbols: alpha = acceptance of one drafted token = sum_x min(p_T(x), q_T(x)); gamma = tokens drafted a block;
c = seconds of a drafter's step over seconds of a target's step; tau = tokens gained a block.
"""

from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Int
from torch import Tensor


@dataclass
class DecodingStats:
    """Counts over all rows and blocks; `drafted[i]`, `tested[i]`, `accepted[i]` are those at depth i of a draft.

    A depth is tested when the path before it was accepted and something was drafted there; the rest, and what lies past
    a row's end, is drafted in vain. `tokens` counts all new tokens, `gained` all but each row's first.
    Seconds are wall-clock; the target's first pass over the prompts is `prefill_seconds` and no block.
    """

    blocks: int = 0
    rounds: int = 0
    tokens: int = 0
    gained: int = 0
    drafted: list[int] = field(default_factory=list)
    tested: list[int] = field(default_factory=list)
    accepted: list[int] = field(default_factory=list)
    lengths: dict[int, int] = field(default_factory=dict)  # rounds by tokens drafted in them
    prefill_seconds: float = 0.0
    draft_seconds: float = 0.0
    target_seconds: float = 0.0
    seconds: float = 0.0

    @property
    def acceptance(self) -> float:
        """Return accepted over drafted tokens (those after a refusal count as drafted)."""
        return sum(self.accepted) / max(sum(self.drafted), 1)

    @property
    def conditional_acceptance(self) -> float:
        """Return accepted over tested tokens: the mean chance of a drafted token whose predecessors were accepted."""
        return sum(self.accepted) / max(sum(self.tested), 1)

    @property
    def by_position(self) -> list[float]:
        """Return the conditional acceptance at each draft position."""
        return [hits / max(seen, 1) for hits, seen in zip(self.accepted, self.tested, strict=True)]

    @property
    def block_efficiency(self) -> float:
        """Return tokens gained per block of a row, the target's own included: tau, or mean accepted tokens."""
        return self.gained / max(self.blocks, 1)

    def record(
        self,
        depths: Int[Tensor, "rows drafted"],
        accepted: Int[Tensor, " rows"],
        tested: Int[Tensor, " rows"],
        gained: Int[Tensor, " rows"],
    ) -> None:
        """Count one round of rows still running: depths of the tokens drafted (-1: none), how deep it was tested.

        `gained` are the tokens that the rows have more now.
        """
        self.rounds += 1
        self.gained += int(gained.sum())
        self.blocks += len(depths)
        most = int((depths >= 0).sum(1).max())
        self.lengths[most] = self.lengths.get(most, 0) + 1
        longest = int(depths.max()) + 1 if most else 0
        depth = torch.arange(longest, device=depths.device)
        counts = {
            "drafted": (depths[..., None] == depth).sum((0, 1)),
            "tested": (depth < tested[:, None]).sum(0),
            "accepted": (depth < accepted[:, None]).sum(0),
        }
        for name, new in counts.items():
            total = getattr(self, name)
            total += [0] * (longest - len(total))
            total[:longest] = [a + b for a, b in zip(total, new.tolist(), strict=False)]

    def modelled_seconds(self, draft: float, target: dict[int, float]) -> float:
        """Return seconds of these rounds by the cost model: `draft` a drafted token, `target[n]` a pass of n tokens."""
        return sum(count * (drafted * draft + target[drafted + 1]) for drafted, count in self.lengths.items())


def acceptance(
    p: Float[Tensor, "tokens vocab"], q: Float[Tensor, "tokens kept"], kept: Int[Tensor, " kept"] | None = None
) -> Float[Tensor, " tokens"]:
    """Return the chance that a token drafted from q is accepted by p; at T = 0, whether both choices agree.

    `kept` are the token ids of a reduced draft vocabulary.
    """
    return torch.minimum(p if kept is None else p[..., kept], q).sum(-1)


def block_efficiency(alpha: float, gamma: int) -> float:
    """Return tokens gained a block when every token is accepted independently with probability alpha: Eq. (1).

    Raises ValueError for an alpha outside [0, 1] or a negative gamma.
    """
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha is {alpha}: an acceptance rate lies between 0 and 1")
    if gamma < 0:
        raise ValueError(f"gamma is {gamma}: draft 0 tokens or more")
    return gamma + 1.0 if alpha == 1 else (1 - alpha ** (gamma + 1)) / (1 - alpha)


def speedup(alpha: float, gamma: int, cost: float, *, verify: float = 1.0) -> float:
    """Return speed over plain decoding: Theorem 3.8, tau / (gamma c + v); v is a pass of gamma + 1 tokens over one.

    The paper takes v = 1; on a processor that is not idle while decoding it is more.
    """
    return block_efficiency(alpha, gamma) / (gamma * cost + verify)
