"""Profiles: `smoke`, `cpu` and `gpu` differ only in the parameters that they state (`notebooks/profiles/<name>.toml`).

A profile file holds a `description`, and per paper a `[cost.<paper>]` table (minutes, memory_gib), a
`[parameters.<paper>]` table with the values of all its parameters, and where it needs more than this machine's two
cores a `[requires.<paper>]` table (`lib.lab.requirements`). The literals of a notebook are those of `cpu`.
"""

import json
import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lib import TenfoldError
from lib.lab import parameters as cell
from lib.lab.paths import NUMBERED, did_you_mean, notebook_of, notebooks_dir

DEFAULT = "cpu"  # the profile whose values are the literals of the notebooks


@dataclass(frozen=True)
class Profile:
    """One profile: what it is for, and what each paper costs and takes in it."""

    name: str
    description: str
    cost: dict[str, dict[str, Any]]
    values: dict[str, dict[str, Any]]
    requires: dict[str, dict[str, Any]] = field(default_factory=dict)

    def parameters(self, paper: str, extra: dict[str, Any] | None = None) -> dict[str, Any]:
        """All parameters of one paper's run, checked: the values that the profile states, then `extra`.

        A paper of which the profile states none takes the notebook's literals. Raises TenfoldError for a missing or an
        unknown name, a wrong type, a value out of its range, or two that do not go together.
        """
        notebook = notebook_of(paper)
        known, where = declared(notebook), f"profile {self.name!r}, paper {paper!r}"
        values = self.values.get(paper, {name: p.default for name, p in known.items()})
        cell.with_defaults(known, values, where)
        checked = cell.validate(known, values, where) | cell.validate(known, extra or {}, notebook.name)
        cell.agree(known, checked, where if extra is None else notebook.name)
        return {name: checked[name] for name in known}


def stated(notebook: Path, paper: str = "") -> dict[str, Any] | None:
    """Values that the `cpu` profile states for a notebook (by its file's name, or as `paper`); None where it does not.

    Raises TenfoldError for a profile that cannot be read.
    """
    match = NUMBERED.fullmatch(notebook.name)
    return load(DEFAULT).values.get(paper or (match[2] if match else ""))


def declared(notebook: Path, paper: str = "") -> dict[str, cell.Parameter]:
    """Parameters of a notebook, whose defaults are what the `cpu` profile states, whatever the literals are now.

    Raises TenfoldError where the profile and the notebook do not name the same parameters.
    """
    found, values = cell.read(notebook), stated(notebook, paper)
    return found if values is None else cell.with_defaults(found, values, f"profile {DEFAULT!r}, {notebook.name}")


def as_toml(values: dict[str, Any]) -> str:
    """Lines of a profile that state these values; JSON's words for numbers, strings and lists are TOML's too."""
    return "".join(f"{name} = {json.dumps(value, ensure_ascii=False)}\n" for name, value in values.items())


def names() -> list[str]:
    """Names of the profiles there are."""
    return sorted(p.stem for p in (notebooks_dir() / "profiles").glob("*.toml"))


def load(name: str) -> Profile:
    """Profile by name; raises TenfoldError for an unknown name, an unknown key or a paper that does not exist."""
    path = notebooks_dir() / "profiles" / f"{name}.toml"
    if not path.exists():
        raise TenfoldError(f"there is no profile {name!r}: {did_you_mean(name, names())}")
    try:
        record = tomllib.loads(path.read_text(encoding="utf8"))
    except tomllib.TOMLDecodeError as error:
        raise TenfoldError(f"{path.name} is not valid TOML ({error}): mend it.") from None
    allowed = ("description", "cost", "parameters", "requires")
    for key in record:
        if key not in allowed:
            raise TenfoldError(f"{path.name}: no key {key!r} in a profile; {did_you_mean(key, allowed)}")
    for section in ("cost", "parameters", "requires"):
        for paper in record.get(section, {}):
            notebook_of(paper)
    sections = (record.get(section, {}) for section in ("cost", "parameters", "requires"))
    return Profile(name, record.get("description", ""), *sections)
