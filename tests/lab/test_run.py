import json
from functools import partial

import matplotlib.pyplot as plt
import pandas as pd
import pytest
import torch

from lib import TenfoldError, lab, lorc
from lib.lab import cache, keys, papers
from lib.lab.run import Run

RECORD = papers.PaperRecord(
    title="T", short="t", arxiv="0", venue="v", idea="i", bibtex="b",
    claims=(papers.ClaimRecord(id="c", quote="q", place="p", estimate="e", rule="above", threshold=0.0),),
)  # fmt: skip
FRAME = pd.DataFrame({"x": [1, 2], "y": [0.123456789, 2]})


@pytest.fixture
def run(house):
    def make(seed=0):
        options = {"folder": house / "figures/smoke/trap", "namespace": globals()}
        return Run(paper="trap", record=RECORD, profile="smoke", parameters={"seed": seed}, **options)

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
    with pytest.raises(TenfoldError, match="not handed in: claim 'c'"):
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


RULE = {"rule": "above", "threshold": 0.5, "estimate": "e"}
GATED = RECORD.model_copy(
    update={
        "claims": (
            papers.ClaimRecord(id="c", quote="q", place="p", gates=("open", "shut"), **RULE),
            papers.ClaimRecord(id="free", quote="q", place="p", **RULE),
            papers.ClaimRecord(id="large", quote="q", place="p", profiles=("gpu",), gates=("at-scale",), **RULE),
        ),
        "checks": (
            papers.CheckRecord(id="k", what="w", **RULE),
            papers.CheckRecord(id="long", what="w", profiles=("cpu",), **RULE),
        ),
        "gates": tuple(papers.GateRecord(id=name, what="w", **RULE) for name in ("open", "shut", "at-scale")),
        "finding": "Of {m:.0f} things {c} held, {free:verdict}; {shut:ci} was too little, {long} unknown.",
    }
)
STEPS = {
    "open": lambda one: one.gate("open", estimate=0.5),
    "shut": lambda one: one.gate("shut", estimate=0.17, ci=(0.1, 0.9), n="3 seeds"),
    "k": lambda one: one.check("k", estimate=0.7),
    "c": lambda one: one.claim("c", estimate=1.0, ci=(0.9, 1.1)),
    "free": lambda one: one.claim("free", estimate=1.0, ci=(0.9, 1.1)),
    "large": lambda one: one.claim("large"),
    "m": lambda one: one.metric("m", 3.0),
}


def handed_in(run, steps):
    one = run()
    one.record = GATED
    said = {step: STEPS[step](one) for step in steps}
    return one, said


def written(one):
    return json.loads((one.folder / "results.json").read_text())


@pytest.mark.parametrize("steps", [list(STEPS), list(reversed(STEPS))], ids=["gates first", "claims first"])
def test_the_order_of_gates_checks_and_claims_does_not_matter(run, steps):
    one, said = handed_in(run, steps)
    assert (said["open"], said["shut"], said["k"]) == (True, False, True)
    assert said["c"] == ("not testable here" if steps[0] == "open" else "reproduced"), "as far as it is known"
    one.finish()
    results = written(one)
    verdicts = {claim["id"]: claim["verdict"] for claim in results["claims"]}
    assert verdicts == {"c": "not testable here", "free": "reproduced", "large": "needs the gpu profile"}
    assert results["claims"][0]["failed_gates"] == [{"id": "shut", "estimate": 0.17, "rule": "≥ 0.5"}]
    assert {c["id"]: c["passed"] for c in results["checks"]} == {"k": True, "long": None}
    assert {g["id"]: g["passed"] for g in results["gates"]} == {"open": True, "shut": False, "at-scale": None}
    assert results["finding"] == (
        "Of 3 things 1 held, reproduced; 0.17 [0.1, 0.9] was too little, not measured unknown."
    )


