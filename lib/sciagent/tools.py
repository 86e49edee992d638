"""Tools: documented Python functions with units and examples that ran, and what a language model is shown of them.

A `Toolset` is `F_D` of arXiv:2402.11451: the documented functions of real libraries (and a user's own), verified by
running their examples. Swapping it takes an agent to another domain without training.
"""

import ast
import inspect
import re
import textwrap
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from lib import TenfoldError
from lib.sciagent.docstrings import Described, Docstring, context_of, first_clause, goal_of, parse
from lib.sciagent.sandbox import Job, Limits, Sandbox

JSON_TYPES = {bool: "boolean", int: "integer", float: "number", str: "string", list: "array", tuple: "array"}
HARVEST = Limits(
    seconds=120.0, cpu_seconds=110.0, memory_mib=3072, reply_mib=64, files=256, output_characters=1_000_000
)  # fmt: skip
TOGETHER = 24  # modules harvested by one process
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
    """One parameter of a tool; `unit` is "" where it has none, `kind` a JSON type or "" where nothing tells."""

    name: str
    text: str = ""
    unit: str = ""
    kind: str = ""
    required: bool = True
    default: Any = None


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
    `positional` functions take their arguments by position only. `family` is the library's module: functions of one
    family resemble each other, so splits keep families together.
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

    @property
    def verified(self) -> bool:
        """Whether an example gave what the documentation prints (or, without doctest, the same twice)."""
        return any(example.verified for example in self.examples)

    def listed(self) -> tuple[Parameter, ...]:
        """List the parameters that a model is shown: the required ones and those that examples use."""
        used = {name for example in self.examples for name in example.arguments}
        return tuple(p for p in self.parameters if p.required or p.name in used)

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
        """Write the source of a call with these arguments."""
        if self.positional:
            return f"{self.name}({', '.join(written(v) for v in arguments.values())})"
        return f"{self.name}({', '.join(f'{k}={written(v)}' for k, v in arguments.items())})"

    def schema(self) -> dict[str, Any]:
        """Return the JSON schema of the call, in the form that function-calling interfaces take."""
        properties = {}
        for p in self.parameters:
            properties[p.name] = {"description": f"{p.text}{f' [{p.unit}]' if p.unit else ''}"}
            properties[p.name] |= {"type": p.kind} if p.kind else {}
            properties[p.name] |= {} if p.required or p.default is None else {"default": p.default}
        return {
            "type": "function",
            "function": {
                "name": self.name, "description": self.summary,
                "parameters": {
                    "type": "object", "properties": properties,
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
    if isinstance(value, float) and value == int(value) and abs(value) < 1e7:
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
        positional=record["positional"],
    )  # fmt: skip


def _parameter(record: dict[str, Any], document: Docstring, examples: tuple[Example, ...]) -> Parameter:
    said = next((d for d in document.parameters if d.name == record["name"]), Described(record["name"], "", "", ""))
    values = [e.arguments[record["name"]] for e in examples if record["name"] in e.arguments]
    kind = JSON_TYPES.get(type(values[0]), "") if values else ""
    if kind == "integer" and "int" not in said.kind:
        kind = "number"
    return Parameter(said.name, said.text, said.unit, kind, record["required"], record.get("default"))


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
    def from_package(cls, package: str, *, sandbox: Sandbox, domain: str = "", progress: bool = False) -> "Toolset":
        """Harvest an installed library: its documented functions with at least one example that runs.

        Functions with doctests are taken with them; arrays functions and distributions of SciPy, and functions of
        numpy-financial, by their documented signature. Everything is imported and run inside the sandbox. `domain`
        names what the library is about, where it is none of those known. Raises TenfoldError where the package cannot
        be imported or has no such function.
        """
        from tqdm import tqdm

        records = [r for f, module in BY_SIGNATURE.get(package, ()) for r in _call(sandbox, f, module=module)]
        if package != "scipy":
            groups = _groups(package, sandbox)
            for group in tqdm(groups, desc=f"harvest {package}", disable=not progress):
                records += _harvest(group, sandbox)
        by_place = {r["place"]: r for r in records}  # a doctest comes last: the better example
        if not by_place:
            raise TenfoldError(f"{package} has no documented function with an example that runs: add tools one by one.")
        return cls(from_record(r, domain or domain_of(place)) for place, r in sorted(by_place.items()))

    def add(self, *, sandbox: Sandbox, domain: str = "user") -> Callable[[Callable], Callable]:
        """Decorate a user's function to make it a tool; its doctests are run and must give what they print.

        Raises TypeError where its source cannot be read, ValueError where no doctest runs or gives what it prints.
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

    def job(self, program: str, shown: Sequence[str]) -> Job:
        """Put a program together with the functions it was shown, for `Sandbox.map`."""
        tools = [self[name] for name in shown]
        places = {t.name: t.place for t in tools if t.place}
        return Job(program, places, {t.name: t.source for t in tools if not t.place})


def domain_of(place: str) -> str:
    """Return the domain of a known library's function, by its longest known prefix; else the library's name."""
    module = place.partition(":")[0]
    known = [p for p in DOMAINS if module == p or module.startswith(p + ".")]
    return DOMAINS[max(known, key=len)] if known else module.split(".")[0]


def _groups(package: str, sandbox: Sandbox) -> list[list[str]]:
    roots = [f"{package}.{part}" for part in SUBPACKAGES[package]] if package in SUBPACKAGES else [package]
    names = [name for root in roots for name in _call(sandbox, "harvest:modules", package=root)]
    return [names[i : i + TOGETHER] for i in range(0, len(names), TOGETHER)]


def _harvest(names: list[str], sandbox: Sandbox) -> list[dict[str, Any]]:
    """Records of some modules; where their process does not end well, of those halves of them that do."""
    outcome = sandbox.call("harvest:functions", {"names": names}, limits=HARVEST)
    if outcome.ok:
        return outcome.value
    if len(names) == 1:
        return []  # a module that cannot be harvested has no verified tools
    middle = len(names) // 2
    return _harvest(names[:middle], sandbox) + _harvest(names[middle:], sandbox)


def _call(sandbox: Sandbox, function: str, **arguments: Any) -> Any:
    outcome = sandbox.call(function, arguments, limits=HARVEST)
    if not outcome.ok:
        raise TenfoldError(f"{next(iter(arguments.values()))} could not be harvested: {outcome.error}.")
    return outcome.value


def _of_user(function: Callable, sandbox: Sandbox, domain: str) -> Tool:
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    except (OSError, TypeError, SyntaxError):
        raise TypeError(f"the source of {function!r} cannot be read: define it with `def` in a file or cell") from None
    (definition,) = tree.body
    assert isinstance(definition, ast.FunctionDef)
    definition.decorator_list = []
    source = ast.unparse(definition)
    record = _call(sandbox, "harvest:from_source", source=source, name=definition.name)
    if record is None or not all(example["verified"] for example in record["examples"]):
        raise ValueError(
            f"{definition.name} has no doctest that runs and gives what it prints: add one, such as "
            f">>> {definition.name}(…) with its result below"
        )
    return from_record(record, domain, source=source)


def _from_dict(record: dict[str, Any]) -> Tool:
    return Tool(**record | {
        "parameters": tuple(Parameter(**p) for p in record["parameters"]),
        "returns": Parameter(**record["returns"]),
        "examples": tuple(Example(**e) for e in record["examples"]),
    })  # fmt: skip
