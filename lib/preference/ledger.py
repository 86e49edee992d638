"""Expert calls cost money: a ledger counts every one, valid or not, and refuses to pass its budget.

A call is entered, and written to disk, before it is made: a crash in the middle can only count too much.
"""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lib import TenfoldError
from lib.preference.judging import Judge, calls_per_comparison


class BudgetExceeded(TenfoldError):
    """A request for more expert calls than the budget has left; nothing was asked and nothing was counted."""


class Ledger:
    """Count of expert calls against a budget; with a `path` it survives crashes (one JSON line an entry).

    Raises TenfoldError for a negative budget, one below what the file already holds, or a damaged file.
    """

    def __init__(self, budget: int, path: Path | str | None = None) -> None:
        self.budget, self.path = budget, None if path is None else Path(path)
        self.entries: list[dict[str, Any]] = self._read()
        if budget < 0:
            raise TenfoldError(f"a budget of {budget} expert calls is negative: give 0 or more.")
        if self.spent > budget:
            raise TenfoldError(
                f"the ledger {self.path} already holds {self.spent} expert calls, more than the budget of {budget}: "
                "raise the budget, or begin a new ledger."
            )

    def _read(self) -> list[dict[str, Any]]:
        if self.path is None or not self.path.exists():
            return []
        entries = []
        for number, line in enumerate(self.path.read_text(encoding="utf8").splitlines(), start=1):
            try:
                entry = json.loads(line)
                entries.append({"calls": int(entry["calls"]), "purpose": str(entry["purpose"])})
            except (ValueError, KeyError, TypeError):
                raise TenfoldError(
                    f"line {number} of the ledger {self.path} cannot be read: mend or remove it."
                ) from None
        return entries

    @property
    def spent(self) -> int:
        """Expert calls counted so far."""
        return sum(entry["calls"] for entry in self.entries)

    @property
    def left(self) -> int:
        """Expert calls that the budget still allows."""
        return self.budget - self.spent

    def charge(self, calls: int, purpose: str = "") -> None:
        """Count calls that are about to be made; raises BudgetExceeded where they would pass the budget."""
        if calls < 0:
            raise TenfoldError(f"{calls} expert calls cannot be charged: calls once made stay counted.")
        if calls > self.left:
            raise BudgetExceeded(
                f"{calls} expert calls were asked for, but {self.left} of {self.budget} are left: ask for fewer, or "
                "raise the budget."
            )
        entry = {"calls": calls, "purpose": purpose}
        if self.path is not None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a", encoding="utf8") as file:
                file.write(json.dumps(entry) + "\n")
                file.flush()
                os.fsync(file.fileno())
        self.entries.append(entry)


class Metered:
    """A judge whose every call is entered into a ledger first."""

    def __init__(self, judge: Judge, ledger: Ledger, purpose: str = "") -> None:
        self.judge, self.ledger, self.purpose = judge, ledger, purpose
        self.calls_per_comparison = calls_per_comparison(judge)

    def score(self, prompt: str, responses: Sequence[str]) -> list[float]:
        """Scores of the judge, at one call a response."""
        self.ledger.charge(len(responses), self.purpose)
        return self.judge.score(prompt, responses)

    def prefer(self, prompt: str, a: str, b: str) -> float:
        """Preference of the judge, at what a comparison costs it."""
        self.ledger.charge(self.calls_per_comparison, self.purpose)
        return self.judge.prefer(prompt, a, b)
