"""Mutants: one changed sign, exponent, index or comparison at a time, each of which a named test must notice.

`tests/mutations.toml` lists them. A mutation is made in a copy of the repository, never in the repository itself; the
test that is named must pass there before and fail after. What survives shows a formula that no test holds.
"""

import ast
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import tomllib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from queue import Queue

from pydantic import BaseModel, ConfigDict, ValidationError

from lib import TenfoldError, data_dir, root
from lib.lab.keys import normal_form

COPIED = ("lib", "tests", "notebooks", "pyproject.toml", "requirements.lock", "README.md", "docs")
UNCOPIED = shutil.ignore_patterns("__pycache__", "*.ipynb_checkpoints")
WORKERS = 2
SECONDS = 600  # for one mutant's test, which should take a few
SAMPLE = 20  # `make test` runs one mutant in so many
SHIFTED = ("TENFOLD_NOTEBOOKS", "TENFOLD_FIGURES", "PYTEST_ADDOPTS", "PYTEST_XDIST_WORKER", "PYTEST_CURRENT_TEST")
PASSED, FAILED = 0, 1  # pytest's exit status

# A process that has loaded the large libraries once, and forks for each run of pytest in a copy. It runs nothing where
# the copy's package is not the one that would be imported. The package itself is not loaded before pytest, whose plugin
# checks the shapes of tensors in what is imported after it.
SERVER = """
import contextlib, importlib, importlib.util, json, os, pathlib, sys
import pytest
for name in ("torch", "transformers.trainer", "datasets", "pandas", "scipy.stats", "sklearn.linear_model", "peft",
             "trl", "diffusers", "nbformat", "papermill", "pydantic", "hypothesis"):
    with contextlib.suppress(ImportError):
        importlib.import_module(name)
found = importlib.util.find_spec("lib")
if found is None or pathlib.Path(found.origin).resolve().parents[1] != pathlib.Path.cwd().resolve():
    sys.exit("lib is imported from elsewhere")
for line in sys.stdin:
    arguments, output = json.loads(line)
    child = os.fork()
    if not child:
        target = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(target, 1), os.dup2(target, 2)
        code = pytest.main(arguments)
        sys.stdout.flush(), sys.stderr.flush()
        os._exit(code)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


class Mutant(BaseModel):
    """One mutation: `before` becomes `after` in `file`; `what` rule that breaks, and the `test` that must fail."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    file: str
    before: str
    after: str
    what: str
    test: str

    @property
    def room(self) -> str:
        """Package that the mutation is in."""
        return Path(self.file).parts[1]

    @property
    def test_file(self) -> str:
        """File of the test."""
        return self.test.split("::")[0]

    def mutated(self, source: str) -> str:
        """Source with the mutation in it; raises TenfoldError where `before` is not there exactly once."""
        count = source.count(self.before)
        if count != 1:
            raise TenfoldError(
                f"{self.file} holds {self.before!r} {count} times, not once: mend the entry {self.what!r} in "
                "tests/mutations.toml."
            )
        return source.replace(self.before, self.after)

    def check(self, folder: Path) -> None:
        """Raise TenfoldError where the mutation does not apply, changes no code, or its test is not there."""
        path = folder / self.file
        if not path.is_file():
            raise TenfoldError(f"{self.file} is not there: mend the entry {self.what!r} in tests/mutations.toml.")
        source = path.read_text(encoding="utf8")
        changed = self.mutated(source)
        try:
            same = path.suffix == ".py" and normal_form(ast.parse(source)) == normal_form(ast.parse(changed))
        except SyntaxError:
            raise TenfoldError(f"{self.after!r} makes {self.file} no Python: mend the entry {self.what!r}.") from None
        if same:
            raise TenfoldError(f"{self.before!r} in {self.file} changes no code: mutate the line, not its comment.")
        function = re.split(r"::|\[", self.test)[1:2]
        tests = folder / self.test_file
        if not function or not tests.is_file() or f"def {function[0]}(" not in tests.read_text(encoding="utf8"):
            raise TenfoldError(f"there is no test {self.test}: mend the entry {self.what!r} in tests/mutations.toml.")


