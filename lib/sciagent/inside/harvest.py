"""Functions of a library with their doctests run: foreign code, so this runs inside the sandbox."""

import ast
import contextlib
import doctest
import importlib
import inspect
import io
import math
import pkgutil
import warnings
from collections.abc import Iterator
from typing import Any

from .records import is_answer, positional_names, record_of, timed
from .values import plain

SKIPPED = (
    "test",
    "numba",
    "vectorized",
    "units",
    "optional",
    "benchmark",
    "plot",
    "data_reader",
    "compat",
    "pytest",
    "printing",
)
RELATIVE = 1e-6  # a printed result and the value: doctests round in the last digits


def modules(package: str) -> list[str]:
    """Names of a package's modules, the ones that are no tests, wrappers or data."""
    root = importlib.import_module(package)
    found = [package]
    for info in pkgutil.walk_packages(getattr(root, "__path__", []), package + "."):
        if not any(part.startswith("_") or part.startswith(SKIPPED) for part in info.name.split(".")[1:]):
            found.append(info.name)
    return found


def functions(names: list[str]) -> list[dict[str, Any]]:
    """Records of the documented functions of some modules that have at least one example that runs."""
    warnings.simplefilter("ignore")
    return [record for name in names for record in _functions(name)]


def _functions(module: str) -> Iterator[dict[str, Any]]:
    try:
        found = importlib.import_module(module)
    except Exception:
        return
    for name, function in sorted(vars(found).items()):
        home = getattr(function, "__module__", None) or ""
        own = (home == module or home.startswith(module + "._")) and not name.startswith("_")
        if own and function.__doc__ and (inspect.isfunction(function) or _is_sympy_function(function)):
            record = record_of(f"{module}:{name}", name, function, _doctest_calls(function, name, dict(vars(found))))
            if record:
                yield record


def from_source(source: str, name: str) -> dict[str, Any] | None:
    """Record of a function that a user wrote, with its doctests run; None where none of them runs."""
    names: dict[str, Any] = {}
    exec(compile(source, "<tool>", "exec"), names)
    return record_of("", name, names[name], _doctest_calls(names[name], name, names))


def _is_sympy_function(found: Any) -> bool:
    return inspect.isclass(found) and any(c.__module__ == "sympy.core.function" for c in found.__mro__[1:])


def _doctest_calls(function: Any, name: str, names: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Calls of `function` in its doctests, run in order, with what they gave and whether that is what they should."""
    try:
        examples = doctest.DocTestParser().get_examples(inspect.cleandoc(function.__doc__))
    except ValueError:
        return
    for example in examples:
        call = _call_of(example.source, name)
        given, ran = timed(lambda call=call: call and _arguments(call, function, names))
        value, called = timed(lambda given=given: function(*given[0], **given[1])) if ran and given else (None, False)
        printed = _printed(example.source, names)
        if called and "Traceback" not in example.want and is_answer(value):
            verified = _agrees(value, example.want) or _says(printed, example.want)
            yield {"arguments": given[2], "value": plain(value), "verified": verified}


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
        return len(value) <= 8 and all(isinstance(v, (int, float, str)) for v in value)
    return value is None or isinstance(value, (bool, int, float)) or (isinstance(value, str) and len(value) <= 40)


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
