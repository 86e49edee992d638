"""A pool of isolated worker processes that run model-written programs.

What holds, layer by layer (`Sandbox.layers` says which of them this machine gave):
1. a program runs in a fork of its own of a warm worker (`python -I`, no environment, no inherited descriptors) that
   holds no pipe but its own: whatever it changes in a library ends with it, and the worker itself runs no program.
2. limits: processor time, address space, size and number of files, no processes, and a wall-clock limit after which the
   worker ends that fork (and the pool the worker, should it not answer; a new one takes its place).
3. Linux: own network, process, mount and IPC namespaces, by Bubblewrap where it is installed; a file system of Python's
   own folders, read-only, and one empty folder of 16 MiB in memory; user nobody without capabilities.
4. Linux: a list of system calls that are allowed; no sockets, processes, signals, mounts, priorities.

The syntax check of `constrained` programs and the list of imports of `free` ones are no layers: they help a small model
to write programs that run. What does not hold: a flaw of the kernel or of the C code of a library called is not
contained by more than the above, and the timing of the machine can be observed. A layer that the machine does not give
(no root and no user namespaces, another system than Linux) is missed: `Sandbox()` refuses to start without it unless it
is told that weaker isolation will do.
"""

import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from lib import TenfoldError
from lib.sciagent import inside
from lib.sciagent import program as syntax
from lib.sciagent.inside import isolation as layers_of

if TYPE_CHECKING:  # what the workers run, processes of their own, so that the graph of imports knows it
    from lib.sciagent.inside import harvest, worker  # noqa: F401

