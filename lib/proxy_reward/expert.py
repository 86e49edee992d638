"""Asking the expert for labels, each paid once, and a final judge kept apart from the one that labelled.

A policy that was trained on a judge's labels has been optimised for that judge: its score by that judge says little.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from lib.preference.judges import Judge, ask_all, identity_of, refuse_failures, score_all
from lib.preference.ledger import Ledger, Metered


class Expert(Metered):
    """A judge whose every label is paid from a ledger and kept in it: an answer that is there is not asked for again.

    With a ledger on disk a crash loses no answer, and none is paid twice, whichever process asks.
    """

    def __init__(self, judge: Any, ledger: Ledger, *, purpose: str = "label") -> None:
        super().__init__(judge, ledger, purpose=purpose)

    def __len__(self) -> int:
        return len(self.ledger)

    def scores(
        self, prompts: Sequence[str], responses: Sequence[str], *, progress: bool = False
    ) -> Float[Tensor, " items"]:
        """Return the expert's score of each (prompt, response), one call for each that the ledger does not hold.

        Raises BudgetExceeded before any call where the budget cannot pay for all, and JudgeFailed where the judge
        raises or gives no finite number for some, after all others were asked; every call stays counted. Raises
        ValueError for an expert that only compares.
        """
        if not hasattr(self.judge, "score"):
            raise ValueError(
                "an expert that only compares grades no single response: use prefer with select_pairs and "
                "fit_bradley_terry"
            )
        items = list(zip(prompts, responses, strict=True))
        unknown = [item for item in dict.fromkeys(items) if self.key("score", item) not in self.ledger]
        if len(unknown) > self.ledger.left:
            self.ledger.spend(len(unknown))  # refuses, and says why; nothing was asked
        answers = ask_all(self, unknown, lambda i: self.score(i[0], [i[1]]), label="expert", progress=progress)
        refuse_failures(answers)
        return torch.tensor([self.ledger[self.key("score", i)]["scores"][0] for i in items], dtype=torch.float64)

    def write(self, path: Path | str) -> None:
        """Write all answers as JSON lines {prompt, response, score}, which `lib.preference.RecordedJudge` reads."""
        rows = [row for row in self.ledger.values() if isinstance(row, dict) and "scores" in row]
        pairs = [(row["prompt"], *pair) for row in rows for pair in zip(row["responses"], row["scores"], strict=True)]
        lines = [json.dumps(dict(zip(("prompt", "response", "score"), pair, strict=True))) + "\n" for pair in pairs]
        Path(path).write_text("".join(lines), encoding="utf8")


class SameJudge(ValueError):
    """The final judge is the one that labelled, or the final prompts were labelled."""


def keep_apart(
    labelling: Any, final: Judge, *, labelled: Sequence[str] = (), final_prompts: Sequence[str] = ()
) -> None:
    """Raise SameJudge where the final judge labelled the data, or a final prompt is among the labelled ones.

    Judges of one `identity` are one, whatever their settings; ValueError for a judge that does not say whose it is.
    """
    if identity_of(labelling) == identity_of(final):
        raise SameJudge(
            f"{identity_of(final)} gave the labels and is asked for the final score too: judge the result by one that "
            "rests on something else"
        )
    common = set(labelled) & set(final_prompts)
    if common:
        raise SameJudge(
            f"{len(common)} of the final prompts were labelled for training, such as {sorted(common)[0][:60]!r}: hold "
            "them out"
        )


def final_scores(
    final: Judge,
    prompts: Sequence[str],
    responses: Sequence[Sequence[str]],
    *,
    labelled_by: Any,
    labelled: Sequence[str],
    progress: bool = False,
) -> Float[Tensor, "prompts k"]:
    """Score by a judge apart from the one that labelled [prompts, k]; raises SameJudge where it is not."""
    keep_apart(labelled_by, final, labelled=labelled, final_prompts=prompts)
    return score_all(final, prompts, responses, progress=progress)
