"""The evaluation prompt: what a judge reads before it gives a score (EFT text), beside the bare exchange (IFT text).

The wording is this repository's own; the paper's is not public. The shared part comes first, so that its keys and
values are computed once for a whole pool.
"""

from dataclasses import dataclass
from typing import Any

from lib.zoo.chat import prompt_ids

LOWEST, HIGHEST = 1, 5


@dataclass(frozen=True)
class Criterion:
    """One thing that responses are judged by."""

    name: str
    description: str


CLOSENESS = Criterion(
    "substance",
    "the response says what a knowledgeable answer to the request would say, and not just the request again",
)


@dataclass(frozen=True)
class Judgement:
    """One tuple of evaluator fine-tuning data: (prompt, response, criterion, score)."""

    prompt: str
    response: str
    criterion: Criterion
    score: int

    def __post_init__(self) -> None:
        if not LOWEST <= self.score <= HIGHEST:
            raise ValueError(f"a judgement has score {self.score}: use whole points from {LOWEST} to {HIGHEST}")


def evaluation_prompt(prompt: str, response: str, criterion: Criterion = CLOSENESS) -> str:
    """Text that asks for a score of a response from 1 to 5 by a criterion."""
    return (
        f"Grade a response from {LOWEST} (useless) to {HIGHEST} (excellent). Criterion: {criterion.description}.\n\n"
        f"Request:\n{prompt}\n\nResponse:\n{response}\n\nGrade:"
    )


def evaluation_ids(tokenizer: Any, prompt: str, response: str, criterion: Criterion = CLOSENESS) -> list[int]:
    """Token ids of the evaluation prompt in the tokenizer's chat template, up to where the grade begins."""
    return prompt_ids(tokenizer, evaluation_prompt(prompt, response, criterion))
