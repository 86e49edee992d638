"""The process in which programs run: takes its limits, then answers requests on its own two pipes."""

import ast
import builtins
import contextlib
import importlib
import io
import json
import math
import operator
import os
import resource
import sys
import traceback
from typing import Any, NoReturn

from . import messages, seccomp
from .values import plain


class Exceeded(Exception):
    """A program printed more than it may."""


class Output(io.TextIOBase):
    """Standard output of a program: kept up to a limit, then an error."""

    def __init__(self, limit: int) -> None:
        self.limit, self.size, self.parts = limit, 0, []

    def write(self, text: str) -> int:
        """Keep a text, or raise Exceeded."""
        self.size += len(text)
        if self.size > self.limit:
            raise Exceeded(f"printed more than {self.limit} characters")
        self.parts.append(text)
        return len(text)


def serve(requests: int, replies: int, limits: dict[str, Any], refusing: seccomp.Filter, *, once: bool) -> NoReturn:
    """Take the limits for good, then answer one request (`once`) or all that come."""
    with contextlib.suppress(BaseException):  # nothing may reach the worker's own code
        take_limits(limits)
        refusing.install()
        while True:
            request = json.loads(messages.receive(requests))
            _allow_processor_time(limits["cpu_seconds"], hard=once)
            messages.send(replies, _answer(request, limits))
            if once:
                break
    os._exit(0)


def take_limits(limits: dict[str, Any]) -> None:
    """Lower this process's limits, hard ones too: it cannot raise them again."""
    wanted = {
        resource.RLIMIT_FSIZE: limits["file_bytes"],
        resource.RLIMIT_NOFILE: limits["files"],
        resource.RLIMIT_NPROC: 0,
        resource.RLIMIT_CORE: 0,
    }
    if limits["mapped"]:
        wanted[resource.RLIMIT_AS] = limits["mapped"] + limits["memory_bytes"]
    for which, value in wanted.items():
        resource.setrlimit(which, (value, value))


def _allow_processor_time(seconds: float, *, hard: bool) -> None:
    used = resource.getrusage(resource.RUSAGE_SELF)
    whole = math.ceil(used.ru_utime + used.ru_stime + seconds)
    resource.setrlimit(resource.RLIMIT_CPU, (whole, whole if hard else resource.getrlimit(resource.RLIMIT_CPU)[1]))


def _answer(request: dict[str, Any], limits: dict[str, Any]) -> bytes:
    output = Output(limits["output_characters"])
    sys.stdout = sys.stderr = output
    try:
        reply = {"kind": "ok", "value": _run(request)}
        json.dumps(reply)  # whether it can be said at all
    except Exceeded as error:
        reply = {"kind": "output", "error": str(error)}
    except MemoryError:
        reply = {"kind": "memory", "error": "needed more memory than it may"}
    except SystemExit:
        reply = {"kind": "error", "error": "SystemExit: a program may not end itself"}
    except BaseException as error:
        reply = {"kind": "error", "error": _in_one_line(error)}
    return json.dumps(reply | {"stdout": "".join(output.parts)}).encode()


def _in_one_line(error: BaseException) -> str:
    lines = [f.lineno for f in traceback.extract_tb(error.__traceback__) if f.filename == "<program>"]
    return f"{type(error).__name__}: {error}"[:500] + (f" (line {lines[-1]})" if lines else "")


def _run(request: dict[str, Any]) -> Any:
    """Value of a request: a function of this package called, or a program's."""
    if "function" in request:
        module, name = request["function"].split(":")
        return getattr(importlib.import_module(f".{module}", __package__), name)(**request["arguments"])
    return plain(_program(request))


def _program(request: dict[str, Any]) -> Any:
    """Value of a program: of its last line where that is an expression, else of its variable `answer`."""
    names = _names(request)
    tree = ast.parse(request["program"], "<program>")
    last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
    exec(compile(tree, "<program>", "exec"), names)
    if last is not None:
        value = eval(compile(ast.Expression(last.value), "<program>", "eval"), names)
        return value if value is not None else names.get("answer")
    return names.get("answer")


def _names(request: dict[str, Any]) -> dict[str, Any]:
    """Global names of a program: its tools, and built-ins (all of them for code that is not model-written)."""
    names: dict[str, Any] = {"__name__": "__main__"}
    for name, place in request["tools"].items():
        module, _, attribute = place.partition(":")
        names[name] = operator.attrgetter(attribute)(importlib.import_module(module))
    for name, source in request["sources"].items():
        own: dict[str, Any] = {}
        exec(compile(source, "<tool>", "exec"), own)
        names[name] = own[name]
    if request["builtins"] is not None:
        names["__builtins__"] = {n: getattr(builtins, n, None) or getattr(math, n) for n in request["builtins"]}
    return names
