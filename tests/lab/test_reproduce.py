import json

import nbformat
import pytest

from lib import TenfoldError
from lib.__main__ import main
from lib.lab import report, reproduce

FINISH = (
    "import os, pathlib, json\n"
    "claim = {'id': 'c', 'measured': 'm', 'rule': '> 0', 'estimate': 1.0, 'ci': [0.5, 1.5], 'n': '3'}\n"
    "claim['verdict'] = 'reproduced'\n"
    "out = {'paper': 'one', 'claims': [claim], 'minutes': 0.1, 'minutes_cold': 0.2, 'value': value}\n"
    "pathlib.Path(os.environ['TENFOLD_OUTPUT'], 'results.json').write_text(json.dumps(out))"
)


@pytest.fixture
def papers(write_notebook):
    write_notebook("value = 1  # n\nseed = 0  # s", FINISH, name="01_one.ipynb")
    write_notebook("value = 1  # n\nseed = 0  # s", "1 / 0", name="02_two.ipynb")
    write_notebook("value = 1  # n\nseed = 0  # s", FINISH.replace("'one'", "'three'"), name="03_three.ipynb")


def states(*names, **options):
    return [outcome.state for outcome in reproduce.reproduce(reproduce.plan("smoke", list(names), **options))]


@pytest.mark.usefixtures("papers")
def test_it_goes_on_after_a_failure_and_says_so(house, capsys):
    assert main(["reproduce", "--profile", "smoke"]) == 1
    printed = capsys.readouterr().out
    assert "ZeroDivisionError" in printed
    assert sorted(p.name for p in (house / "figures/smoke").iterdir()) == ["one", "three", "two.failed.ipynb"]


@pytest.mark.usefixtures("papers")
def test_what_has_not_changed_is_not_run_again(house, capsys):
    assert states("one") == ["ran"]
    assert main(["reproduce", "--profile", "smoke", "--papers", "one"]) == 0
    assert "nothing to do" in capsys.readouterr().out
    assert states("one", seed=1) == ["ran"], "another seed is another run"
    assert states("one") == ["ran"], "and the results that lie there are now of seed 1"
    (house / "figures/smoke/one/results.json").write_text("{}")
    assert states("one") == ["ran"], "results that someone touched are made again"
    path = house / "notebooks/01_one.ipynb"
    notebook = nbformat.read(path, as_version=4)
    notebook.cells[1].source += "\n# changed"
    nbformat.write(notebook, path)
    assert states("one") == ["ran"]


@pytest.mark.usefixtures("papers")
def test_results_that_came_with_git_are_not_taken_for_a_run(house):
    folder = house / "figures/smoke/one"
    folder.mkdir(parents=True)
    (folder / "results.json").write_text("{}")
    assert states("one") == ["ran"]


@pytest.mark.usefixtures("papers")
def test_overrides_reach_the_notebook(house):
    assert main(["reproduce", "--profile", "smoke", "--papers", "one", "--set", "value=5"]) == 0
    assert json.loads((house / "figures/smoke/one/results.json").read_text())["value"] == 5


@pytest.mark.usefixtures("papers")
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--papers", "onee"], "there is no paper 'onee': did you mean 'one'?"),
        (["--profile", "foo"], "there is no profile 'foo'"),
        (["--set", "valu=1"], "no parameter 'valu'; did you mean 'value'?"),
        (["--set", "value"], "is not NAME=VALUE"),
    ],
)
def test_bad_requests_are_one_sentence_and_run_nothing(house, capsys, arguments, message):
    assert main(["reproduce", *arguments]) == 2
    captured = capsys.readouterr()
    assert message in captured.err
    assert captured.err.count("\n") == 1
    assert list((house / "figures").iterdir()) == []


@pytest.mark.usefixtures("papers")
def test_a_dry_run_prints_the_plan_and_runs_nothing(house, capsys):
    assert main(["reproduce", "--dry-run", "--papers", "two"]) == 0
    assert "02_two.ipynb" in capsys.readouterr().out
    assert list((house / "figures").iterdir()) == []


@pytest.mark.usefixtures("papers")
def test_the_readme_table_is_made_from_results(house):
    reproduce.reproduce(reproduce.plan("smoke", ["one", "three"]))
    text = report.readme_with_table(f"head\n{report.BEGIN}\nstale row\n{report.END}\ntail", "smoke")
    assert text.startswith("head\n")
    assert text.endswith("\ntail")
    assert "| **one** (0.2 min) | c | m | 1 [0.5, 1.5] | > 0 | ✔ reproduced |" in text
    assert "stale row" not in text
    with pytest.raises(TenfoldError, match="lost its verdict markers"):
        report.readme_with_table("no markers")
