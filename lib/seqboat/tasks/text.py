"""Real conversations as bytes: who wrote a turn, and what comes next."""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from tqdm import tqdm

from lib.seqboat.tasks.examples import Examples, padded

BYTES = 257  # 256 bytes after the padding, 0
SPEAKERS = {"human": 0, "user": 0, "gpt": 1, "assistant": 1, "chatgpt": 1}


def encode_bytes(text: str) -> list[int]:
    """Return the UTF-8 bytes of a text, each one higher, so that 0 is free for padding."""
    return [byte + 1 for byte in text.encode("utf8")]


def byte_authorship(
    records: Iterable[Mapping[str, Any]], *, length: int, count: int, shortest: int = 32, progress: bool = False
) -> Examples:
    """Return turns of conversations as bytes, cut to `length`: label 0 where a person wrote, 1 where an assistant did.

    As many of the one as of the other, in file order; turns under `shortest` bytes are left out. Raises ValueError
    where the records hold too few.
    """
    kept: dict[int, list[list[int]]] = {0: [], 1: []}
    wanted = -(-count // 2)
    for record in tqdm(records, desc="turns", disable=not progress):
        for turn in record["conversations"]:
            label = SPEAKERS.get(turn["from"])
            text = turn["value"].strip()[: 4 * length]
            row = encode_bytes(text)[:length] if label is not None else []
            if len(row) >= shortest and label is not None and len(kept[label]) < wanted:
                kept[label].append(row)
        if min(map(len, kept.values())) == wanted:
            break
    if min(map(len, kept.values())) < wanted:
        raise ValueError(
            f"the records hold {len(kept[0])} and {len(kept[1])} turns: read more, or ask for fewer than {count}"
        )
    rows = [row for pair in zip(kept[0], kept[1], strict=True) for row in pair][:count]
    return padded(rows, [i % 2 for i in range(len(rows))])


def byte_windows(records: Iterable[Mapping[str, Any]], *, length: int, count: int, progress: bool = False) -> Examples:
    """Return windows of `length` bytes of conversations (or of `{text}`) laid end to end, for language modelling.

    Raises ValueError where the records hold too few bytes.
    """
    stream: list[int] = []
    for record in tqdm(records, desc="bytes", disable=not progress):
        if len(stream) >= length * count:
            break
        turns = [record["text"]] if "text" in record else [turn["value"].strip() for turn in record["conversations"]]
        stream += encode_bytes("\n\n".join(turns) + "\n\n\n")
    if len(stream) < length * count:
        raise ValueError(
            f"the records hold {len(stream)} bytes, fewer than {count} windows of {length}: read more records"
        )
    windows = torch.tensor(stream[: length * count]).view(count, length)
    return Examples(windows, torch.ones_like(windows, dtype=torch.bool))
