import json

import matplotlib.pyplot as plt
import pandas as pd
import pytest
import torch

from lib import TenfoldError, lab
from lib.lab import cache, papers
from lib.lab.run import Run

RECORD = papers.PaperRecord(
    title="T", short="t", arxiv="0", venue="v", idea="i", bibtex="b",
    claims=(papers.ClaimRecord(id="c", quote="q", place="p", estimate="e", rule="above", threshold=0.0),),
)  # fmt: skip
FRAME = pd.DataFrame({"x": [1, 2], "y": [0.123456789, 2]})


@pytest.fixture
def run(house):
    def make(seed=0):
        folder = house / "figures/smoke/trap"
        return Run(paper="trap", record=RECORD, profile="smoke", parameters={"seed": seed}, folder=folder)

    return make


def test_a_figure_has_its_csv_twin(run):
    figure, axes = plt.subplots()
    axes.plot(FRAME["x"], FRAME["y"])
    one = run()
    one.figure(figure, "line", data=FRAME, caption="A line.")
    assert sorted(p.name for p in one.folder.iterdir()) == ["line.csv", "line.png"]
    assert (one.folder / "line.csv").read_text() == "x,y\n1,0.123457\n2,2\n"


@pytest.mark.parametrize(("name", "data"), [("Line 1", FRAME), ("line", None), ("line", FRAME.head(0))])
def test_figures_without_name_or_data_are_refused(run, name, data):
    with pytest.raises(TenfoldError, match="cannot name a result|without data"):
        run().figure(plt.figure(), name, data=data, caption="")


def test_a_name_is_used_once(run):
    one = run()
    one.table(FRAME, "t")
    with pytest.raises(TenfoldError, match="already has a result named 't'"):
        one.table(FRAME, "t")


def test_finish_writes_results_and_refuses_a_missing_claim(run):
    one = run()
    with pytest.raises(TenfoldError, match="claims without an estimate: c"):
        one.finish()
    assert not one.folder.exists()
    one.metric("m", 2.0)
    assert one.claim("c", estimate=1.0, ci=(0.5, 1.5), n="3 seeds") == "reproduced"
    one.finish()
    written = json.loads((one.folder / "results.json").read_text())
    assert written["metrics"] == {"m": 2.0}
    assert written["claims"][0]["verdict"] == "reproduced"
    assert written["versions"]["torch"] == torch.__version__
    assert written["minutes"] <= written["minutes_cold"]


def test_a_cold_run_is_charged_once_for_a_stage_and_only_where_it_was_kept(run, monkeypatch):
    one, loaded = run(), iter([True, True, False, True])
    monkeypatch.setattr(cache, "stage", lambda *_: cache.Kept(1, next(loaded), 60.0))
    for name in ("kept", "kept", "made here", "made here"):
        one.stage(name, lambda: 1)
    one.claim("c", estimate=1.0, ci=(0.5, 1.5), n="3 seeds")
    one.finish()
    written = json.loads((one.folder / "results.json").read_text())
    assert written["minutes_cold"] - written["minutes"] == pytest.approx(1.0, abs=0.011)


def test_what_follows_a_stage_does_not_depend_on_whether_it_ran(run):
    cold, warm = run(), run()
    first = cold.stage("s", lambda: {"w": torch.rand(3)})
    after_cold = torch.rand(2)
    second = warm.stage("s", lambda: {"w": torch.rand(3)})
    assert torch.equal(first["w"], second["w"])
    assert torch.equal(after_cold, torch.rand(2))


def test_another_seed_version_or_dependence_is_another_stage(run):
    draws = [
        run().stage("s", lambda: [float(torch.rand(()))]),
        run(seed=1).stage("s", lambda: [float(torch.rand(()))]),
        run().stage("s", lambda: [1.0], version=2),
        run().stage("s", lambda: [2.0], rate=0.1),
    ]
    assert len({draw[0] for draw in draws}) == 4


def test_start_checks_the_namespace_against_the_cell(house, write_notebook, monkeypatch, capsys):
    notebook = write_notebook("value = 1  # n\nseed = 0  # s", "print(1)", name="02_lorc.ipynb")
    monkeypatch.setenv("TENFOLD_NOTEBOOK", str(notebook))
    started = lab.start("lorc", {"value": 3, "seed": 5, "unrelated": object()})
    assert started.parameters == {"value": 3, "seed": 5}
    assert started.folder == house / "figures/interactive/lorc"
    assert "seed 5" in capsys.readouterr().out
    with pytest.raises(TenfoldError, match="value = 'x' does not fit"):
        lab.start("lorc", {"value": "x"})


def test_an_unknown_paper_is_refused(house):
    with pytest.raises(TenfoldError, match=r"lib/lorcc/paper.toml is missing"):
        lab.start("lorcc", {})


def test_rounding_errors_are_left_to_their_rule_until_they_grow():
    from lib.lab import golden

    def told(estimate, rule="< 0.0001 logits", timed=False):
        claim = {"id": "c", "estimate": estimate, "rule": rule, "timed": timed}
        return golden.numbers({"metrics": {}, "claims": [claim]})

    assert told(6e-5) == {}
    assert told(2e-3) == {"claim c": 2e-3}
    assert told(6e-5, rule="> 0") == {"claim c": 6e-5}
    assert told(None) == {}
    assert told(1.3, rule="> 1", timed=True) == {}


def test_another_processor_counts_as_a_run_and_this_one_does_not(tmp_path, monkeypatch):
    from lib.lab import golden

    monkeypatch.setattr(golden, "path_of", lambda paper: tmp_path / "golden.json")
    assert golden.recorded_elsewhere("p", {"parameters": {}}) == {}  # nothing was recorded yet
    metrics = {"m": {"value": 1.0, "elsewhere": {"third": 3.0, "here": 9.0}}}
    old = {"parameters": {"size": 1}, "machine": {"processor": "there"}, "metrics": metrics}
    (tmp_path / "golden.json").write_text(json.dumps(old))
    now = {"parameters": {"size": 1}, "machine": {"processor": "here"}}
    assert golden.recorded_elsewhere("p", now) == {"m": {"third": 3.0, "there": 1.0}}
    assert golden.recorded_elsewhere("p", now | {"parameters": {"size": 2}}) == {}


@pytest.mark.parametrize("backend", ["Agg", ""])
def test_the_executed_notebook_shows_its_figures_under_any_backend(house, write_notebook, monkeypatch, backend):
    import nbformat

    from lib.lab import runner

    monkeypatch.setenv("MPLBACKEND", backend) if backend else monkeypatch.delenv("MPLBACKEND", raising=False)
    draw = (
        "import pandas as pd, matplotlib.pyplot as plt\nfrom lib import lab\nrun = lab.start('tour', globals())\n"
        "fig, axis = plt.subplots()\nrun.figure(fig, 'one', data=pd.DataFrame({'x': [1]}), caption='c')\nrun.finish()"
    )
    notebook = write_notebook("seed = 0  # s", draw, name="00_tour.ipynb")
    executed = runner.run_notebook(notebook, house / "figures/smoke/guides/tour", profile="smoke", echo=False)
    outputs = [o for c in nbformat.read(executed, as_version=4).cells for o in c.get("outputs", [])]
    assert sum("image/png" in o.get("data", {}) for o in outputs) == 1
