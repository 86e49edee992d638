"""The worker: isolates itself, imports the libraries once, and runs every program in a fork of itself.

Its pipes to the parent are never held by a process that runs a program: such a process has one pipe of its own, and
what it writes there is only ever an opaque text for the parent to parse. It can spoil its own answer and no other. The
worker is process 1 of its namespace, which cannot be signalled from inside, and ends what a program left running.
"""

import ast
import builtins
import contextlib
import gc
import importlib
import io
import json
import math
import operator
import os
import re
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
from pathlib import Path
from typing import Any, NoReturn

from . import Unfinished, isolation, receive, send

LONGEST = 400  # characters of what has no plain form
MOST_ITEMS, MOST_CHARACTERS, DEEPEST = 256, 10_000, 4  # of what is cut
THOUSANDS = re.compile(r"-?\d{1,3}(,\d{3})+(\.\d+)?")
PRINTED_NUMBER = re.compile(r"-?(?:\d[\d,]*\.?\d*|\.\d+)(?:[eE][-+]?\d+)?")


def plain(value: Any, depth: int = 0, *, whole: bool = False) -> Any:
    """Return a result as plain JSON values: numbers, texts, lists, dicts; `{"repr": …}`, cut, for anything else.

    Long, wide and deep ones are cut unless they are wanted `whole`.
    """
    if value is None or isinstance(value, (bool, int, float)):
        return value
    if isinstance(value, str):
        return value if whole else value[:MOST_CHARACTERS]
    if isinstance(value, complex):
        return {"real": value.real, "imag": value.imag}
    if whole or depth < DEEPEST:
        most, longest = (None, None) if whole else (MOST_ITEMS, LONGEST)
        if isinstance(value, (set, frozenset)):
            value = sorted(value, key=repr)
        if isinstance(value, (list, tuple)):
            return [plain(item, depth + 1, whole=whole) for item in value[:most]]
        if isinstance(value, dict):
            items = list(value.items())[:most]
            return {str(key)[:longest]: plain(item, depth + 1, whole=whole) for key, item in items}
        with contextlib.suppress(Exception):  # NumPy scalars and arrays
            if hasattr(value, "tolist"):
                return plain(value.tolist(), depth + 1, whole=whole)
        if type(value).__module__.startswith("sympy"):
            with contextlib.suppress(Exception):
                return int(value) if value.is_Integer else float(value)
    return {"repr": repr(value)[:LONGEST]}


class Exceeded(Exception):
    """A program printed or answered more than it may."""


class Output(io.StringIO):
    """Standard output of a program: kept up to a limit, then an error."""

    def __init__(self, limit: int) -> None:
        super().__init__()
        self.limit = limit

    def write(self, text: str) -> int:
        """Keep a text, or raise Exceeded."""
        if self.tell() + len(text) > self.limit:
            raise Exceeded(f"printed more than {self.limit} characters")
        return super().write(text)


def answer_and_exit(reply: int, request: dict[str, Any], limits: dict[str, Any], refusing: Any) -> NoReturn:
    """Take the limits for good, answer one request on a pipe, and end this process."""
    with contextlib.suppress(BaseException):  # nothing may reach the worker's own code
        take_limits(limits)
        refusing.install()
        send(reply, _answer(request, limits))
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
    seconds = math.ceil(limits["cpu_seconds"])
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 1))  # SIGXCPU, then SIGKILL for who ignores it


def _answer(request: dict[str, Any], limits: dict[str, Any]) -> bytes:
    output = Output(limits["output_characters"])
    sys.stdout = sys.stderr = output
    try:
        reply = {"kind": "ok", "value": _run(request, output)}
        if len(json.dumps(reply)) > limits["reply_bytes"]:  # or it cannot be said at all
            raise Exceeded(f"answered with more than {limits['reply_bytes']} bytes")
    except Exceeded as error:
        reply = {"kind": "output", "error": str(error)}
    except MemoryError:
        reply = {"kind": "memory", "error": "needed more memory than it may"}
    except SystemExit:
        reply = {"kind": "error", "error": "SystemExit: a program may not end itself"}
    except BaseException as error:
        reply = {"kind": "error", "error": _in_one_line(error)}
    return json.dumps(reply | {"stdout": output.getvalue()}).encode()


def _in_one_line(error: BaseException) -> str:
    lines = [f.lineno for f in traceback.extract_tb(error.__traceback__) if f.filename == "<program>"]
    return f"{type(error).__name__}: {error}"[:500] + (f" (line {lines[-1]})" if lines else "")


def _run(request: dict[str, Any], output: Output) -> Any:
    """Value of a request: a function of this package called, or a program's."""
    if "function" in request:
        module, name = request["function"].split(":")
        return getattr(importlib.import_module(f".{module}", __package__), name)(**request["arguments"])
    return plain(_program(request, output), whole=True)


