"""Real conversations as fixed-length token windows, each with its domain, in a vocabulary fit for small models.

The small tokenizer is the large one with its first merges only: byte-level pair merging, so no text is out of it.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Int
from tokenizers import Tokenizer
from torch import Tensor

from lib.grin.domains import DOMAINS, domain_of


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