@dataclass(frozen=True)
class Outcome:
    """What became of a mutant: caught by its test, or why that cannot be said; `detail` is pytest's last lines."""

    mutant: Mutant
    state: str  # "caught", "survived", or what went wrong
    detail: str = ""

    @property
    def caught(self) -> bool:
        """Whether the named test failed as it should."""
        return self.state == "caught"


def load(path: Path | None = None) -> list[Mutant]:
    """Mutants of `tests/mutations.toml`, in order; raises TenfoldError where the file or an entry cannot be read."""
    path = path or root() / "tests" / "mutations.toml"
    try:
        entries = tomllib.loads(path.read_text(encoding="utf8")).get("mutants", [])
        return [Mutant(**entry) for entry in entries]
    except (OSError, tomllib.TOMLDecodeError, ValidationError, TypeError) as error:
        raise TenfoldError(f"{path.name} cannot be read: {' '.join(str(error).split())}.") from None


def sample(mutants: Sequence[Mutant], turn: int) -> list[Mutant]:
    """Every twentieth mutant, beginning with another one each turn: twenty turns in a row meet all of them."""
    return list(mutants[turn % SAMPLE :: SAMPLE])


def run(
    mutants: Sequence[Mutant], *, workers: int = WORKERS, unmutated: bool = True,
    told: Callable[[Outcome], None] | None = None,
) -> list[Outcome]:  # fmt: skip
    """Outcome of each mutant, in order; `told` hears of each as it is known.

    The named tests run without a mutation first, once a test file (not where `unmutated` is False: they are known to
    pass). Raises TenfoldError before anything runs where an entry does not apply.
    """
    for mutant in mutants:
        mutant.check(root())
    found: dict[Mutant, Outcome] = {}
    lock = threading.Lock()

    def tell(outcome: Outcome) -> None:
        with lock:
            found[outcome.mutant] = outcome
            if told:
                told(outcome)

    with _copies(workers) as copies, ThreadPoolExecutor(workers) as pool:
        ready = list(mutants)
        if unmutated:
            files = list(dict.fromkeys(m.test_file for m in mutants))
            groups = [[m for m in mutants if m.test_file == file] for file in files]
            passing = list(pool.map(lambda group: _unmutated(group, copies, tell), groups))
            ready = [m for group in passing for m in group]
        list(pool.map(lambda mutant: tell(_mutated(mutant, copies)), ready))
    return [found[mutant] for mutant in mutants]


def _unmutated(group: list[Mutant], copies: "Queue[Copy]", tell: Callable[[Outcome], None]) -> list[Mutant]:
    """Mutants of a group whose tests pass as they are; the others are told."""
    with _borrowed(copies) as copy:
        code, output = copy.pytest(list(dict.fromkeys(m.test for m in group)))
    if code == PASSED:
        return group
    for mutant in group:
        tell(Outcome(mutant, "the tests fail without a mutation", _last_lines(output)))
    return []


def _mutated(mutant: Mutant, copies: "Queue[Copy]") -> Outcome:
    with _borrowed(copies) as copy:
        path = copy.folder / mutant.file
        source = path.read_text(encoding="utf8")
        try:
            path.write_text(mutant.mutated(source), encoding="utf8")
            code, output = copy.pytest([mutant.test])
        finally:
            path.write_text(source, encoding="utf8")
    if code == FAILED:
        return Outcome(mutant, "caught")
    states = {PASSED: "survived", None: "the test did not end"}
    return Outcome(mutant, states.get(code, f"pytest stopped with status {code}"), _last_lines(output))


def _last_lines(output: str, count: int = 12) -> str:
    return "\n".join(output.strip().splitlines()[-count:])


