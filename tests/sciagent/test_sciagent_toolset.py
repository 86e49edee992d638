"""Tools out of real libraries: docstrings, verified examples, names, schemas, users' functions."""

import inspect
import json
import math
from collections.abc import Sequence

import pytest
import sciagent_scripts

from lib import TenfoldError
from lib.sciagent import Sandbox, Toolset, docstrings
from lib.sciagent.grammar import ProgramGrammar, choices_of
from lib.sciagent.inside import harvest
from lib.sciagent.tools import HARVEST, Example, Parameter, Tool, from_record, written

DOC = """Calculates the drag of a sphere, as in [1]_. More words.

.. math::
    F = C \\rho

Parameters
----------
rho : float
    Density of the :math:`fluid`, [kg/m^3]
v, w : float, optional
    Speeds [m/s]
n : int
    Count [-]

Returns
-------
F : float
    Drag [N]

Examples
--------
>>> 1 + 1
2
"""


def test_a_docstring_gives_its_summary_parameters_and_units():
    found = docstrings.parse(inspect.cleandoc(DOC))
    assert found.summary == "Calculates the drag of a sphere."
    assert [(p.name, p.unit) for p in found.parameters] == [("rho", "kg/m^3"), ("v", "m/s"), ("w", "m/s"), ("n", "")]
    assert found.parameters[0].text == "Density of the fluid"
    assert (found.returns[0].text, found.returns[0].unit) == ("Drag", "N")


GOOGLE = """Drag of a sphere.

Args:
    rho (float): Density of the fluid [kg/m^3].
    v: Speed [m/s],
        of the sphere.

Returns:
    float: Drag [N].

Raises:
    ValueError: never.
"""
REST = """Drag of a sphere.

:param float rho: Density of the fluid [kg/m^3]
:param v: Speed [m/s]
    of the sphere
:type v: float
:returns: Drag [N]
:rtype: float
"""


@pytest.mark.parametrize("text", [GOOGLE, REST], ids=["google", "rest"])
def test_other_styles_of_docstrings_say_the_same(text):
    found = docstrings.parse(text)
    assert found.summary == "Drag of a sphere."
    assert [(p.name, p.unit) for p in found.parameters] == [("rho", "kg/m^3"), ("v", "m/s")]
    assert found.parameters[0].text.rstrip(".") == "Density of the fluid"
    assert "of the sphere" in found.parameters[1].text
    assert (found.returns[0].text.rstrip("."), found.returns[0].unit) == ("Drag", "N")


HINTED = """
from typing import Literal
def area(sides: list[float], kind: Literal["flat", "round"] = "flat", n: int | None = None, exact: bool = True) -> float:
    '''Area of a shape.

    Parameters
    ----------
    sides : list
        Sides of the shape [m]
    kind : str
        Kind of shape
    n : int, optional
        How many
    exact : bool
        Whether it is exact

    Examples
    --------
    >>> area([2.0, 3.0])
    6.0
    '''
    return sides[0] * sides[1]
def half(x: float) -> float:
    '''Half of a number.

    Parameters
    ----------
    x : float
        Number [m]
    '''
    return x / 2
other_name = half
def runs_text(x):
    '''Evaluate a number.

    >>> runs_text(2)
    2
    '''
    return eval(str(x))
"""  # noqa: E501


def test_hints_say_types_items_and_options_and_what_evaluates_texts_is_marked(tmp_path):
    (tmp_path / "hinted.py").write_text(HINTED)
    for folder in (tmp_path, *tmp_path.parents[:2]):
        folder.chmod(0o755)
    with Sandbox(folders=[tmp_path], allow_weaker=True) as own:
        tested = Toolset.from_package("hinted", sandbox=own)
        every = Toolset.from_package("hinted", sandbox=own, untested=True)
    assert [t.name for t in tested] == ["area", "runs_text"]
    assert [t.name for t in every] == ["area", "half", "runs_text"], "an alias is no function of its own"
    said = tested["area"].schema()["function"]["parameters"]["properties"]
    assert said["sides"] == {
        "description": "Sides of the shape [m]", "type": "array", "items": {"type": "number"}, "x-unit": "m",
    }  # fmt: skip
    assert (said["kind"]["enum"], said["kind"]["default"]) == (["flat", "round"], "flat")
    assert (said["n"]["type"], said["exact"]["type"]) == ("integer", "boolean")
    assert (every["half"].verified, every["half"].examples) == (False, ())
    assert "(Untested.)" in every["half"].schema()["function"]["description"]
    assert (tested["runs_text"].literal, tested["area"].literal) == (True, False)
    assert tested.job("", ["runs_text", "area"]).literal == ("runs_text",)


