"""The suite of tasks: which choices of them are refused, and the rows of each to train on and to score."""

from collections.abc import Callable, Sequence
from typing import Any

import torch

from lib import zoo
from lib.seqboat.study import corpus, generated
from lib.seqboat.study.corpus import Examples


def check(tasks: Sequence[str], **counts: Sequence[int]) -> None:
    """Raise ValueError unless tasks differ, begin with recall, end with language, and each has a number in `counts`."""
    if len(set(tasks)) < len(tasks) or tasks[0] != "recall" or tasks[-1] != "language" or len(tasks) < 3:
        raise ValueError(
            f"tasks = {tasks} must differ, begin with recall and end with language, and have one more between them"
        )
    for name, numbers in counts.items():
        if len(numbers) != len(tasks):
            raise ValueError(f"{name} = {numbers} must hold a number for each of {len(tasks)} tasks")


def train_and_test(task: str, *, seed: int = 0, **options: Any) -> Sequence[Examples]:
    """Return a task's rows to train on and to score; `options` are those of its maker in this module.

    `rows` are how many of each, `dataset` and `splits` data of the hub. Raises ValueError for an unknown task.
    """
    if task not in MAKERS:
        raise ValueError(f"no task is named {task!r}: use some of {', '.join(MAKERS)}")
    return MAKERS[task](seed=seed, **options)


def held_back(examples: Examples, *, one_of: int = 10) -> list[Examples]:
    """Return all rows but the last tenth (or other share), and that tenth."""
    rows, last = torch.arange(len(examples)), len(examples) // one_of
    return [examples.select(part) for part in rows.split([len(rows) - last, last])]


def _recall(
    *, rows: Sequence[int], lengths: list[int], short: int, noise_asked: float, seed: int, **options: Any
) -> list[Examples]:
    """Rows of recall, those to train on with `short` of the shortest for each of every longer one."""
    most = lengths[:1] * (short - 1) + lengths
    told = {"noise_asked": noise_asked, "seed": 1000 * seed}
    train = generated.generate_recall(rows[0], lengths=most, **told, **options)
    return [train, generated.generate_recall(rows[1], lengths=lengths, seed=1000 * seed + 1, **options)]


def _digits(*, scale: int, seed: int) -> Sequence[Examples]:
    return corpus.sequential_digits(scale=scale, seed=seed)


def _language(
    *, dataset: str, splits: Sequence[str], records: Sequence[int], rows: Sequence[int], length: int, seed: int
) -> list[Examples]:
    """Windows of `length` bytes of as many `records` of each split."""
    parts = [zoo.load_dataset(dataset, split=s, limit=n) for s, n in zip(splits, records, strict=True)]
    return [corpus.byte_windows(part, length=length, count=n) for part, n in zip(parts, rows, strict=True)]  # pyright: ignore[reportArgumentType]


def _drawn(make: Callable[..., Examples]) -> Callable[..., list[Examples]]:
    """Rows drawn by rules, each set with a seed of its own."""

    def both(*, rows: Sequence[int], seed: int, **options: Any) -> list[Examples]:
        return [make(n, seed=1000 * seed + i, progress=True, **options) for i, n in enumerate(rows)]

    return both


def _labelled(make: Callable[..., Examples]) -> Callable[..., list[Examples]]:
    """Labelled data of the hub."""

    def both(*, dataset: str, splits: Sequence[str], seed: int, **options: Any) -> list[Examples]:
        return [make(zoo.load_dataset(dataset, split=split), **options) for split in splits]

    return both


MAKERS: dict[str, Callable[..., Sequence[Examples]]] = {
    "recall": _recall,
    "digits": _digits,
    "text": _labelled(corpus.labelled_bytes),
    "listops": _drawn(generated.generate_listops),
    "language": _language,
    "image": _labelled(corpus.grey_pixels),
    "pathfinder": _drawn(generated.generate_pathfinder),
    "speech": _labelled(corpus.waveforms),
}
