"""Preference pairs that an evaluator labels: best against worst of k, nine times as many as the expert would have.

Tie rule: a prompt whose best and worst score differ by no more than `tie` gives no pair (a generative judge's grades
are few, so many prompts tie); among equal scores the first response is taken, as in `lib.preference.pairs`.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lib.preference.sampling import Question, Response

MULTIPLE = 9  # times more pairs than direct labels would give (abstract of arXiv:2407.02119)


@dataclass(frozen=True)
class PairIndices:
    """Pairs as places: the prompt of each, and which of its responses was preferred to which."""

    prompt: Int[Tensor, " pairs"]
    chosen: Int[Tensor, " pairs"]
    rejected: Int[Tensor, " pairs"]
    dropped: int = 0

    def __len__(self) -> int:
        return len(self.prompt)

    def head(self, count: int) -> "PairIndices":
        """Return the first pairs."""
        return PairIndices(self.prompt[:count], self.chosen[:count], self.rejected[:count], self.dropped)


def best_and_worst(scores: Float[Tensor, "prompts k"], *, tie: float | int = 0.0) -> PairIndices:
    """Make one pair a prompt: its best against its worst response, in order of prompts; ties are dropped and counted.

    Raises ValueError for a single response a prompt, scores that are not finite, or where every prompt ties.
    """
    if scores.shape[1] < 2:
        raise ValueError("a pair needs two responses: draw k >= 2 responses to each prompt")
    if not torch.isfinite(scores).all():
        raise ValueError("a score is not finite: find out where the judge fails, or leave that prompt out")
    best = scores.argmax(1)
    worst = scores.argmin(1)
    gap = scores.gather(1, best[:, None]) - scores.gather(1, worst[:, None])
    kept = gap.squeeze(1) > tie
    if not kept.any():
        raise ValueError(
            f"all {len(scores)} prompts tie: their best and worst responses differ by {tie:g} at most; use a judge "
            "with finer scores, or a smaller tie"
        )
    return PairIndices(kept.nonzero().squeeze(1), best[kept], worst[kept], int((~kept).sum()))


def pseudo_label(
    scores: Float[Tensor, "prompts k"], *, direct_pairs: int, multiple: float | int = MULTIPLE, tie: float | int = 0.0
) -> PairIndices:
    """Pair up by the evaluator's scores `multiple` times as many as the expert could have, in order of prompts.

    `direct_pairs` is what the expert calls of the evaluator would have given directly. Raises ValueError where the
    prompts cannot give so many.
    """
    wanted = round(multiple * direct_pairs)
    pairs = best_and_worst(scores, tie=tie)
    if wanted < 1 or len(pairs) < wanted:
        raise ValueError(
            f"{wanted} pairs ({multiple:g} x {direct_pairs}) were asked for, and {len(scores)} prompts give "
            f"{len(pairs)} ({pairs.dropped} ties): draw responses to more prompts, or label fewer"
        )
    return pairs.head(wanted)


def token_rows(
    pairs: PairIndices, asked: Sequence[Question], drawn: Sequence[Sequence[Response]]
) -> list[dict[str, list[int]]]:
    """Return token ids of pairs {prompt_ids, chosen_ids, rejected_ids}, as `lib.preference.train` takes them."""
    return [
        {
            "prompt_ids": list(asked[prompt].tokens),
            "chosen_ids": list(drawn[prompt][chosen].tokens),
            "rejected_ids": list(drawn[prompt][rejected].tokens),
        }
        for prompt, chosen, rejected in zip(
            pairs.prompt.tolist(), pairs.chosen.tolist(), pairs.rejected.tolist(), strict=True
        )
    ]
