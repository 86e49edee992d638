"""A pool of isolated worker processes that run model-written programs.

What holds, layer by layer (`Sandbox.layers` says which of them this machine gave):
1. syntax: `program.checked` admits assignments, arithmetic and calls of shown functions; nothing else is ever run.
2. it runs in a fork of its own of a warm worker (`python -I`, no environment, no inherited descriptors) that holds no
   pipe but its own: whatever it changes in a library ends with it.
3. limits: processor time, address space, size and number of files, no processes, and a wall-clock limit after which the
   worker ends that fork (and the pool the worker, should it not answer).
4. Linux: own network, process, mount and IPC namespaces; a file system of Python's own folders, read-only, and one
   empty folder of 16 MiB; user nobody without capabilities; a filter of system calls (no sockets, processes, signals).

What does not hold: a flaw of the kernel or of the C code of a library called is not contained by more than the above;
without root and user namespaces (or off Linux) the fourth layer is missing or thin, and a program that passes the first
could read what the user can read. `Sandbox(required=…)` refuses to start there. Timing of the machine can be observed.
"""

import contextlib
import json
import os
import queue
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lib import TenfoldError
from lib.sciagent import inside
from lib.sciagent import program as syntax

if TYPE_CHECKING:  # what the workers run, processes of their own, so that the graph of imports knows it
    from lib.sciagent.inside import harvest, worker  # noqa: F401

LAYERS = ("network", "processes", "mounts", "ipc", "files", "user", "system calls")
BOOT_SECONDS = 60.0
GRACE_SECONDS = 1.0  # beyond a program's own limit, before its worker is ended


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What one program may use."""

    seconds: float = 2.0  # wall clock
    cpu_seconds: float = 2.0
    memory_mib: int = 512  # beyond the libraries already loaded
    file_mib: int = 1  # a file
    files: int = 32  # open at once
    output_characters: int = 20_000
    reply_mib: int = 2

    def as_request(self) -> dict[str, Any]:
        """Return limits in seconds and bytes, as a worker reads them."""
        return {
            "seconds": self.seconds, "cpu_seconds": self.cpu_seconds, "memory_bytes": self.memory_mib << 20,
            "file_bytes": self.file_mib << 20, "files": self.files, "reply_bytes": self.reply_mib << 20,
            "output_characters": self.output_characters,
        }  # fmt: skip


@dataclass(frozen=True)
class Execution:
    """What came of a program: `kind` is ok, refused, error, time, memory, output or killed."""

    kind: str
    value: Any = None
    stdout: str = ""
    error: str = ""
    seconds: float = 0.0

    @property
    def ok(self) -> bool:
        """Whether it ran to its end."""
        return self.kind == "ok"


@dataclass(frozen=True)
class Job:
    """A program and the functions shown to it: `tools` maps names to `module:attribute`, `sources` to code."""

    program: str
    tools: Mapping[str, str] = field(default_factory=dict)
    sources: Mapping[str, str] = field(default_factory=dict)


class WorkerLost(Exception):
    """A worker ended or did not answer in time."""


class Worker:
    """One worker process and the pipes to it."""

    def __init__(self, preload: Sequence[str]) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="tenfold-sandbox-"))
        (self.folder / "scratch").mkdir()
        os.chmod(self.folder, 0o755)
        os.chmod(self.folder / "scratch", 0o777)
        setup = json.dumps({"preload": list(preload), "scratch": str(self.folder / "scratch")})
        start = "import sys; sys.path.insert(0, sys.argv.pop(1)); from inside.worker import main; main()"
        self.process = subprocess.Popen(
            [sys.executable, "-I", "-c", start, str(Path(__file__).parent), setup],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, close_fds=True, cwd=self.folder,
            start_new_session=True, bufsize=0,
            env={name: "1" for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")},
        )  # fmt: skip
        self.layers: tuple[str, ...] | None = None

    def ready(self) -> tuple[str, ...]:
        """Layers of isolation the worker reports, once it has booted; raises WorkerLost where it never does."""
        if self.layers is None:
            self.layers = tuple(self._receive(BOOT_SECONDS)["ready"])
        return self.layers

    def ask(self, request: dict[str, Any]) -> dict[str, Any]:
        """Answer to a request; raises WorkerLost where none comes within its limit and a grace."""
        assert self.process.stdin is not None
        try:
            inside.send(self.process.stdin.fileno(), json.dumps(request).encode())
        except OSError as error:
            raise WorkerLost(str(error)) from None
        return self._receive(request["limits"]["seconds"] + GRACE_SECONDS)

    def _receive(self, seconds: float) -> dict[str, Any]:
        assert self.process.stdout is not None
        try:
            return json.loads(inside.receive(self.process.stdout.fileno(), seconds=seconds))
        except inside.Unfinished as error:
            raise WorkerLost({"late": "no answer in time", "ended": "it ended"}[str(error)]) from None

    def end(self) -> None:
        """End the worker, all it started, and its folder."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, signal.SIGKILL)
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()
        self.process.wait()
        shutil.rmtree(self.folder, ignore_errors=True)