Isolation = Literal["bubblewrap", "namespaces", "none"]
Mode = Literal["free", "constrained", "any"]
LAYERS = ("network", "processes", "mounts", "ipc", "files", "user", "system calls")
BOOT_SECONDS = 60.0
GRACE_SECONDS = 1.0  # beyond a program's own limit, before its worker is ended


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What one program may use."""

    seconds: float | int = 2.0  # wall clock
    cpu_seconds: float | int = 2.0
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
    """A program and the functions shown to it: `tools` maps names to `module:attribute`, `sources` to code.

    `literal` tools evaluate texts as code, so they are given none. In `mode` "free" any Python runs whose imports are
    known ones, in "constrained" a subset (`program.checked`), in "any" whatever it is.
    """

    program: str
    tools: Mapping[str, str] = field(default_factory=dict)
    sources: Mapping[str, str] = field(default_factory=dict)
    literal: tuple[str, ...] = ()
    mode: Mode = "free"


class WorkerLost(Exception):
    """A worker ended or did not answer in time."""


class Worker:
    """One worker process and the pipes to it; it starts when it is first asked, and again after it was ended."""

    def __init__(self, preload: Sequence[str], isolation: Isolation, folders: Sequence[Path]) -> None:
        self.setup = {"preload": list(preload), "isolation": isolation, "folders": [str(f) for f in folders]}
        self.process: subprocess.Popen[bytes] | None = None
        self.layers: tuple[str, ...] | None = None

    def start(self) -> None:
        """Start the process, unless it runs; raises WorkerLost where it cannot."""
        if self.process is not None:
            return
        here, setup = Path(inside.__file__).parent, self.setup
        code = "import sys; sys.path.insert(0, sys.argv.pop(1)); from inside.worker import main; main()"
        shown = (here, *map(Path, setup["folders"]))
        around = layers_of.bubblewrap(shown) if setup["isolation"] == "bubblewrap" else ()
        try:
            self.process = subprocess.Popen(
                [*around, sys.executable, "-I", "-c", code, str(here.parent), json.dumps(setup)],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, close_fds=True, cwd="/",
                start_new_session=True, bufsize=0,
                env={name: "1" for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")},
            )  # fmt: skip
        except OSError as error:
            raise WorkerLost(str(error)) from None

    def ready(self) -> tuple[str, ...]:
        """Layers of isolation the worker reports, once it has booted; raises WorkerLost where it never does."""
        self.start()
        if self.layers is None:
            self.layers = tuple(self._receive(BOOT_SECONDS)["ready"])
        return self.layers

    def ask(self, request: dict[str, Any]) -> dict[str, Any]:
        """Answer to a request; raises WorkerLost where none comes within its limit and a grace."""
        self.ready()
        assert self.process is not None
        assert self.process.stdin is not None
        try:
            inside.send(self.process.stdin.fileno(), json.dumps(request).encode())
        except OSError as error:
            raise WorkerLost(str(error)) from None
        return self._receive(request["limits"]["seconds"] + GRACE_SECONDS)

    def _receive(self, seconds: float) -> dict[str, Any]:
        assert self.process is not None
        assert self.process.stdout is not None
        try:
            return json.loads(inside.receive(self.process.stdout.fileno(), seconds=seconds))
        except inside.Unfinished as error:
            raise WorkerLost({"late": "no answer in time", "ended": "it ended"}[str(error)]) from None
        except ValueError:
            raise WorkerLost("an answer that is none") from None

    def end(self) -> None:
        """End the worker and all it started."""
        if self.process is None:
            return
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, signal.SIGKILL)
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()
        self.process.wait()
        self.process = self.layers = None


class Sandbox:
    """A pool of warm workers; use it as a context manager, from any number of threads.

    `preload` names modules to import once, `folders` further ones to import from (read-only, shown to every program).
    `isolation` is the best that the machine gives where none is named. Where a layer of `LAYERS` is missing it refuses
    to start (TenfoldError says which), unless `allow_weaker` says that the programs are trusted that far.
    """

    def __init__(
        self, *, workers: int = 1, preload: Sequence[str] = (), limits: Limits | None = None,
        folders: Sequence[Path | str] = (), isolation: Isolation | None = None, allow_weaker: bool = False,
    ) -> None:  # fmt: skip
        if workers < 1:
            raise ValueError(f"workers={workers}: a sandbox needs at least one")
        self.limits, self.preload = limits or Limits(), tuple(preload)
        shown = self.folders = tuple(Path(folder).resolve() for folder in folders)
        there = layers_of.bubblewrap((Path(inside.__file__).parent, *shown)) if isolation != "namespaces" else ()
        self.isolation: Isolation = isolation or ("bubblewrap" if there else "namespaces")
        if self.isolation == "bubblewrap" and not there:
            raise TenfoldError("Bubblewrap (`bwrap`) is not installed or cannot work here: leave `isolation` out.")
        self.replaced = 0
        self._lock, self._closed = threading.Lock(), False
        self._workers = [Worker(self.preload, self.isolation, shown) for _ in range(workers)]
        self._free: queue.SimpleQueue[Worker] = queue.SimpleQueue()
        try:
            for worker in self._workers:
                worker.start()
                self._free.put(worker)
            self.layers = tuple(name for name in LAYERS if all(name in w.ready() for w in self._workers))
        except WorkerLost as error:
            self.close()
            raise TenfoldError(
                f"a sandbox worker could not start ({error}): check that {', '.join(preload) or 'Python'} can be "
                "imported (`make env` installs what the tools need)."
            ) from None
        missing = [name for name in LAYERS if name not in self.layers]
        if missing and not allow_weaker:
            self.close()
            raise TenfoldError(
                f"this machine does not isolate {', '.join(missing)}: install Bubblewrap, run as root or allow user "
                "namespaces, or say allow_weaker=True for programs that you would run anyway."
            )

    @property
    def workers(self) -> int:
        """Number of worker processes."""
        return len(self._workers)

    @contextlib.contextmanager
    def with_preloaded(self, module: str) -> Iterator["Sandbox"]:
        """Give a sandbox like this one for which a module is imported once: this one, where it is already."""
        if module in self.preload:
            yield self
            return
        with Sandbox(
            workers=self.workers, preload=[*self.preload, module], limits=self.limits, folders=self.folders,
            isolation=self.isolation, allow_weaker=True,
        ) as warm:  # fmt: skip
            yield warm

    def fingerprint(self) -> list[Any]:
        """Return what results depend on beside the workers' code: modules at hand with versions, and limits."""
        return [{module: _version(module) for module in self.preload}, self.limits.as_request()]

    def run(
        self, program: str, *, tools: Mapping[str, str] | None = None, sources: Mapping[str, str] | None = None,
        literal: Sequence[str] = (), mode: Mode = "free", limits: Limits | None = None,
    ) -> Execution:  # fmt: skip
        """Run a program in isolation; its arguments are a `Job`'s. Its value: `answer`, its last line or last print."""
        tools, sources = dict(tools or {}), dict(sources or {})
        request = {"program": program, "tools": tools, "sources": sources, "literal": list(literal)}
        request |= {"builtins": None, "imports": list(syntax.IMPORTS) if mode == "free" else None}
        if mode == "constrained":
            try:
                syntax.checked(program, functions=[*tools, *sources])
            except syntax.ProgramRefused as error:
                return Execution("refused", error=str(error))
            request["builtins"] = [*syntax.BUILTINS, *syntax.MATHS]
        return self._ask(request, limits or self.limits)

    def call(self, function: str, arguments: dict[str, Any], *, limits: Limits | None = None) -> Execution:
        """Call a function of `lib.sciagent.inside` (`module:name`) in a worker."""
        return self._ask({"function": function, "arguments": arguments}, limits or self.limits)

    def map(self, jobs: Sequence[Job], *, progress: bool = False) -> list[Execution]:
        """Run many programs over all workers; outcomes come in order."""
        from tqdm import tqdm

        def one(job: Job) -> Execution:
            return self.run(job.program, tools=job.tools, sources=job.sources, literal=job.literal, mode=job.mode)

        with ThreadPoolExecutor(len(self._workers)) as threads:
            return list(tqdm(threads.map(one, jobs), total=len(jobs), desc="programs", disable=not progress))

    def _ask(self, request: dict[str, Any], limits: Limits) -> Execution:
        if self._closed:
            raise TenfoldError("the sandbox is closed: open a new one.")
        worker = self._free.get()
        began = time.monotonic()
        try:
            answer = worker.ask(request | {"limits": limits.as_request()})
            if answer["last"]:  # it can serve no more
                self._end(worker)
            return _parsed(answer)
        except WorkerLost as error:
            self._end(worker)
            return Execution("killed", error=f"its worker was lost: {error}", seconds=time.monotonic() - began)
        except BaseException:  # an interruption: the answer that still comes is nobody else's
            self._end(worker)
            raise
        finally:
            self._free.put(worker)

    def _end(self, worker: Worker) -> None:
        """End a worker, which starts anew with the next program that it is given."""
        worker.end()
        with self._lock:
            self.replaced += 1

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
