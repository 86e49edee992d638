"""The judge that gave labels and the judge of the final score are kept apart, and so are their prompts.

A policy that was trained on a judge's labels has been optimised for that judge: its score by that judge says little.
"""

from collections.abc import Sequence
from typing import Any

from jaxtyping import Float
from torch import Tensor

from lib import TenfoldError
from lib.preference.judging import Judge, score_all

WRAPPED = ("judge", "_judge")  # attributes under which a wrapper keeps its judge
SOURCES = ("encoder", "model", "path", "client")  # what a judge's opinion comes from


class SameJudge(TenfoldError):
    """The final judge is the one that labelled, or the final prompts were labelled."""


def unwrapped(judge: Any) -> Any:
    """The judge inside ledgers, books and other wrappers."""
    for name in WRAPPED:
        if hasattr(judge, name):
            return unwrapped(getattr(judge, name))
    return judge


def same_judge(one: Any, other: Any) -> bool:
    """Whether two judges give one opinion: one object, or one class on the same encoder, model, file or client.

    Other settings (a penalty's weight, say) do not make another judge. A judge that rests on another judge's encoder
    or model is the same judge too, whatever its class.
    """
    one, other = unwrapped(one), unwrapped(other)
    if one is other:
        return True
    ours, theirs = _sources(one), _sources(other)
    shared = [a is b or (type(a) is type(b) and isinstance(a, str) and a == b) for a in ours for b in theirs]
    return any(shared) or (type(one) is type(other) and not ours and not theirs)


def _sources(judge: Any) -> list[Any]:
    found = []
    for name in SOURCES:
        source = getattr(judge, name, None)
        if source is not None:
            inner = getattr(source, "model", None)  # two wrappers of one encoder are one source
            found.append(source if inner is None else inner)
    return [str(s) if hasattr(s, "__fspath__") else s for s in found]


def keep_apart(
    labelling: Any, final: Judge, *, labelled: Sequence[str] = (), final_prompts: Sequence[str] = ()
) -> None:
    """Raise SameJudge where the final judge labelled the data, or a final prompt is among the labelled ones."""
    if same_judge(labelling, final):
        raise SameJudge(
            f"{type(unwrapped(final)).__name__} gave the labels and is asked for the final score too: judge the result "
            "by one that rests on something else."
        )
    common = set(labelled) & set(final_prompts)
    if common:
        raise SameJudge(
            f"{len(common)} of the final prompts were labelled for training, such as {sorted(common)[0][:60]!r}: hold "
            "them out."
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
    """Final scores [prompts, k] by a judge apart from the one that labelled; raises SameJudge where it is not."""
    keep_apart(labelled_by, final, labelled=labelled, final_prompts=prompts)
    return score_all(final, prompts, responses, progress=progress)
