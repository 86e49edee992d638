"""Other ways to choose, the bounds of any way, and what a choice is worth.

APE is the iterative search of Zhou et al. (Algorithm 1 of arXiv:2211.01910): a pool U of candidates is scored on a
task's demonstrations; the best are kept, a language model writes variants of each ("resampling"), these are scored by
the same score, and so on. The best ever scored is taken.
"""

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float

from lib.autoinstruct.candidates import Candidate, collect
from lib.autoinstruct.decoding import answer_groups
from lib.autoinstruct.labelling import Pair, label
from lib.autoinstruct.tasks import Demonstration, Example, Task
from lib.autoinstruct.trainer import LabelTable
from lib.core.chat import Decoding, complete_all
from lib.zoo.dialogues import prompt_ids

RESAMPLE = (  # Section 3.3's prompt for a variation that keeps the meaning
    "Generate a variation of the following instruction while keeping the semantic meaning.\n\n"
    "Input: {instruction}\n\nOutput:"
)
Score = Callable[[int, Sequence[Candidate]], Float[np.ndarray, " candidates"]]
Paraphraser = Callable[[Sequence[str], int], list[list[str]]]


def _columns(table: LabelTable) -> dict[str, list[int]]:
    """Columns of a task's candidates by style."""
    columns: dict[str, list[int]] = defaultdict(list)
    for c, candidate in enumerate(table.candidates):
        columns[candidate.style].append(c)
    return columns


def style_gains(tables: Sequence[LabelTable]) -> dict[str, list[float]]:
    """Give each style's mean metric less the mean over all candidates, one value a task that has the style."""
    gains: dict[str, list[float]] = defaultdict(list)
    for table in tables:
        for style, own in _columns(table).items():
            gains[style].append(float(table.metric[:, own].mean() - table.metric.mean()))
    return dict(gains)


def best_style(tables: Sequence[LabelTable]) -> str:
    """Name the style with the highest mean of `style_gains` on the training tasks, of those that half of them have.

    Raises ValueError without a table.
    """
    if not tables:
        raise ValueError("a style is chosen on training tasks: give at least one table")
    gains = style_gains(tables)
    everywhere = {style: values for style, values in gains.items() if len(values) >= len(tables) / 2}
    return max(everywhere or gains, key=lambda style: float(np.mean(gains[style])))


def with_style(candidates: Sequence[Candidate], style: str) -> int:
    """Index of the first candidate of a style; the human one's where the task has none of it."""
    names = [candidate.style for candidate in candidates]
    return names.index(style if style in names else "human")


def style_wins(tables: Sequence[LabelTable], style: str) -> Float[np.ndarray, " tasks"]:
    """Tell of each task that has a style whether its candidates' mean is the best of the task's styles.

    A tie of m styles counts 1 / m; tasks whose styles are all alike tell nothing and are left out.
    """
    wins = []
    for gains in map(style_gains, ([table] for table in tables)):
        best = max(values[0] for values in gains.values())
        tied = [name for name, values in gains.items() if np.isclose(values[0], best, rtol=0, atol=1e-9)]
        if style in gains and len(tied) < len(gains):
            wins.append(float(style in tied) / len(tied))
    return np.array(wins)


def chance_to_win(tables: Sequence[LabelTable], style: str) -> float:
    """Give the mean of `style_wins` where chance alone decides: of one over the number of a task's styles."""
    return float(np.mean([1 / len(columns) for columns in map(_columns, tables) if style in columns]))


def best_style_transferred(table: LabelTable) -> float:
    """Give what the best style of one half of a task's examples gains over the mean of its styles on the other half.

    As `transferred_best`: noise around 0 where a task's styles are alike.
    """
    styles = np.stack([table.metric[:, own].mean(1) for own in _columns(table).values()], axis=1)
    return transferred_best(np.column_stack([styles, styles.mean(1)]), -1)


def transferred_best(metric: Float[np.ndarray, "examples candidates"], reference: int) -> float:
    """Give what the best candidate of one half of the examples gains over a reference one on the other, both ways.

    Unlike the oracle's, this gain can be zero or negative: where instructions do not matter it is noise around 0.
    Raises ValueError for fewer than two examples.
    """
    if len(metric) < 2:
        raise ValueError("two halves need at least two examples")
    halves = metric[::2].mean(0), metric[1::2].mean(0)
    gains = [other[own.argmax()] - other[reference] for own, other in (halves, halves[::-1])]
    return float(np.mean(gains))


