"""An expert whose scores are known already, replayed: each use is entered into a ledger as if it were asked now.

Sweeps over strategies, budgets and seeds ask about the same responses again and again. The expert is asked once, and
every run of the sweep has a ledger of its own.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lib.preference.ledger import Ledger


class Replay:
    """Known scores [prompts, k] behind a ledger; items count prompt by prompt."""

    def __init__(self, scores: Float[Tensor, "prompts k"], ledger: Ledger) -> None:
        self.ledger = ledger
        self._scores = scores
        self.prompts, self.k = scores.shape

    def items(self, items: Int[Tensor, " items"]) -> Float[Tensor, " items"]:
        """Score of each item, at one call each."""
        self.ledger.charge(len(items), "score")
        return self._scores.flatten()[items]

    def all_of(self, prompts: Int[Tensor, " chosen"]) -> Float[Tensor, "chosen k"]:
        """Scores of all responses to some prompts, at k calls each."""
        self.ledger.charge(len(prompts) * self.k, "score")
        return self._scores[prompts]

    def comparisons(
        self, prompts: Int[Tensor, " pairs"], first: Int[Tensor, " pairs"], second: Int[Tensor, " pairs"]
    ) -> Int[Tensor, " pairs"]:
        """+1 where the first response is better, -1 where the second is, 0 for a tie: one call each."""
        self.ledger.charge(len(prompts), "compare")
        return torch.sign(self._scores[prompts, first] - self._scores[prompts, second]).long()