def _program(request: dict[str, Any], output: Output) -> Any:
    """Value of a program: its variable `answer`, else of its last line, where that is an expression, else printed."""
    names = _names(request)
    tree = ast.parse(request["program"], "<program>")
    last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
    exec(compile(tree, "<program>", "exec"), names)
    value = None
    if last is not None:
        value = eval(compile(ast.Expression(last.value), "<program>", "eval"), names)
    if names.get("answer") is not None:
        return names["answer"]
    return value if value is not None else printed_value(output.getvalue())


def printed_value(text: str) -> Any:
    """Value in the last line printed: a literal, else its last number, else the line; None where nothing is printed."""
    line = (text.strip().splitlines() or [""])[-1].strip()
    line = line.replace(",", "") if THOUSANDS.fullmatch(line) else line
    with contextlib.suppress(ValueError, SyntaxError, RecursionError, MemoryError):
        return ast.literal_eval(line)
    numbers = PRINTED_NUMBER.findall(line)
    return float(numbers[-1].replace(",", "")) if numbers else line or None


def _names(request: dict[str, Any]) -> dict[str, Any]:
    """Global names of a program: its tools, and the built-ins and imports that it may use."""
    names: dict[str, Any] = {"__name__": "__main__"}
    for name, place in request["tools"].items():
        module, _, attribute = place.partition(":")
        function = operator.attrgetter(attribute)(importlib.import_module(module))
        names[name] = without_code(name, function) if name in request["literal"] else function
    for name, source in request["sources"].items():
        own: dict[str, Any] = {}
        exec(compile(source, "<tool>", "exec"), own)
        names[name] = own[name]
    if request["builtins"] is not None:
        names["__builtins__"] = {n: getattr(builtins, n, None) or getattr(math, n) for n in request["builtins"]}
    elif request["imports"] is not None:
        roots = frozenset([*request["imports"], *(place.partition(".")[0] for place in request["tools"].values())])
        names["__builtins__"] = vars(math) | vars(builtins) | {"__import__": _importer(roots)}
    return names


def without_code(name: str, function: Any) -> Any:
    """Wrap a function that evaluates texts as code (SymPy's `sympify`): it takes values only, no text at any depth."""

    def has_text(value: Any) -> bool:
        if isinstance(value, dict):
            return any(map(has_text, value.values()))
        return isinstance(value, str) or (isinstance(value, (list, tuple, set)) and any(map(has_text, value)))

    def call(*args: Any, **named: Any) -> Any:
        if has_text(args) or has_text(named):
            raise TypeError(f"{name} takes numbers, not texts")
        return function(*args, **named)

    return call


def _importer(roots: frozenset[str]) -> Any:
    """Import statement of a free program: a help to its writer, not a barrier (what holds is below it)."""

    def imported(name: str, *args: Any) -> Any:
        if name.partition(".")[0] not in roots:
            raise ImportError(f"{name} may not be imported: use {', '.join(sorted(roots))}")
        return importlib.__import__(name, *args)

    return imported


class Server:
    """Serves the parent's requests one after the other."""

    def __init__(self, held: tuple[int, ...], scratch: Path, refusing: Any, mapped: int) -> None:
        self.held, self.scratch, self.refusing, self.mapped = held, scratch, refusing, mapped

    def serve(self) -> None:
        """Answer until the parent closes its pipe, or the scratch folder can no longer be emptied."""
        with contextlib.suppress(Unfinished):
            while True:
                request = json.loads(receive(self.held[0]))
                began = time.monotonic()
                text = self._answer(request, request.pop("limits") | {"mapped": self.mapped})
                last = not clean(self.scratch)
                reply = {"text": text, "seconds": time.monotonic() - began, "last": last}
                send(self.held[1], json.dumps(reply).encode())
                if last:
                    return

    def _answer(self, request: dict[str, Any], limits: dict[str, Any]) -> str:
        """Text that a fork answers to a request, or how it ended without one."""
        reply, theirs = os.pipe()
        process = os.fork()
        if process == 0:
            for descriptor in (*self.held, reply):
                os.close(descriptor)
            answer_and_exit(theirs, request, limits, self.refusing)
        os.close(theirs)
        text, why = "", "ended"
        try:
            text = receive(reply, seconds=limits["seconds"], most=limits["reply_bytes"]).decode("utf8", "replace")
        except Unfinished as error:
            why = str(error)
        finally:
            os.close(reply)
        code = _ended(process)
        _end_others()
        return text or json.dumps(_how_it_ended(why, code, limits))


