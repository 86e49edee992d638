"""Records of a library's functions, with examples that ran: foreign code, so this runs inside the sandbox.

A record has the function's place, name, documentation, parameters and examples, and whether it evaluates texts as code.
Examples are the calls in its doctests; where the documentation gives a signature but no doctest that serves, plain
numbers are tried in order until some give a finite answer, twice the same (what draws at random is no tool).
"""

import ast
import builtins
import contextlib
import doctest
import importlib
import inspect
import io
import itertools
import math
import pkgutil
import signal
import types
import typing
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from .worker import plain

MOST_EXAMPLES = 3
ITEMS, GIVEN, SAID = 8, 40, 80  # of an example: items of a list, characters of an argument and of a result
SECONDS = 3  # of processor time, for one example
SKIPPED = (
    "test", "numba", "vectorized", "units", "optional", "benchmark", "plot", "data_reader", "compat", "pytest",
    "printing",
)  # fmt: skip
RELATIVE = 1e-6  # a printed result and the value: doctests round in the last digits


def modules(package: str) -> list[str]:
    """List a package's modules, the ones that are no tests, wrappers or data."""
    root = importlib.import_module(package)
    names = [package]
    for info in pkgutil.walk_packages(getattr(root, "__path__", []), package + "."):
        if not any(part.startswith("_") or part.startswith(SKIPPED) for part in info.name.split(".")[1:]):
            names.append(info.name)
    return names


def functions(names: list[str], untested: bool = False) -> list[dict[str, Any]]:
    """Record the documented functions of some modules that have at least one example that runs, or all (`untested`)."""
    warnings.simplefilter("ignore")
    return [record for name in names for record in _functions(name, untested)]


def _functions(module: str, untested: bool) -> Iterator[dict[str, Any]]:
    try:
        library = importlib.import_module(module)
    except Exception:
        return
    for name, function in sorted(vars(library).items()):
        home = getattr(function, "__module__", None) or ""
        own = (home == module or home.startswith(module + "._")) and not name.startswith("_")
        called = getattr(function, "__name__", name)
        alias = called != name and getattr(library, called, None) is function  # it comes under its own name
        function = inspect.unwrap(function) if inspect.isfunction(function) else function
        if own and not alias and function.__doc__ and (inspect.isfunction(function) or _is_sympy_function(function)):
            found = _doctest_calls(function, name, dict(vars(library)))
            record = record_of(f"{module}:{name}", name, function, found, untested=untested)
            if record:
                yield record


def from_source(source: str, name: str) -> dict[str, Any]:
    """Record a function that a user wrote, with its doctests run; `limit` says which of an example's they break."""
    names: dict[str, Any] = {}
    exec(compile(source, "<tool>", "exec"), names)
    function = names[name]
    function.__doc__ = function.__doc__ or ""
    record = record_of("", name, function, _doctest_calls(function, name, names), untested=True) or {}
    return record | {"limit": "" if record["examples"] else _limit_broken(function, name, names)}


def _is_sympy_function(member: Any) -> bool:
    return inspect.isclass(member) and any(c.__module__ == "sympy.core.function" for c in member.__mro__[1:])