class Copy:
    """A copy of the repository in a folder, and the process that runs tests in it; assets are read where they are."""

    def __init__(self, folder: Path) -> None:
        self.folder, self._server = folder, None
        folder.mkdir()
        for name in COPIED:
            source = root() / name
            if source.is_dir():
                shutil.copytree(source, folder / name, ignore=UNCOPIED)
            elif source.exists():
                shutil.copy(source, folder / name)
        (folder / "data").symlink_to(data_dir().resolve())

    def pytest(self, tests: list[str]) -> tuple[int | None, str]:
        """Exit status (None where it did not end in time) and output of some tests; raises TenfoldError without one."""
        server = self._started()
        assert server.stdin is not None
        assert server.stdout is not None
        output = self.folder / "output.txt"
        output.unlink(missing_ok=True)
        late = threading.Timer(SECONDS, self.stop)
        late.start()
        try:
            arguments = ["-x", "-q", "-p", "no:cacheprovider", "--no-header", *tests]
            server.stdin.write(json.dumps([arguments, str(output)]) + "\n")
            server.stdin.flush()
            status = server.stdout.readline()
        except BrokenPipeError:
            status = ""
        late.cancel()
        if not status and server.wait() != -signal.SIGKILL:  # the process ended by itself: it never ran a test
            raise TenfoldError("the mutants' tests could not be started: see the error above, and run `make doctor`.")
        shutil.rmtree(self.folder / "cache", ignore_errors=True)  # what a mutant computed is not for the next
        return int(status) if status else None, output.read_text(encoding="utf8") if output.exists() else ""

    def _started(self) -> "subprocess.Popen[str]":
        if self._server is None or self._server.poll() is not None:
            environment = os.environ | {
                "PYTHONPATH": str(self.folder), "PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1",
                "HF_HUB_OFFLINE": "1", "MPLBACKEND": "Agg", "TENFOLD_DATA": str(data_dir().resolve()),
                "TENFOLD_CACHE": str(self.folder / "cache"),
            }  # fmt: skip
            for variable in SHIFTED:
                environment.pop(variable, None)
            self._server = subprocess.Popen(
                [sys.executable, "-c", SERVER], cwd=self.folder, env=environment, text=True, start_new_session=True,
                stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            )  # fmt: skip
        return self._server

    def stop(self) -> None:
        """End the process, and the test that it runs."""
        if self._server is not None and self._server.poll() is None:
            os.killpg(self._server.pid, signal.SIGKILL)
            self._server.wait()


@contextmanager
def _copies(count: int) -> "Iterator[Queue[Copy]]":
    with tempfile.TemporaryDirectory(prefix="tenfold-mutants-") as folder:
        made = [Copy(Path(folder) / str(number)) for number in range(count)]
        copies: Queue[Copy] = Queue()
        for copy in made:
            copies.put(copy)
        try:
            yield copies
        finally:
            for copy in made:
                copy.stop()


@contextmanager
def _borrowed(copies: "Queue[Copy]") -> Iterator[Copy]:
    copy = copies.get()
    try:
        yield copy
    finally:
        copies.put(copy)


def page() -> Path:
    """Where `make mutants` writes what it found."""
    return root() / "tests" / "MUTANTS.md"


def as_markdown(outcomes: Sequence[Outcome]) -> str:
    """Page that says which rules are held, and by which test."""
    caught = sum(outcome.caught for outcome in outcomes)
    lines = [
        "# Mutants", "",
        "Written by `make mutants`: each rule was broken by one small change in a copy of the repository, and the test "
        "that is named failed as it should.", "",
        f"{caught} of {len(outcomes)} mutants are caught.",
    ]  # fmt: skip
    for room in dict.fromkeys(outcome.mutant.room for outcome in outcomes):
        lines += ["", f"## {room}", "", "| rule that was broken | file | caught by |", "|---|---|---|"]
        for outcome in outcomes:
            if outcome.mutant.room == room:
                by = f"`{outcome.mutant.test.removeprefix('tests/')}`" if outcome.caught else f"**{outcome.state}**"
                lines.append(f"| {_cell(outcome.mutant.what)} | `{outcome.mutant.file.removeprefix('lib/')}` | {by} |")
    return "\n".join(lines) + "\n"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")
