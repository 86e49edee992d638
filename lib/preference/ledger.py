"""Expert calls cost money: a ledger counts every one, valid or not, and refuses to pass its budget.

A call is entered, and written to disk, before it is made: a crash in the middle can only count too much.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from lib import TenfoldError
from lib.core.store import BudgetExceeded, Journal, key_of
from lib.preference.judges import ByComparison, Judge, checked_scores

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
    """A judge whose every call is entered into a ledger first, and whose answers the ledger keeps.

    Of all threads and processes on one ledger file one asks a question, once: what is answered there, after a crash
    too, is not paid again. A crash in the middle of a call leaves it counted, and it is asked anew. A ledger belongs to
    one judge: two of one `identity` with other settings take each other's answers, unless their `purpose` differs.
    """

    def __init__(self, judge: Any, ledger: Ledger, *, purpose: str = "") -> None:
        self.judge, self.ledger, self.purpose = judge, ledger, purpose
        self.concurrency = getattr(judge, "concurrency", 1)
        self.calls_per_comparison: int = getattr(judge, "calls_per_comparison", 1)  # two where both orders are asked

    @property
    def identity(self) -> str:
        """Whose opinion it is: its judge's."""
        return getattr(self.judge, "identity", "")

    def score(self, prompt: str, responses: Sequence[str]) -> list[float]:
        """Return scores, at one call a response (of a judge that only compares: at what its comparisons cost)."""
        if not hasattr(self.judge, "score"):
            return ByComparison(self).score(prompt, responses)

        def ask() -> dict[str, Any]:
            scores = checked_scores(self.judge, prompt, responses)
            return {"prompt": prompt, "responses": list(responses), "scores": scores}

        return self._once("score", [prompt, *responses], ask, len(responses))["scores"]

    def prefer(self, prompt: str, a: str, b: str) -> float:
        """Return the judge's preference, at what a comparison costs it; raises ValueError where it is no chance."""
        asked = ByComparison(self.judge)
        return self._once("prefer", [prompt, a, b], lambda: asked.prefer(prompt, a, b), self.calls_per_comparison)

    def key(self, kind: str, texts: Sequence[str]) -> str:
        """Return the key of an answer in the ledger."""
        return key_of(kind, self.purpose, getattr(self.judge, "identity", type(self.judge).__name__), list(texts))

    def _once(self, kind: str, texts: Sequence[str], ask: Callable[[], Any], calls: int) -> Any:
        return self.ledger.once(self.key(kind, texts), ask, calls=calls, purpose=self.purpose)
