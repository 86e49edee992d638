"""A benchmark's ratio and its interval, for times, single numbers and paired samples."""

import time

import pytest

from lib.lab.bench import measure


def case(unit, ours, peer):
    return {"name": "a case", "unit": unit, "ours": ours, "peer": peer, "peer_name": "peer", "goal": 1.0}


def test_times_are_measured_in_turn():
    found = measure(case("s", lambda: time.sleep(0.002), lambda: time.sleep(0.008)), pairs=5)
    assert found["low"] <= found["ratio"] <= found["high"] < 1
    assert found["pairs"] == 5


def test_a_single_number_has_no_interval():
    found = measure(case("bytes", lambda: 3, lambda: 4))
    assert (found["ratio"], found["low"], found["high"], found["pairs"]) == (0.75, 0.75, 0.75, 1)


def test_samples_are_paired_and_give_the_ratio_of_means():
    found = measure(case("ms/token", lambda: [1.0, 2.0, 6.0], lambda: [2.0, 4.0, 12.0]))
    assert found["ratio"] == pytest.approx(0.5)
    assert found["low"] == pytest.approx(0.5)
    assert found["high"] == pytest.approx(0.5)
    assert (found["ours"], found["peer"], found["pairs"]) == (3.0, 6.0, 3)
