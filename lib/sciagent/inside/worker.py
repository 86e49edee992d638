"""The worker: isolates itself, imports the libraries once, and has programs run in forks of itself.

Its pipes to the parent are never held by a process that runs a program: such a process has two pipes of its own, and
what it writes there is only ever an opaque text for the parent to parse. It can spoil its own answer and no other. The
worker is process 1 of its namespace, which cannot be signalled from inside, and ends whatever a program left running.

A request marked `reuse` (a program that was checked before) goes to a runner that is kept; any other gets a runner of
its own. A runner that was late, ended or exceeded a limit is ended and replaced.
"""

import contextlib
import gc
import importlib
import json
import os
import shutil
import signal
import sys
import time
from pathlib import Path
from typing import Any

from . import isolation, messages, runner, seccomp

KEPT_CALLS = 2000  # programs after which a kept runner is replaced all the same


class Runner:
    """A fork of the worker that runs programs, and the two pipes to it."""

    def __init__(self, limits: dict[str, Any], refusing: seccomp.Filter, private: list[int], *, once: bool) -> None:
        self.limits, self.calls = limits, 0
        theirs_in, self.requests = os.pipe()
        self.replies, theirs_out = os.pipe()
        self.process = os.fork()
        if self.process == 0:
            for descriptor in (*private, self.requests, self.replies):
                os.close(descriptor)
            runner.serve(theirs_in, theirs_out, limits, refusing, once=once)
        os.close(theirs_in)
        os.close(theirs_out)

    def ask(self, request: dict[str, Any]) -> str:
        """Text that the program's process answered; raises messages.Unfinished, or OSError where it has ended."""
        self.calls += 1
        messages.send(self.requests, json.dumps(request).encode())
        most, seconds = self.limits["reply_bytes"], self.limits["seconds"]
        return messages.receive(self.replies, seconds=seconds, most=most).decode("utf8", "replace")

    def end(self) -> int:
        """End the process and return its exit status (negative: the signal it had died of before)."""
        os.close(self.requests)
        os.close(self.replies)
        code = _status_soon(self.process)
        if code is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.process, signal.SIGKILL)
            code = os.waitstatus_to_exitcode(os.waitpid(self.process, 0)[1])
        return code


def _status_soon(process: int) -> int | None:
    found, status = os.waitpid(process, os.WNOHANG)
    return os.waitstatus_to_exitcode(status) if found else None


class Server:
    """Serves the parent's requests one after the other."""

    def __init__(self, pipes: tuple[int, int], scratch: Path, refusing: seccomp.Filter, mapped: int) -> None:
        self.pipes, self.scratch, self.refusing, self.mapped = pipes, scratch, refusing, mapped
        self.kept: Runner | None = None

    def serve(self) -> None:
        """Answer until the parent closes its pipe, or the scratch folder can no longer be emptied."""
        with contextlib.suppress(messages.Unfinished):
            while True:
                request = json.loads(messages.receive(self.pipes[0]))
                began = time.monotonic()
                text = self._answer(request, request.pop("limits") | {"mapped": self.mapped}, request.pop("reuse"))
                last = not clean(self.scratch)
                reply = {"text": text, "seconds": time.monotonic() - began, "last": last}
                messages.send(self.pipes[1], json.dumps(reply).encode())
                if last:
                    return

    def _answer(self, request: dict[str, Any], limits: dict[str, Any], reuse: bool) -> str:
        which = self._kept_runner(limits) if reuse else Runner(limits, self.refusing, self._private(), once=True)
        try:
            text, why = which.ask(request), ""
        except (messages.Unfinished, OSError) as error:
            text, why = "", str(error) if isinstance(error, messages.Unfinished) else "ended"
        if reuse and not why:
            return text
        code = which.end()
        self.kept = None if which is self.kept else self.kept
        self._end_others()
        return text or json.dumps(_how_it_ended(why, code, limits))

    def _kept_runner(self, limits: dict[str, Any]) -> Runner:
        kept = self.kept
        if kept is not None and (kept.limits != limits or kept.calls >= KEPT_CALLS or _has_ended(kept)):
            kept.end()
            kept = None
        self.kept = kept or Runner(limits, self.refusing, self._private(), once=False)
        return self.kept

    def _private(self) -> list[int]:
        """Descriptors that a new runner must not keep."""
        return [*self.pipes, *((self.kept.requests, self.kept.replies) if self.kept else ())]

    def _end_others(self) -> None:
        """End what a program left running: as process 1, all else in our namespace."""
        if os.getpid() != 1:
            return
        if self.kept is not None:
            self.kept.end()
            self.kept = None
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(-1, signal.SIGKILL)
        with contextlib.suppress(ChildProcessError):
            while True:
                os.waitpid(-1, 0)


def _has_ended(kept: Runner) -> bool:
    """Whether a process is gone or a zombie, without reaping it."""
    return os.waitid(os.P_PID, kept.process, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


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
    pipes, ordinary = _claim_pipes(), os.getuid() != 0
    layers = isolation.enter_namespaces()
    if "processes" in layers:
        _become_process_one(pipes)
    scratch, meter = Path(setup["scratch"]), isolation.Meter()
    if "mounts" in layers:
        with contextlib.suppress(OSError):
            isolation.new_root(scratch, [Path(__file__).parent])
            scratch = isolation.SCRATCH
            layers.append("files")
    os.chdir(scratch)
    isolation.drop_privileges()
    for name in setup["preload"]:
        importlib.import_module(name)
    refusing = seccomp.Filter()
    given = {"user": ordinary or os.getuid() != 0, "system calls": refusing.available}
    layers += [name for name, there in given.items() if there]
    gc.collect()
    gc.freeze()  # a fork then copies fewer pages
    messages.send(pipes[1], json.dumps({"ready": layers}).encode())
    Server(pipes, scratch, refusing, meter.last_reading()).serve()


def _claim_pipes() -> tuple[int, int]:
    """Move the pipes off the standard descriptors, which become /dev/null."""
    requests, replies = os.dup(0), os.dup(1)
    null = os.open(os.devnull, os.O_RDWR)
    for standard in (0, 1, 2):
        os.dup2(null, standard)
    os.close(null)
    return requests, replies


def _become_process_one(pipes: tuple[int, int]) -> None:
    """Go on as the first process of the new namespace; the process that left waits for it."""
    child = os.fork()
    if child:
        for pipe in pipes:
            os.close(pipe)
        os._exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) & 0xFF)
