"""APE's iterative search (Algorithm 1 of Zhou et al., arXiv:2211.01910): variants of the best candidates, by rounds.

A pool U of candidates is scored on a task's demonstrations; the best are kept, a language model writes variants of each
("resampling"), these are scored by the same score, and so on. The best ever scored is taken.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from lib.autoinstruct.generation.candidates import Candidate, collect
from lib.autoinstruct.generation.meta import Generator
from lib.autoinstruct.prompts import Demonstration

RESAMPLE = (  # Section 3.3's prompt for a variation that keeps the meaning
    "Generate a variation of the following instruction while keeping the semantic meaning.\n\n"
    "Input: {instruction}\n\nOutput:"
)
Score = Callable[[int, Sequence[Candidate]], Float[np.ndarray, " candidates"]]
Paraphraser = Callable[[Sequence[str], int], list[list[str]]]


@dataclass(frozen=True)
class Search:
    """All candidates of a task that were scored, with the round in which each came (0: it was in the pool)."""

    candidates: tuple[Candidate, ...]
    scores: Float[np.ndarray, " candidates"]
    born: tuple[int, ...]

    def best(self, after: int | None = None) -> int:
        """Index of the best candidate, of those that were there after a round (default: the last)."""
        there = [c for c, born in enumerate(self.born) if after is None or born <= after]
        return max(there, key=lambda c: self.scores[c])


def paraphraser(
    generator: Generator, *, count: int = 2, temperature: float = 1.0, max_tokens: int = 64, seed: int = 0
) -> Paraphraser:
    """A function (instructions, round) -> `count` variants of each, written by a language model.

    A generator that has `complete_all` (the local one) answers all requests in batches, any other one by one.
    """

    def write(texts: Sequence[str], number: int) -> list[list[str]]:
        prompts = [RESAMPLE.format(instruction=text) for text in texts]
        options = {"count": count, "temperature": temperature, "max_tokens": max_tokens, "seed": seed + number}
        together = getattr(generator, "complete_all", None)
        if together is not None:
            return together(prompts, **options)
        return [generator.complete(prompt, **options) for prompt in prompts]

    return write


def search(
    pools: Sequence[Sequence[Candidate]],
    demonstrations: Sequence[Sequence[Demonstration]],
    score: Score,
    paraphrase: Paraphraser,
    *,
    rounds: int,
    keep: int = 2,
) -> list[Search]:
    """Search from each task's pool of candidates, all tasks in step so that a model can write in batches.

    `score(task, candidates)` is the value of candidates of a task, `keep` how many are varied in each round (the paper
    keeps a share of the pool). Unusable and repeated variants are left out. Raises ValueError for an empty pool.
    """
    if not all(pools):
        raise ValueError("APE varies candidates: each task's pool needs at least one")
    found = [
        Search(tuple(pool), np.asarray(score(t, pool), dtype=float), (0,) * len(pool)) for t, pool in enumerate(pools)
    ]
    for number in range(1, rounds + 1):
        kept = [np.argsort(-one.scores, kind="stable")[:keep] for one in found]
        texts = [one.candidates[c].text for one, best in zip(found, kept, strict=True) for c in best]
        written = iter(paraphrase(texts, number))
        for t, (one, best) in enumerate(zip(found, kept, strict=True)):
            variants = [text for _ in best for text in next(written)]
            found[t] = _grown(one, variants, number, lambda new, t=t: score(t, new), demonstrations[t])
    return found


def _grown(
    one: Search,
    variants: Sequence[str],
    number: int,
    score: Callable[[Sequence[Candidate]], Float[np.ndarray, " candidates"]],
    demonstrations: Sequence[Demonstration],
) -> Search:
    """The search with the usable among a round's variants, scored."""
    made = [Candidate(_bare(text), "APE", f"round {number}") for text in variants]
    everyone = collect([*one.candidates, *made], demonstrations=demonstrations).candidates
    new = [candidate for candidate in everyone if candidate.origin == "APE" and candidate not in one.candidates]
    if not new:
        return one
    scores = np.concatenate([one.scores, np.asarray(score(new), dtype=float)])
    return Search((*one.candidates, *new), scores, (*one.born, *(number,) * len(new)))


def _bare(text: str) -> str:
    """A variant without the label and the quotation marks that a model likes to put around it."""
    return text.strip().removeprefix("Output:").strip().strip('"').strip()
