"""Preference pairs out of scored responses: the best against the worst of k, as trl takes them, by token ids.

The tie rule: where the best and the worst of a prompt differ by no more than `margin`, the prompt gives no pair. Where
several share the best (worst) score, the first is taken. Responses of the same tokens count once.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import datasets

from lib.preference.sampling import Response


class AllTie(ValueError):
    """No prompt has two responses of different scores: there is nothing to learn from."""


@dataclass(frozen=True)
class Scored:
    """A prompt's responses with their scores; `prompt_ids` are what the policy read.

    `greedy` is the place of the policy's greedy response among them, where one was asked for; the last `existing` are
    the data set's own; all others are samples.
    """

    prompt: str
    prompt_ids: tuple[int, ...]
    responses: tuple[Response, ...]
    scores: tuple[float, ...]
    greedy: int | None = None
    existing: int = 0

    def samples(self) -> list[Response]:
        """Return the responses that were drawn at random."""
        own = self.responses[: len(self.responses) - self.existing]
        return [r for index, r in enumerate(own) if index != self.greedy]


@dataclass
class PairCounts:
    """What became of the prompts: pairs made, dropped as ties, left unjudged; and duplicate responses set aside."""

    pairs: int = 0
    ties: int = 0
    duplicates: int = 0
    unjudged: int = 0


def best_and_worst(group: Scored, *, margin: float | int = 0.0) -> tuple[int, int] | None:
    """Return the places of the best and the worst distinct response of a prompt; None where they tie."""
    distinct: dict[tuple[int, ...], int] = {}
    for index, response in enumerate(group.responses):
        distinct.setdefault(response.tokens, index)
    places = list(distinct.values())
    best = max(places, key=lambda i: group.scores[i])
    worst = min(places, key=lambda i: group.scores[i])
    return None if group.scores[best] - group.scores[worst] <= margin else (best, worst)


def pairs(
    groups: Sequence[Scored],
    *,
    margin: float | int = 0.0,
    extra: Callable[[Scored], dict] | None = None,
) -> tuple[datasets.Dataset, PairCounts]:
    """Pair up scored prompts {prompt_ids, chosen_ids, rejected_ids, chosen_score, rejected_score}, and count them.

    `extra` may add columns from a group. Raises ValueError where a prompt has fewer than two responses, and AllTie
    where every prompt ties.
    """
    rows, counts = [], PairCounts()
    for group in groups:
        if len(group.responses) < 2:
            raise ValueError("a pair needs two responses to a prompt, not one: sample with k of at least 2")
        counts.duplicates += len(group.responses) - len({r.tokens for r in group.responses})
        places = best_and_worst(group, margin=margin)
        if places is None:
            counts.ties += 1
            continue
        best, worst = places
        rows.append(
            {
                "prompt_ids": list(group.prompt_ids),
                "chosen_ids": list(group.responses[best].tokens),
                "rejected_ids": list(group.responses[worst].tokens),
                "chosen_score": group.scores[best],
                "rejected_score": group.scores[worst],
                **(extra(group) if extra else {}),
            }
        )
    if not rows:
        raise AllTie(
            f"all {len(groups)} prompts tie (best and worst differ by at most {margin:g}): there is nothing to learn "
            "from; use more responses a prompt, a finer judge or a smaller margin"
        )
    counts.pairs = len(rows)
    return datasets.Dataset.from_list(rows), counts
