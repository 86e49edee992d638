"""Tenfold: ten machine-learning papers as small importable methods (`lib.<paper>`) and notebooks that judge them.

`lib.zoo` brings real models and data by short name, `lib.lab` runs experiments; a paper's room holds its method only.
"""

import os
from pathlib import Path

__version__ = "0.1.0"


class TenfoldError(Exception):
    """A refusal in one sentence: what was wrong, and what to do about it."""


def root() -> Path:
    """Folder of `notebooks/`, `data/` and `figures/`: the checkout, or `~/.cache/tenfold` for an installed wheel."""
    checkout = Path(__file__).resolve().parents[1]
    return checkout if (checkout / "pyproject.toml").exists() else Path.home() / ".cache" / "tenfold"


def data_dir() -> Path:
    """Folder of assets and caches; `TENFOLD_DATA` moves it (a larger disk, a shared cluster folder)."""
    return Path(os.environ.get("TENFOLD_DATA") or root() / "data")
