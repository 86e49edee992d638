"""Where things are: every path is anchored at the repository's root, so that a notebook may run from any folder."""

import os
import re
from pathlib import Path

import lib
from lib import TenfoldError, root

GUIDES = ("tour", "together", "benchmarks")  # notebooks on several papers at once: they judge no claims
NUMBERED = re.compile(r"(\d\d)_([a-z][a-z0-9_]*)\.ipynb")


def notebooks_dir() -> Path:
    """Folder of the notebook sources and their profiles; `TENFOLD_NOTEBOOKS` moves it (tests)."""
    return Path(os.environ.get("TENFOLD_NOTEBOOKS") or root() / "notebooks")


def figures_dir() -> Path:
    """Folder of all results; `TENFOLD_FIGURES` moves it."""
    return Path(os.environ.get("TENFOLD_FIGURES") or root() / "figures")


def results_dir(profile: str, paper: str) -> Path:
    """Folder of one finished run: figures, tables, results.json and the executed notebook."""
    return figures_dir() / profile / ("guides" if paper in GUIDES else "") / paper


def sweep_dir(profile: str) -> Path:
    """Folder of a sweep: one finished run a paper and seed, and what they give together."""
    return figures_dir() / profile / "sweep"


def replicate_dir(profile: str) -> Path:
    """Folder of runs at another seed than the published ones: one a paper and seed."""
    return figures_dir() / profile / "replicate"


def cache_dir() -> Path:
    """Folder of everything computed that may be thrown away; `TENFOLD_CACHE` moves it."""
    return lib.cache_dir()


def paper_notebooks() -> dict[str, Path]:
    """Notebook of each paper by short name, in the order of their numbers."""
    return {name: path for name, path in _notebooks().items() if name not in GUIDES}


def guide_notebooks() -> dict[str, Path]:
    """Notebooks on several papers at once, by short name."""
    return {name: path for name, path in _notebooks().items() if name in GUIDES}


def _notebooks() -> dict[str, Path]:
    matches = {path: NUMBERED.fullmatch(path.name) for path in sorted(notebooks_dir().glob("[0-9][0-9]_*.ipynb"))}
    return {match[2]: path for path, match in matches.items() if match}


def notebook_of(paper: str) -> Path:
    """Notebook of one paper or guide; raises TenfoldError where there is none by that name, naming the nearest."""
    known = _notebooks()
    if paper not in known:
        raise TenfoldError(f"there is no paper {paper!r}: {did_you_mean(paper, known)}")
    return known[paper]


def did_you_mean(word: str, known) -> str:
    """End of a refusal: the nearest known name, and the list of all of them."""
    import difflib

    known = list(known)
    near = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    listing = ", ".join(known) if known else "none yet"
    return (f"did you mean {near[0]!r}? " if near else "") + f"The names are: {listing}."
