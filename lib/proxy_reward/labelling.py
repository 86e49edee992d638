"""Asking the expert: every answer is written down as it comes, so that a crash loses none and none is paid twice.

The file is JSON lines of {prompt, response, score}, which `lib.preference.RecordedJudge` reads as human labels.
"""

import json
import os
from collections.abc import Sequence
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor
from tqdm import tqdm

from lib import TenfoldError
from lib.preference.judging import Judge, checked_scores
from lib.preference.ledger import Ledger, Metered


class Expert:
    """A judge behind a ledger and a book of its answers; an answer in the book is not asked for again."""

    def __init__(self, judge: Judge, ledger: Ledger, path: Path | str | None = None, *, purpose: str = "label") -> None:
        self.judge, self.ledger = judge, ledger
        self.path = None if path is None else Path(path)
        self._metered = Metered(judge, ledger, purpose)
        self._book = self._read()

    def __len__(self) -> int:
        return len(self._book)

    def scores(
        self, prompts: Sequence[str], responses: Sequence[str], *, progress: bool = False
    ) -> Float[Tensor, " items"]:
        """The expert's score of each (prompt, response), one call for each that is not in the book.

        Raises BudgetExceeded before any call where the budget cannot pay for all, and JudgeFailed where the judge
        raises or gives no finite number; answers given before are kept, and every call stays counted.
        """
        keys = list(zip(prompts, responses, strict=True))
        asked = [key for key in dict.fromkeys(keys) if key not in self._book]
        self._affordable(len(asked))
        for prompt, response in tqdm(asked, desc="expert", unit="call", disable=not progress, mininterval=1.0):
            (score,) = checked_scores(self._metered, prompt, [response])
            self._write(prompt, response, score)
        return torch.tensor([self._book[key] for key in keys], dtype=torch.float64)

    def _affordable(self, calls: int) -> None:
        if calls > self.ledger.left:
            self.ledger.charge(calls)  # refuses, and says why; nothing was asked

    def _write(self, prompt: str, response: str, score: float) -> None:
        if self.path is not None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a", encoding="utf8") as file:
                file.write(json.dumps({"prompt": prompt, "response": response, "score": score}) + "\n")
                file.flush()
                os.fsync(file.fileno())
        self._book[prompt, response] = score

    def _read(self) -> dict[tuple[str, str], float]:
        if self.path is None or not self.path.exists():
            return {}
        book, lines = {}, self.path.read_text(encoding="utf8").splitlines(keepends=True)
        for number, line in enumerate(lines, start=1):
            try:
                row = json.loads(line)
                book[row["prompt"], row["response"]] = float(row["score"])
            except (ValueError, KeyError, TypeError):
                if number == len(lines) and not line.endswith("\n"):
                    self._cut(lines[:-1])  # a crash in the middle of a line: that answer is asked for again
                    break
                raise TenfoldError(
                    f"line {number} of {self.path} is no expert's answer (prompt, response, score): mend or remove it."
                ) from None
        return book

    def _cut(self, lines: list[str]) -> None:
        assert self.path is not None
        temporary = self.path.with_name(f".{self.path.name}")
        temporary.write_text("".join(lines), encoding="utf8")
        os.replace(temporary, self.path)
