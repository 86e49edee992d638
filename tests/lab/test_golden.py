"""Golden numbers: which are kept, with what tolerance, and what counts as a difference."""

import json
import os
import subprocess
import sys

import pytest

from lib import TenfoldError
from lib.lab import golden


def results(metrics=None, claims=(), **more):
    return {"metrics": metrics or {}, "claims": list(claims)} | more


def claim(estimate, rule="> 0", timed=False):
    return {"id": "c", "estimate": estimate, "rule": rule, "timed": timed}


def test_the_tolerance_is_three_spreads_and_two_thousandths():
    assert golden.tolerance(10.0, 0.0) == pytest.approx(0.02)
    assert golden.tolerance(-10.0, 0.1) == pytest.approx(0.32)


def test_a_number_whose_tolerance_exceeds_a_fifth_of_it_is_refused():
    # 3 s + .002 = .2 at s = .066
    assert golden.tolerance(1.0, 0.0659) == pytest.approx(0.1997)
    assert golden.tolerance(1.0, 0.0661) is None
    assert golden.tolerance(-1.0, 0.0661) is None
    assert golden.tolerance(1e-9, 1e-9) is None


def test_a_number_that_is_zero_in_all_runs_stays_with_an_absolute_tolerance():
    assert golden.tolerance(0.0, 0.0) == 1e-6
    assert golden.tolerance(0.0, 1e-9) is None  # -5e-10 in one run, 5e-10 in another: noise


def test_what_rounding_moves_is_dropped_by_name_and_the_rest_is_the_middle_of_the_runs():
    runs = [{"loss": 2.0, "gap": 0.01, "none": 0.0}, {"loss": 2.02, "gap": -0.02, "none": 0.0, "late": 1.0}]
    metrics, dropped = golden.kept_and_dropped(runs)
    assert metrics["loss"] == {
        "value": pytest.approx(2.01),
        "tolerance": pytest.approx(0.06402),
        "spread": pytest.approx(0.02),
    }
    assert metrics["none"]["tolerance"] == 1e-6
    assert dropped == {
        "gap": {"value": pytest.approx(-0.005), "spread": pytest.approx(0.03), "runs": 2},
        "late": {"value": 1.0, "spread": 0.0, "runs": 1},  # only one run has it
    }


def test_every_run_that_was_recorded_is_within_its_own_tolerance_and_twice_as_far_out_is_not():
    runs = [{"loss": 2.0, "accuracy": 0.5}, {"loss": 2.05, "accuracy": 0.5}, {"loss": 2.01, "accuracy": 0.5}]
    metrics, _ = golden.kept_and_dropped(runs)
    content = {"metrics": metrics}
    assert all(golden.compared(content, results(run)) == [] for run in runs)
    (line,) = golden.compared(content, results({"loss": 2.3, "accuracy": 0.5}))
    assert line == "loss = 2.3, recorded 2.025 ± 0.15"
    (line,) = golden.compared(content, results({"loss": 2.0, "accuracy": 0.502}))
    assert line.startswith("accuracy = 0.502")
    assert golden.compared(content, results({"loss": float("nan"), "accuracy": 0.5}))


def test_numbers_that_vanish_or_appear_are_differences_and_dropped_ones_are_neither():
    content = {"metrics": {"a": {"value": 1.0, "tolerance": 0.1}}, "dropped": {"b": {}}}
    assert golden.compared(content, results({"a": 1.0})) == []
    assert golden.compared(content, results({"a": 1.0, "b": 7.0})) == []
    assert golden.compared(content, results({"c": 1.0})) == ["a is missing", "c is new: run `make record`"]


def test_rounding_errors_are_left_to_their_rule_until_they_grow():
    def told(*about, **more):
        return golden.numbers(results(claims=[claim(*about, **more)]))

    assert told(6e-5, "< 0.0001 logits") == {}
    assert told(2e-3, "< 0.0001 logits") == {"claim c": 2e-3}
    assert told(6e-5, "> 0") == {"claim c": 6e-5}
    assert told(None) == {}
    assert told(1.3, "> 1", timed=True) == {}


