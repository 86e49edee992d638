"""Tools: documented Python functions with units and examples that ran, and what a language model is shown of them.

A `Toolset` is `F_D` of arXiv:2402.11451: the documented functions of real libraries (and a user's own), verified by
running their examples. Swapping it takes an agent to another domain without training.
"""

import ast
import builtins
import contextlib
import hashlib
import inspect
import json
import math
import os
import re
import symtable
import textwrap
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import Any

from lib import TenfoldError, cache_dir
from lib.sciagent.docstrings import Described, Docstring, context_of, first_clause, goal_of, parse
from lib.sciagent.inside.harvest import hints_of
from lib.sciagent.sandbox import Job, Limits, Mode, Sandbox

JSON_TYPES = {bool: "boolean", int: "integer", float: "number", str: "string", list: "array", tuple: "array"}
HARVEST = Limits(
    seconds=120.0, cpu_seconds=110.0, memory_mib=3072, reply_mib=64, files=256, output_characters=1_000_000
)  # fmt: skip
# Words of a documented type, and the JSON type that they mean; the first in the text decides.
KIND_WORDS = re.compile(
    r"\b(?:(?P<number>float|double|number|real|scalar|numeric|complex)|(?P<integer>int|integer)|(?P<boolean>bool|boolean)"
    r"|(?P<string>str|string)|(?P<array>list|array|tuple|sequence|ndarray|iterable|array_like|vector|set))s?\b", re.I,
)  # fmt: skip
TOGETHER = 12  # modules harvested by one process
SUBPACKAGES = {"sympy": ("ntheory", "functions", "discrete", "combinatorics", "physics.optics", "physics.hydrogen")}
BY_SIGNATURE = {
    "scipy": (("harvest:special_functions", "scipy.special"), ("harvest:distributions", "scipy.stats")),
    "numpy_financial": (("harvest:by_signature", "numpy_financial"),),
}
DOMAINS = {
    "fluids": "fluid mechanics", "ht": "heat transfer", "chemicals": "chemistry", "thermo": "chemistry",
    "chempy": "chemistry", "numpy_financial": "finance", "scipy.stats": "statistics", "scipy": "mathematics",
    "sympy.physics": "optics", "sympy": "mathematics",
}  # fmt: skip


@dataclass(frozen=True)
class Parameter:
    """One parameter of a tool; `unit` is "" where it has none, `kind` a JSON type or "" where nothing tells.

    `items` is the JSON type of an array's items, `options` the values that it may have (none: any).
    """

    name: str
    text: str = ""
    unit: str = ""
    kind: str = ""
    required: bool = True
    default: Any = None
    items: str = ""
    options: tuple[Any, ...] = ()

    def schema(self) -> dict[str, Any]:
        """Return its JSON schema; a unit stands in the description, and by itself under `x-unit`."""
        schema: dict[str, Any] = {"description": f"{self.text}{f' [{self.unit}]' if self.unit else ''}"}
        schema |= {"type": self.kind} if self.kind else {}
        schema |= {"items": {"type": self.items} if self.items else {}} if self.kind == "array" else {}
        schema |= {"enum": list(self.options)} if self.options else {}
        schema |= {"x-unit": self.unit} if self.unit else {}
        return schema | ({} if self.required or self.default is None else {"default": self.default})


@dataclass(frozen=True)
class Example:
    """A call by named arguments, what it gave, and whether that is what the documentation prints."""

    arguments: dict[str, Any]
    value: Any
    verified: bool


