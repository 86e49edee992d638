import json
import subprocess
import sys

import pytest

from lib import TenfoldError
from lib.lab import parameters, profiles


def test_literals_types_and_help_are_read():
    declared = parameters.parse("steps = 3  # how many\nrates = [0.1, 1]  # per second\n", "n")
    assert declared["steps"].default == 3
    assert declared["rates"].help == "per second"
    assert parameters.validate(declared, {"rates": [1, 2.5]}, "n") == {"rates": [1.0, 2.5]}


@pytest.mark.parametrize("bad", [{"steps": 2.5}, {"steps": True}, {"steps": "2"}, {"rates": ["a"]}, {"rates": 0.5}])
def test_a_value_must_have_the_type_of_its_default(bad):
    declared = parameters.parse("steps = 3\nrates = [0.1, 1]\n", "n")
    with pytest.raises(TenfoldError, match="does not fit"):
        parameters.validate(declared, bad, "n")


def test_an_int_may_stand_for_a_float():
    declared = parameters.parse("rate = 0.5\n", "n")
    assert parameters.validate(declared, {"rate": 1}, "n") == {"rate": 1.0}


@pytest.mark.parametrize("text", ["value = 1", "[]", json.dumps({"worksheets": [], "nbformat": 3})])
def test_what_is_no_notebook_is_refused(tmp_path, text):
    (tmp_path / "a.ipynb").write_text(text)
    with pytest.raises(TenfoldError, match=r"a.ipynb is not a notebook of format 4"):
        parameters.read(tmp_path / "a.ipynb")


def test_a_kernel_starts_a_run_without_the_validator_of_notebooks():
    said = "import sys; from lib import lab; print([m for m in ('nbformat', 'jsonschema') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", said], capture_output=True, text=True).stdout == "[]\n"


def profile(house, text):
    (house / "notebooks/profiles/smoke.toml").write_text(text)
    return profiles.load("smoke")


def test_parameters_are_defaults_then_profile_then_overrides(house, write_notebook):
    write_notebook("a = 1\nb = 2\nc = 3", "print(1)", name="05_trap.ipynb")
    found = profile(house, "[parameters.trap]\nb = 20\nc = 30\n").parameters("trap", {"c": 300})
    assert found == {"a": 1, "b": 20, "c": 300}


def test_an_unknown_profile_names_the_profiles(house):
    with pytest.raises(TenfoldError, match=r"no profile 'foo': The names are: cpu, gpu, smoke"):
        profiles.load("foo")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("speed = 3\n", "no key 'speed' in a profile"),
        ("[parameters.trapp]\na = 1\n", "no paper 'trapp': did you mean 'trap'"),
        ("[cost.nobody]\nminutes = 1\n", "no paper 'nobody'"),
        ("a = = 1", "not valid TOML"),
    ],
)
def test_what_a_profile_may_hold(house, write_notebook, text, message):
    write_notebook("a = 1", "print(1)", name="05_trap.ipynb")
    with pytest.raises(TenfoldError, match=message):
        profile(house, text)


def test_an_unknown_parameter_in_a_profile_is_refused(house, write_notebook):
    write_notebook("a = 1", "print(1)", name="05_trap.ipynb")
    with pytest.raises(TenfoldError, match=r"profile 'smoke', paper 'trap': no parameter 'aa'; did you mean 'a'"):
        profile(house, "[parameters.trap]\naa = 1\n").parameters("trap")
