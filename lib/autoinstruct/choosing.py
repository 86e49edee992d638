"""Choose an instruction with a trained ranker: for one example, or one for all of a task."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int

from lib.autoinstruct.generation.candidates import Candidate
from lib.autoinstruct.ranker.rows import LabelTable
from lib.autoinstruct.ranker.scorer import Scorer
from lib.autoinstruct.ranker.training import predict


def choose(scorer: Scorer, inputs: str | Sequence[str], candidates: Sequence[Candidate]) -> Candidate:
    """Best-scored candidate for one input, or by the mean score over several inputs of one task; no answer is needed.

    Raises ValueError without a candidate or an input.
    """
    texts = (inputs,) if isinstance(inputs, str) else tuple(inputs)
    if not texts or not candidates:
        raise ValueError("choosing needs at least one input and one candidate")
    table = LabelTable("", texts, tuple(candidates), np.zeros((len(texts), len(candidates))))
    return candidates[int(predict(scorer, [table])[0].mean(0).argmax())]


def per_example(scores: Float[np.ndarray, "examples candidates"]) -> Int[np.ndarray, " examples"]:
    """Candidate chosen for each example (the paper's way)."""
    return scores.argmax(-1)


def per_task(scores: Float[np.ndarray, "examples candidates"]) -> Int[np.ndarray, " examples"]:
    """One candidate for all examples: the one with the highest mean score."""
    return np.full(len(scores), int(scores.mean(0).argmax()))
