"""The `parameters` cell of a notebook: one `name = literal  # help` a line, read without running it, and checked.

papermill only warns of an unknown parameter, injects overrides before a notebook without the tag, and never recomputes
what the cell derives; so the cell is held to literals and every override is checked against it before a kernel starts.
"""

import ast
import io
import json
import tokenize
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lib import TenfoldError
from lib.lab.paths import did_you_mean

TAG = "parameters"


@dataclass(frozen=True)
class Parameter:
    """One declared parameter: its name, its default (the `cpu` value) and the help in its trailing comment."""

    name: str
    default: Any
    help: str


def read(path: Path) -> dict[str, Parameter]:
    """Declared parameters of a notebook.

    Raises TenfoldError for a file that is no notebook, and unless one cell is tagged and holds literals only.
    """
    sources = _tagged(path)
    if len(sources) != 1:
        raise TenfoldError(
            f"{path.name} has {len(sources)} cells tagged 'parameters': tag exactly one, or overrides would be lost."
        )
    return parse(sources[0], path.name)


def _tagged(path: Path) -> list[str]:
    # Not by nbformat: every kernel reads its notebook here, and nbformat's import of jsonschema builds 39 grammars,
    # which takes 6 seconds in a process that holds torch.
    try:
        cells = json.loads(path.read_text(encoding="utf8"))["cells"]
    except (ValueError, KeyError, TypeError):
        raise TenfoldError(f"{path.name} is not a notebook of format 4: open and save it in JupyterLab.") from None
    code = [c for c in cells if c["cell_type"] == "code" and TAG in c.get("metadata", {}).get("tags", [])]
    return ["".join(c["source"]) for c in code]  # a string, or a list of its lines


def parse(source: str, where: str) -> dict[str, Parameter]:
    """Parameters of a cell's source; raises TenfoldError for anything but `name = literal` lines."""
    comments = _trailing_comments(source)
    declared = {}
    for node in ast.parse(source).body:
        if not (isinstance(node, ast.Assign) and len(node.targets) == 1 and isinstance(node.targets[0], ast.Name)):
            raise TenfoldError(
                f"{where}: line {node.lineno} of the parameters cell is not `name = literal`: move it to a later cell."
            )
        name = node.targets[0].id
        try:
            default = ast.literal_eval(node.value)
        except ValueError:
            raise TenfoldError(
                f"{where}: parameter {name!r} is computed in the parameters cell, so an override elsewhere would not "
                "reach it: write a literal there and derive in a later cell."
            ) from None
        if isinstance(default, str) and "=" in default:
            raise TenfoldError(f"{where}: parameter {name!r} has '=' inside its string, which papermill misreads.")
        declared[name] = Parameter(name, default, comments.get(node.end_lineno or node.lineno, ""))
    return declared


def validate(declared: dict[str, Parameter], values: dict[str, Any], where: str) -> dict[str, Any]:
    """Check values against their declarations (names known, type of the default) and return them, converted.

    Raises TenfoldError naming the first unknown name or wrong type.
    """
    from pydantic import ConfigDict, ValidationError, create_model

    fields: dict[str, Any] = {p.name: (_strict_type(p.default), p.default) for p in declared.values()}
    model = create_model("Parameters", __config__=ConfigDict(extra="forbid", strict=True), **fields)
    try:
        checked = model(**values)
    except ValidationError as error:
        problem = error.errors()[0]
        name = str(problem["loc"][0])
        if problem["type"] == "extra_forbidden":
            raise TenfoldError(f"{where}: no parameter {name!r}; {did_you_mean(name, declared)}") from None
        wanted = declared[name]
        raise TenfoldError(
            f"{where}: {name} = {values[name]!r} does not fit ({problem['msg'].lower()}); "
            f"its default is {wanted.default!r}."
        ) from None
    return {name: getattr(checked, name) for name in values}


def _strict_type(default: Any) -> Any:
    if isinstance(default, (list, tuple)):
        kinds = {_strict_type(item) for item in default}
        return list[float if kinds == {int, float} else kinds.pop() if len(kinds) == 1 else Any]
    return type(default)


def _trailing_comments(source: str) -> dict[int, str]:
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    return {t.start[0]: t.string.lstrip("# ").strip() for t in tokens if t.type == tokenize.COMMENT}
