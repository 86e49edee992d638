import json
import os
import shutil

import nbformat
import pytest

from lib.__main__ import main
from lib.lab import keys, mutants, paths, replicate, report, reproduce

FINISH = (
    "import os, pathlib, json\n"
    "claim = {'id': 'c', 'measured': 'm', 'rule': '> 0', 'estimate': 1.0, 'ci': [0.5, 1.5], 'n': '3'}\n"
    "claim['verdict'] = 'reproduced'\n"
    "out = {'peak_memory_gib': 1.0, 'machine': {'cores': 2, 'processor': 'p'}}\n"
    "out |= {'paper': 'one', 'claims': [claim], 'minutes': 0.1, 'minutes_cold': 0.2, 'value': value}\n"
    "pathlib.Path(os.environ['TENFOLD_OUTPUT'], 'results.json').write_text(json.dumps(out))"
)


@pytest.fixture
def papers(write_notebook, monkeypatch):
    monkeypatch.setattr(report, "as_today", lambda record: record)  # they have no paper.toml
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
def test_a_cell_that_is_not_python_is_said_and_the_others_go_on(write_notebook, house, capsys):
    write_notebook("value = 1  # n\nseed = 0  # s", "%matplotlib inline\n" + FINISH, name="01_one.ipynb")
    assert main(["reproduce", "--profile", "smoke"]) == 1
    printed = " ".join(capsys.readouterr().out.split())
    assert "line 1 of code cell 2 is not Python" in printed
    assert (house / "figures/smoke/three/results.json").exists()


@pytest.mark.usefixtures("papers")
def test_a_failed_check_is_told_last_and_sets_the_exit_status(write_notebook, house, capsys):
    checks = "[{'id': 'exact', 'what': 'w', 'estimate': 0.5, 'ci': None, 'n': '', 'rule': '≤ 0.1', 'passed': False}]"
    told = FINISH.replace("'claims': [claim]", f"'claims': [claim], 'checks': {checks}")
    write_notebook("value = 1  # n\nseed = 0  # s", told, name="01_one.ipynb")
    for _ in range(2):  # a run that is unchanged fails as well
        assert main(["reproduce", "--profile", "smoke", "--papers", "one three"]) == 1
        last = capsys.readouterr().err.splitlines()[-1]
        assert last.startswith("tenfold: what our own code promises does not hold here")
        assert last.endswith("one: exact (0.5, not ≤ 0.1).")
    assert (house / "figures/smoke/one/results.json").exists()
    assert main(["reproduce", "--profile", "smoke", "--papers", "three"]) == 0


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
def test_a_replicate_runs_at_another_seed_as_on_another_processor_beside_the_published_run(write_notebook, house):
    told = FINISH.replace("'value': value", "'value': [seed, os.environ.get('ATEN_CPU_CAPABILITY')]")
    write_notebook("seed = 0  # s", told, name="01_one.ipynb")
    assert states("one") == ["ran"]
    assert main(["replicate", "--profile", "smoke", "--papers", "one", "--instructions", "avx2"]) == 0
    found = house / "figures/smoke/replicate/one-seed-1/results.json"
    assert json.loads(found.read_text())["value"] == [1, "avx2"]
    assert json.loads((house / "figures/smoke/one/results.json").read_text())["value"] == [
        0,
        os.environ.get("ATEN_CPU_CAPABILITY"),
    ]
    (job,) = replicate.jobs("smoke", ["one"], 1, "avx2")
    assert [outcome.state for outcome in replicate.replicate([job], "avx2")] == ["unchanged"]
    assert states("one") == ["unchanged"]


@pytest.mark.usefixtures("papers")
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--seed=0"], "seed 0 is that of the published run of one: give another, such as SEED=1."),
        (["--instructions=mmx"], "no instruction set is called 'mmx': take avx2, avx512, native."),
    ],
)
def test_a_replicate_that_could_show_nothing_is_refused(house, capsys, arguments, message):
    assert main(["replicate", "--profile=smoke", "--papers=one", *arguments]) == 2
    assert message in capsys.readouterr().err
    assert list((house / "figures").iterdir()) == []


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
def test_the_readme_table_is_made_from_results(monkeypatch):
    facts = {"title": "T", "arxiv": "1", "venue": "", "idea": "", "bibtex": "", "claims": ()}
    monkeypatch.setattr(report.papers, "load", lambda name: report.papers.PaperRecord(short=name, **facts))
    reproduce.reproduce(reproduce.plan("smoke", ["one", "three"]))
    rows = report.papers_table("smoke").splitlines()[2:]
    assert [row.split(" | ")[2] for row in rows[:3]] == [
        "[(1 ✔)](figures/smoke/CLAIMS.md#one)", "not run yet", "[(1 ✔)](figures/smoke/CLAIMS.md#three)",
    ]  # fmt: skip
    assert "| ✔ reproduced | c | m | 1 [0.5, 1.5] | > 0 |" in report.claims_page("smoke")