@pytest.mark.parametrize("absent", ["open", "shut", "k", "c", "free", "large", "m"])
def test_finish_names_what_was_not_handed_in(run, absent):
    one, _ = handed_in(run, [step for step in STEPS if step != absent])
    kind = {"open": "gate", "shut": "gate", "k": "check"}.get(absent, "claim")
    message = r"\{m:.0f\} cannot be filled" if absent == "m" else f"not handed in: {kind} '{absent}'; call"
    with pytest.raises(TenfoldError, match=message):
        one.finish()
    assert not one.folder.exists()


@pytest.mark.parametrize("gates_first", [True, False])
def test_a_claim_behind_a_failed_gate_needs_no_estimate_and_one_behind_open_gates_does(run, gates_first):
    gates = ["open", "shut"]
    rest = [step for step in STEPS if step not in (*gates, "c")]
    one, _ = handed_in(run, [*(gates if gates_first else []), *rest])
    assert one.claim("c") == "not testable here"
    for name in gates:
        STEPS[name](one)
    one.record = GATED.model_copy(update={"finding": ""})
    one.gate("shut", estimate=0.6)
    with pytest.raises(TenfoldError, match="claim 'c' can be tested under 'smoke'"):
        one.finish()
    one.gate("shut", estimate=0.4)
    one.finish()
    assert written(one)["claims"][0]["verdict"] == "not testable here"


def test_a_finished_run_shows_the_finding_then_claims_checks_and_gates(run, monkeypatch):
    import IPython.core.getipython
    import IPython.display

    shown = []
    monkeypatch.setattr(IPython.core.getipython, "get_ipython", object)
    monkeypatch.setattr(IPython.display, "display", shown.append)
    one, _ = handed_in(run, STEPS)
    one.finish()
    texts = [
        thing.data if hasattr(thing, "data") and isinstance(thing.data, str) else thing.to_html() for thing in shown
    ]
    assert texts[0].startswith("Of 3 things 1 held")
    assert "not testable here (gate shut is 0.17, not ≥ 0.5)" in texts[1]
    assert ("passed" in texts[3], "reproduced" in texts[3]) == (True, False)
    assert ("failed" in texts[5], "reproduced" in texts[5]) == (True, False)


def test_a_cold_run_is_charged_once_for_a_stage_and_only_where_it_was_kept(run, monkeypatch):
    one, loaded = run(), iter([True, True, False, True])
    monkeypatch.setattr(cache, "stage", lambda *_: cache.Kept(1, next(loaded), 60.0, 900.0))
    for name in ("kept", "kept", "made here", "made here"):
        one.stage(name, lambda: 1)
    one.claim("c", estimate=1.0, ci=(0.5, 1.5), n="3 seeds")
    one.finish()
    written = json.loads((one.folder / "results.json").read_text())
    assert written["minutes_cold"] - written["minutes"] == pytest.approx(1.0, abs=0.011)
    assert written["peak_memory_gib"] == 900, "a stage that was kept took its memory too"


def test_what_follows_a_stage_does_not_depend_on_whether_it_ran(run):
    cold, warm = run(), run()
    first = cold.stage("s", lambda: {"w": torch.rand(3)})
    after_cold = torch.rand(2)
    second = warm.stage("s", lambda: {"w": torch.rand(3)})
    assert torch.equal(first["w"], second["w"])
    assert torch.equal(after_cold, torch.rand(2))


def test_another_seed_or_function_is_another_stage(run):
    def with_rate(rate):
        return [rate]

    draws = [
        run().stage("s", lambda: [float(torch.rand(()))]),
        run(seed=1).stage("s", lambda: [float(torch.rand(()))]),
        run().stage("s", lambda: [1.0]),
        run().stage("s", partial(with_rate, 2.0)),
        run().stage("s", partial(with_rate, 3.0)),
    ]
    assert len({draw[0] for draw in draws}) == 5


def test_a_stage_whose_code_was_edited_under_it_is_computed_and_not_kept(run, monkeypatch):
    calls = []

    def make():
        calls.append(lorc.Plan)
        return [1.0]

    monkeypatch.setattr(keys, "STARTED", 0.0)
    for _ in range(2):
        with pytest.warns(UserWarning, match="lib.lorc.* changed after this kernel started"):
            run().stage("s", make)
    assert len(calls) == 2


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
