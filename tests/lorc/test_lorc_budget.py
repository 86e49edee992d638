"""Rank budgets: the paper's formula by hand, its invariants, and exact totals."""

import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lib.lorc import Plan, Spectra, by_gain, energy, only_layers, progressive, uniform
from lib.lorc.configuration import LowRankSpec

logs = st.lists(st.floats(0.01, 20), min_size=2, max_size=40)
keeps = st.floats(0.02, 1.0)


def total(layers: int, width: int, keep: float, step: int = 1) -> int:
    return 2 * step * max(round(keep * layers * width / step), layers)


def test_progressive_by_hand() -> None:
    # log kappa-tilde = (6, 4, 2): t = (0, 1/2, 1), so the mean rank is (d_max + d_min) / 2 and d_min = 20 at 60 %.
    plan = progressive(torch.tensor([2.0, 2.0, 2.0]), 100, keep=0.6)
    assert plan.ranks_k == plan.ranks_v == (100, 60, 20)
    assert plan.kept == pytest.approx(0.6)


def test_progressive_lowers_the_first_layer_only_when_it_must() -> None:
    plan = progressive(torch.tensor([2.0, 2.0, 2.0]), 100, keep=0.2)
    assert plan.ranks_k == (39, 20, 1)


@given(logs, keeps)
@settings(deadline=None)
def test_progressive_invariants(values: list[float], keep: float) -> None:
    conditions, width = torch.tensor(values), 64
    plan = progressive(conditions, width, keep=keep)
    ranks = np.array(plan.ranks_k)
    assert plan.ranks_k == plan.ranks_v
    assert plan.total == total(len(values), width, keep)
    assert (np.diff(ranks) <= 0).all()
    assert ranks.max() == ranks[0]
    assert ranks.min() == ranks[-1]
    assert progressive(conditions, width, keep=keep, reverse=True).ranks_k == plan.ranks_k[::-1]


@given(st.lists(st.integers(1, 40), min_size=2, max_size=20), st.sampled_from([0.5, 2.0, 4.0]))
@settings(deadline=None)
def test_progressive_does_not_change_under_a_power_of_kappa(values: list[int], power: float) -> None:
    conditions = torch.tensor(values, dtype=torch.float64)
    plans = [progressive(conditions * factor, 96, keep=0.55) for factor in (1.0, power)]
    assert plans[0] == plans[1]


@pytest.mark.parametrize("values", [[0.0, 0.0, 0.0], [3.0]])
def test_progressive_without_differences_is_uniform(values: list[float]) -> None:
    plan = progressive(torch.tensor(values), 100, keep=0.5)
    assert set(plan.ranks_k) == {50}


def test_progressive_at_its_ends() -> None:
    plan = progressive(torch.rand(12) + 0.1, 100, keep=0.7)
    assert plan.ranks_k[0] == 100  # d^1 = d_max
    assert set(progressive(torch.rand(12) + 0.1, 100, keep=1.0).ranks_v) == {100}


@given(st.integers(1, 40), keeps, st.sampled_from([1, 2, 8]))
@settings(deadline=None)
def test_uniform_is_exact_and_level(layers: int, keep: float, step: int) -> None:
    plan = uniform(layers, 64, keep=keep, step=step)
    assert plan.total == total(layers, 64, keep, step)
    assert max(plan.ranks_k) - min(plan.ranks_k) <= step
    assert all(rank % step == 0 for rank in plan.ranks_k)


def test_only_the_named_matrices_are_compressed() -> None:
    plan = uniform(4, 64, keep=0.5, matrices=("k",))
    assert plan.ranks_k == (32,) * 4
    assert plan.ranks_v == (64,) * 4
    assert plan.kept == pytest.approx(0.75)


def test_energy_by_hand() -> None:
    # Squares (16, 4, 4, 1), (4, 4, 4, 4): the share above each value is (0, .64, .8, .96) and (0, .25, .5, .75).
    spectra = Spectra(k=torch.tensor([[4.0, 2, 2, 1]]), v=torch.tensor([[2.0, 2, 2, 2]]))
    plan = energy(spectra, keep=0.5)
    assert (plan.ranks_k, plan.ranks_v) == ((1,), (3,))
    assert energy(spectra, keep=0.75).ranks_k == (2,)


@given(keeps, st.sampled_from([1, 4]))
@settings(deadline=None, max_examples=30)
def test_energy_is_exact_and_grows_with_keep(keep: float, step: int) -> None:
    values = torch.rand(2, 5, 32, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    values = values.sort(-1, descending=True).values
    spectra = Spectra(k=values[0], v=values[1])
    plan, more = energy(spectra, keep=keep, step=step), energy(spectra, keep=min(1.0, keep + 0.1), step=step)
    assert plan.total == step * max(round(keep * 10 * 32 / step), 10)
    assert all(small <= large for small, large in zip(plan.ranks_k, more.ranks_k, strict=True))


def test_by_gain_spends_where_a_dimension_is_worth_most() -> None:
    gains = {"k": torch.tensor([[1.0, 0.9, 0.8, 0.0]]), "v": torch.tensor([[9.0, 8.0, 7.0, 6.0]])}
    plan = by_gain(gains, keep=0.75)  # 6 of 8 dimensions
    assert (plan.ranks_k, plan.ranks_v) == ((2,), (4,))
    assert by_gain(gains, keep=0.5, floor=2).ranks_k == (2,)


def test_only_layers_leaves_the_rest_full() -> None:
    plan = only_layers(4, 10, compressed=[1, 3], keep=0.5, matrices=("v",))
    assert plan.ranks_k == (10,) * 4
    assert plan.ranks_v == (10, 5, 10, 5)
    with pytest.raises(ValueError, match="between 0 and 3"):
        only_layers(4, 10, compressed=[4], keep=0.5)


def test_frame_and_bytes_and_what_a_config_holds() -> None:
    plan = Plan((2, 1), (4, 3), width=4)
    assert plan.bytes_per_token(2) == 20
    assert plan.frame()["kept_v"].tolist() == [1.0, 0.75]
    spec = LowRankSpec(plan, groups=1, made_with={"keep": 0.6})
    assert LowRankSpec.from_dict(json.loads(json.dumps(spec.as_dict()))) == spec


@pytest.mark.parametrize("keep", [0.0, -0.1, 1.01, float("nan")])
def test_keep_outside_its_range_is_refused(keep: float) -> None:
    for make in (
        lambda: uniform(3, 8, keep=keep),
        lambda: progressive(torch.ones(3), 8, keep=keep),
        lambda: energy(Spectra(k=torch.ones(3, 8), v=torch.ones(3, 8)), keep=keep),
        lambda: only_layers(3, 8, compressed=[0], keep=keep),
    ):
        with pytest.raises(ValueError, match=r"must be in \(0, 1\]"):
            make()


def test_bad_plans_are_refused() -> None:
    with pytest.raises(ValueError, match="one k and one v rank per layer, got 2 and 1"):
        Plan((1, 2), (1,), width=4)
    with pytest.raises(ValueError, match="rank 5 is not a multiple of 1 between 1 and 4"):
        Plan((5,), (1,), width=4)
    with pytest.raises(ValueError, match="step 3 does not divide the width 4"):
        Plan((3,), (3,), width=4, step=3)
    with pytest.raises(ValueError, match="must name 'k', 'v' or both"):
        uniform(3, 8, keep=0.5, matrices=("q",))
