"""The schedule of LoRA Switch by both conventions."""

import pytest

from lib.multilora import turn, turns


def letters(**kwargs):
    return "".join("ABC"[i] for i in turns(20, **kwargs))


def test_table_for_tau_5_and_three_adapters_by_both_conventions():
    assert letters(k=3, tau=5) == "AAAAABBBBBCCCCCAAAAA"
    assert letters(k=3, tau=5, convention="callback") == "AAAAAABBBBBCCCCCAAAA"


@pytest.mark.parametrize("k", [1, 2, 5])
@pytest.mark.parametrize("tau", [1, 3, 5])
def test_the_papers_formula_and_a_simulated_callback(k, tau):
    for t in range(1, 60):
        assert turn(t - 1, k=k, tau=tau) + 1 == ((t - 1) % (k * tau)) // tau + 1
    active, simulated = 0, []
    for step in range(60):
        simulated.append(active)
        if step > 0 and step % tau == 0:
            active = (active + 1) % k
    assert turns(60, k=k, tau=tau, convention="callback") == simulated


def test_over_whole_cycles_every_adapter_has_equal_turns():
    table = turns(30, k=3, tau=5)
    assert [table.count(i) for i in range(3)] == [10, 10, 10]


@pytest.mark.parametrize(("k", "tau"), [(0, 5), (3, 0)])
def test_impossible_schedules_are_refused(k, tau):
    with pytest.raises(ValueError, match="at least 1|k ≥ 1"):
        turn(0, k=k, tau=tau)