def _doctest_calls(function: Any, name: str, names: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Calls of `function` in its doctests, run in order, with what they gave and whether that is what they should."""
    for example in _doctests(function):
        call = _call_of(example.source, name)
        given, ran = timed(lambda call=call: call and _arguments(call, function, names))
        value, called = timed(lambda given=given: function(*given[0], **given[1])) if ran and given else (None, False)
        printed = _printed(example.source, names)
        if called and "Traceback" not in example.want and is_answer(value):
            verified = _agrees(value, example.want) or _says(printed, example.want)
            yield {"arguments": given[2], "value": plain(value), "verified": verified}


def _doctests(function: Any) -> list[doctest.Example]:
    with contextlib.suppress(ValueError):
        return doctest.DocTestParser().get_examples(inspect.cleandoc(function.__doc__))
    return []


def _limit_broken(function: Any, name: str, names: dict[str, Any]) -> str:
    """Say which limit of an example a call in the doctests breaks that runs; "" where none does."""
    for call in filter(None, (_call_of(example.source, name) for example in _doctests(function))):
        given, ran = timed(lambda call=call: _arguments(call, function, names))
        if ran and given is None:
            return f"its arguments may be numbers, texts of up to {GIVEN} characters and lists of up to {ITEMS} such"
        value, called = timed(lambda given=given: function(*given[0], **given[1])) if given else (None, False)
        if called and not is_answer(value):
            return f"its result may be a number, a text of up to {SAID} characters, or up to {ITEMS} such"
    return ""


def _call_of(source: str, name: str) -> ast.Call | None:
    """The first call of `name` in a line of a doctest, else None."""
    with contextlib.suppress(SyntaxError, ValueError, RecursionError):
        for node in ast.walk(ast.parse(source.strip())):
            if isinstance(node, ast.Call) and ast.unparse(node.func).rsplit(".", 1)[-1] == name:
                return node
    return None


def _printed(source: str, names: dict[str, Any]) -> str:
    """What a line of a doctest prints when it runs in the names that the lines before it left."""
    shown = io.StringIO()

    def run() -> None:
        with contextlib.redirect_stdout(shown):
            exec(compile(source, "<doctest>", "single"), names)

    timed(run)
    return shown.getvalue()


def _arguments(call: ast.Call, function: Any, names: dict[str, Any]) -> tuple[list, dict, dict[str, Any]] | None:
    """Arguments of a call as given and by name; None where one of them is no plain value."""

    def value(node: ast.expr) -> Any:
        return eval(compile(ast.Expression(node), "<doctest>", "eval"), names)

    given, named = [value(a) for a in call.args], {str(k.arg): value(k.value) for k in call.keywords}
    if not all(_is_plain(v) for v in [*given, *named.values()]):
        return None
    if inspect.isclass(function):
        by_name = dict(zip(positional_names(function), map(plain, given), strict=False))
        return (given, {}, by_name) if len(by_name) == len(given) and not named else None
    bound = dict(inspect.signature(function).bind(*given, **named).arguments)
    return (given, named, {k: plain(v) for k, v in bound.items()}) if all(map(_is_plain, bound.values())) else None


def _is_plain(value: Any) -> bool:
    if isinstance(value, (list, tuple, set, frozenset)):
        return len(value) <= ITEMS and all(isinstance(v, (int, float, str)) for v in value)
    return value is None or isinstance(value, (bool, int, float)) or (isinstance(value, str) and len(value) <= GIVEN)


def _agrees(value: Any, want: str) -> bool:
    """Whether a value is what the doctest prints: the same text, or the same numbers but for their last digits."""
    if _says(repr(value) + "\n", want):
        return True
    try:
        printed = ast.literal_eval(want.strip())
    except (ValueError, SyntaxError):
        return False
    return _close(plain(value), plain(printed))


def _says(printed: str, want: str) -> bool:
    flags = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    return bool(want.strip()) and doctest.OutputChecker().check_output(want, printed, flags)


def _close(a: Any, b: Any) -> bool:
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(map(_close, a, b))
    if isinstance(a, (int, float)) and isinstance(b, (int, float)):
        return math.isclose(a, b, rel_tol=RELATIVE, abs_tol=1e-12)
    return a == b


# --- one record and how its examples are run ---


def record_of(
    place: str, name: str, function: Any, calls: Iterator[dict[str, Any]], *, parameters: list[str] | None = None,
    doc: str | None = None, untested: bool = False,
) -> dict[str, Any] | None:  # fmt: skip
    """Record a function with the first examples that `calls` gives; None where it gives none (unless `untested`)."""
    examples = list(itertools.islice(calls, MOST_EXAMPLES))
    if not examples and not untested:
        return None
    named = [{"name": n, "required": True} for n in parameters or ()]
    return {
        "place": place, "name": name, "doc": doc or inspect.cleandoc(function.__doc__),
        "parameters": named if parameters is not None else parameters_of(function),
        "examples": examples, "positional": by_position(function),
        "literal": any(evaluates(function, example["arguments"]) for example in examples),
    }  # fmt: skip


def by_position(function: Any) -> bool:
    """Whether a function takes its arguments by position: one written in C, a class, one with a / in its parameters."""
    if not inspect.isfunction(function) and not inspect.ismethod(function):
        return True
    return any(p.kind == p.POSITIONAL_ONLY for p in inspect.signature(function).parameters.values())


CODE = "exec('import builtins; builtins._tenfold_probe = 1')"


def evaluates(function: Any, arguments: dict[str, Any]) -> bool:
    """Whether a function runs a text as code: one that leaves a mark is put in place of each argument in turn."""
    by_name = not by_position(function)
    for name, value in arguments.items():
        given = arguments | {name: [CODE] if isinstance(value, list) else CODE}
        with contextlib.redirect_stdout(io.StringIO()):
            timed(lambda given=given: function(**given) if by_name else function(*given.values()))
        if vars(builtins).pop("_tenfold_probe", None):
            return True
    return False


def parameters_of(function: Any) -> list[dict[str, Any]]:
    """List each parameter's name, whether it is required, its default, and what its annotation says."""
    called = function.eval if inspect.isclass(function) else function  # a sympy function
    parameters, hints = [], hints_of(called)
    for p in inspect.signature(called).parameters.values():
        if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD):
            required = p.default is p.empty
            parameters.append(
                {"name": p.name, "required": required}
                | ({} if required else {"default": plain(p.default)})
                | hints.get(p.name, {})
            )
    return parameters