def test_a_harvest_is_kept_and_found_again(warm, monkeypatch, tmp_path):
    monkeypatch.setenv("TENFOLD_CACHE", str(tmp_path))
    first = Toolset.from_package("numpy_financial", sandbox=warm)
    (kept,) = (tmp_path / "sciagent-tools").iterdir()
    assert kept.name.startswith("numpy_financial-1.")
    monkeypatch.setattr(type(warm), "call", None)
    assert Toolset.from_package("numpy_financial", sandbox=warm).records() == first.records()


@pytest.mark.parametrize("text", ["", "One line", "f(x, y)\n\nWhat it does.", "Parameters\n----------"])
def test_any_docstring_can_be_read(text):
    docstrings.parse(text)
    assert docstrings.parse("f(x, y)\n\nWhat it does.").summary == "What it does."


def test_every_example_of_a_tool_runs_again_to_the_same_value(tools, warm):
    jobs, wanted = [], []
    for tool in list(tools)[::4]:
        for example in tool.examples:
            jobs.append(tools.job(tool.call(example.arguments), [tool.name]))
            wanted.append(example.value)
    found = warm.map(jobs)
    assert len(jobs) > 50
    different = [
        (job.program, outcome.error or outcome.value, value)
        for job, outcome, value in zip(jobs, found, wanted, strict=True)
        if not outcome.ok or not harvest._close(outcome.value, value)
    ]
    assert different == []


def test_tools_know_their_units_and_domain(tools):
    nusselt = tools["Nu_conv_internal"] if "Nu_conv_internal" in tools else None
    assert tools["LMTD"].domain == "heat transfer"
    assert {p.unit for p in tools["LMTD"].parameters} >= {"K"}
    assert tools["LMTD"].returns.unit == "K"
    assert tools["fv"].domain == "finance"
    assert nusselt is None or nusselt.verified


def test_finance_functions_without_doctest_come_by_their_signature(tools):
    assert {"fv", "pv", "pmt", "nper", "rate", "irr", "npv", "mirr", "ipmt", "ppmt"} <= {t.name for t in tools}
    assert math.isclose(tools["fv"].examples[0].value, 15692.928894335748)


def test_what_a_doctest_prints_decides_whether_it_is_verified():
    assert harvest._agrees(0.1 + 0.2, "0.3")
    assert not harvest._agrees(0.31, "0.3")
    assert harvest._agrees([1.0, 2.0], "[1.0, 2.0000000001]")
    assert not harvest._agrees([1.0], "[1.0, 2.0]")
    assert harvest._agrees("abc", "'abc'")
    assert not harvest._agrees("abc", "")


def test_a_function_that_draws_at_random_or_reads_the_clock_is_no_tool(warm):
    source = "def f(x):\n    '''Noise.\n\n    >>> f(2)\n    0.5\n    '''\n    import random\n    return random.random()"
    record = warm.call("harvest:from_source", {"source": source, "name": "f"}).value
    assert not any(example["verified"] for example in record["examples"])


def simple(name, library="one"):
    example = Example({"x": 1.0}, 2.0, True)
    return Tool(name, library, f"{library}.m", "d", "Twice x.", (Parameter("x", "a number", "m", "number"),),
                Parameter("y", "the double", "m"), (example,), place=f"{library}.m:{name}")  # fmt: skip


