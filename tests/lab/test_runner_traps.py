"""Each way in which papermill lets a broken run look built, as a deliberately bad notebook."""

import os
import signal
import subprocess
import sys
import time

import nbformat
import pytest

from lib import TenfoldError
from lib.lab.runner import NotebookFailed, run_notebook

DECLARED = "value = 1  # a number\nname = 'a'  # a word"
WRITE_RESULTS = "import os, pathlib\npathlib.Path(os.environ['TENFOLD_OUTPUT'], 'results.json').write_text(str(value))"


@pytest.fixture
def run(house):
    def run(notebook, **options):
        options = {"profile": "smoke", "echo": False, "needs_results": False} | options
        return run_notebook(notebook, house / "figures" / "smoke" / "trap", **options)

    return run


def outputs(house):
    folder = house / "figures" / "smoke"
    return sorted(p.name for p in folder.iterdir()) if folder.exists() else []


def test_override_reaches_the_notebook_and_results_take_their_place(house, write_notebook, run):
    executed = run(write_notebook(DECLARED, WRITE_RESULTS), parameters={"value": 7}, needs_results=True)
    assert (executed.parent / "results.json").read_text() == "7"
    assert outputs(house) == ["trap"]


def test_unknown_parameter_is_refused_and_names_the_declared_ones(house, write_notebook, run):
    with pytest.raises(TenfoldError, match=r"no parameter 'valu'; did you mean 'value'\? The names are: value, name"):
        run(write_notebook(DECLARED, "print(value)"), parameters={"valu": 2})
    assert outputs(house) == []


def test_wrong_type_is_refused(write_notebook, run):
    with pytest.raises(TenfoldError, match="value = '2' does not fit"):
        run(write_notebook(DECLARED, "print(value)"), parameters={"value": "2"})


def test_missing_parameters_tag_is_refused(write_notebook, run):
    with pytest.raises(TenfoldError, match="0 cells tagged 'parameters'"):
        run(write_notebook(DECLARED, "print(value)", tag_first=False), parameters={"value": 2})


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("n = 3\ntwice = 2 * n", "parameter 'twice' is computed"),
        ("x: int = 3", "not `name = literal`"),
        ("import os", "not `name = literal`"),
        ("p = 'a=b'", "'=' inside its string"),
    ],
)
def test_what_papermill_misreads_in_the_parameters_cell_is_refused(write_notebook, run, source, message):
    with pytest.raises(TenfoldError, match=message):
        run(write_notebook(source, "print(1)"))


@pytest.mark.parametrize("leave", ["import sys; sys.exit(0)", "raise SystemExit"])
def test_an_early_exit_is_a_failure(house, write_notebook, run, leave):
    with pytest.raises(NotebookFailed, match="exited early|did not run"):
        run(write_notebook(DECLARED, leave, "print('never')"))
    assert outputs(house) == ["trap.failed.ipynb"]


def test_an_exit_in_the_last_cell_is_a_failure_too(write_notebook, run):
    with pytest.raises(NotebookFailed):
        run(write_notebook(DECLARED, WRITE_RESULTS, "import sys; sys.exit(0)"))


def test_a_failure_names_the_cell_and_keeps_the_old_results(house, write_notebook, run):
    run(write_notebook(DECLARED, WRITE_RESULTS))
    with pytest.raises(NotebookFailed, match=r"cell 3 of 3 \(1 / 0\): ZeroDivisionError"):
        run(write_notebook(DECLARED, "value = 99\n" + WRITE_RESULTS, "1 / 0"))
    assert (house / "figures/smoke/trap/results.json").read_text() == "1"
    failed = nbformat.read(house / "figures/smoke/trap.failed.ipynb", as_version=4)
    assert any(o.output_type == "error" for c in failed.cells if c.cell_type == "code" for o in c.outputs)
    run(write_notebook(DECLARED, WRITE_RESULTS))
    assert outputs(house) == ["trap"], "a success removes the failed copy"


def test_no_results_is_a_failure(write_notebook, run):
    with pytest.raises(NotebookFailed, match=r"must call run.finish\(\)"):
        run(write_notebook(DECLARED, "print(1)"), needs_results=True)


