"""Profiles: `smoke`, `cpu` and `gpu` differ only in the parameters they inject (`notebooks/profiles/<name>.toml`).

A profile file holds a `description`, and per paper a `[cost.<paper>]` table (minutes, memory_gib) and a
`[parameters.<paper>]` table.
"""

import tomllib
from dataclasses import dataclass
from typing import Any

from lib import TenfoldError
from lib.lab import parameters as cell
from lib.lab.paths import did_you_mean, notebook_of, notebooks_dir


@dataclass(frozen=True)
class Profile:
    """One profile: what it is for, what each paper costs in it, and the parameters it overrides."""

    name: str
    description: str
    cost: dict[str, dict[str, Any]]
    overrides: dict[str, dict[str, Any]]

    def parameters(self, paper: str, extra: dict[str, Any] | None = None) -> dict[str, Any]:
        """All parameters of one paper's run, checked: the cell's defaults, then the profile's, then `extra`.

        Raises TenfoldError for an unknown name or a value of the wrong type.
        """
        notebook = notebook_of(paper)
        declared = cell.read(notebook)
        merged = {name: p.default for name, p in declared.items()}
        merged |= cell.validate(declared, self.overrides.get(paper, {}), f"profile {self.name!r}, paper {paper!r}")
        return merged | cell.validate(declared, extra or {}, notebook.name)


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
    allowed = ("description", "cost", "parameters")
    for key in record:
        if key not in allowed:
            raise TenfoldError(f"{path.name}: no key {key!r} in a profile; {did_you_mean(key, allowed)}")
    for section in ("cost", "parameters"):
        for paper in record.get(section, {}):
            notebook_of(paper)
    return Profile(name, record.get("description", ""), record.get("cost", {}), record.get("parameters", {}))