@dataclass(frozen=True)
class Tool:
    """A function that programs may call by `name`.

    `place` is where the sandbox finds it (`module:attribute`), or "" for a user's function, whose code is `source`.
    `positional` functions take their arguments by position only, `literal` ones evaluate texts as code and so are
    called with numbers only. `family` is the library's module: functions of one family resemble each other, so splits
    keep families together.
    """

    name: str
    library: str
    family: str
    domain: str
    summary: str
    parameters: tuple[Parameter, ...]
    returns: Parameter
    examples: tuple[Example, ...]
    place: str = ""
    source: str = ""
    positional: bool = False
    literal: bool = False

    @property
    def verified(self) -> bool:
        """Whether an example gave what the documentation prints (or, without doctest, the same twice)."""
        return any(example.verified for example in self.examples)

    def listed(self) -> tuple[Parameter, ...]:
        """List the parameters that a model is shown: the required ones and those that examples use."""
        used = {name for example in self.examples for name in example.arguments}
        used |= {p.name for p in self.parameters if p.required}
        return self._up_to(used) if self.positional else tuple(p for p in self.parameters if p.name in used)

    def _up_to(self, names: Collection[str]) -> tuple[Parameter, ...]:
        """Parameters up to the last of some, as a call by position must have them."""
        return self.parameters[: max((i for i, p in enumerate(self.parameters, 1) if p.name in names), default=0)]

    def signature(self) -> str:
        """Call as a model sees it."""
        return f"{self.name}({', '.join(p.name for p in self.listed())}{', /' if self.positional else ''})"

    def shown(self) -> str:
        """Describe signature, result, what is special, and each parameter's meaning and unit."""
        named = [f"{p.name}: {_short(p)}" for p in self.listed() if p.text]
        return f"{self.brief()}; {'; '.join(named)}"

    def brief(self) -> str:
        """Describe signature, result, and what is special: the text that a model is shown to choose by."""
        return f"{self.signature()} -> {self.gives()}"

    def gives(self) -> str:
        """Describe its result, and what is special about it."""
        goal = goal_of(self.returns.text, self.summary)
        special = context_of(self.summary, goal)
        return f"{goal}{f' ({special})' if special else ''}"

    def indexed(self) -> str:
        """Describe name, summary, parameters and result: the text that a retriever indexes."""
        words = " ".join(re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+", self.name))
        listed = ", ".join(first_clause(p.text, 40) for p in self.parameters if p.text)
        returned = first_clause(self.returns.text, 60)
        return f"{words}. {_cut(self.summary, 160)} Given {_cut(listed, 160)}. Returns {returned}."

    def call(self, arguments: dict[str, Any]) -> str:
        """Write the source of a call with these arguments; by position, defaults stand for those left out between."""
        if self.positional:
            values = [arguments.get(p.name, p.default) for p in self._up_to(arguments)]
            return f"{self.name}({', '.join(map(written, values))})"
        return f"{self.name}({', '.join(f'{k}={written(v)}' for k, v in arguments.items())})"

    def schema(self) -> dict[str, Any]:
        """Return the JSON schema of the call, in the form that function-calling interfaces take."""
        return {
            "type": "function",
            "function": {
                "name": self.name, "description": self.summary + ("" if self.verified else " (Untested.)"),
                "parameters": {
                    "type": "object", "properties": {p.name: p.schema() for p in self.parameters},
                    "required": [p.name for p in self.parameters if p.required],
                },
            },
        }  # fmt: skip

    def named(self, name: str) -> "Tool":
        """Return the same tool under another name."""
        source = re.sub(rf"\bdef {re.escape(self.name)}\b", f"def {name}", self.source)
        return replace(self, name=name, source=source)


def written(value: Any) -> str:
    """Number, text or list as Python source; whole floats without their `.0`, numbers in their shortest form."""
    if isinstance(value, list):
        return f"[{', '.join(map(written, value))}]"
    if isinstance(value, float) and abs(value) < 1e7 and value == int(value):
        return str(int(value))
    return repr(value)


def _short(p: Parameter) -> str:
    return f"{first_clause(p.text, 26)}{f' {p.unit}' if p.unit else ''}"


def _cut(text: str, most: int) -> str:
    """Text up to a word's end."""
    return text if len(text) <= most else text[:most].rsplit(" ", 1)[0].rstrip(" ,;(")


def from_record(record: dict[str, Any], domain: str, *, source: str = "") -> Tool:
    """Make the tool of a record that `inside.harvest` made, of a library's function or of a user's `source`."""
    document = parse(record["doc"])
    module = record["place"].partition(":")[0] or "user"
    examples = tuple(Example(**e) for e in record["examples"])
    return Tool(
        name=record["name"], library=module.split(".")[0], family=module, domain=domain, summary=document.summary,
        parameters=tuple(_parameter(p, document, examples) for p in record["parameters"]),
        returns=_returned(document), examples=examples, place=record["place"], source=source,
        positional=record["positional"], literal=record["literal"],
    )  # fmt: skip


def _parameter(record: dict[str, Any], document: Docstring, examples: tuple[Example, ...]) -> Parameter:
    said = next((d for d in document.parameters if d.name == record["name"]), Described(record["name"], "", "", ""))
    values = [e.arguments[record["name"]] for e in examples if record["name"] in e.arguments]
    values = [v for v in (*values, record.get("default")) if v is not None]
    options = tuple(record.get("options", ())) or _options(said.kind)
    documented = KIND_WORDS.search(said.kind)
    kind = JSON_TYPES.get(type(values[0]), "") if values else ""
    kind = kind or record.get("kind", "") or ((documented and documented.lastgroup) or "")
    kind = "string" if options and isinstance(options[0], str) else kind
    if kind == "integer" and "int" not in said.kind and record.get("kind") != "integer":
        kind = "number"
    lists = [v for v in values if isinstance(v, list) and v]
    items = JSON_TYPES.get(type(lists[0][0]), "") if lists else record.get("items", "")
    items = "number" if items == "integer" or (kind == "array" and "float" in said.kind) else items
    given = record["required"], record.get("default")
    return Parameter(record["name"], said.text, said.unit, kind, *given, items if kind == "array" else "", options)


def _options(kind: str) -> tuple[Any, ...]:
    """Values in a documented type such as `{'moment', 'shear'}, optional`."""
    found = re.search(r"\{(['\"][^{}]*)\}", kind)
    try:
        return tuple(ast.literal_eval(f"({found[1]},)")) if found else ()
    except (ValueError, SyntaxError):
        return ()


def _returned(document: Docstring) -> Parameter:
    if not document.returns:
        return Parameter("result")
    first = document.returns[0]
    return Parameter(first.name, first.text or first.kind, first.unit)


class Toolset:
    """Tools by name, in order; a name that two libraries use is qualified by the library (`fluids_K`, `ht_K`)."""

    def __init__(self, tools: Iterable[Tool] = ()) -> None:
        tools = list(tools)
        clashing = {name for name, count in Counter(t.name for t in tools).items() if count > 1}
        self._tools: dict[str, Tool] = {}
        for tool in tools:
            named = tool.named(self._free(f"{tool.library}_{tool.name}")) if tool.name in clashing else tool
            self._tools[named.name] = named

    def _free(self, name: str) -> str:
        """The name, or with a number where it is taken (one library can hold two functions of one name)."""
        number = 2
        wanted = name
        while name in self._tools:
            name, number = f"{wanted}_{number}", number + 1
        return name

    @classmethod
    def from_package(
        cls, package: str, *, sandbox: Sandbox, domain: str = "", untested: bool = False, cached: bool = True,
        progress: bool = False,
    ) -> "Toolset":  # fmt: skip
        """Harvest an installed library: its documented functions with at least one example that runs.

        Functions with doctests are taken with them; array functions and distributions of SciPy, and functions of
        numpy-financial, by their documented signature; `untested` ones too where that is asked for, marked so. A
        function that evaluates texts as code is taken where its examples are numbers, and called with numbers only.
        Everything is imported and run inside the sandbox, and `cached` by the library's version. `domain` names what
        the library is about, where it is none of those known. Raises TenfoldError where the package cannot be imported
        or has no such function.
        """
        kept = _cache_of(package, untested) if cached else None
        if kept is not None and kept.exists():
            records = json.loads(kept.read_text())
        else:
            records = _records_of(package, sandbox, untested, progress)
            if kept is not None:
                kept.parent.mkdir(parents=True, exist_ok=True)
                temporary = kept.with_name(f".{kept.name}.{os.getpid()}")
                temporary.write_text(json.dumps(records))
                os.replace(temporary, kept)
        if not records:
            raise TenfoldError(
                f"{package} has no documented function with an example that runs: say untested=True for those without, "
                "or add tools one by one."
            )
        return cls(from_record(r, domain or domain_of(r["place"])) for r in records)

    def add(self, *, sandbox: Sandbox, domain: str = "user") -> Callable[[Callable], Callable]:
        """Decorate a user's function to make it a tool; its doctests are run and must give what they print.

        Modules and plain constants that it uses go with it. Raises TypeError where its source cannot be read (a lambda,
        a built-in, a class), ValueError where it uses other names from outside, cannot be called by its parameters, has
        a tool's name already, or where no doctest serves: it runs, gives what it prints, and both are short.
        """

        def register(function: Callable) -> Callable:
            tool = _of_user(function, sandbox, domain)
            if tool.name in self._tools:
                raise ValueError(f"there is a tool named {tool.name!r} already: give your function another name")
            self._tools[tool.name] = tool
            return function

        return register

    def __len__(self) -> int:
        return len(self._tools)

    def __iter__(self) -> Iterator[Tool]:
        return iter(self._tools.values())

    def __contains__(self, name: str) -> bool:
        return name in self._tools

    def __getitem__(self, name: str) -> Tool:
        return self._tools[name]

    def __or__(self, other: "Toolset") -> "Toolset":
        return Toolset([*self, *other])

    def subset(self, names: Collection[str]) -> "Toolset":
        """Return the tools of the given names, in this set's order."""
        return Toolset(tool for tool in self if tool.name in names)

    def counts(self) -> list[dict[str, Any]]:
        """Count tools, those whose doctest gives what it prints, and examples: a row a library and domain."""
        rows = []
        for library, domain in dict.fromkeys((t.library, t.domain) for t in self):
            tools = [t for t in self if (t.library, t.domain) == (library, domain)]
            rows.append({
                "library": library, "domain": domain, "tools": len(tools),
                "verified": sum(t.verified for t in tools), "examples": sum(len(t.examples) for t in tools),
            })  # fmt: skip
        return rows

    def schema(self) -> list[dict[str, Any]]:
        """Return the JSON schemas of all tools, for any interface that takes function declarations."""
        return [tool.schema() for tool in self]

    def records(self) -> list[dict[str, Any]]:
        """Return plain JSON values that `from_records` turns back into an equal toolset."""
        return [asdict(tool) for tool in self]

    @classmethod
    def from_records(cls, records: Iterable[dict[str, Any]]) -> "Toolset":
        """Make a toolset out of `records()`."""
        return cls(_from_dict(record) for record in records)

    def modules(self) -> tuple[str, ...]:
        """List the modules of the libraries, for a sandbox to import once."""
        return tuple(sorted({tool.family for tool in self if tool.place}))

    def job(self, program: str, shown: Sequence[str], *, mode: Mode = "free") -> Job:
        """Put a program together with the functions it was shown, for `Sandbox.map`."""
        tools = [self[name] for name in shown]
        places = {t.name: t.place for t in tools if t.place}
        literal = tuple(t.name for t in tools if t.literal)
        return Job(program, places, {t.name: t.source for t in tools if not t.place}, literal, mode)


def domain_of(place: str) -> str:
    """Return the domain of a known library's function, by its longest known prefix; else the library's name."""
    module = place.partition(":")[0]
    known = [p for p in DOMAINS if module == p or module.startswith(p + ".")]
    return DOMAINS[max(known, key=len)] if known else module.split(".")[0]


def _cache_of(package: str, untested: bool) -> Path | None:
    """File of a package's records, by its version and the code that makes them; None where its code may change."""
    try:
        installed = metadata.distribution(metadata.packages_distributions()[package.split(".")[0]][0])
    except (KeyError, metadata.PackageNotFoundError):
        return None
    if "editable" in (installed.read_text("direct_url.json") or ""):
        return None
    here = Path(__file__).parent
    code = "".join((here / name).read_text() for name in ("tools.py", "inside/harvest.py", "inside/worker.py"))
    key = hashlib.sha256(f"{package} {installed.version} {untested} {code}".encode()).hexdigest()[:16]
    return cache_dir() / "sciagent-tools" / f"{package}-{installed.version}-{key}.json"


def _records_of(package: str, sandbox: Sandbox, untested: bool, progress: bool) -> list[dict[str, Any]]:
    """Records of a package's functions by place, each function once; those that take code as text are left out."""
    from tqdm import tqdm

    records = [r for f, module in BY_SIGNATURE.get(package, ()) for r in _call(sandbox, f, module=module)]
    if package != "scipy":
        roots = [f"{package}.{part}" for part in SUBPACKAGES[package]] if package in SUBPACKAGES else [package]
        names = [name for root in roots for name in _call(sandbox, "harvest:modules", package=root)]
        groups = [names[i : i + TOGETHER] for i in range(0, len(names), TOGETHER)]
        with sandbox.with_preloaded(package) as warm, ThreadPoolExecutor(warm.workers) as threads:
            found = threads.map(lambda group: _harvest(group, warm, untested), groups)
            for some in tqdm(found, total=len(groups), desc=f"harvest {package}", disable=not progress):
                records += some
    by_place = {r["place"]: r for r in records}  # a doctest comes last: the better example
    harmless = [r for r in by_place.values() if not (r["literal"] and _takes_text(r["examples"]))]
    return sorted(harmless, key=lambda r: r["place"])


def _takes_text(examples: list[dict[str, Any]]) -> bool:
    return any(isinstance(v, str) for e in examples for v in e["arguments"].values())


def _harvest(names: list[str], sandbox: Sandbox, untested: bool) -> list[dict[str, Any]]:
    """Records of some modules; where their process does not end well, of those halves of them that do."""
    outcome = sandbox.call("harvest:functions", {"names": names, "untested": untested}, limits=HARVEST)
    if outcome.ok:
        return outcome.value
    if len(names) == 1:
        return []  # a module that cannot be harvested has no verified tools
    middle = len(names) // 2
    return _harvest(names[:middle], sandbox, untested) + _harvest(names[middle:], sandbox, untested)


def _call(sandbox: Sandbox, function: str, **arguments: Any) -> Any:
    outcome = sandbox.call(function, arguments, limits=HARVEST)
    if not outcome.ok:
        raise TenfoldError(f"{next(iter(arguments.values()))} could not be harvested: {outcome.error}.")
    return outcome.value


def _of_user(function: Callable, sandbox: Sandbox, domain: str) -> Tool:
    try:
        (definition,) = ast.parse(textwrap.dedent(inspect.getsource(function))).body
    except (OSError, TypeError, SyntaxError, ValueError):
        definition = None
    if not isinstance(definition, ast.FunctionDef):
        raise TypeError(
            f"the source of {function!r} cannot be read as a function: write it with `def` in a file or cell"
        )
    name, listed, function = definition.name, definition.args, inspect.unwrap(function)
    if listed.vararg or (listed.posonlyargs and listed.kwonlyargs):
        raise ValueError(
            f"{name} cannot be called by the names of its parameters: write *{listed.vararg.arg} as a list"
            if listed.vararg
            else f"{name} has parameters by position only and others by name only: leave out one of / and *"
        )
    definition.decorator_list = []
    for node in ast.walk(definition):  # what annotations say is read here, where their names are known
        if isinstance(node, ast.arg):
            node.annotation = None
        elif isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            node.returns = None
        elif isinstance(node, ast.AnnAssign):
            node.annotation = ast.Constant(None)
    bare = ast.unparse(definition)
    source = "\n".join([*_from_outside(function, name, bare), bare])
    record = _call(sandbox, "harvest:from_source", name=name, source=source)
    if record["limit"]:
        raise ValueError(f"the doctest of {name} is no example: {record['limit']}")
    if not record["examples"] or not all(example["verified"] for example in record["examples"]):
        raise ValueError(
            f"{name} has no doctest that runs and gives what it prints: add one, such as "
            f">>> {name}(…) with its result below"
        )
    hints = hints_of(function)
    record["parameters"] = [p | hints.get(p["name"], {}) for p in record["parameters"]]
    return from_record(record, domain, source=source)


def _from_outside(function: Any, name: str, source: str) -> list[str]:
    """Lines that define the modules and constants that a function's source uses from around it."""
    around, lines = vars(builtins) | function.__globals__, []
    for own, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        with contextlib.suppress(ValueError):  # a cell that is still empty
            around[own] = cell.cell_contents
    for used in sorted(_global_names(symtable.symtable(source, "<tool>", "exec")) - {name}):
        value = around.get(used, ...)
        if inspect.ismodule(value):
            lines.append(f"import {value.__name__} as {used}")
        elif value is None or isinstance(value, (bool, int, float, str)):
            lines.append(f"{used} = {_constant(value)}")
        elif value is not vars(builtins).get(used):
            raise ValueError(f"{name} uses {used!r} from outside: define or import it inside the function")
    return lines


def _global_names(table: symtable.SymbolTable) -> set[str]:
    """Names that some source uses, at any depth, and does not define there."""
    own = {symbol.get_name() for symbol in table.get_symbols() if symbol.is_global() and symbol.is_referenced()}
    return own.union(*map(_global_names, table.get_children()))


def _constant(value: Any) -> str:
    """Source of a plain constant, without a library's own type (`np.float64(1.5)`)."""
    if isinstance(value, float):
        return repr(float(value)) if math.isfinite(value) else f"float('{float(value)}')"
    return next((repr(kind(value)) for kind in (bool, int, str) if isinstance(value, kind)), "None")


def _from_dict(record: dict[str, Any]) -> Tool:
    def parameter(p: dict[str, Any]) -> Parameter:
        settings: dict[str, Any] = {**p, "options": tuple(p["options"])}
        return Parameter(**settings)

    return Tool(**record | {
        "parameters": tuple(map(parameter, record["parameters"])),
        "returns": parameter(record["returns"]),
        "examples": tuple(Example(**e) for e in record["examples"]),
    })  # fmt: skip