def cross_validate(
    model: Any,
    tokenizer: Any,
    task: Task,
    candidates: Sequence[Candidate],
    *,
    shown: int,
    max_new_tokens: int,
    batch_rows: int = 64,
) -> Float[np.ndarray, " candidates"]:
    """Give the mean ROUGE-L of each candidate on a task's first demonstrations, each asked zero-shot.

    A millionth of the gold `choice` decides between equals. Deviation: the paper answers one demonstration after the
    others.
    """
    few = [Example(demo.input, (demo.output,)) for demo in task.demonstrations[:shown]]
    pairs = [Pair(c.text, row.input, row.answers, others=task.others(row)) for c in candidates for row in few]
    options = {"max_new_tokens": max_new_tokens, "batch_rows": batch_rows, "progress": False}
    labels = label(model, tokenizer, pairs, **options)
    scores = np.array([one.rouge_l + 1e-6 * np.nan_to_num(one.choice) for one in labels])
    return scores.reshape(len(candidates), -1).mean(-1)


def ask_the_model(
    model: Any, tokenizer: Any, candidates: Sequence[Candidate], demonstrations: Sequence[Demonstration]
) -> Float[np.ndarray, " candidates"]:
    """Ask the model whether each is "a good instruction": how much likelier it says Yes than No, in nats."""
    shown = "\n".join(f"Input: {demo.input}\nOutput: {demo.output}" for demo in demonstrations)
    question = "Is this a good instruction for the examples above? Answer Yes or No."
    prompts = [
        prompt_ids(tokenizer, f"{shown}\n\nInstruction: {candidate.text}\n\n{question}") for candidate in candidates
    ]
    replies = [tokenizer(word, add_special_tokens=False).input_ids[:1] for word in ("Yes", "No")]
    answers = answer_groups(model, [prompts], replies=[replies] * len(prompts), stops=(), max_new_tokens=0)
    return np.array([yes - no for yes, no in answers.log_probs])


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


def paraphraser(chat: Any, *, count: int = 2, max_tokens: int = 64, seed: int = 0) -> Paraphraser:
    """Make a function (instructions, round) -> `count` variants of each, written by a language model."""

    def write(texts: Sequence[str], number: int) -> list[list[str]]:
        prompts = [RESAMPLE.format(instruction=text) for text in texts]
        decoding = Decoding(n=count, temperature=1.0, top_p=1.0, max_tokens=max_tokens, seed=seed + number - 1)
        return [list(reply.texts) for reply in complete_all(chat, prompts, decoding)]

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
    """Search from each task's pool of candidates as APE does, all tasks in step so that a model can write in batches.

    `score(task, candidates)` is the value of candidates of a task, `keep` how many are varied in each round (the paper
    keeps a share of the pool). Unusable and repeated variants are left out. Raises ValueError for an empty pool.
    """
    if not all(pools):
        raise ValueError("APE varies candidates: each task's pool needs at least one")
    searches = [
        Search(tuple(pool), np.asarray(score(t, pool), dtype=float), (0,) * len(pool)) for t, pool in enumerate(pools)
    ]
    for number in range(1, rounds + 1):
        kept = [np.argsort(-one.scores, kind="stable")[:keep] for one in searches]
        texts = [one.candidates[c].text for one, best in zip(searches, kept, strict=True) for c in best]
        written = iter(paraphrase(texts, number))
        for t, (one, best) in enumerate(zip(searches, kept, strict=True)):
            variants = [text for _ in best for text in next(written)]
            searches[t] = _grown(one, variants, number, lambda new, t=t: score(t, new), demonstrations[t])
    return searches


def _grown(
    one: Search,
    variants: Sequence[str],
    number: int,
    score: Callable[[Sequence[Candidate]], Float[np.ndarray, " candidates"]],
    demonstrations: Sequence[Demonstration],
) -> Search:
    """The search with the usable among a round's variants, scored."""
    # A model likes to put a label and quotation marks around a variant.
    texts = [text.strip().removeprefix("Output:").strip().strip('"').strip() for text in variants]
    made = [Candidate(text, "APE", f"round {number}") for text in texts]
    everyone = collect([*one.candidates, *made], demonstrations=demonstrations).candidates
    new = [candidate for candidate in everyone if candidate.origin == "APE" and candidate not in one.candidates]
    if not new:
        return one
    scores = np.concatenate([one.scores, np.asarray(score(new), dtype=float)])
    return Search((*one.candidates, *new), scores, (*one.born, *(number,) * len(new)))
