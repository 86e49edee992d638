"""Strict headless runs: papermill, held to the rule that a notebook is either wholly run or not run.

Results are written to a hidden folder and take their place in one rename when every cell has run; a failure leaves the
old results as they were, and `<paper>.failed.ipynb` beside them to look at.
"""

import contextlib
import json
import logging
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nbformat
import psutil

from lib import TenfoldError, root, unwritable
from lib.lab import outputs, profiles
from lib.lab import parameters as cell
from lib.lab.cache import full_disk_refused
from lib.lab.run import RESULTS, relative

ENGINE = "tenfold"
SAME_BEGINNING = 5  # seconds by which a process's beginning may read otherwise after its clock was set
KERNEL_START = 180  # seconds: a busy machine takes longer than the minute that papermill gives
# Notices of libraries that a published notebook does without, by their first words; in JupyterLab they are shown.
NOTICES = (
    "IProgress not found",
    "`is_gradient_checkpointing` is deprecated",
    "`gradient_checkpointing` is deprecated",
    "Already found a `peft_config` attribute in the model",
    "Adapter :UserWarning:peft.tuners.tuners_utils",  # … was active which is now deleted
)
QUIET = {
    "PYTHONWARNINGS": ",".join(f"ignore:{notice}" for notice in NOTICES),
    "TRANSFORMERS_VERBOSITY": "error", "DIFFUSERS_VERBOSITY": "error", "DATASETS_VERBOSITY": "error",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1", "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
    # Bars of tqdm, ours and others': each at the start of the line, none above another, a step every five seconds.
    "TQDM_POSITION": "0", "TQDM_MININTERVAL": "5",
}  # fmt: skip


class NotebookFailed(TenfoldError):
    """A notebook did not run to its end: says which cell, why, and where to look."""


@dataclass
class Position:
    """Where a run is: the cell (from 1) of how many, and its first line."""

    cell: int = 0
    total: int = 0
    line: str = ""

    def __str__(self) -> str:
        return f"cell {self.cell} of {self.total}" + (f" ({self.line})" if self.line else "")


def run_notebook(
    notebook: Path, results: Path, *, profile: str, parameters: dict[str, Any] | None = None,
    cell_timeout: int | None = None, echo: bool = True, needs_results: bool = True,
) -> Path:  # fmt: skip
    """Run a notebook into the folder `results` and return the executed copy there.

    Raises TenfoldError for parameters the notebook does not declare, NotebookFailed where a cell fails, exits, times
    out or loses its kernel, or where no results.json was written.
    """
    declared = profiles.declared(notebook)
    source = cell.canonical(cell.load(notebook), profiles.stated(notebook), notebook.name)
    checked = cell.validate(declared, parameters or {}, notebook.name)
    cell.agree(declared, {name: p.default for name, p in declared.items()} | checked, notebook.name)
    overrides = {name: value for name, value in checked.items() if value != declared[name].default}
    name = results.name
    failed = results.with_name(f"{name}.failed.ipynb")
    position, began = Position(), time.monotonic()
    with _refuse_unwritable(results.parent), _staging(results) as staging:
        executed = staging / notebook.name
        told = {
            "TENFOLD_PROFILE": profile, "TENFOLD_OUTPUT": str(staging), "TENFOLD_NOTEBOOK": str(notebook.resolve()),
        } | QUIET  # fmt: skip
        try:
            with environment(told), full_disk_refused(results.parent):
                _execute(source, executed, overrides, cell_timeout, _follower(name, position, began, echo), echo)
            _refuse_half_a_run(executed, staging if needs_results else None)
        except BaseException as error:
            # Nothing of a failed run may look like a result: keep only the notebook, under a name that says so.
            kept = _keep_failed(executed, failed)
            if isinstance(error, TenfoldError | KeyboardInterrupt | SystemExit) and not isinstance(
                error, NotebookFailed
            ):
                raise
            raise NotebookFailed(f"{name} failed in {position}: {_reason(error)}{kept}") from None
        write_clean(executed, executed, {"profile": profile, "parameters": overrides, "source": cell.digest(source)})
        _take_place(staging, results)
    failed.unlink(missing_ok=True)
    return results / notebook.name


def _execute(source: dict[str, Any], executed: Path, overrides, cell_timeout, follow, echo: bool) -> None:
    import papermill
    from traitlets.config import Config

    _register_engine()
    logging.getLogger("papermill").setLevel(logging.CRITICAL)  # its warnings are our errors, already raised
    with tempfile.TemporaryDirectory(prefix="tenfold-") as folder:
        notebook = Path(folder, executed.name)
        notebook.write_text(json.dumps(source, ensure_ascii=False), encoding="utf8")
        # The kernel listens on sockets that only this user can open, not on TCP ports.
        transport = Config({"KernelManager": {"transport": "ipc", "ip": f"{folder}/kernel"}})
        papermill.execute_notebook(
            notebook, executed, parameters=overrides, engine_name=ENGINE, kernel_name="python3", cwd=root(),
            progress_bar=False, stdout_file=sys.stdout if echo else None, stderr_file=sys.stderr if echo else None,
            execution_timeout=cell_timeout, start_timeout=KERNEL_START, autosave_cell_every=0, follow=follow,
            config=transport,
        )  # fmt: skip


