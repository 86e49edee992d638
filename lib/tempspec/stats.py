"""What a speculative run did: blocks, acceptance under both definitions in use, and where the time went."""

from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor


@dataclass
class DecodingStats:
    """Counts over all rows and blocks; `drafted[i]`, `tested[i]`, `accepted[i]` are those of draft position i.

    A token is tested when all before it in its block were accepted; tokens after a refusal are drafted in vain.
    Seconds are wall-clock; the target's first pass over the prompts is `prefill_seconds` and no block.
    """

    blocks: int = 0
    rounds: int = 0
    tokens: int = 0
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
        """Accepted over drafted tokens (those after a refusal count as drafted)."""
        return sum(self.accepted) / max(sum(self.drafted), 1)

    @property
    def conditional_acceptance(self) -> float:
        """Accepted over tested tokens: the mean chance of a drafted token whose predecessors were accepted."""
        return sum(self.accepted) / max(sum(self.tested), 1)

    @property
    def by_position(self) -> list[float]:
        """Conditional acceptance at each draft position."""
        return [hits / max(seen, 1) for hits, seen in zip(self.accepted, self.tested, strict=True)]

    @property
    def block_efficiency(self) -> float:
        """Tokens gained per block of one row, the target's own included (tau)."""
        return 1 + sum(self.accepted) / max(self.blocks, 1)

    def record(self, lengths: Int[Tensor, " rows"], accepted: Int[Tensor, " rows"]) -> None:
        """Count one round of blocks: tokens drafted and accepted in each row still running."""
        self.rounds += 1
        self.blocks += len(lengths)
        longest = int(lengths.max())
        self.lengths[longest] = self.lengths.get(longest, 0) + 1
        depth = torch.arange(longest, device=lengths.device)
        counts = {
            "drafted": (depth < lengths[:, None]).sum(0),
            "tested": (depth < torch.minimum(accepted + 1, lengths)[:, None]).sum(0),
            "accepted": (depth < accepted[:, None]).sum(0),
        }
        for name, found in counts.items():
            known = getattr(self, name)
            known += [0] * (longest - len(known))
            for place, count in enumerate(found.tolist()):
                known[place] += count

    def modelled_seconds(self, draft: float, target: dict[int, float]) -> float:
        """Seconds of the same rounds by the cost model: `draft` a drafted token, `target[n]` a pass of n tokens."""
        return sum(count * (drafted * draft + target[drafted + 1]) for drafted, count in self.lengths.items())

    def modelled_speedup(self, draft: float, target: dict[int, float]) -> float:
        """Speed over plain decoding by the cost model, for one row: what plain steps would take over these rounds."""
        gained = self.rounds + sum(self.accepted)
        return gained * target[1] / self.modelled_seconds(draft, target)

    def measured_speedup(self, plain: float) -> float:
        """Speed over plain decoding on the clock, given the seconds that plain decoding takes for a token."""
        return plain * self.tokens / self.seconds

    def as_dict(self) -> dict[str, Any]:
        """All counts and rates as plain values, for a JSON report."""
        rates = ("acceptance", "conditional_acceptance", "by_position", "block_efficiency")
        return vars(self) | {name: getattr(self, name) for name in rates}
