"""Records of functions (place, name, documentation, parameters, examples that ran) and how an example is run."""

import inspect
import itertools
import math
import signal
from collections.abc import Callable, Iterator
from typing import Any

from .values import plain

MOST_EXAMPLES = 3
SECONDS = 3  # of processor time, for one example


def record_of(
    place: str, name: str, function: Any, calls: Iterator[dict[str, Any]], *, parameters: list[str] | None = None,
    doc: str | None = None,
) -> dict[str, Any] | None:  # fmt: skip
    """Record of a function with the first examples that `calls` gives; None where it gives none."""
    examples = list(itertools.islice(calls, MOST_EXAMPLES))
    if not examples:
        return None
    named = [{"name": n, "required": True} for n in parameters or ()]
    return {
        "place": place, "name": name, "doc": doc or inspect.cleandoc(function.__doc__),
        "parameters": named if parameters is not None else parameters_of(function),
        "examples": examples, "positional": not inspect.isfunction(function) and not inspect.ismethod(function),
    }  # fmt: skip


def parameters_of(function: Any) -> list[dict[str, Any]]:
    """Name of each parameter, whether it is required, and its default."""
    if inspect.isclass(function):
        return [{"name": n, "required": True} for n in positional_names(function)]
    found = []
    for p in inspect.signature(function).parameters.values():
        if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD):
            required = p.default is p.empty
            found.append({"name": p.name, "required": required} | ({} if required else {"default": plain(p.default)}))
    return found


def positional_names(function: Any) -> list[str]:
    """Names of the arguments of a sympy function, which takes them by position only."""
    return [p.name for p in inspect.signature(function.eval).parameters.values() if p.kind == p.POSITIONAL_OR_KEYWORD]


class Late(Exception):
    """An example took too long."""


def timed(call: Callable[[], Any]) -> tuple[Any, bool]:
    """Value of a call that ends within SECONDS, of processor time, and whether it did."""

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
    found = plain(value)
    if isinstance(found, dict):
        return set(found) != {"repr"} and 0 < len(found) <= 8 and all(map(is_answer, found.values()))
    if isinstance(found, list):
        return 0 < len(found) <= 8 and all(map(is_answer, found))
    if isinstance(found, (bool, str)):
        return len(str(found)) <= 80
    return isinstance(found, (int, float)) and math.isfinite(found) and abs(found) < 1e30