def hints_of(function: Any) -> dict[str, dict[str, Any]]:
    """What the annotations of a function say of its parameters, by name."""
    with contextlib.suppress(Exception):  # names that only a type checker knows
        return {name: hinted(hint) for name, hint in typing.get_type_hints(function).items()}
    return {}


JSON_TYPES = {bool: "boolean", int: "integer", float: "number", complex: "number", str: "string"}


def hinted(hint: Any) -> dict[str, Any]:
    """JSON type, type of the items and possible values that a type hint says."""
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        some = [part for part in map(hinted, (a for a in inner if a is not type(None))) if part]
        widest = [part for part in some if part.get("kind") == "number"]
        return (widest or some or [{}])[0]
    if origin is typing.Annotated:
        return hinted(inner[0])
    if origin is typing.Literal:
        return {"kind": JSON_TYPES.get(type(inner[0]), ""), "options": list(inner)}
    if hint in (list, tuple, set) or (inspect.isclass(origin) and issubclass(origin, (Sequence, set))):
        return {"kind": "array", "items": hinted(inner[0]).get("kind", "") if inner else ""}
    return {"kind": JSON_TYPES[hint]} if hint in JSON_TYPES else {}


def positional_names(function: Any) -> list[str]:
    """List the arguments of a sympy function, which takes them by position only."""
    return [p.name for p in inspect.signature(function.eval).parameters.values() if p.kind == p.POSITIONAL_OR_KEYWORD]


class Late(Exception):
    """An example took too long."""


def timed(call: Callable[[], Any]) -> tuple[Any, bool]:
    """Return the value of a call that ends within SECONDS, of processor time, and whether it did."""

    def ring(*_: Any) -> None:
        raise Late

    signal.signal(signal.SIGPROF, ring)
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    try:
        return call(), True
    except Exception:
        return None, False
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)


def is_answer(value: Any) -> bool:
    """Whether a result is a finite number, a short text or truth value, or a few of them by position or name."""
    result = plain(value)
    if isinstance(result, dict):
        return set(result) != {"repr"} and 0 < len(result) <= ITEMS and all(map(is_answer, result.values()))
    if isinstance(result, list):
        return 0 < len(result) <= ITEMS and all(map(is_answer, result))
    if isinstance(result, (bool, str)):
        return len(str(result)) <= SAID
    return isinstance(result, (int, float)) and math.isfinite(result) and abs(result) < 1e30


# --- functions without doctests: called by their signature ---

TRIED = (
    (0.5,), (2,), (0.5, 1.5), (2, 1.5), (3, 5), (0.5, 1.5, 2.5), (2, 3, 0.5), (0.2, 0.3, 0.4, 0.5), (2, 1, 0.5, 0.3),
)  # fmt: skip


