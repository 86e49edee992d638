"""A new paper's first files: `make new PAPER=name` writes a room, its record, a notebook that runs, its profiles.

They are the files of `notebooks/template/`, with the paper's name in place of `yourpaper`.
"""

import re
from pathlib import Path

import lib
from lib import TenfoldError, root
from lib.lab import parameters, paths, profiles

NAME = re.compile(r"[a-z][a-z0-9_]*")
TAKEN = {*paths.GUIDES, "core", "lab", "preference", "zoo"}
METHOD = '"""yourpaper: say what it is (arXiv:0000.00000)."""\n'
STUDY = '"""What only the notebook of yourpaper needs: corpora, recipes of baselines, `bench.py` with `cases()`."""\n'
NEXT = """{notebook} runs: make reproduce PAPERS={paper} PROFILE=smoke
Then: write the method in lib/{paper}/, what only its notebook needs in lib/{paper}/study/, and their tests in
tests/{paper}/; the paper's facts and claims, their gates, your checks and the finding in paper.toml; add lib.{paper} to
the import contract `rooms` in pyproject.toml; write its guide, docs/{paper}.md; and record its golden numbers from a
clean commit: make record PAPERS={paper}. `make test` says what is still missing.
"""


def create(paper: str) -> str:
    """Write the files of a new paper and return what to do next; nothing that exists is written over.

    Raises TenfoldError for a name that is taken or cannot be imported.
    """
    if not NAME.fullmatch(paper):
        raise TenfoldError(f"{paper!r} cannot be a package: use small letters, digits and _, a letter first.")
    if paper in (*paths.paper_notebooks(), *TAKEN) or room(paper).exists():
        raise TenfoldError(f"{paper} is here already: choose another name.")
    model = root() / "notebooks" / "template"
    notebook = paths.notebooks_dir() / f"{_free_number():02d}_{paper}.ipynb"
    contents = {
        room(paper) / "__init__.py": METHOD,
        room(paper) / "study" / "__init__.py": STUDY,
        room(paper) / "paper.toml": (model / "paper.toml").read_text(encoding="utf8"),
        notebook: (model / "notebook.ipynb").read_text(encoding="utf8"),
    }
    for path, text in contents.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text.replace("yourpaper", paper), encoding="utf8")
    stated = profiles.as_toml({p.name: p.default for p in parameters.read(notebook).values()})
    for profile in profiles.names():
        with (paths.notebooks_dir() / "profiles" / f"{profile}.toml").open("a", encoding="utf8") as file:
            file.write(f"\n[cost.{paper}]\nminutes = 1\nmemory_gib = 2\n\n[parameters.{paper}]\n{stated}")
    return NEXT.format(paper=paper, notebook=notebook.name)


def room(paper: str) -> Path:
    """Folder of a paper's method."""
    return Path(lib.__file__).parent / paper


def _free_number() -> int:
    notebooks = [*paths.paper_notebooks().values(), *paths.guide_notebooks().values()]
    return next(n for n in range(1, 100) if n not in {int(path.name[:2]) for path in notebooks})