@pytest.mark.parametrize("end", ["os.kill(os.getpid(), signal.SIGKILL)", "os._exit(0)"])
def test_a_killed_kernel_is_a_failure_that_names_the_cell(house, write_notebook, run, end):
    with pytest.raises(NotebookFailed, match=r"cell 2 of 2 .*kernel was killed"):
        run(write_notebook(DECLARED, f"import os, signal; {end}"))
    assert "trap" not in outputs(house)


def test_a_cell_past_its_time_limit_is_a_failure(house, write_notebook, run):
    with pytest.raises(NotebookFailed, match=r"cell 2 of 2 .*time limit"):
        run(write_notebook(DECLARED, "import time; time.sleep(60)"), cell_timeout=2)
    assert "trap" not in outputs(house)


def test_ctrl_c_leaves_no_half_result(house, write_notebook):
    notebook = write_notebook(DECLARED, WRITE_RESULTS, "print('now', flush=True)\nimport time; time.sleep(60)")
    results = house / "figures/smoke/trap"
    script = (  # a test run in the background ignores Ctrl-C, and so would its children
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "from pathlib import Path; from lib.lab.runner import run_notebook\n"
        f"run_notebook(Path({str(notebook)!r}), Path({str(results)!r}), profile='smoke')"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("now"):
            break
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=60) != 0
    assert outputs(house) in ([], ["trap.failed.ipynb"])


def test_kill_9_leaves_only_a_hidden_folder_that_the_next_run_removes(house, write_notebook, run):
    notebook = write_notebook(DECLARED, WRITE_RESULTS)
    hidden = house / "figures/smoke/.trap.running"
    hidden.mkdir(parents=True)
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    (hidden / "pid").write_text(str(dead.pid))
    (hidden / "results.json").write_text("half")
    run(notebook)
    assert outputs(house) == ["trap"]
    assert (house / "figures/smoke/trap/results.json").read_text() == "1"


def test_a_second_run_of_the_same_paper_at_once_is_refused(house, write_notebook, run):
    hidden = house / "figures/smoke/.trap.running"
    hidden.mkdir(parents=True)
    (hidden / "pid").write_text(str(os.getpid()))
    with pytest.raises(TenfoldError, match="already running"):
        run(write_notebook(DECLARED, "print(1)"))
    assert hidden.exists()


@pytest.mark.parametrize("note", ["{pid} 1000", "", "half a"])
def test_a_note_of_a_process_that_has_ended_stops_no_run(house, write_notebook, run, note):
    """Numbers of processes are given out again; a full disk leaves half a note."""
    hidden = house / "figures/smoke/.trap.running"
    hidden.mkdir(parents=True)
    (hidden / "pid").write_text(note.format(pid=os.getpid()))
    run(write_notebook(DECLARED, "print('trap')"))
    assert outputs(house) == ["trap"]


def test_a_notebook_without_kernelspec_runs(write_notebook, run):
    assert run(write_notebook(DECLARED, "print(value)", kernelspec=False)).exists()


def test_old_metadata_is_replaced_by_our_stamp_and_paths_are_gone(house, write_notebook, run):
    path = write_notebook(DECLARED, "from lib import root\nprint(root() / 'x')")
    notebook = nbformat.read(path, as_version=4)
    notebook.metadata["papermill"] = {"parameters": {"value": 41}}
    nbformat.write(notebook, path)
    executed = nbformat.read(run(path, parameters={"value": 2}), as_version=4)
    assert "papermill" not in executed.metadata
    assert executed.metadata["tenfold"]["parameters"] == {"value": 2}
    printed = [o.text for c in executed.cells if c.cell_type == "code" for o in c.outputs]
    assert "./x\n" in printed


def test_the_kernel_runs_from_the_repository_root(write_notebook, run):
    run(write_notebook(DECLARED, "import os\nfrom lib import root\nassert os.getcwd() == str(root())"))


def test_cells_are_announced_with_elapsed_time(write_notebook, run, capsys):
    run(write_notebook(DECLARED, "import sys; print('seen', file=sys.stderr)"), echo=True)
    captured = capsys.readouterr()
    assert "[trap 2/2" in captured.out
    assert "seen" in captured.err


def test_a_run_is_quick_to_start(write_notebook, run):
    began = time.monotonic()
    run(write_notebook(DECLARED, "print(1)"))
    assert time.monotonic() - began < 60  # a hang, not a benchmark