@pytest.mark.usefixtures("papers")
def test_what_jupyterlab_saves_changes_nothing_that_is_published(house):
    profile = house / "notebooks/profiles/cpu.toml"
    profile.write_text('description = "a profile"\n[parameters.one]\nvalue = 1\nseed = 0\n')
    (plan,) = reproduce.plan("cpu", ["one"])
    before = plan.inputs(), plan.parameters
    path = house / "notebooks/01_one.ipynb"
    notebook = nbformat.read(path, as_version=4)
    notebook.cells[0].source = notebook.cells[0].source.replace("value = 1", "value = 7")
    notebook.cells[1].outputs = [nbformat.v4.new_output("stream", text="said")]
    notebook.cells[1].execution_count = 3
    notebook.metadata["widgets"] = {"state": {}}
    nbformat.write(notebook, path)
    (plan,) = reproduce.plan("cpu", ["one"])
    assert (plan.inputs(), plan.parameters) == before


STAGED = (
    "from lib import lab, lorc\nrun = lab.start('tour', globals())",
    "def draw():\n    return [value]\n\nfirst = run.stage('first', draw)",
    "def mean():\n    return sum(doubled)\n\ndoubled = [2 * v for v in first]\nsecond = run.stage('second', mean)",
    "def apart():\n    return [1]\n\nthird = run.stage('third', apart)\nrun.finish()",
)


@pytest.fixture
def staged(write_notebook, house):
    write_notebook("value = 1  # n\nseed = 0  # s", *STAGED, name="00_tour.ipynb")
    assert states("tour") == ["ran"]

    def told():
        (job,) = reproduce.plan("smoke", ["tour"])
        return {f.stage: (f.state, f.why) for f in job.stages()}

    return told


def edit(house, before, after):
    path = house / "notebooks/00_tour.ipynb"
    text = path.read_text()
    assert text.count(before) == 1
    path.write_text(text.replace(before, after))


def test_the_forecast_of_an_unchanged_run_is_that_all_is_kept(staged):
    assert {state for state, _ in staged().values()} == {"kept"}
    assert list(staged()) == ["first", "second", "third"]


def test_the_forecast_says_what_an_edited_function_leads_to(staged, house):
    edit(house, "return [value]", "return [-value]")
    told = staged()
    assert told["first"] == ("computed", "the notebook's draw has changed")
    assert told["second"] == ("perhaps computed", "stage 'first' comes before it")
    assert told["third"] == ("kept", "")
    assert states("tour") == ["ran"]
    entries = sorted((house / "data/cache/tour").iterdir())
    edit(house, "return [-value]", "return [value]")
    assert staged()["first"] == ("kept", "")
    assert states("tour") == ["ran"]
    assert sorted((house / "data/cache/tour").iterdir()) == entries, "the old entries are found again"


def test_the_forecast_follows_values_and_statements(staged, house):
    (job,) = reproduce.plan("smoke", ["tour"], overrides={"value": 2})
    told = {f.stage: (f.state, f.why) for f in job.stages()}
    assert told["first"] == ("computed", "value is another value")
    edit(house, "2 * v", "3 * v")
    assert staged()["second"] == ("perhaps computed", "a statement that it depends on has changed")
    assert staged()["first"] == ("kept", "")


def test_the_forecast_of_a_cleared_cache_is_that_all_is_computed(staged, house):
    shutil.rmtree(house / "data/cache/tour")
    assert set(staged().values()) == {("computed", "it is not in the cache")}


def inputs(*names):
    return {job.paper: job.inputs() for job in reproduce.plan("cpu", list(names))}


@pytest.mark.parametrize("paper", list(paths.paper_notebooks()))
def test_an_edited_formula_makes_its_paper_and_the_tour_run_again_and_no_other(paper, tmp_path, monkeypatch):
    listed = {m.file.removesuffix(".py").replace("/", "."): m for m in mutants.load() if m.room == paper}
    module = next(name for name in listed if name in keys.reach(f"lib.{paper}"))
    mutant = listed[module]
    other = "grin" if paper != "grin" else "seqboat"
    before = inputs(paper, "tour", other)
    place = keys._source_of
    for beside in place(module).parent.iterdir():  # tables that a module reads lie beside it
        if beside.suffix in keys.DATA_FILES:
            shutil.copy(beside, tmp_path)
    file = tmp_path / "edited.py"
    monkeypatch.setattr(keys, "_source_of", lambda name: file if name == module else place(name))
    source = place(module).read_text(encoding="utf8")
    file.write_text(source + "\n# a comment\n")
    assert inputs(paper, "tour", other) == before
    file.write_text(mutant.mutated(source) + "# edited\n")
    after = inputs(paper, "tour", other)
    assert after[paper] != before[paper]
    assert after["tour"] != before["tour"]
    assert after[other] == before[other]
