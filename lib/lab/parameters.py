"""The `parameters` cell of a notebook: `name = literal  # help [range]` a line, read without running it, and checked.

papermill only warns of an unknown parameter, injects overrides before a notebook without the tag, and never recomputes
what the cell derives; so the cell is held to literals and every value is checked against it before a kernel starts.

Help that makes the line too long may stand as a comment of its own above it. A range is a bracket at the end of the
help, with parts separated by commas:

    documents = 10  # documents scored [>= 2]               a bound: >=, >, <= or < and a number
    shown = 4  # of them [<= documents]                     or another parameter, as `each <= documents` in a list
    width = 64  # hidden size [multiple of 8]
    keeps = [0.9, 0.6]  # fractions kept [each > 0, each <= 1]   of every item of a list
    lengths = [1, 2, 4]  # of texts [rising]                each item above the one before
    splits = ["train", "test"]  # of the data [2 items]     a length: `2 items`, `>= 2 items`, `<= 5 items`
    dtype = "float32"  # of the model [float32, bfloat16]   the words that a string, or each item of a list, may be

Without a bracket: a whole number whose default is at least 1 (each, in a list) stays at least 1, and one whose default
is 0 at least 0; a list has at least one item; numbers are finite. A bracket only replaces what it speaks of.
"""

import ast
import copy
import dataclasses
import hashlib
import io
import json
import operator
import re
import tokenize
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lib import TenfoldError
from lib.lab.paths import did_you_mean

TAG = "parameters"
METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}
BRACKET = re.compile(r"\s*\[([^\[\]]*)\]$")
BOUND = re.compile(r"(each )?(>=|>|<=|<|multiple of) (-?\d+(?:\.\d+)?(?:e-?\d+)?)")
RELATION = re.compile(r"(each )?(>=|>|<=|<|multiple of) ([a-z]\w*)")
RISING = "rising"
LENGTH = re.compile(r"(>= |<= )?(\d+) items?")
WORD = re.compile(r"[\w.:/-]*[A-Za-z][\w.:/-]*")
KEYS = {">=": "ge", ">": "gt", "<=": "le", "<": "lt", "multiple of": "multiple_of"}  # pydantic's names of bounds
HOLDS: dict[str, Callable[[Any, Any], bool]] = {
    ">=": operator.ge, ">": operator.gt, "<=": operator.le, "<": operator.lt, "multiple of": lambda a, b: a % b == 0,
}  # fmt: skip
GRAMMAR = "parts separated by commas, such as `>= 2`, `each < 1`, `<= documents`, `3 items` or the words it may be"


@dataclass(frozen=True)
class Range:
    """What a parameter may be, in pydantic's words: bounds of the number or of each item, of the length; choices.

    `relations` are bounds that are other parameters; a list that is `rising` has each item above the one before.
    """

    bounds: dict[str, int | float] = dataclasses.field(default_factory=dict)
    length: dict[str, int] = dataclasses.field(default_factory=dict)
    choices: tuple[str, ...] = ()
    relations: tuple[tuple[str, str], ...] = ()
    rising: bool = False


@dataclass(frozen=True)
class Parameter:
    """One declared parameter: name, default (the `cpu` value), and the help and bracket of its comment."""

    name: str
    default: Any
    help: str
    bracket: str | None = None


def read(path: Path) -> dict[str, Parameter]:
    """Declared parameters of a notebook, with its own literals as their defaults.

    Raises TenfoldError for a file that is no notebook, and unless one cell is tagged and holds literals only.
    """
    return parse("".join(_cell(load(path), path.name)["source"]), path.name)


def load(path: Path) -> dict[str, Any]:
    """JSON of a notebook; raises TenfoldError for a file that is no notebook of format 4."""
    # Not by nbformat: every kernel reads its notebook here, and nbformat's import of jsonschema builds 39 grammars,
    # which takes 6 seconds in a process that holds torch.
    try:
        notebook = json.loads(path.read_text(encoding="utf8"))
        if notebook["cells"] and notebook["nbformat"] == 4:
            return notebook
    except (ValueError, KeyError, TypeError):
        pass
    raise TenfoldError(f"{path.name} is not a notebook of format 4: open and save it in JupyterLab.")


