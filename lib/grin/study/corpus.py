"""Real conversations as fixed-length token windows, each with its domain, in a vocabulary fit for small models.

The small tokenizer is the large one with its first merges only: byte-level pair merging, so no text is out of it.
The domain of a document follows from four simple, stated rules, in this order: `code` has a fenced block or three lines
that end or begin as code does; `language` is not English (by its alphabet, or because common words of Spanish, French,
German, Italian, Portuguese or Dutch outnumber common English ones); `mathematics` has several formulas or mathematical
words; all else is `prose`.
"""

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Int
from tokenizers import Tokenizer
from torch import Tensor

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
    mathematics = len(_FORMULA.findall(text)) + len(_MATHEMATICAL.findall(text))
    return "mathematics" if mathematics >= LEAST_MATHEMATICS else "prose"


@dataclass(frozen=True)
class Corpus:
    """Token windows, the domain of each (an index into `DOMAINS`) and the document it was cut from."""

    windows: Int[Tensor, "windows length"]
    domains: Int[Tensor, "windows"]
    documents: Int[Tensor, "windows"]

    def of_domain(self, name: str) -> "Corpus":
        """Return the windows of one domain; raises ValueError for an unknown one."""
        if name not in DOMAINS:
            raise ValueError(f"domain must be one of {', '.join(DOMAINS)}, got {name!r}")
        rows = self.domains == DOMAINS.index(name)
        return Corpus(self.windows[rows], self.domains[rows], self.documents[rows])


def small_tokenizer(tokenizer: Any, vocabulary: int) -> Tokenizer:
    """Return a byte-level tokenizer of `vocabulary` entries: the bytes, then the merges of `tokenizer` in their order.

    Raises ValueError where the vocabulary does not hold the bytes, or is larger than the tokenizer's.
    """
    record = json.loads(tokenizer.backend_tokenizer.to_str())
    merges = [tuple(m.split(" ")) if isinstance(m, str) else tuple(m) for m in record["model"]["merges"]]
    made = {a + b for a, b in merges}
    special = {token["content"] for token in record["added_tokens"]}
    letters = sorted(t for t in record["model"]["vocab"] if t not in made and t not in special and len(t) == 1)
    if not len(letters) < vocabulary <= len(letters) + len(merges):
        raise ValueError(
            f"the vocabulary must be in {len(letters) + 1}..{len(letters) + len(merges)}, got {vocabulary}"
        )
    kept = dict.fromkeys(letters)
    used = []
    for a, b in merges:
        if len(kept) == vocabulary:
            break
        kept[a + b] = None
        used.append([a, b])
    record["model"] |= {"vocab": {token: index for index, token in enumerate(kept)}, "merges": used}
    record |= {"added_tokens": [], "post_processor": None}
    return Tokenizer.from_str(json.dumps(record))


def conversation_text(record: Mapping[str, Any]) -> str:
    """Return a ShareGPT conversation as text: turns in order, a blank line between them."""
    return "\n\n".join(turn["value"].strip() for turn in record["conversations"])


def build_corpus(
    records: Iterable[Mapping[str, Any]],
    tokenizer: Tokenizer,
    *,
    length: int,
    windows_per_document: int = 4,
    documents_per_domain: int | None = None,
) -> Corpus:
    """Return the windows of `length` tokens of conversations, a few from the start of each.

    `documents_per_domain` takes the same number of documents of each domain, in order; None takes all. Raises
    ValueError where there are no whole windows, or fewer documents of a domain than asked for.
    """
    windows, domains, documents = [], [], []
    taken: dict[str, int] = dict.fromkeys(DOMAINS, 0)
    for number, record in enumerate(records):
        text = conversation_text(record)[: 8 * length * windows_per_document]
        if not any(c.isalpha() for c in text):
            continue
        domain = domain_of(text)
        if taken[domain] == documents_per_domain:
            continue
        ids = tokenizer.encode(text, add_special_tokens=False).ids
        count = min(len(ids) // length, windows_per_document)
        if count == 0 or (documents_per_domain is not None and count < windows_per_document):
            continue
        taken[domain] += 1
        windows += [ids[i * length : (i + 1) * length] for i in range(count)]
        domains += [DOMAINS.index(domain)] * count
        documents += [number] * count
    short = [name for name, n in taken.items() if documents_per_domain is not None and n < documents_per_domain]
    if not windows or short:
        raise ValueError(f"too few documents of {windows_per_document} windows ({taken}): read more conversations")
    return Corpus(torch.tensor(windows), torch.tensor(domains), torch.tensor(documents))
