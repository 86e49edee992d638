"""Stage cache: an expensive result is kept under a key of what it depends on, written whole or not at all.

An entry is a folder `<stage>-<key>/` with `meta.json` (the key's parts, the payload's hash) and one payload. It is
built in a hidden folder beside it and renamed when complete, so that a killed run never leaves half an entry.
"""

import contextlib
import errno
import hashlib
import json
import os
import resource
import shutil
import sys
import time
import uuid
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lib import FULL_DISK, TenfoldError


def key_of(parts: dict[str, Any]) -> str:
    """Hash of what a stage depends on: plain values only, order of names irrelevant.

    Raises TenfoldError for a value that has no stable text (an object, a set, NaN).
    """
    try:
        text = json.dumps(parts, sort_keys=True, allow_nan=False, default=plain)
    except (TypeError, ValueError) as error:
        raise TenfoldError(f"a stage can depend on numbers, strings, lists and dicts only ({error}).") from None
    return hashlib.sha256(text.encode()).hexdigest()[:20]


def plain(value: Any) -> Any:
    """NumPy scalar as a Python number, for `json.dumps(default=…)`."""
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(f"{type(value).__name__} has no stable text")


@dataclass(frozen=True)
class Kept:
    """A stage's result (or its folder), whether it came from the cache, and what it once took to compute.

    `peak` is the largest size of the process that computed it until then, in GiB; 0 where an older entry has none.
    """

    value: Any
    loaded: bool
    seconds: float
    peak: float = 0.0


def peak_memory_gib() -> float:
    """Largest resident size of this process so far, in GiB."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30


def stage(folder: Path, name: str, parts: dict[str, Any], compute: Callable[[], Any]) -> Kept:
    """Load a stage's result, or compute and keep it (data frame, dict of tensors or arrays, or plain JSON values).

    A damaged entry is recomputed with a warning; raises TenfoldError where the disk is full, leaving nothing behind.
    """
    entry = folder / f"{name}-{key_of(parts)}"
    if entry.exists():
        try:
            meta = _checked_meta(entry)
            return Kept(_load(entry), True, meta["seconds"], meta.get("peak_gib", 0.0))
        except (OSError, ValueError, KeyError) as error:
            warnings.warn(f"cache entry {entry.name} is damaged ({error}): computing it again", stacklevel=3)
            shutil.rmtree(entry, ignore_errors=True)
    began = time.monotonic()
    result = compute()
    with _new_entry(entry, parts, began) as building:
        _save(building, result)
    # Return what a warm run would read, so that warm and cold runs agree to the bit.
    return Kept(_load(entry), False, time.monotonic() - began)


def folder_stage(folder: Path, name: str, parts: dict[str, Any], build: Callable[[Path], None]) -> Kept:
    """Folder filled once by `build(path)` (a trained model, an adapter), or the one kept from an earlier run."""
    entry = folder / f"{name}-{key_of(parts)}"
    with contextlib.suppress(OSError, ValueError, KeyError):
        meta = _checked_meta(entry)
        return Kept(entry, True, meta["seconds"], meta.get("peak_gib", 0.0))
    shutil.rmtree(entry, ignore_errors=True)
    began = time.monotonic()
    with _new_entry(entry, parts, began) as building:
        build(building)
    return Kept(entry, False, time.monotonic() - began)


@contextlib.contextmanager
def _new_entry(entry: Path, parts: dict[str, Any], began: float):
    """Hidden folder to build an entry in; renamed to its name when the block ends well, removed when it does not."""
    building = entry.parent / f".{entry.name}.{os.getpid()}.{uuid.uuid4().hex[:8]}"
    with full_disk_refused(entry.parent):
        try:
            _sweep(entry)
            building.mkdir(parents=True)
            yield building
            payload = sorted(p for p in building.rglob("*") if p.is_file())
            hashes = {str(p.relative_to(building)): _digest(p) for p in payload}
            took = {"seconds": time.monotonic() - began, "peak_gib": round(peak_memory_gib(), 2)}
            meta = {"depends_on": parts, **took, "files": hashes}
            (building / "meta.json").write_text(json.dumps(meta, default=plain, indent=1))
            os.rename(building, entry)
        except OSError as error:
            # Another process may have finished the same entry first: theirs is as good as ours.
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST) or not (entry / "meta.json").exists():
                raise
        finally:
            shutil.rmtree(building, ignore_errors=True)


@contextlib.contextmanager
def full_disk_refused(where: Path):
    """Turn "no space left" and its kin into one sentence."""
    try:
        yield
    except OSError as error:
        if error.errno in FULL_DISK:
            raise TenfoldError(
                f"the disk (or the file size limit) is full at {where.name}/: free some space or run `make "
                "clean-cache`, and start again; finished stages are kept."
            ) from None
        raise


def _sweep(entry: Path) -> None:
    """Remove what a killed process left of this entry."""
    for left in entry.parent.glob(f".{entry.name}.*"):
        if not process_lives(int(left.name.rsplit(".", 2)[1])):
            shutil.rmtree(left, ignore_errors=True)


def process_lives(pid: int) -> bool:
    """Whether a process of that number exists."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _save(folder: Path, result: Any) -> None:
    import pandas as pd

    if isinstance(result, pd.DataFrame):
        result.to_parquet(folder / "frame.parquet")
    elif isinstance(result, dict) and result and all(hasattr(v, "__array__") for v in result.values()):
        import torch
        from safetensors.torch import save_file

        tensors = {
            k: (v if isinstance(v, torch.Tensor) else torch.as_tensor(v)).contiguous() for k, v in result.items()
        }
        save_file(tensors, folder / "tensors.safetensors")
    else:
        try:
            text = json.dumps(result, default=plain)
        except TypeError as error:
            raise TenfoldError(
                f"a stage keeps a data frame, a dict of tensors, or plain JSON values ({error}): return one of these."
            ) from None
        (folder / "value.json").write_text(text)


def _checked_meta(entry: Path) -> dict[str, Any]:
    meta = json.loads((entry / "meta.json").read_text())
    for name, digest in meta["files"].items():
        if _digest(entry / name) != digest:
            raise ValueError(f"{name} does not have the hash it was written with")
    return meta


def _load(entry: Path) -> Any:
    if (entry / "frame.parquet").exists():
        import pandas as pd

        return pd.read_parquet(entry / "frame.parquet")
    if (entry / "tensors.safetensors").exists():
        from safetensors.torch import load_file

        return load_file(entry / "tensors.safetensors")
    return json.loads((entry / "value.json").read_text())
