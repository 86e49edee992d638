"""Real text by short name or hub name, as `datasets.Dataset`."""

import hashlib
import json
import os
import uuid
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets

from lib import FULL_DISK, TenfoldError, refuse_unwritable, unwritable
from lib.zoo.assets import fingerprint, made_once, moved_by, require
from lib.zoo.hub import from_hub

DATASETS = ("sharegpt", "evals")
SPLITS = ("train", "test", "all")
TEST_SHARE = 10  # one conversation in ten is held out


def load_dataset(name: str, split: str = "train", limit: int | None = None) -> datasets.Dataset:
    """Rows of a data set, in file order.

    `sharegpt`: {id, conversations: [{from, value}]}. `evals`: {task, instruction, input, ideals}, at most 2,000 rows a
    task. Their split `test` holds one conversation (one row) in ten, chosen by a hash that no seed moves; `all` is
    both. Any other name goes to the hub, as `owner/name` or `owner/name:configuration`. Raises TenfoldError for an
    unknown name or split, or where the data is neither here nor to be fetched.
    """
    if limit is not None and limit < 1:
        raise TenfoldError(f"limit = {limit} keeps nothing: give a positive number of rows, or None for all.")
    if name not in DATASETS:
        loaded = from_hub(_from_hub, name, DATASETS, split=split)
        return loaded if limit is None else loaded.select(range(min(limit, len(loaded))))
    taken = []
    for row in stream_dataset(name, split):
        if len(taken) == limit:
            break
        taken.append(row)
    return datasets.Dataset.from_list(taken)


def stream_dataset(name: str, split: str = "train") -> Iterator[dict[str, Any]]:
    """Rows of a data set one after another, in file order, with nothing kept in memory; names as in `load_dataset`.

    Raises TenfoldError for an unknown name or split, or where the data is neither here nor to be fetched.
    """
    if name not in DATASETS:
        return iter(from_hub(_from_hub, name, DATASETS, split=split, streaming=True))
    if split not in SPLITS:
        raise TenfoldError(f"{name!r} has no split {split!r}: use one of {', '.join(SPLITS)}.")
    return _sharegpt(split) if name == "sharegpt" else _evals(split)


def _from_hub(name: str, split: str, **options: Any) -> Any:
    # A folder's own colon (a Windows drive's) names no configuration.
    path, _, config = (name, "", "") if os.path.isdir(name) else name.partition(":")
    try:
        return datasets.load_dataset(path, config or None, split=split, **options)
    except ValueError as error:
        if not any(sign in str(error) for sign in ("Unknown split", "Bad split", "BuilderConfig", "Config name")):
            raise
        reason = " ".join(str(error).split()).rstrip(".")
        raise TenfoldError(f"{name!r} has no such rows ({reason}): give a split and a configuration of it.") from None


def in_split(identity: str, split: str) -> bool:
    """Whether a row belongs to a split: a hash of its identity, so that it never moves."""
    held_out = int(hashlib.sha256(identity.encode()).hexdigest()[:8], 16) % TEST_SHARE == 0
    return split == "all" or held_out == (split == "test")


def complete_records(path: Path) -> Iterator[dict[str, Any]]:
    """Stream the complete records of a JSON array, also one that is cut off in the middle of its last record."""
    import ijson

    with path.open("rb") as file:
        try:
            yield from ijson.items(file, "item")
        except ijson.IncompleteJSONError:
            return  # the published file ends here; every record before was complete


def _sharegpt(split: str) -> Iterator[dict[str, Any]]:
    path = next(require("sharegpt").glob("*.json"))
    for record in complete_records(path):
        # Long conversations were cut into parts `<id>_<n>`: parts of one conversation share a split.
        if in_split(record["id"].rsplit("_", 1)[0], split):
            turns = [{"from": turn["from"], "value": turn["value"]} for turn in record["conversations"]]
            yield {"id": record["id"], "conversations": turns}


def _evals(split: str) -> Iterator[dict[str, Any]]:
    import pyarrow.parquet

    for row in pyarrow.parquet.read_table(_evals_table()).to_pylist():
        if in_split(f"{row['task']}\n{row['input']}", split):
            yield row


def _evals_table() -> Path:
    """Table of every task whose rows share one instruction, made once from inside the wheel."""
    import pandas as pd

    path = made_once(f"{fingerprint('evals').replace(':', '-')}.parquet")
    if not path.exists():
        refuse_unwritable(path.parent, moved_by(path))
        frame = pd.DataFrame([row for rows in _tasks(require("evals")).values() for row in rows])
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")  # several processes may make it at once
        try:
            frame.to_parquet(temporary, compression="zstd")
            temporary.replace(path)
        except OSError as error:
            if error.errno not in FULL_DISK:
                raise
            raise unwritable(path.parent, moved_by(path), error) from None
        finally:
            temporary.unlink(missing_ok=True)
    return path


LARGEST_TASK = 2_000  # rows kept of one task: two of them would otherwise be two thirds of all text


def _tasks(wheel: Path) -> dict[str, list[dict[str, Any]]]:
    """Rows of each task whose chat rows are all one system and one user turn, with one system text."""
    tasks: dict[str, list[dict[str, Any]]] = {}
    instructions: dict[str, set[str | None]] = {}
    with zipfile.ZipFile(wheel) as archive:
        for member in sorted(
            m for m in archive.namelist() if m.startswith("evals/registry/data/") and m.endswith(".jsonl")
        ):
            task = member.split("/")[3]
            with archive.open(member) as file:
                for line in file:
                    row = _row(line, task)
                    if row is None:
                        continue
                    instructions.setdefault(task, set()).add(row["instruction"])
                    kept = tasks.setdefault(task, [])
                    if len(kept) < LARGEST_TASK:
                        kept.append(row)
    return {
        task: rows for task, rows in tasks.items() if len(instructions[task]) == 1 and None not in instructions[task]
    }


def _row(line: bytes, task: str) -> dict[str, Any] | None:
    """One row; None where it is no chat row with an answer; no instruction where it is not system, user."""
    try:
        record = json.loads(line)
        turns, ideal = record["input"], record["ideal"]
        roles = [turn["role"] for turn in turns]
        texts = [turn["content"] for turn in turns]
    except (ValueError, KeyError, TypeError):
        return None
    if not all(isinstance(text, str) for text in texts):
        return None
    ideals = [str(answer) for answer in (ideal if isinstance(ideal, list) else [ideal])]
    if roles != ["system", "user"] or not texts[0].strip():
        return {"task": task, "instruction": None, "input": "", "ideals": ideals}
    return {"task": task, "instruction": texts[0], "input": texts[1], "ideals": ideals}