def test_gates_are_numbers_and_checks_pass_or_fail_exactly():
    check = {"id": "exact", "estimate": 1e-7, "passed": True, "timed": False}
    gate = {"id": "better-than-chance", "estimate": 0.7, "passed": False}
    run = results({"m": 1.0}, checks=[check], gates=[gate, gate | {"id": "unmeasured", "estimate": None}])
    assert golden.numbers(run) == {"m": 1.0, "gate better-than-chance": 0.7}
    metrics, _ = golden.kept_and_dropped([golden.numbers(run)] * 2)
    content = {"metrics": metrics, "checks": golden.checks(run)}
    assert golden.compared(content, run) == []
    turned = run | {"checks": [check | {"passed": False}]}
    assert golden.compared(content, turned) == ["check exact fails, which was recorded otherwise"]
    assert golden.compared(content, run | {"checks": []}) == ["check exact is missing"]
    left_out = [check | {"id": "clock", "timed": True}, check | {"id": "large", "passed": None}]
    assert golden.compared(content, run | {"checks": [check, *left_out]}) == []


def test_a_check_that_rounding_decides_is_refused():
    runs = dict.fromkeys(golden.SETTINGS, golden_run(passed=True))
    assert golden._golden(runs)["checks"] == {"exact": True}
    runs[golden.SETTINGS[1]] = golden_run(passed=False)
    with pytest.raises(TenfoldError, match="rounding decides the check 'exact'"):
        golden._golden(runs)
    runs[golden.SETTINGS[1]] = TenfoldError("cell 3 failed")
    with pytest.raises(TenfoldError, match="cell 3 failed"):
        golden._golden(runs)


def golden_run(passed):
    about = {"commit": "c", "versions": {}, "machine": {}, "parameters": {}}
    return results({"m": 1.0}, checks=[{"id": "exact", "passed": passed}], **about)


def test_a_setting_reaches_the_processes_that_begin_in_it_and_is_taken_back(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    monkeypatch.setenv("ATEN_CPU_CAPABILITY", "avx512")
    monkeypatch.delenv("ONEDNN_MAX_CPU_ISA", raising=False)
    say = "import torch; print(torch.backends.cpu.get_cpu_capability(), torch.get_num_threads())"

    def said():
        done = subprocess.run([sys.executable, "-c", say], capture_output=True, text=True, check=True)
        return done.stdout.split()

    with golden.Setting(1, "avx2").in_force():
        assert said() == ["AVX2", "1"]
    with golden.Setting(2, "native").in_force():
        assert "ATEN_CPU_CAPABILITY" not in os.environ
    assert (os.environ["OMP_NUM_THREADS"], os.environ["ATEN_CPU_CAPABILITY"]) == ("7", "avx512")
    assert "ONEDNN_MAX_CPU_ISA" not in os.environ


def test_settings_cover_two_thread_counts_and_three_instruction_sets():
    assert {s.threads for s in golden.SETTINGS} == {1, 2}
    assert {s.instructions for s in golden.SETTINGS} == {"avx2", "avx512", "native"} == golden.INSTRUCTIONS.keys()


def test_a_record_needs_a_clean_commit_and_names_the_papers_that_failed(monkeypatch, tmp_path):
    monkeypatch.setattr(golden, "path_of", lambda paper: tmp_path / f"{paper}.json")
    monkeypatch.setattr(golden, "_check_processor", lambda: None)
    outcomes = [
        ("one", dict.fromkeys(golden.SETTINGS, golden_run(passed=True))),
        ("two", dict.fromkeys(golden.SETTINGS, TenfoldError("cell 3 failed."))),
    ]
    monkeypatch.setattr(golden, "_all_runs", lambda papers, folder, told: iter(outcomes))
    monkeypatch.setattr(golden.provenance, "git_state", lambda: {"dirty": True})
    with pytest.raises(TenfoldError, match="clean commit only"):
        golden.record(["one", "two"])
    monkeypatch.setattr(golden.provenance, "git_state", lambda: {"dirty": False})
    told = []
    with pytest.raises(TenfoldError, match="not recorded: two"):
        golden.record(["one", "two"], told.append)
    assert told == ["one.json: 1 numbers, 1 checks, 0 dropped"]
    kept = json.loads((tmp_path / "one.json").read_text())
    assert kept["metrics"]["m"] == {"value": 1.0, "tolerance": 0.002, "spread": 0.0}
