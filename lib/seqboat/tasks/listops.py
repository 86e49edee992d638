"""ListOps by the rules of the Long Range Arena (arXiv:2011.04006, section 2.2.1; arXiv:1804.06028).

A node is a digit with probability ¾ (always at the greatest depth), else an operator over 2 to `max_arguments` nodes.
MIN, MAX, MED (the median, rounded down) and SM (the sum modulo 10); the answer is one of ten digits. Trees are drawn
until their length, in tokens, lies strictly between the given bounds; no tree comes twice.
"""

import random
from statistics import median

from tqdm import tqdm

from lib.seqboat.tasks.examples import Examples, padded

TOKENS = ("<pad>", *"0123456789", "[MIN", "[MAX", "[MED", "[SM", "]")
OPERATORS = {"[MIN": min, "[MAX": max, "[MED": lambda v: int(median(v)), "[SM": lambda v: sum(v) % 10}
DIGIT_SHARE = 0.75
_ID = {token: number for number, token in enumerate(TOKENS)}


class _TooLong(Exception):
    pass


def generate_listops(
    count: int,
    *,
    length: tuple[int, int] = (500, 2000),
    max_depth: int = 10,
    max_arguments: int = 10,
    seed: int = 0,
    progress: bool = False,
) -> Examples:
    """Return `count` different expressions and their values; the defaults are the arena's.

    Raises ValueError for bounds without a length between them, fewer than 2 arguments, or where a hundred thousand
    draws in a row give no new tree.
    """
    low, high = length
    if high - low < 2 or max_arguments < 2 or max_depth < 1:
        raise ValueError(f"no tree has a length strictly between {low} and {high}, or operators have too few arguments")
    rng = random.Random(seed)
    trees: dict[tuple[int, ...], int] = {}
    misses = 0
    with tqdm(total=count, desc="ListOps", disable=not progress, mininterval=1.0) as bar:
        while len(trees) < count:
            tokens, value = _tree(rng, high, max_depth, max_arguments)
            if low < len(tokens) < high and tuple(tokens) not in trees:
                trees[tuple(tokens)] = value
                misses = 0
                bar.update()
            elif (misses := misses + 1) > 100_000:
                raise ValueError(f"trees of depth {max_depth} hardly reach lengths from {low} to {high}: allow others")
    return padded(list(trees), list(trees.values()))


def evaluate(tokens: list[int]) -> int:
    """Return the value of an expression given by token numbers, read with a stack."""
    stack: list[list] = [[]]
    for token in (TOKENS[number] for number in tokens):
        if token in OPERATORS:
            stack.append([token])
        elif token == "]":
            operator, *values = stack.pop()
            stack[-1].append(OPERATORS[operator](values))
        elif token != "<pad>":
            stack[-1].append(int(token))
    return stack[0][0]


def _tree(rng: random.Random, longest: int, max_depth: int, max_arguments: int) -> tuple[list[int], int]:
    """Draw one tree; an empty one where it grew too long, as it would be rejected anyway."""
    tokens: list[int] = []

    def grow(depth: int) -> int:
        if len(tokens) >= longest:
            raise _TooLong
        if depth >= max_depth or rng.random() < DIGIT_SHARE:
            digit = rng.randrange(10)
            tokens.append(_ID[str(digit)])
            return digit
        name = rng.choice(list(OPERATORS))
        tokens.append(_ID[name])
        value = OPERATORS[name]([grow(depth + 1) for _ in range(rng.randint(2, max_arguments))])
        tokens.append(_ID["]"])
        return value

    try:
        value = grow(1)
    except _TooLong:
        return [], 0
    return tokens, value