def _cell(notebook: dict[str, Any], where: str) -> dict[str, Any]:
    code = [c for c in notebook["cells"] if c["cell_type"] == "code" and TAG in c.get("metadata", {}).get("tags", [])]
    if len(code) != 1:
        raise TenfoldError(
            f"{where} has {len(code)} cells tagged 'parameters': tag exactly one, or overrides would be lost."
        )
    return code[0]


def parse(source: str, where: str) -> dict[str, Parameter]:
    """Parameters of a cell's source; raises TenfoldError for anything but `name = literal` lines."""
    comments = _comments(source)
    declared = {}
    for node in _assignments(source, where):
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
        comment = comments.get((node.end_lineno, False)) or comments.get((node.lineno - 1, True), "")
        bracket = BRACKET.search(comment)
        help = comment[: bracket.start()] if bracket else comment
        declared[name] = Parameter(name, default, help, bracket[1] if bracket else None)
    return declared


def _assignments(source: str, where: str) -> Iterator[Any]:
    try:
        body = ast.parse(source).body
    except SyntaxError as error:
        raise TenfoldError(f"{where}: line {error.lineno} of the parameters cell is not Python: mend it.") from None
    end = 0
    for node in body:
        if node.lineno <= end:
            raise TenfoldError(f"{where}: line {end} of the parameters cell holds two assignments: give each its line.")
        end = node.end_lineno or node.lineno
        if not (isinstance(node, ast.Assign) and len(node.targets) == 1 and isinstance(node.targets[0], ast.Name)):
            raise TenfoldError(
                f"{where}: line {node.lineno} of the parameters cell is not `name = literal`: move it to a later cell."
            )
        yield node


def _comments(source: str) -> dict[tuple[int, bool], str]:
    """Comments by line, and whether they have it to themselves."""
    try:
        tokens = list(tokenize.generate_tokens(io.StringIO(source).readline))
    except (tokenize.TokenError, SyntaxError):  # ast.parse says so better
        return {}
    found = [t for t in tokens if t.type == tokenize.COMMENT]
    return {(t.start[0], t.line.lstrip().startswith("#")): t.string.lstrip("# ").strip() for t in found}


def range_of(parameter: Parameter, where: str) -> Range:
    """Range in a parameter's bracket; raises TenfoldError for a part that says nothing of a value like the default."""
    if parameter.bracket is None:
        return Range()
    listed = isinstance(parameter.default, (list, tuple))
    kinds = {type(item) for item in (parameter.default if listed else [parameter.default])}
    bounds, length, choices, relations, rising = {}, {}, [], [], False
    for part in (part.strip() for part in parameter.bracket.split(",")):
        if (match := BOUND.fullmatch(part)) and kinds <= {int, float} and listed == bool(match[1]):
            bounds[KEYS[match[2]]] = float(match[3]) if set(match[3]) & set(".e") else int(match[3])
        elif (match := LENGTH.fullmatch(part)) and listed:
            keys = {">= ": ["min_length"], "<= ": ["max_length"], None: ["min_length", "max_length"]}[match[1]]
            length |= dict.fromkeys(keys, int(match[2]))
        elif (match := RELATION.fullmatch(part)) and kinds <= {int, float} and listed == bool(match[1]):
            relations.append((match[2], match[3]))
        elif part == RISING and listed and kinds <= {int, float}:
            rising = True
        elif WORD.fullmatch(part) and kinds <= {str}:
            choices.append(part)
        else:
            raise TenfoldError(f"{where}: [{parameter.bracket}] is no range of {parameter.name}: write {GRAMMAR}.")
    return Range(bounds, length, tuple(choices), tuple(relations), rising)


