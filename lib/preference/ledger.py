"""Expert calls cost money: a ledger counts every one, valid or not, and refuses to pass its budget.

A call is entered, and written to disk, before it is made: a crash in the middle can only count too much.
"""

from collections.abc import Sequence
from pathlib import Path

from lib import TenfoldError
from lib.core.store import BudgetExceeded, Journal
from lib.preference.judges import Judge

__all__ = ["BudgetExceeded", "Ledger", "Metered"]


class Ledger(Journal):
    """Count of expert calls against a budget; with a `path` (sqlite) it survives crashes, and processes may share it.

    Raises ValueError for a negative budget, and TenfoldError for one below what the file already holds.
    """

    def __init__(self, budget: int, path: Path | str | None = None) -> None:
        super().__init__(path, budget=budget)
        if self.spent > budget:
            raise TenfoldError(
                f"the ledger {self.path} already holds {self.spent} expert calls, more than the budget of {budget}: "
                "raise the budget, or begin a new ledger."
            )


class Metered(Judge):
    """A judge whose every call is entered into a ledger first."""

    def __init__(self, judge: Judge, ledger: Ledger, purpose: str = "") -> None:
        self.judge, self.ledger, self.purpose = judge, ledger, purpose
        self.calls_per_comparison: int = getattr(judge, "calls_per_comparison", 1)  # two where both orders are asked

    def score(self, prompt: str, responses: Sequence[str]) -> list[float]:
        """Ask the judge for scores, at one call a response."""
        self.ledger.spend(len(responses), self.purpose)
        return self.judge.score(prompt, responses)

    def prefer(self, prompt: str, a: str, b: str) -> float:
        """Ask the judge for a preference, at what a comparison costs it."""
        self.ledger.spend(self.calls_per_comparison, self.purpose)
        return self.judge.prefer(prompt, a, b)
