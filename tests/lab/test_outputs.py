"""What a published notebook shows of its streams. The raw material is what tqdm and Python's warnings really write."""

import io
import warnings

import nbformat
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tqdm import tqdm

from lib import root
from lib.lab import outputs, runner
from lib.lab.run import Run

OURS = "lib/lab/cache.py:80: UserWarning: cache entry a is damaged\n  return 1\n"
LIBRARY = "/home/a b/.venv/lib/python3.11/site-packages/peft/x.py:3: {}: old ways\n  warnings.warn(\n"


def stream(text, name="stderr"):
    return nbformat.v4.new_output("stream", name=name, text=text)


def picture():
    return nbformat.v4.new_output("display_data", {"text/plain": "figure"})


def nested(**where):
    """The raw text of an outer bar of two steps and an inner bar in each, a warning in the midst."""
    raw = io.StringIO()
    for _ in tqdm(range(2), desc="outer", file=raw, mininterval=0, **where):
        for step in tqdm(range(3), desc="inner", file=raw, mininterval=0, **where):
            if step == 1:
                raw.write(LIBRARY.format("FutureWarning"))
    return raw.getvalue()


@pytest.mark.parametrize("where", [{}, {"position": 0}])
def test_of_nested_bars_the_last_states_are_kept(where):
    assert ("\x1b[A" in nested(**where)) == (not where)
    lines = outputs.as_read(nested(**where)).splitlines()
    assert [line.split("|")[0] for line in lines] == ["inner: 100%", "outer: 100%"]
    assert all("3/3" in line or "2/2" in line for line in lines)


def test_a_bar_that_is_cleared_leaves_nothing_and_one_that_stops_keeps_its_last_state():
    raw = io.StringIO()
    list(tqdm(range(3), desc="passing", file=raw, leave=False, mininterval=0))
    stopped = tqdm(total=4, desc="T = 0.7", file=raw, mininterval=0)
    stopped.update(3)
    assert [line.split("|")[0] for line in outputs.as_read(raw.getvalue()).splitlines()] == ["T = 0.7:  75%"]
    stopped.close()


def test_bars_of_another_length_are_others_and_bars_without_a_length_are_bars():
    raw = io.StringIO()
    for count in (5, 7, 5):
        list(tqdm(range(count), desc="sample", file=raw))
    list(tqdm(iter(range(9)), desc="sets", unit="set", file=raw, mininterval=0))
    lines = outputs.as_read(raw.getvalue()).splitlines()
    assert ["7/7" in lines[0], "5/5" in lines[1], lines[2].startswith("sets: 9set")] == [True] * 3
    assert len(lines) == 3


def test_codes_of_a_terminal_are_obeyed_or_dropped():
    assert outputs.on_screen("0%\r50%\r100%\nnext") == ["100%", "next"]
    assert outputs.on_screen("long line\rshort\n") == ["short", ""]
    assert outputs.on_screen("a\nb\x1b[A\rA\x1b[B\rB") == ["A", "B"]
    assert outputs.on_screen("a\nbb\n\x1b[2A\rA\n\n\rc") == ["A", "bb", "c"]
    assert outputs.on_screen("gone\r\x1b[Kx\x1b[2Ky\r\n") == ["y", ""]
    assert outputs.on_screen("\x1b[1;31mred\x1b[0m \x1b]0;title\x07ab\b\x07c") == ["red ac"]


def test_plain_text_is_left_as_it_is():
    text = "a table  \n\n  1\t2\n\n"
    assert outputs.as_read(text) == text
    assert outputs.as_read(OURS) == OURS


@pytest.mark.parametrize("kind", ["UserWarning", "FutureWarning", "DeprecationWarning", "TqdmWarning"])
def test_notices_of_packages_are_left_out(kind):
    assert outputs.as_read(f"before\n{LIBRARY.format(kind)}  indented\n") == "before\n  indented\n"
    assert outputs.clean([stream(LIBRARY.format(kind))]) == []


@pytest.mark.parametrize("kind", ["RuntimeWarning", "ConvergenceWarning", "Error"])
def test_warnings_about_numbers_stay(kind):
    assert outputs.as_read(LIBRARY.format(kind)) == LIBRARY.format(kind)


