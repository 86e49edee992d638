"""What a judge is: it scores responses to a prompt, and says which of two it prefers."""

import math
from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor
from tqdm import tqdm

from lib import TenfoldError


@runtime_checkable
class Judge(Protocol):
    """Scores are larger for better responses; a preference is the probability that `a` is better (a tie is 1/2)."""

    def score(self, prompt: str, responses: Sequence[str]) -> list[float]:
        """Score of each response to a prompt."""
        ...

    def prefer(self, prompt: str, a: str, b: str) -> float:
        """Probability in [0, 1] that the first response is better; 1/2 is a tie."""
        ...


class JudgeFailed(TenfoldError):
    """A judge raised, or gave something that is not one finite number a response."""


def calls_per_comparison(judge: Any) -> int:
    """Expert calls that one comparison costs (two where both orders are asked)."""
    return int(getattr(judge, "calls_per_comparison", 1))


def prefer_by_score(judge: Judge, prompt: str, a: str, b: str) -> float:
    """Preference of a judge that scores: 1, 0, or 1/2 where the scores are equal."""
    first, second = judge.score(prompt, [a, b])
    return 0.5 if first == second else float(first > second)


def checked_scores(judge: Judge, prompt: str, responses: Sequence[str]) -> list[float]:
    """Scores of one prompt's responses; raises JudgeFailed where the judge raises or a score is missing or not finite.

    A TenfoldError of the judge (a spent budget) passes as it is.
    """
    try:
        scores = [float(score) for score in judge.score(prompt, responses)]
    except TenfoldError:
        raise
    except Exception as error:
        raise JudgeFailed(
            f"{type(judge).__name__} failed on the prompt {_short(prompt)} ({type(error).__name__}: {error}); scores "
            "given before are kept: mend the judge and run again."
        ) from error
    if len(scores) != len(responses) or not all(map(math.isfinite, scores)):
        raise JudgeFailed(
            f"{type(judge).__name__} gave {scores} for {len(responses)} responses to {_short(prompt)}: a judge gives "
            "one finite number a response."
        )
    return scores


def score_all(
    judge: Judge, prompts: Sequence[str], responses: Sequence[Sequence[str]], *, progress: bool = True
) -> Float[Tensor, "prompts k"]:
    """Scores [prompts, k] of k responses to each prompt.

    Raises JudgeFailed as `checked_scores` does, and TenfoldError for prompts with different numbers of responses.
    """
    if len(prompts) != len(responses) or len({len(group) for group in responses}) > 1:
        raise TenfoldError(
            f"{len(prompts)} prompts come with {len(responses)} groups of {sorted({len(g) for g in responses})} "
            "responses: give each prompt the same number of responses."
        )
    rows = zip(prompts, responses, strict=True)
    bar = tqdm(rows, total=len(prompts), desc="judge", disable=not progress, mininterval=1.0)
    return torch.tensor([checked_scores(judge, prompt, group) for prompt, group in bar], dtype=torch.float64)


def win_rate(
    judge: Judge, prompts: Sequence[str], ours: Sequence[str], theirs: Sequence[str], *, progress: bool = True
) -> Float[Tensor, " prompts"]:
    """Preference for our response over theirs at each prompt, in [0, 1], ties 1/2: its mean is the win rate."""
    rows = zip(prompts, ours, theirs, strict=True)
    bar = tqdm(rows, total=len(prompts), desc="compare", disable=not progress, mininterval=1.0)
    return torch.tensor([judge.prefer(*row) for row in bar], dtype=torch.float64)


def _short(prompt: str) -> str:
    return repr(prompt if len(prompt) <= 60 else prompt[:57] + "…")