def _ended(process: int) -> int:
    """Exit status of a fork, which is killed where it has not ended (negative: the signal that it died of)."""
    done, status = os.waitpid(process, os.WNOHANG)
    if not done:
        with contextlib.suppress(ProcessLookupError):
            os.kill(process, signal.SIGKILL)
        status = os.waitpid(process, 0)[1]
    return os.waitstatus_to_exitcode(status)


def _end_others() -> None:
    """End what a program left running: as process 1, all else in our namespace."""
    if os.getpid() != 1:
        return
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.kill(-1, signal.SIGKILL)
    with contextlib.suppress(ChildProcessError):
        while True:
            os.waitpid(-1, 0)


def _how_it_ended(why: str, code: int, limits: dict[str, Any]) -> dict[str, str]:
    if why == "late":
        return {"kind": "time", "error": f"ran longer than {limits['seconds']:g} s"}
    if why == "long":
        return {"kind": "output", "error": f"answered with more than {limits['reply_bytes']} bytes"}
    if code == -signal.SIGXCPU:
        return {"kind": "time", "error": f"used more than {limits['cpu_seconds']:g} s of processor time"}
    if code < 0:
        return {"kind": "killed", "error": f"was ended by {signal.Signals(-code).name}"}
    return {"kind": "killed", "error": f"ended by itself without an answer (exit status {code})"}


def clean(scratch: Path) -> bool:
    """Empty the scratch folder, locked folders too; False where something stays."""
    for folder, below, _ in os.walk(scratch):
        for path in (os.path.join(folder, name) for name in below):
            if not os.path.islink(path):
                with contextlib.suppress(OSError):
                    os.chmod(path, 0o700)
    for entry in list(os.scandir(scratch)):
        if entry.is_dir(follow_symlinks=False):
            shutil.rmtree(entry.path, ignore_errors=True)
        else:
            with contextlib.suppress(OSError):
                os.unlink(entry.path)
    return not any(os.scandir(scratch))


def main() -> None:
    """Isolate, import, report what was isolated, then serve."""
    setup = json.loads(sys.argv[1])
    held, ordinary = _claim_pipes(), os.getuid() != 0
    layers, shown = [], [Path(__file__).parent, *map(Path, setup["folders"])]
    if setup["isolation"] == "bubblewrap":
        layers, scratch = [*isolation.NAMESPACES, "files"], isolation.SCRATCH
    else:
        scratch, lifeline = _kept_folder(held)
        held = (*held, lifeline)
        if setup["isolation"] == "namespaces":
            layers = isolation.enter_namespaces()
    if setup["isolation"] == "namespaces" and "processes" in layers:
        _become_process_one(held)
    if setup["isolation"] == "namespaces" and "mounts" in layers:
        with contextlib.suppress(OSError):
            isolation.new_root(scratch, shown)
            scratch = isolation.SCRATCH
            layers.append("files")
    os.chdir(scratch)
    isolation.drop_privileges()
    sys.path += setup["folders"]
    for name in setup["preload"]:
        importlib.import_module(name)
    refusing = isolation.SystemCallFilter()
    given = {"user": ordinary or os.getuid() != 0, "system calls": refusing.available}
    layers += [name for name, there in given.items() if there]
    gc.collect()
    gc.freeze()  # a fork then copies fewer pages
    mapped = isolation.bytes_mapped()
    send(held[1], json.dumps({"ready": layers}).encode())
    Server(held, scratch, refusing, mapped).serve()


def _claim_pipes() -> tuple[int, ...]:
    """Move the pipes off the standard descriptors, which become that of errors: /dev/null."""
    pipes = os.dup(0), os.dup(1)
    os.dup2(2, 0)
    os.dup2(2, 1)
    return pipes


def _kept_folder(held: tuple[int, ...]) -> tuple[Path, int]:
    """Make a temporary folder that a process of its own removes when all who hold the returned descriptor are gone.

    That process is in a session of its own, so that it outlives a killed parent and a killed worker. The parent's
    number is in the folder's name.
    """
    folder = Path(tempfile.mkdtemp(prefix=f"tenfold-sandbox-{os.getppid()}-"))
    folder.chmod(0o777)
    watched, lifeline = os.pipe()
    if os.fork() == 0:
        os.setsid()
        for descriptor in (*held, lifeline):
            os.close(descriptor)
        os.read(watched, 1)
        shutil.rmtree(folder, ignore_errors=True)
        os._exit(0)
    os.close(watched)
    return folder, lifeline


def _become_process_one(held: tuple[int, ...]) -> None:
    """Go on as the first process of the new namespace; the process that left waits for it."""
    child = os.fork()
    if child:
        for pipe in held:
            os.close(pipe)
        os._exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) & 0xFF)