def test_pieces_of_a_cell_are_joined_around_what_it_shows():
    cell = [
        stream("\ra:   0%|  | 0/2 [00:00<?, ?it/s]"),
        stream("one\n", "stdout"),
        stream("two\n", "stdout"),
        picture(),
    ]
    cell += [stream("\ra: 100%|##| 2/2 [00:01<00:00, 1it/s]"), stream("three\n", "stdout"), stream("\n"), stream("")]
    found = outputs.clean(cell)
    assert [o.get("text", "figure") for o in found] == [
        "a: 100%|##| 2/2 [00:01<00:00, 1it/s]\n", "one\ntwo\n", "figure", "three\n",
    ]  # fmt: skip


def test_a_traceback_stays_without_this_machines_paths():
    error = nbformat.v4.new_output("error", ename="E", evalue="v", traceback=[f"\x1b[31m{root()}/lib/a.py", "1 / 0"])
    (found,) = outputs.clean([error])
    assert found.traceback == ["\x1b[31m./lib/a.py", "1 / 0"]


@given(st.lists(st.integers(1, 400), max_size=12))
def test_where_the_kernel_cuts_the_text_does_not_matter(cuts):
    text, pieces = nested(), []
    for cut in cuts:
        pieces.append(text[:cut])
        text = text[cut:]
    (found,) = outputs.clean([stream(piece) for piece in [*pieces, text]])
    lines = found.text.splitlines()
    assert [line.split("|")[0] for line in lines] == ["inner: 100%", "outer: 100%"]


PUBLISHED = [path for path in (root() / "figures/cpu").rglob("*.ipynb") if path.parent.suffix != ".running"]


@pytest.mark.parametrize("path", sorted(PUBLISHED), ids=lambda path: path.stem)
def test_the_published_notebooks_are_clean(path):
    for cell in nbformat.read(path, as_version=4).cells:
        shown = cell.get("outputs", [])
        assert outputs.clean(nbformat.from_dict(shown)) == shown
        assert not any(outputs.CONTROL.search(o.text) for o in shown if o.output_type == "stream")


def test_a_run_is_quiet_where_it_happens_and_where_it_is_published(house, write_notebook, capfd):
    notebook = write_notebook(
        "value = 1  # a number",
        "import warnings\nfrom tqdm import tqdm\n"
        "for _ in tqdm(range(2), desc='outer'):\n    for _ in tqdm(range(3), desc='inner'):\n        pass",
        "place = '/x/site-packages/peft/tuners/tuners_utils.py'\n"
        "for said in ('Already found a `peft_config` attribute in the model. Oh', 'Adapter a was active', 'another'):\n"
        "    warnings.warn_explicit(said, UserWarning, place, 3, module='peft.tuners.tuners_utils')\n"
        "warnings.warn('ours')",
    )
    executed = runner.run_notebook(notebook, house / "figures/smoke/trap", profile="smoke", needs_results=False)
    terminal = capfd.readouterr().err
    assert "\x1b[A" not in terminal
    assert [word in terminal for word in ("peft_config", "Adapter", "another", "ours")] == [False, False, True, True]
    cells = nbformat.read(executed, as_version=4).cells
    bars, told = (o.text for c in cells for o in c.get("outputs", []))
    assert [line.split("|")[0] for line in bars.splitlines()] == ["inner: 100%", "outer: 100%"]
    assert "another" not in told
    assert "UserWarning: ours" in told


def test_bars_of_a_run_stay_on_their_line_where_no_one_watches(monkeypatch, capsys):
    for headless in (True, False):
        monkeypatch.setenv("TENFOLD_OUTPUT", "x") if headless else monkeypatch.delenv("TENFOLD_OUTPUT")
        for _ in Run.progress(None, range(2), "outer"):  # pyright: ignore[reportArgumentType]
            list(Run.progress(None, range(2), "inner"))  # pyright: ignore[reportArgumentType]
        assert ("\x1b[A" in capsys.readouterr().err) != headless


def test_notices_are_ones_that_python_understands():
    with warnings.catch_warnings():
        for notice in runner.QUIET["PYTHONWARNINGS"].split(","):
            warnings._setoption(notice)  # pyright: ignore[reportAttributeAccessIssue]
