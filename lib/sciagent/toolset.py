"""Toolsets: the documented functions of real libraries (and a user's own) as tools, verified by running their examples.

`F_D` of arXiv:2402.11451: swapping it takes an agent to another domain without training.
"""

import ast
import inspect
import textwrap
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import asdict
from typing import Any

from lib import TenfoldError
from lib.sciagent.sandbox import Job, Limits, Sandbox
from lib.sciagent.tools import Example, Parameter, Tool, from_record

HARVEST = Limits(
    seconds=120.0, cpu_seconds=110.0, memory_mib=3072, reply_mib=64, files=256, output_characters=1_000_000
)  # fmt: skip
TOGETHER = 24  # modules harvested by one process
SUBPACKAGES = {"sympy": ("ntheory", "functions", "discrete", "combinatorics", "physics.optics", "physics.hydrogen")}
BY_SIGNATURE = {
    "scipy": (("signatures:special_functions", "scipy.special"), ("signatures:distributions", "scipy.stats")),
    "numpy_financial": (("signatures:by_signature", "numpy_financial"),),
}
DOMAINS = {
    "fluids": "fluid mechanics", "ht": "heat transfer", "chemicals": "chemistry", "thermo": "chemistry",
    "chempy": "chemistry", "numpy_financial": "finance", "scipy.stats": "statistics", "scipy": "mathematics",
    "sympy.physics": "optics", "sympy": "mathematics",
}  # fmt: skip
LIBRARIES = ("fluids", "ht", "chemicals", "thermo", "chempy", "numpy_financial", "scipy", "sympy")


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
        """Tools of an installed library: its documented functions with at least one example that runs.

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
        found = {r["place"]: r for r in records}  # a doctest comes last: the better example
        if not found:
            raise TenfoldError(f"{package} has no documented function with an example that runs: add tools one by one.")
        return cls(from_record(r, domain or domain_of(place)) for place, r in sorted(found.items()))

    def add(self, *, sandbox: Sandbox, domain: str = "user") -> Callable[[Callable], Callable]:
        """Decorator that makes a user's function a tool; its doctests are run and must give what they print.

        Raises TenfoldError where its source cannot be read, no doctest runs or one gives something else.
        """

        def register(function: Callable) -> Callable:
            tool = _of_user(function, sandbox, domain)
            if tool.name in self._tools:
                raise TenfoldError(f"there is a tool named {tool.name!r} already: give your function another name.")
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
        """Tools of the given names, in this set's order."""
        return Toolset(tool for tool in self if tool.name in names)

    def counts(self) -> list[dict[str, Any]]:
        """One row a library and domain: tools, those whose doctest gives what it prints, and examples."""
        rows = []
        for library, domain in dict.fromkeys((t.library, t.domain) for t in self):
            tools = [t for t in self if (t.library, t.domain) == (library, domain)]
            rows.append({
                "library": library, "domain": domain, "tools": len(tools),
                "verified": sum(t.verified for t in tools), "examples": sum(len(t.examples) for t in tools),
            })  # fmt: skip
        return rows

    def schema(self) -> list[dict[str, Any]]:
        """JSON schemas of all tools, for any interface that takes function declarations."""
        return [tool.schema() for tool in self]

    def records(self) -> list[dict[str, Any]]:
        """Plain JSON values that `from_records` turns back into an equal toolset."""
        return [asdict(tool) for tool in self]

    @classmethod
    def from_records(cls, records: Iterable[dict[str, Any]]) -> "Toolset":
        """Toolset out of `records()`."""
        return cls(_from_dict(record) for record in records)

    def modules(self) -> tuple[str, ...]:
        """Modules of the libraries, for a sandbox to import once."""
        return tuple(sorted({tool.family for tool in self if tool.place}))

    def job(self, program: str, shown: Sequence[str]) -> Job:
        """A program together with the functions it was shown, for `Sandbox.map`."""
        tools = [self[name] for name in shown]
        places = {t.name: t.place for t in tools if t.place}
        return Job(program, places, {t.name: t.source for t in tools if not t.place})


def domain_of(place: str) -> str:
    """Domain of a known library's function, by its longest known prefix; else the library's name."""
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
        raise TenfoldError(
            f"the source of {function!r} cannot be read: define it with `def` in a file or cell."
        ) from None
    (definition,) = tree.body
    assert isinstance(definition, ast.FunctionDef)
    definition.decorator_list = []
    source = ast.unparse(definition)
    record = _call(sandbox, "harvest:from_source", source=source, name=definition.name)
    if record is None or not all(example["verified"] for example in record["examples"]):
        raise TenfoldError(
            f"{definition.name} has no doctest that runs and gives what it prints: add one, such as "
            f">>> {definition.name}(…) with its result below."
        )
    return from_record(record, domain, source=source)


def _from_dict(record: dict[str, Any]) -> Tool:
    return Tool(**record | {
        "parameters": tuple(Parameter(**p) for p in record["parameters"]),
        "returns": Parameter(**record["returns"]),
        "examples": tuple(Example(**e) for e in record["examples"]),
    })  # fmt: skip