def test_colliding_names_are_qualified_by_library_and_others_are_not():
    both = Toolset([simple("f"), simple("g")]) | Toolset([simple("f", "two")])
    assert [t.name for t in both] == ["one_f", "g", "two_f"]
    assert both["two_f"].place == "two.m:f"
    within = Toolset([simple("f"), simple("f")])
    assert [t.name for t in within] == ["one_f", "one_f_2"]


def test_schemas_and_records_survive_json(tools):
    schemas = json.loads(json.dumps(tools.schema()))
    for tool, schema in zip(tools, schemas, strict=True):
        function = schema["function"]
        assert function["name"] == tool.name
        assert list(function["parameters"]["properties"]) == [p.name for p in tool.parameters]
        for example in tool.examples:
            assert set(function["parameters"]["required"]) <= set(example.arguments)
    again = Toolset.from_records(json.loads(json.dumps(tools.records())))
    assert again.records() == tools.records()
    assert list(again)[0] == list(tools)[0]


def test_numbers_are_written_as_a_person_would():
    assert [written(v) for v in (2.0, 1e-5, 0.25, 3, "a", [1.0, 2.5])] == ["2", "1e-05", "0.25", "3", "'a'", "[1, 2.5]"]


def test_a_users_function_becomes_a_tool(warm):
    mine = Toolset()

    @mine.add(sandbox=warm, domain="electricity")
    def parallel(r1: float, r2: float) -> float:
        """Resistance of two resistors in parallel.

        Parameters
        ----------
        r1 : float
            First resistance [ohm]
        r2 : float
            Second resistance [ohm]

        Examples
        --------
        >>> parallel(2.0, 2.0)
        1.0
        """
        return r1 * r2 / (r1 + r2)

    tool = mine["parallel"]
    assert (tool.domain, tool.library, tool.parameters[0].unit) == ("electricity", "user", "ohm")
    (outcome,) = warm.map([mine.job("parallel(r1=3, r2=6)", ["parallel"])])
    assert outcome.value == 2.0
    assert parallel(3.0, 6.0) == 2.0, "the function stays what it was"
    with pytest.raises(ValueError, match="there is a tool named 'parallel' already"):
        mine.add(sandbox=warm)(parallel)


def test_a_users_function_must_do_what_its_doctest_says(warm):
    def wrong(x: float) -> float:
        """Double.

        >>> wrong(2)
        5
        """
        return 2 * x

    with pytest.raises(ValueError, match="wrong has no doctest that runs and gives what it prints"):
        Toolset().add(sandbox=warm)(wrong)
    with pytest.raises(TypeError, match="cannot be read"):
        Toolset().add(sandbox=warm)(len)
    with pytest.raises(TypeError, match="cannot be read as a function"):
        Toolset().add(sandbox=warm)(lambda x: x)


SCALE, HELPER = 2.5, [1]


def test_modules_and_constants_around_a_users_function_go_with_it(warm):
    mine = Toolset()

    @mine.add(sandbox=warm)
    def scaled(x: float) -> float:
        """Scale.

        >>> scaled(4.0)
        5.0
        """
        return math.sqrt(x) * SCALE

    (outcome,) = warm.map([mine.job("scaled(16)", ["scaled"])])
    assert outcome.value == 10.0

    def helped(x: float) -> float:
        """Help.

        >>> helped(1)
        1
        """
        return HELPER[0]

    with pytest.raises(ValueError, match="helped uses 'HELPER' from outside"):
        mine.add(sandbox=warm)(helped)


Vector, NO_LIMIT = Sequence[float], math.inf