def with_defaults(declared: dict[str, Parameter], values: dict[str, Any], where: str) -> dict[str, Parameter]:
    """Declarations with these values as defaults, which their types and unwritten bounds follow.

    Raises TenfoldError unless the values are of exactly the parameters declared; `where` says who states them.
    """
    for name in declared:
        if name not in values:
            raise TenfoldError(f"{where} does not state {name}: write its value there, or drop it from the notebook.")
    for name in values:
        if name not in declared:
            raise TenfoldError(f"{where}: no parameter {name!r} in the notebook; {did_you_mean(name, declared)}")
    return {name: dataclasses.replace(p, default=values[name]) for name, p in declared.items()}


def validate(declared: dict[str, Parameter], values: dict[str, Any], where: str) -> dict[str, Any]:
    """Check values against their declarations (names known, type of the default, range) and return them, converted.

    Raises TenfoldError naming the first unknown name, wrong type or value out of its range, or a bracket that is none.
    """
    from pydantic import ConfigDict, ValidationError, create_model

    fields: dict[str, Any] = {p.name: (_annotation(p, range_of(p, where)), p.default) for p in declared.values()}
    model = create_model("Parameters", __config__=ConfigDict(extra="forbid", strict=True), **fields)
    try:
        checked = model(**values)
    except ValidationError as error:
        problem = error.errors()[0]
        name = str(problem["loc"][0])
        if problem["type"] == "extra_forbidden":
            raise TenfoldError(f"{where}: no parameter {name!r}; {did_you_mean(name, declared)}") from None
        raise TenfoldError(f"{where}: {_sentence(problem, declared[name], values[name])}") from None
    return {name: getattr(checked, name) for name in values}


def agree(declared: dict[str, Parameter], values: dict[str, Any], where: str) -> None:
    """Raise TenfoldError where the values of all parameters break a bound that is another one, or a list falls."""
    for parameter in declared.values():
        allowed, value = range_of(parameter, where), values[parameter.name]
        items = value if isinstance(value, (list, tuple)) else [value]
        about = f" ({parameter.help})" if parameter.help else ""
        for sign, other in allowed.relations:
            if other not in declared:
                known = did_you_mean(other, declared)
                raise TenfoldError(f"{where}: the range of {parameter.name} names no parameter {other!r}; {known}")
            if not all(HOLDS[sign](item, values[other]) for item in items):
                said = f"{parameter.name} = {value!r} is not {sign} {other} = {values[other]!r}"
                raise TenfoldError(f"{where}: {said}{about}: change one of them.")
        if allowed.rising and sorted(set(items)) != list(items):
            raise TenfoldError(f"{where}: {parameter.name} = {value!r} does not rise{about}.")


def _annotation(parameter: Parameter, allowed: Range) -> Any:
    """Type with constraints that pydantic checks; the constraints not written follow from the default."""
    from pydantic import Field

    default = parameter.default
    if not isinstance(default, (list, tuple)):
        return _of_one(type(default), [default], allowed)
    kinds = {type(item) for item in default}
    kind = float if kinds == {int, float} else kinds.pop() if len(kinds) == 1 else Any
    length: dict[str, Any] = {"min_length": 1} | allowed.length
    return _annotated(list[_of_one(kind, default, allowed)], Field(**length))


def _of_one(kind: Any, defaults, allowed: Range) -> Any:
    """Type of one number or word, or of each in a list."""
    from typing import Literal

    from pydantic import Field

    if allowed.choices:
        return Literal[allowed.choices]
    if kind not in (int, float):
        return kind
    bounds: dict[str, Any] = dict(allowed.bounds)
    least = min(defaults, default=-1)
    if kind is int and least >= 0 and not bounds.keys() & {"ge", "gt"}:
        bounds["ge"] = min(1, least)
    if kind is float:
        bounds["allow_inf_nan"] = False
    return _annotated(kind, Field(**bounds))


def _annotated(kind: Any, constraint: Any) -> Any:
    from typing import Annotated

    return Annotated[kind, constraint]