def special_functions(module: str) -> list[dict[str, Any]]:
    """Record a module's array functions (NumPy ufuncs), called with plain numbers."""
    import numpy as np

    records = []
    for name, function in sorted(vars(importlib.import_module(module)).items()):
        if isinstance(function, np.ufunc) and function.nout == 1 and function.__doc__ and not name.startswith("_"):
            names = [n.strip() for n in function.__doc__.split("(", 1)[1].split(")", 1)[0].split(",")][: function.nin]
            calls = _tried_calls(function, names)
            records.append(record_of(f"{module}:{name}", name, function, calls, parameters=names))
    return [record for record in records if record]


TYPICAL = {
    "rate": 0.05, "nper": 12, "pmt": -100.0, "pv": 1000.0, "fv": 0.0, "per": 3, "values": [-100.0, 39.0, 59.0, 55.0],
    "finance_rate": 0.1, "reinvest_rate": 0.12,
}  # fmt: skip


def by_signature(module: str) -> list[dict[str, Any]]:
    """Record a module's functions all of whose required parameters have a typical value (finance)."""
    records = []
    for name, function in sorted(vars(importlib.import_module(module)).items()):
        if not inspect.isfunction(function) or name.startswith("_") or not function.__doc__:
            continue
        names = [p["name"] for p in parameters_of(function) if p["required"]]
        if names and all(n in TYPICAL for n in names):
            calls = _tried_calls(function, names, tried=(tuple(TYPICAL[n] for n in names),))
            records.append(record_of(f"{module}:{name}", name, function, calls))
    return [record for record in records if record]


KINDS = {
    "pdf": "Probability density at x of",
    "pmf": "Probability that the value is k of",
    "cdf": "Probability of a value up to x under",
    "sf": "Probability of a value above x under",
    "ppf": "Quantile at probability q of",
}


def distributions(module: str) -> list[dict[str, Any]]:
    """Record `dist.pdf`, `.cdf`, `.sf` and `.ppf` of a module's probability distributions."""
    records = []
    for name, law in sorted(vars(importlib.import_module(module)).items()):
        if not hasattr(law, "shapes") or not hasattr(law, "ppf") or name.startswith("rv_"):
            continue
        shapes = [s.strip() for s in law.shapes.split(",")] if law.shapes else []
        title = law.__doc__.strip().splitlines()[0].rstrip(".")
        for kind in ("pdf" if hasattr(law, "pdf") else "pmf", "cdf", "sf", "ppf"):
            first = {"ppf": "q", "pmf": "k"}.get(kind, "x")
            doc = f"{KINDS[kind]} {title[0].lower()}{title[1:]}.\n\n{_shape_notes(law, shapes, first)}"
            names, function = [first, *shapes], getattr(law, kind)
            calls = _tried_calls(function, names, quantile=kind == "ppf")
            place, called = f"{module}:{name}.{kind}", f"{name}_{kind}"
            records.append(record_of(place, called, function, calls, parameters=names, doc=doc))
    return [record for record in records if record]


def _shape_notes(law: Any, shapes: list[str], first: str) -> str:
    what = {"q": "Probability, between 0 and 1", "k": "Whole number", "x": "Value"}[first]
    lines = ["Parameters", "----------", f"{first} : float", f"    {what}"]
    for shape in shapes:
        lines += [f"{shape} : float", f"    Shape parameter {shape} of the {law.name} distribution"]
    return "\n".join(lines)


def _tried_calls(
    function: Any, names: list[str], *, quantile: bool = False, tried: tuple[tuple, ...] = TRIED
) -> Iterator[dict[str, Any]]:
    for numbers in tried:
        if len(numbers) != len(names):
            continue
        given = (0.3, *numbers[1:]) if quantile else numbers
        value, ran = timed(lambda given=given: function(*given))
        again, _ = timed(lambda given=given: function(*given))  # a function that draws at random is no tool
        if ran and is_answer(value) and plain(value) == plain(again):
            yield {"arguments": dict(zip(names, given, strict=True)), "value": plain(value), "verified": True}