def _register_engine() -> None:
    from papermill.engines import NBClientEngine, papermill_engines

    class Following(NBClientEngine):
        """papermill's own engine, telling us each cell before it runs."""

        @classmethod
        def execute_managed_notebook(cls, nb_man, kernel_name, *, follow, **options):
            begin = nb_man.cell_start

            def announced(cell, cell_index=None, **rest):
                follow(cell_index, nb_man.nb.cells)
                begin(cell, cell_index, **rest)

            nb_man.cell_start = announced
            super().execute_managed_notebook(nb_man, kernel_name, **options)

    papermill_engines.register(ENGINE, Following)


def _follower(name: str, position: Position, began: float, echo: bool):
    def follow(index: int, cells) -> None:
        position.cell, position.total = index + 1, len(cells)
        lines = cells[index].source.strip().splitlines()
        position.line = lines[0][:70] if lines else ""
        if echo and cells[index].cell_type == "code" and lines:
            elapsed = time.monotonic() - began
            print(f"[{name} {position.cell}/{position.total} {elapsed:5.0f} s] {position.line}", flush=True)

    return follow


def _refuse_half_a_run(executed: Path, staging: Path | None) -> None:
    """`sys.exit(0)` in a cell ends a run that papermill calls a success: every non-empty code cell must have run."""
    notebook = nbformat.read(executed, as_version=4)
    for number, c in enumerate(notebook.cells, start=1):
        if c.cell_type != "code" or not c.source.strip():
            continue
        left = any(o.output_type == "error" and o.ename == "SystemExit" for o in c.outputs)
        if left or c.execution_count is None:
            raise NotebookFailed(
                f"cell {number} {'exited early' if left else 'did not run'}; remove the exit from the notebook"
            )
    if staging is not None and not (staging / RESULTS).exists():
        raise NotebookFailed("no results.json was written: the last code cell must call run.finish()")


def _reason(error: BaseException) -> str:
    from nbclient.exceptions import CellTimeoutError, DeadKernelError
    from papermill.exceptions import PapermillExecutionError

    if isinstance(error, PapermillExecutionError):
        return error.evalue if error.ename == "TenfoldError" else f"{error.ename}: {error.evalue}"
    if isinstance(error, DeadKernelError):
        return "its kernel was killed (often: out of memory); try PROFILE=smoke or smaller parameters"
    if isinstance(error, CellTimeoutError):
        return "the cell ran past its time limit"
    return str(error) or type(error).__name__


@contextlib.contextmanager
def _staging(results: Path):
    """Hidden folder beside the results that holds a run while it goes on."""
    staging = results.with_name(f".{results.name}.running")
    owner = staging / "pid"
    if pid := _still_running(owner):
        raise TenfoldError(f"{results.name} is already running (process {pid}): wait for it, or end it.")
    shutil.rmtree(staging, ignore_errors=True)
    try:
        staging.mkdir(parents=True)
        owner.write_text(f"{os.getpid()} {psutil.Process().create_time():.0f}")
        yield staging
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _still_running(owner: Path) -> int:
    """Number of the process that a note names with its beginning; 0 where it has ended, whoever has its number now.

    A note without any number was cut short by a full disk or a kill, and one without a beginning is taken at its word.
    """
    try:
        pid, *began = map(int, owner.read_text().split())
        begins = psutil.Process(pid).create_time()
    except (OSError, ValueError, psutil.NoSuchProcess):
        return 0
    return pid if not began or abs(begins - began[0]) < SAME_BEGINNING else 0


@contextlib.contextmanager
def _refuse_unwritable(folder: Path):
    """Turn an error in writing results into one sentence, so that other papers go on."""
    try:
        yield
    except OSError as error:
        raise unwritable(folder, "TENFOLD_FIGURES", error) from None


def _take_place(staging: Path, results: Path) -> None:
    (staging / "pid").unlink()
    old = results.with_name(f".{results.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if results.exists():
        os.rename(results, old)
    os.rename(staging, results)
    shutil.rmtree(old, ignore_errors=True)


def _keep_failed(executed: Path, failed: Path) -> str:
    if not executed.exists():
        return ""
    with contextlib.suppress(OSError, ValueError):
        write_clean(executed, failed, {"failed": True})
        return f"; see {relative(failed)}"
    failed.unlink(missing_ok=True)
    return ""


@contextlib.contextmanager
def environment(values: Mapping[str, str | None]):
    """Set variables of the environment (None: unset) inside the block, also for processes that begin there."""
    before = {name: os.environ.get(name) for name in values}
    _set(values)
    try:
        yield
    finally:
        _set(before)


def _set(values: Mapping[str, str | None]) -> None:
    for name, value in values.items():
        os.environ.pop(name, None) if value is None else os.environ.__setitem__(name, value)


def write_clean(source: Path, target: Path, stamp: dict[str, Any]) -> None:
    """Write an executed notebook with our stamp instead of papermill's, and its outputs as a reader should see them."""
    notebook = nbformat.read(source, as_version=4)
    notebook.metadata.pop("papermill", None)
    notebook.metadata["tenfold"] = stamp
    for c in notebook.cells:
        for block in ("papermill", "execution"):
            c.metadata.pop(block, None)
        if "outputs" in c:
            c.outputs = outputs.clean(c.outputs)
    temporary = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        nbformat.write(notebook, temporary)
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)