def test_names_within_comprehensions_defaults_and_annotations_go_with_a_users_function(warm):
    mine, offset = Toolset(), 0.5

    @mine.add(sandbox=warm)
    def scaled_roots(xs: Vector, scale: float = SCALE, most: "float" = NO_LIMIT) -> Vector:
        """Scale the roots.

        >>> scaled_roots([4.0, 9.0])
        [5.5, 8.0]
        """

        def root(x: Vector) -> float:
            y: Vector = math.sqrt(x)
            return y

        return [min(scale * root(x), NO_LIMIT) + offset for x in xs if x < most]

    assert [p.kind for p in mine["scaled_roots"].parameters] == ["array", "number", "number"]
    (outcome,) = warm.map([mine.job("scaled_roots([16], most=20)", ["scaled_roots"])])
    assert outcome.value == [10.5]

    def helped(xs):
        """Help.

        >>> helped([1])
        [1]
        """
        return [HELPER[0] * x for x in xs]

    with pytest.raises(ValueError, match="helped uses 'HELPER' from outside"):
        mine.add(sandbox=warm)(helped)


def test_a_users_function_is_refused_by_its_name_and_for_its_reason(warm):
    def many_letters(text):
        """Count letters.

        >>> many_letters("ATGCATGCATGCATGCATGCATGCATGCATGCATGCATGCATGC")
        44
        """
        return len(text)

    def many_numbers(n):
        """First numbers.

        >>> many_numbers(9)
        [0, 1, 2, 3, 4, 5, 6, 7, 8]
        """
        return list(range(n))

    def total(*values):
        """Sum.

        >>> total(1, 2)
        3
        """
        return sum(values)

    def both(a, /, *, b):
        return a + b

    def undocumented(x):
        return x

    for function, message in {
        many_letters: "^the doctest of many_letters is no example: its arguments may be .* texts of up to 40 char",
        many_numbers: "^the doctest of many_numbers is no example: its result may be .* up to 8 such",
        total: r"^total cannot be called by the names of its parameters: write \*values as a list",
        both: "^both has parameters by position only and others by name only",
        undocumented: "^undocumented has no doctest that runs",
    }.items():
        with pytest.raises(ValueError, match=message):
            Toolset().add(sandbox=warm)(function)

    def elsewhere():
        return sciagent_scripts.SCRIPTS

    with pytest.raises(TenfoldError, match="^elsewhere could not be harvested: ModuleNotFoundError"):
        Toolset().add(sandbox=warm)(elsewhere)


def test_parameters_by_position_only_are_called_so_with_the_defaults_between(warm):
    mine = Toolset()

    @mine.add(sandbox=warm)
    def area(width, scale=2.0, height=3.0, /):
        """Area [m^2].

        >>> area(4.0)
        24.0
        """
        return width * scale * height

    tool = mine["area"]
    assert (tool.signature(), tool.call({"width": 1.0, "height": 5.0})) == ("area(width, /)", "area(1, 2, 5)")
    (outcome,) = warm.map([mine.job(tool.call({"width": 1.0, "height": 5.0}), ["area"])])
    assert outcome.value == 10.0
    assert [text for text, _ in choices_of("answer = area(7)", ProgramGrammar([tool], "the width is 7"))][-1] == ")\n"


def test_an_optional_argument_of_a_sympy_function_is_not_required(warm):
    arguments = {"names": ["sympy.functions.combinatorial.numbers"]}
    records = warm.call("harvest:functions", arguments, limits=HARVEST).value
    (harmonic,) = (from_record(record, "mathematics") for record in records if record["name"] == "harmonic")
    assert (harmonic.signature(), harmonic.schema()["function"]["parameters"]["required"]) == ("harmonic(n, /)", ["n"])
    assert harmonic.call({"n": 8, "m": 2}) == "harmonic(8, 2)"


def test_a_package_that_is_not_here_is_refused_in_one_sentence(warm):
    with pytest.raises(TenfoldError, match="no_such_package could not be harvested: ModuleNotFoundError"):
        Toolset.from_package("no_such_package", sandbox=warm)


def test_subsets_and_counts(tools):
    few = tools.subset({"LMTD", "fv"})
    assert [t.name for t in few] == ["LMTD", "fv"]
    assert sum(row["tools"] for row in tools.counts()) == len(tools) > 200
    assert {row["domain"] for row in few.counts()} == {"heat transfer", "finance"}
    assert "ht" in {m.split(".")[0] for m in tools.modules()}
