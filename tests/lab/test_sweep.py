import json
import os
import signal
import threading
import time

import pytest

from lib import TenfoldError
from lib.__main__ import main
from lib.lab import papers, sweep
from lib.lab.run import write_json

pytestmark = pytest.mark.alone  # kernels in worker processes of its own

FINISH = (
    "import os, pathlib, json\n"
    "out = {'paper': 'one', 'claims': [], 'minutes': 0.1, 'minutes_cold': 0.1, 'seed': seed}\n"
    "pathlib.Path(os.environ['TENFOLD_OUTPUT'], 'results.json').write_text(json.dumps(out))"
)
# The first run of seed 0 says which process runs it, and waits to be killed; the second finds that note and goes on.
WAITS = (
    "import os, pathlib, time\n"
    "note = pathlib.Path(os.environ['TENFOLD_DATA'], f'worker-{seed}')\n"
    "first = not note.exists()\n"
    "note.write_text(str(os.getppid()) if first else 'again')\n"
    "if first and seed == 0:\n"
    "    time.sleep(300)"
)


def outcomes(seeds, **options):
    return {o.job.name: o for o in sweep.sweep(sweep.jobs("smoke", ["one"], seeds), **options)}


@pytest.mark.timeout(240)
def test_the_job_of_a_killed_worker_is_run_again_and_a_second_sweep_does_nothing(house, write_notebook):
    write_notebook("seed = 0  # s", WAITS, FINISH, name="01_one.ipynb")
    note, killed = house / "data" / "worker-0", []

    def kill():
        while not (note.exists() and note.read_text()):
            time.sleep(0.05)
        killed.append(int(note.read_text()))
        os.kill(killed[0], signal.SIGKILL)

    threading.Thread(target=kill, daemon=True).start()
    ran = outcomes([0, 1], workers=2)
    assert killed
    assert {name: o.state for name, o in ran.items()} == {"one-seed-0": "ran", "one-seed-1": "ran"}
    assert note.read_text() == "again"
    for seed in (0, 1):
        result = house / "figures/smoke/sweep" / f"one-seed-{seed}" / "results.json"
        assert json.loads(result.read_text())["seed"] == seed
    assert {o.state for o in outcomes([0, 1]).values()} == {"unchanged"}, "and no cluster is made for it"


@pytest.mark.timeout(240)
def test_a_running_scheduler_is_used_and_a_failed_run_is_told(write_notebook):
    from distributed import LocalCluster

    write_notebook("seed = 0  # s", "1 / seed", FINISH, name="01_one.ipynb")
    with LocalCluster(n_workers=1, threads_per_worker=1, memory_limit=0, dashboard_address=None) as cluster:
        ran = outcomes([0, 1], scheduler=cluster.scheduler_address)
    assert ran["one-seed-1"].state == "ran"
    assert ran["one-seed-0"].state == "failed"
    assert "ZeroDivisionError" in ran["one-seed-0"].reason


@pytest.fixture
def finished_run(house, write_notebook):
    write_notebook("seed = 0  # s", name="02_lorc.ipynb")

    def finish(seed, claims, gates=()):
        (job,) = sweep.jobs("cpu", ["lorc"], [seed])
        write_json(job.results / "results.json", {"claims": claims, "gates": list(gates)})
        job.remember(job.made_from())

    return finish


def test_claims_are_judged_over_seeds_by_the_same_rule(house, finished_run):
    known = papers.load("lorc").claims
    assert (known[0].rule, known[0].threshold) == ("above", 0)
    passed = [{"id": gate, "estimate": 0.0} for gate in known[0].gates]  # all of them are upper bounds
    assert {papers.load("lorc").gate(gate["id"]).rule for gate in passed} == {"below"}
    for seed, value in ((0, 1.0), (1, 1.2), (2, 0.9)):
        finished_run(seed, [{"id": c.id, "estimate": value if c is known[0] else None} for c in known], passed)
    first, *others = sweep.merge("cpu", ["lorc"])
    assert first["estimate"] == pytest.approx(3.1 / 3)
    half = 4.302653 * 0.152753 / 3**0.5  # Student's t of 2 degrees of freedom x standard error
    assert first["ci"] == pytest.approx((3.1 / 3 - half, 3.1 / 3 + half), rel=1e-4)
    assert first["verdict"] == "reproduced"
    assert {row["verdict"] for row in others} == {"fewer than three seeds"}
    assert {p.name for p in (house / "figures/cpu/sweep").glob("lorc.*")} == {"lorc.csv", "lorc.json", "lorc.png"}


def test_runs_of_the_experiment_before_an_edit_do_not_count(finished_run, write_notebook):
    first = papers.load("lorc").claims[0]
    for seed in range(3):
        finished_run(seed, [{"id": first.id, "estimate": 1.0}])
    assert sweep.merge("cpu", ["lorc"])[0]["seeds"] == {0: 1.0, 1: 1.0, 2: 1.0}
    write_notebook("seed = 0  # s", "steps = 2", name="02_lorc.ipynb")
    assert sweep.merge("cpu", ["lorc"]) == []
    finished_run(1, [{"id": first.id, "estimate": 2.0}])
    assert sweep.merge("cpu", ["lorc"])[0]["seeds"] == {1: 2.0}


@pytest.mark.parametrize(
    ("measured", "verdict"),
    [((0.4, 0.4, 0.6), "not testable here"), ((0.4, 0.6, 0.6), "reproduced"), ((), "gate g was not measured")],
)
def test_a_gate_passes_by_its_mean_over_seeds(monkeypatch, finished_run, measured, verdict):
    rule = {"estimate": "e", "rule": "above"}
    claim = papers.ClaimRecord(id="c", quote="q", place="p", threshold=0, gates=("g",), **rule)
    gate = papers.GateRecord(id="g", what="w", threshold=0.5, **rule)
    record = papers.load("lorc").model_copy(update={"claims": (claim,), "checks": (), "gates": (gate,)})
    monkeypatch.setattr(papers, "load", lambda paper: record)
    for seed, value in enumerate((1.0, 1.2, 0.9)):
        gates = [{"id": "g", "estimate": measured[seed]}] if measured else []
        finished_run(seed, [{"id": "c", "estimate": value}], gates)
    (row,) = sweep.merge("cpu", ["lorc"])
    assert row["verdict"] == verdict
    assert [g["id"] for g in row["failed_gates"]] == ["g"] * (verdict == "not testable here")


@pytest.mark.usefixtures("house")
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--seeds", "0 a"], "a seed is a whole number"),
        (["--seeds", "1 1"], "different seeds"),
        (["--seeds", ""], "different seeds"),
    ],
)
def test_bad_seeds_are_one_sentence(capsys, arguments, message):
    assert main(["sweep", *arguments]) == 2
    assert message in capsys.readouterr().err


def test_a_scheduler_that_does_not_answer_is_one_sentence(monkeypatch):
    monkeypatch.setattr(sweep, "PATIENCE", "1s")
    with pytest.raises(TenfoldError, match="no Dask scheduler answers"), sweep.connected(1, "nowhere:1"):
        pass
