"""The stated taxonomy: domains and task types with names, guidelines, examples, and the paper's share where it has one.

It is built from the domains and task groups of arXiv:2310.12418 (`taxonomy.toml`); load your own with the same fields.
"""

import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from lib import TenfoldError

Kind = Literal["tasks", "domains"]
Wording = Literal["examples", "definitions"]
OTHER = "OTH"  # none of the labels: unclear, a mere "continue", text without a request


@dataclass(frozen=True)
class Label:
    """One label: its code, name, the group it belongs to, and what it means."""

    code: str
    name: str
    group: str
    definition: str
    examples: tuple[str, ...]
    overlooked: bool = False
    paper: float | None = None


@dataclass(frozen=True)
class Taxonomy:
    """Task types and domains that annotators choose from."""

    tasks: tuple[Label, ...]
    domains: tuple[Label, ...]

    def labels(self, kind: Kind) -> tuple[Label, ...]:
        """Labels of one kind."""
        return self.tasks if kind == "tasks" else self.domains

    def codes(self, kind: Kind) -> tuple[str, ...]:
        """Codes of one kind, in the file's order."""
        return tuple(label.code for label in self.labels(kind))

    def names(self, kind: Kind) -> dict[str, str]:
        """Name of each code, and of the code for none of them."""
        return {label.code: label.name for label in self.labels(kind)} | {OTHER: "other or unclear"}

    def groups(self) -> dict[str, str]:
        """Task group of each task code (writing assistance, coding assistance, …)."""
        return {label.code: label.group for label in self.tasks} | {OTHER: "other or unclear"}

    def overlooked(self) -> tuple[str, ...]:
        """Codes of the task types that the paper finds overlooked by benchmarks."""
        return tuple(label.code for label in self.tasks if label.overlooked)

    def paper_shares(self, kind: Kind) -> dict[str, float]:
        """Share of user requests that the paper gives, for the labels where it gives one."""
        return {label.code: label.paper for label in self.labels(kind) if label.paper is not None}

    def texts(self, kind: Kind, wording: Wording = "examples") -> dict[str, tuple[str, ...]]:
        """Texts that stand for each label: its examples, or its name with its definition (a second wording)."""
        if wording == "examples":
            return {label.code: label.examples for label in self.labels(kind)}
        return {label.code: (f"{label.name}: {label.definition}",) for label in self.labels(kind)}


def load_taxonomy(path: Path | None = None) -> Taxonomy:
    """Taxonomy of a file (ours where None); raises TenfoldError where a label lacks a field or a code comes twice."""
    path = path or Path(__file__).with_name("taxonomy.toml")
    try:
        record = tomllib.loads(path.read_text(encoding="utf8"))
        found = {kind: tuple(_label(row) for row in record[kind]) for kind in ("tasks", "domains")}
    except (OSError, tomllib.TOMLDecodeError, KeyError, TypeError) as error:
        raise TenfoldError(
            f"{path.name} is no taxonomy ({error}): it needs [[tasks]] and [[domains]] with code, name, definition "
            "and examples."
        ) from None
    for kind, labels in found.items():
        codes = [label.code for label in labels]
        if len(set(codes)) < len(codes) or OTHER in codes or not all(label.examples for label in labels):
            raise TenfoldError(
                f"{path.name}: each of [[{kind}]] needs examples and a code of its own other than {OTHER}."
            )
    return Taxonomy(found["tasks"], found["domains"])


def _label(row: dict[str, Any]) -> Label:
    filled: dict[str, Any] = {"group": row["name"]} | row | {"examples": tuple(row["examples"])}
    return Label(**filled)
