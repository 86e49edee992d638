"""How much of a response is copied from its prompt."""

import re

WORD = re.compile(r"\w+")


def words(text: str) -> list[str]:
    """Lower-case words of a text."""
    return WORD.findall(text.lower())


def copied_share(prompt: str, response: str) -> float:
    """Share of the response's words that stand beside a neighbour as they do in the prompt, from 0 to 1.

    An echo said twice is as copied as one said once. Where prompt or response is a single word, words count alone; an
    empty response has copied nothing.
    """
    source, said = words(prompt), words(response)
    if min(len(said), len(source)) < 2:
        return sum(word in source for word in said) / max(1, len(said))
    pairs = set(zip(source, source[1:], strict=False))
    copied = [pair in pairs for pair in zip(said, said[1:], strict=False)]
    return sum(before or after for before, after in zip([False, *copied], [*copied, False], strict=True)) / len(said)


def copy_penalty(prompt: str, response: str, *, weight: float | int, free: float | int) -> float:
    """weight * max(0, c - free) / (1 - free), where c is the copied share: 0 up to the free share, `weight` for all."""
    return weight * max(0.0, copied_share(prompt, response) - free) / (1 - free)
