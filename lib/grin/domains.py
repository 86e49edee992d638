"""A domain for each document by four simple, stated rules, so that routing can be compared between kinds of text.

In this order: `code` has a fenced block or three lines that end or begin as code does; `language` is not English (by
its alphabet, or because common words of Spanish, French, German, Italian, Portuguese or Dutch outnumber common English
ones); `mathematics` has several formulas or mathematical words; all else is `prose`.
"""

import re

DOMAINS = ("code", "mathematics", "prose", "language")

_CODE_LINE = re.compile(r"(?m)^\s*(?:import |from \w+ import |def |class |return\b|#include|function |const |let |var |public |</?\w+[^>]*>\s*$|SELECT )|[;{}]\s*$")  # fmt: skip # noqa: E501
_FORMULA = re.compile(
    r"\\(?:frac|sum|int|sqrt|begin|cdot|left)|\$[^$\n]{2,80}\$|\b\w\s*=\s*[-\d(][\w\s.+*/^()-]*[+*/^-]"
)
_MATHEMATICAL = re.compile(
    r"\b(?:equations?|theorem|proof|integral|derivatives?|polynomial|matrix|matrices|vectors?|probabilit\w+|algebra\w*|"
    r"geometr\w+|calculus|variance|logarithm\w*|denominator|quadratic|triangle|mathematic\w*|calculate\w*|sum of)\b",
    re.IGNORECASE,
)
_COMMON = frozenset(
    "the a an of to and in is it that for on with as are be this by or from at you your i can not have will which we".split()  # noqa: E501
)
_ELSEWHERE = frozenset(
    "de la que el los las una por para con del se le les des et est une dans pour pas qui der die und das ist nicht "
    "ein eine mit auf zu il di che per non sono della uma os não em het een van niet".split()
)
_WORD = re.compile(r"[^\W\d_]+")
LEAST_ELSEWHERE = 0.05  # share of words that are common ones of the other languages
MOST_FOREIGN = 0.10  # share of letters outside the English alphabet
LEAST_MATHEMATICS = 4  # mathematical words or formulas in a text


def domain_of(text: str) -> str:
    """Return the domain of a text, one of `DOMAINS`; raises ValueError for a text without a letter."""
    letters = [c for c in text if c.isalpha()]
    if not letters:
        raise ValueError("a text without a letter has no domain")
    if "```" in text or len(_CODE_LINE.findall(text)) >= 3:
        return "code"
    words = [w.lower() for w in _WORD.findall(text)]
    foreign = sum(not c.isascii() for c in letters) / len(letters)
    elsewhere = sum(w in _ELSEWHERE for w in words)
    if foreign > MOST_FOREIGN or elsewhere > max(sum(w in _COMMON for w in words), LEAST_ELSEWHERE * len(words)):
        return "language"
    found = len(_FORMULA.findall(text)) + len(_MATHEMATICAL.findall(text))
    return "mathematics" if found >= LEAST_MATHEMATICS else "prose"
