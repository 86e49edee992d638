"""Other ways to choose, and the bounds of any way; each gives one candidate's index an example, or a value."""

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from lib.autoinstruct.decoding import decode_groups
from lib.autoinstruct.generation.candidates import Candidate
from lib.autoinstruct.labelling import Pair, label
from lib.autoinstruct.prompts import Demonstration
from lib.autoinstruct.ranker.rows import LabelTable
from lib.zoo.chat import prompt_ids

GENERATED = ("meta-prompt", "inducer")


def style_name(candidate: Candidate) -> str:
    """Style as the fixed-style baseline sees it: who made it, and in which style."""
    return candidate.origin if candidate.origin == candidate.style else f"{candidate.origin}: {candidate.style}"


def best_style(tables: Sequence[LabelTable]) -> str:
    """Style with the highest metric on the training tasks: the mean over the tasks of its candidates' mean metric,
    relative to the task's mean over all candidates.

    Raises ValueError without a table.
    """
    if not tables:
        raise ValueError("a style is chosen on training tasks: give at least one table")
    gains = style_gains(tables)
    everywhere = {style: values for style, values in gains.items() if len(values) >= len(tables) / 2}
    return max(everywhere or gains, key=lambda style: float(np.mean(gains[style])))


def style_gains(tables: Sequence[LabelTable]) -> dict[str, list[float]]:
    """By style, its candidates' mean metric less the mean over all candidates, one value a task that has it."""
    gains: dict[str, list[float]] = defaultdict(list)
    for table in tables:
        columns: dict[str, list[int]] = defaultdict(list)
        for c, candidate in enumerate(table.candidates):
            columns[style_name(candidate)].append(c)
        for style, own in columns.items():
            gains[style].append(float(table.metric[:, own].mean() - table.metric.mean()))
    return dict(gains)


def with_style(table: LabelTable, style: str) -> Int[np.ndarray, " examples"]:
    """The first candidate of a style, for every example; the human one where the task has none of it."""
    names = [style_name(candidate) for candidate in table.candidates]
    index = names.index(style) if style in names else names.index("human")
    return np.full(len(table.inputs), index)


def random_value(metric: Float[np.ndarray, "examples candidates"]) -> Float[np.ndarray, " examples"]:
    """Expected metric of a candidate drawn at random (exact: no draw is made)."""
    return metric.mean(-1)


def oracle(metric: Float[np.ndarray, "examples candidates"]) -> Int[np.ndarray, " examples"]:
    """Best candidate of each example: no choice can do better."""
    return metric.argmax(-1)


def worst(metric: Float[np.ndarray, "examples candidates"]) -> Int[np.ndarray, " examples"]:
    """Worst candidate of each example: no choice can do worse."""
    return metric.argmin(-1)


def cross_validate(
    model: Any,
    tokenizer: Any,
    candidates: Sequence[Candidate],
    demonstrations: Sequence[Demonstration],
    **options: Any,
) -> Float[np.ndarray, " candidates"]:
    """Each candidate's mean gold log-probability on the demonstrations, each asked zero-shot (nats per token).

    Deviation: the paper answers one demonstration after the others. Candidates that spell a demonstration out have
    seen its answer here, as they have there.
    """
    pairs = [Pair(c.text, demo.input, (demo.output,)) for c in candidates for demo in demonstrations]
    labels = label(model, tokenizer, pairs, max_new_tokens=0, **options)
    return np.array([one.log_prob for one in labels]).reshape(len(candidates), -1).mean(-1)


def ape(candidates: Sequence[Candidate], validated: Float[np.ndarray, " candidates"]) -> int:
    """Index that APE's selection takes (Zhou et al., arXiv:2211.01910): the generated candidate likeliest on the
    demonstrations, by `cross_validate`. Their rounds of resampling are `lib.autoinstruct.ape.search`.

    Raises ValueError where no candidate is generated.
    """
    own = [c for c, candidate in enumerate(candidates) if candidate.origin in GENERATED]
    if not own:
        raise ValueError("APE chooses among generated candidates: there is none")
    return max(own, key=lambda c: validated[c])


def ask_the_model(
    model: Any, tokenizer: Any, candidates: Sequence[Candidate], demonstrations: Sequence[Demonstration]
) -> Float[np.ndarray, " candidates"]:
    """LM selection: how much likelier the model itself says Yes than No to "is this a good instruction", in nats."""
    shown = "\n".join(f"Input: {demo.input}\nOutput: {demo.output}" for demo in demonstrations)
    prompts = [
        prompt_ids(
            tokenizer,
            f"{shown}\n\nInstruction: {candidate.text}\n\nIs this a good instruction for the examples above? "
            "Answer Yes or No.",
        )
        for candidate in candidates
    ]
    replies = [tokenizer(word, add_special_tokens=False).input_ids[:1] for word in ("Yes", "No")]
    decoded = decode_groups(model, [prompts], gold=[[replies] * len(prompts)], stops=(), max_new_tokens=0)
    return np.array([yes - no for yes, no in decoded.log_probs])
