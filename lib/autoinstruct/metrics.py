"""How good an output is: ROUGE-L of rouge-score without punctuation, and exact match, of the best reference."""

import re
from collections.abc import Sequence
from functools import cache
from typing import Any

PUNCTUATION = re.compile(r"(?!(?<!\w)-\d)[^\w\s]|_")  # all but the sign of a negative number


def first_line(text: str) -> str:
    """Take the first line with something in it: answers are single lines."""
    return next((line.strip() for line in text.splitlines() if line.strip()), "")


def bare(text: str) -> str:
    """Bring to lower case without punctuation, one space between words: `"[1]."` and `1` are the same, `-1` is not."""
    return " ".join(PUNCTUATION.sub(" ", text.lower().replace("\u2212", "-")).split())


@cache
def _scorer() -> Any:
    from rouge_score.rouge_scorer import RougeScorer

    return RougeScorer(["rougeL"], use_stemmer=False, tokenizer=_Words())


class _Words:
    """Words of a text already bare (rouge-score's own tokenizer would drop letters outside a-z)."""

    def tokenize(self, text: str) -> list[str]:
        return text.split()


def rouge_l(output: str, references: Sequence[str]) -> float:
    """Give ROUGE-L F of the best reference, in 0..1, without punctuation; 1 where both are empty without it but agree.

    Raises ValueError without a reference.
    """
    if not references:
        raise ValueError("ROUGE-L needs at least one reference answer")
    given = bare(output)
    scores = []
    for reference in references:
        wanted = bare(reference)
        if not wanted:  # an answer of signs only, such as `<=`: nothing to compare but itself
            scores.append(float(output.strip() == reference.strip()))
        else:
            scores.append(float(_scorer().score(wanted, given)["rougeL"].fmeasure))
    return max(scores)


def exact_match(output: str, references: Sequence[str]) -> bool:
    """Tell whether the output is one of the references, case and punctuation aside; raises ValueError without one."""
    if not references:
        raise ValueError("exact match needs at least one reference answer")
    return any(bare(output) == bare(r) if bare(r) else output.strip() == r.strip() for r in references)