class Sandbox:
    """A pool of warm workers; use it as a context manager, from any number of threads.

    `preload` names modules to import once; `required` names layers of `LAYERS` without which it refuses to start
    (TenfoldError says which the machine does not give).
    """

    def __init__(
        self, *, workers: int = 1, preload: Sequence[str] = (), limits: Limits | None = None,
        required: Iterable[str] = (),
    ) -> None:  # fmt: skip
        self.limits, self.preload = limits or Limits(), tuple(preload)
        self.replaced = 0
        self._lock, self._closed = threading.Lock(), False
        self._workers = [Worker(self.preload) for _ in range(workers)]
        self._free: queue.SimpleQueue[Worker] = queue.SimpleQueue()
        for worker in self._workers:
            self._free.put(worker)
        try:
            self.layers = tuple(name for name in LAYERS if all(name in w.ready() for w in self._workers))
            missing = set(required) - set(self.layers)
            if missing:
                raise TenfoldError(
                    f"this machine does not isolate {', '.join(sorted(missing))}: run as root or allow user "
                    "namespaces, or leave them out of `required`."
                )
        except WorkerLost as error:
            self.close()
            raise TenfoldError(
                f"a sandbox worker could not start ({error}): check that {', '.join(preload) or 'Python'} can be "
                "imported (`make env` installs what the tools need)."
            ) from None
        except TenfoldError:
            self.close()
            raise

    def fingerprint(self) -> list[Any]:
        """Return what results depend on beside the workers' code: modules at hand with versions, and limits."""
        return [{module: _version(module) for module in self.preload}, self.limits.as_request()]

    def run(
        self, source: str, *, tools: Mapping[str, str] | None = None, sources: Mapping[str, str] | None = None
    ) -> Execution:
        """Check a model-written program against the allowed subset, then run it (`tools` and `sources` as in `Job`)."""
        tools, sources = dict(tools or {}), dict(sources or {})
        try:
            syntax.checked(source, functions=[*tools, *sources])
        except syntax.ProgramRefused as error:
            return Execution("refused", error=str(error))
        builtins = [*syntax.BUILTINS, *syntax.MATHS]
        request = {"program": source, "tools": tools, "sources": sources, "builtins": builtins}
        return self._ask(request, self.limits)

    def run_unchecked(self, source: str, *, limits: Limits | None = None) -> Execution:
        """Run any Python in isolation, without the first layer: for code that people wrote (doctests, tests)."""
        request = {"program": source, "tools": {}, "sources": {}, "builtins": None}
        return self._ask(request, limits or self.limits)

    def call(self, function: str, arguments: dict[str, Any], *, limits: Limits | None = None) -> Execution:
        """Call a function of `lib.sciagent.inside` (`module:name`) in a worker."""
        return self._ask({"function": function, "arguments": arguments}, limits or self.limits)

    def map(self, jobs: Sequence[Job], *, progress: bool = False) -> list[Execution]:
        """Run many programs over all workers; outcomes come in order."""
        from tqdm import tqdm

        def one(job: Job) -> Execution:
            return self.run(job.program, tools=job.tools, sources=job.sources)

        with ThreadPoolExecutor(len(self._workers)) as threads:
            return list(tqdm(threads.map(one, jobs), total=len(jobs), desc="programs", disable=not progress))

    def _ask(self, request: dict[str, Any], limits: Limits) -> Execution:
        if self._closed:
            raise TenfoldError("the sandbox is closed: open a new one.")
        worker = self._free.get()
        began = time.monotonic()
        try:
            worker.ready()
            answer = worker.ask(request | {"limits": limits.as_request()})
            outcome = _parsed(answer)
            if answer["last"]:  # it could not empty its folder
                worker = self._replace(worker)
        except WorkerLost as error:
            worker = self._replace(worker)
            outcome = Execution("killed", error=f"its worker was lost: {error}", seconds=time.monotonic() - began)
        finally:
            self._free.put(worker)
        return outcome

    def _replace(self, worker: Worker) -> Worker:
        worker.end()
        fresh = Worker(self.preload)
        with self._lock:
            self._workers[self._workers.index(worker)] = fresh
            self.replaced += 1
        return fresh

    def close(self) -> None:
        """End all workers."""
        self._closed = True
        for worker in self._workers:
            worker.end()

    def __enter__(self) -> "Sandbox":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _parsed(answer: dict[str, Any]) -> Execution:
    """Outcome from what a program's process wrote, which may be anything."""
    seconds = float(answer["seconds"])
    try:
        content = json.loads(answer["text"])
        stdout, error = str(content.get("stdout", "")), str(content.get("error", ""))
        return Execution(str(content["kind"]), content.get("value"), stdout, error, seconds)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return Execution("killed", error="answered with something that is no answer", seconds=seconds)


def _version(module: str) -> str:
    """Version of the library that a module belongs to; empty for Python's own."""
    try:
        return metadata.version(module.partition(".")[0])
    except metadata.PackageNotFoundError:
        return ""
