"""Answers: tolerance, units, texts, lists, and what is no quantity."""

import math

import pytest

from lib.sciagent import quantities as evaluation


@pytest.mark.parametrize(
    ("given", "wanted", "unit", "expected"),
    [
        (2.5, 2.5, "", True),
        (2.52, 2.5, "", True),
        (2.53, 2.5, "", False),
        (-2.5, 2.5, "", False),
        ("2.5 m/s", 2.5, "m/s", True),
        ("2500 mm/s", 2.5, "m/s", True),
        ("9 km/h", "2.5 m/s", "", True),
        ("2.5 kg", 2.5, "m/s", False),
        ("2.5", 2.5, "m/s", True),
        ("25 degC", 298.15, "K", True),
        ("1/4", 0.25, "", True),
        ("1,250.5", 1250.5, "", True),
        ("1e-3 W/m^2/K", 1e-3, "W/m^2/K", True),
        (0.005, 0, "", True),
        (0.02, 0, "", False),
        (math.nan, 1.0, "", False),
        (math.inf, math.inf, "", False),
        ("I think it is 4", 4, "", False),
        ("NaCl", "nacl", "", True),
        ("2H2 + O2 = 2H2O", "2 H2 + O2 = 2 H2O", "", True),
        ([1.0, 2.001], [1, 2], "", True),
        ([1.0], [1, 2], "", False),
        ({"H2": 2}, {"H2": 2.0}, "", True),
        (True, True, "", True),
        (1, True, "", False),
        (None, 1.0, "", False),
        ("1/0", 1, "", False),
        ("1/0", "1/0", "", True),
        ("nan", "nan", "", False),
        ("NaN", math.nan, "", False),
        (None, None, "", False),
        ("3/4", 0.75, "", True),
        ("-1/8 m", -0.125, "m", True),
        ("50%", 0.5, "", True),
        ("50 %", 50, "%", True),
        ("50 percent", 50, "", True),
        (0.5, 50, "%", False),
        ("0.5%", 0.5, "", True),
        ("2.00 × 10^4", 20000, "", True),
        ("2 x 10^-3 m", 2.0, "mm", True),
        ("1.5·10⁻³", 0.0015, "", True),
        (r"$6.02 \times 10^{23}$", 6.02e23, "", True),
        ("10^4", 10000, "", True),
        ("2**10", 1024, "", True),
        ("−3.5", -3.5, "", True),
        ("373K", 373, "K", True),
        ("20 kPa", 20000, "Pa", True),
        ("100 °C", 373.15, "K", True),
        ("2 or 3", 2, "", False),
        ("12 apples and pears", 12, "", False),
        ("4 = x", 4, "", False),
    ],
)
def test_right_answers(given, wanted, unit, expected):
    assert evaluation.right(given, wanted, unit=unit) is expected


def test_the_tolerance_is_the_callers():
    assert evaluation.right(1.04, 1.0, relative=0.05)
    assert not evaluation.right(1.04, 1.0, relative=0.03)


def test_unknown_units_are_compared_as_texts():
    assert evaluation.right("3 florps", 3, unit="florps")
    assert not evaluation.right("3 florps", 3, unit="m")
    assert evaluation.converted(1.0, "m", "s") is None


@pytest.mark.parametrize(("given", "expected"), [(1.009e-4, True), (1.02e-4, False), (0.0, False), (-1e-4, False)])
def test_small_numbers_are_compared_by_their_own_size(given, expected):
    assert evaluation.right(given, 1e-4) is expected
    assert evaluation.close(given * 1e10, 1e6) is expected  # the same numbers in another unit are as right or wrong
