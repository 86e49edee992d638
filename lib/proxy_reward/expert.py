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
from tqdm import tqdm

from lib.core.store import key_of
from lib.preference.judges import Judge, checked_scores, score_all
from lib.preference.ledger import Ledger

SOURCES = ("encoder", "model", "path", "client")  # what a judge's opinion comes from


class Expert:
    """A judge whose every label is paid from a ledger and kept in it: an answer that is there is not asked for again.

    With a ledger on disk a crash loses no answer, and none is paid twice, whichever process asks.
    """

    def __init__(self, judge: Judge, ledger: Ledger, *, purpose: str = "label") -> None:
        self.judge, self.ledger, self.purpose = judge, ledger, purpose

    def __len__(self) -> int:
        return len(self.ledger)

    def scores(
        self, prompts: Sequence[str], responses: Sequence[str], *, progress: bool = False
    ) -> Float[Tensor, " items"]:
        """Return the expert's score of each (prompt, response), one call for each that the ledger does not hold.

        Raises BudgetExceeded before any call where the budget cannot pay for all, and JudgeFailed where the judge
        raises or gives no finite number; answers given before are kept, and every call stays counted.
        """
        items = [(key_of(self.purpose, *item), *item) for item in zip(prompts, responses, strict=True)]
        unknown = [item for item in dict.fromkeys(items) if item[0] not in self.ledger]
        if len(unknown) > self.ledger.left:
            self.ledger.spend(len(unknown))  # refuses, and says why; nothing was asked
        for key, prompt, response in tqdm(unknown, desc="expert", disable=not progress, mininterval=1.0):
            self.ledger.once(key, lambda p=prompt, r=response: self._label(p, r), purpose=self.purpose)
        return torch.tensor([self.ledger[key]["score"] for key, *_ in items], dtype=torch.float64)

    def write(self, path: Path | str) -> None:
        """Write all answers as JSON lines {prompt, response, score}, which `lib.preference.RecordedJudge` reads."""
        Path(path).write_text("".join(json.dumps(label) + "\n" for label in self.ledger.values()), encoding="utf8")

    def _label(self, prompt: str, response: str) -> dict[str, Any]:
        (score,) = checked_scores(self.judge, prompt, [response])
        return {"prompt": prompt, "response": response, "score": score}


class SameJudge(ValueError):
    """The final judge is the one that labelled, or the final prompts were labelled."""


def same_judge(one: Any, other: Any) -> bool:
    """Tell whether two judges give one opinion: one object, or one class on the same encoder, model, file or client.

    Other settings (a penalty's weight, say) do not make another judge. A judge that rests on another judge's encoder
    or model is the same judge too, whatever its class.
    """
    one, other = _unwrapped(one), _unwrapped(other)
    if one is other:
        return True
    ours, theirs = _sources(one), _sources(other)
    shared = [a is b or (type(a) is type(b) and isinstance(a, str) and a == b) for a in ours for b in theirs]
    return any(shared) or (type(one) is type(other) and not ours and not theirs)


def _unwrapped(judge: Any) -> Any:
    """Return the judge inside ledgers, experts and other wrappers, which keep it as `judge`."""
    return _unwrapped(judge.judge) if hasattr(judge, "judge") else judge


def _sources(judge: Any) -> list[Any]:
    sources = [getattr(judge, name) for name in SOURCES if getattr(judge, name, None) is not None]
    inner = [getattr(source, "model", None) for source in sources]  # two wrappers of one encoder are one source
    sources = [source if model is None else model for source, model in zip(sources, inner, strict=True)]
    return [str(source) if hasattr(source, "__fspath__") else source for source in sources]


def keep_apart(
    labelling: Any, final: Judge, *, labelled: Sequence[str] = (), final_prompts: Sequence[str] = ()
) -> None:
    """Raise SameJudge where the final judge labelled the data, or a final prompt is among the labelled ones."""
    if same_judge(labelling, final):
        raise SameJudge(
            f"{type(_unwrapped(final)).__name__} gave the labels and is asked for the final score too: judge the "
            "result by one that rests on something else"
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