def _sentence(problem: Any, parameter: Parameter, value: Any) -> str:
    """Name, value and bound, and what the parameter is."""
    name, about, context = parameter.name, f" ({parameter.help})" if parameter.help else "", problem.get("ctx", {})
    if len(problem["loc"]) > 1 and isinstance(problem["loc"][1], int):
        name, value = f"{name}[{problem['loc'][1]}]", value[problem["loc"][1]]
    said = {
        "greater_than_equal": "is below {ge:.10g}, the least it may be",
        "greater_than": "is not above {gt:.10g}",
        "less_than_equal": "is above {le:.10g}, the most it may be",
        "less_than": "is not below {lt:.10g}",
        "multiple_of": "is not a multiple of {multiple_of:.10g}",
        "too_short": "has fewer than {min_length} items",
        "too_long": "has more than {max_length} items",
        "literal_error": "is none of {expected}",
        "finite_number": "is not a finite number",
    }
    if problem["type"] in said:
        return f"{name} = {value!r} {said[problem['type']].format(**context)}{about}."
    return f"{name} = {value!r} does not fit ({problem['msg'].lower()}); its default is {parameter.default!r}."


def canonical(notebook: dict[str, Any], values: dict[str, Any] | None, where: str = "the notebook") -> dict[str, Any]:
    """Source of a notebook as it is run and published, whatever was changed and saved in JupyterLab meanwhile.

    The literals of the parameters cell become `values` (where None, its own, written in the same way); outputs, counts,
    empty cells and all metadata but tags go. Raises TenfoldError unless `values` are of exactly the parameters there.
    """
    notebook = copy.deepcopy(notebook)
    cell = _cell(notebook, where)
    source = "".join(cell["source"])
    declared = parse(source, where)
    if values is not None:
        declared = with_defaults(declared, values, "the cpu profile")
    cell["source"] = _with_literals(source, declared, where)
    kept = [c for c in notebook["cells"] if "".join(c["source"]).strip()]
    cells = [_bare(c, f"cell-{number}") for number, c in enumerate(kept)]
    return {"cells": cells, "metadata": METADATA, "nbformat": 4, "nbformat_minor": 5}


def _with_literals(source: str, declared: dict[str, Parameter], where: str) -> str:
    """The cell with each literal written anew in its place; comments stay."""
    lines = source.splitlines()
    for node in reversed(list(_assignments(source, where))):
        name = node.targets[0].id
        last = lines[node.end_lineno - 1].encode()[node.end_col_offset :].decode().strip()
        text = f"{name} = {literal(declared[name].default)}" + (f"  {last}" if last else "")
        lines[node.lineno - 1 : node.end_lineno] = [text]
    return "\n".join(lines)


def literal(value: Any) -> str:
    """Python literal of a value, in the style of the formatter."""
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(literal(item) for item in value)}]"
    return json.dumps(value, ensure_ascii=False) if isinstance(value, str) else repr(value)


def _bare(cell: dict[str, Any], id: str) -> dict[str, Any]:
    tags = cell.get("metadata", {}).get("tags", [])
    bare = {
        "cell_type": cell["cell_type"], "id": cell.get("id", id), "metadata": {"tags": tags} if tags else {},
        "source": "".join(cell["source"]).splitlines(keepends=True),
    }  # fmt: skip
    if cell["cell_type"] == "code":
        bare |= {"execution_count": None, "outputs": []}
    if "attachments" in cell:
        bare["attachments"] = cell["attachments"]
    return bare


def digest(source: dict[str, Any]) -> str:
    """Hash of a canonical notebook's cells: their kinds, tags and text."""
    cells = [[c["cell_type"], c["metadata"].get("tags", []), "".join(c["source"])] for c in source["cells"]]
    return hashlib.sha256(json.dumps(cells).encode()).hexdigest()[:16]


def source_digest(path: Path, values: dict[str, Any] | None) -> str:
    """Hash of a notebook's canonical source: what an edit of its literals, a run or a save leaves as it is."""
    return digest(canonical(load(path), values, path.name))
