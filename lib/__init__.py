"""Tenfold: ten machine-learning papers as small importable methods (`lib.<paper>`) and notebooks that judge them.

`lib.zoo` brings real models and data by short name, `lib.lab` runs experiments; a paper's room holds its method only.
"""

import errno
import os
import uuid
from pathlib import Path

__version__ = "0.1.0"

FULL_DISK = {errno.ENOSPC, errno.EFBIG, errno.EDQUOT}


class TenfoldError(Exception):
    """A refusal in one sentence: what was wrong, and what to do about it."""


def is_checkout() -> bool:
    """Whether this is a checkout of the repository, with notebooks, results and tests, not an installed wheel."""
    return (Path(__file__).resolve().parents[1] / "pyproject.toml").exists()


def root() -> Path:
    """Folder of `notebooks/`, `data/` and `figures/`: the checkout, or `~/.cache/tenfold` for an installed wheel."""
    return Path(__file__).resolve().parents[1] if is_checkout() else Path.home() / ".cache" / "tenfold"


def data_dir() -> Path:
    """Folder of assets and caches; `TENFOLD_DATA` moves it (a larger disk, a shared cluster folder, an empty one)."""
    return Path(os.environ.get("TENFOLD_DATA") or root() / "data")


def cache_dir() -> Path:
    """Folder of everything computed that may be thrown away; `TENFOLD_CACHE` moves it."""
    return Path(os.environ.get("TENFOLD_CACHE") or data_dir() / "cache")


def pins_file() -> Path:
    """The `assets.txt` that counts: the one in `data_dir()`; where it has none the checkout's, else the package's own.

    The package's is a link to the checkout's, which becomes a file in a wheel.
    """
    places = (data_dir(), root() / "data", Path(__file__).parent / "zoo")
    return next((place / "assets.txt" for place in places if (place / "assets.txt").exists()), places[1] / "assets.txt")


def refuse_unwritable(folder: Path, variable: str) -> None:
    """Try whether a folder (or where it would be made) can be written, and leave nothing there.

    Raises TenfoldError, which names the `variable` that moves it, where it is read-only, no folder, or on a full disk.
    """
    places = (folder.absolute(), *folder.absolute().parents)
    probe = next(place for place in places if os.path.exists(place)) / f".tenfold-{uuid.uuid4().hex}"
    try:
        try:
            probe.write_bytes(b"\0" * 4096)
        finally:
            probe.unlink(missing_ok=True)
    except OSError as error:
        raise unwritable(folder, variable, error) from None


def unwritable(folder: Path, variable: str, error: OSError) -> TenfoldError:
    """The refusal for an error in writing to a folder that `variable` moves."""
    if error.errno in FULL_DISK:
        return TenfoldError(
            f"the disk (or the file size limit) is full at {folder}: free some space, or set {variable} to a folder "
            "on a larger disk."
        )
    return TenfoldError(f"cannot write to {folder} ({error.strerror}): set {variable} to a folder that you may write.")
