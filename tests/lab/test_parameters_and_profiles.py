import contextlib
import io
import json
import re
import subprocess
import sys

import nbformat
import pytest

from lib import TenfoldError, lab
from lib.lab import parameters, paths, profiles, runner


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


def test_a_profile_states_every_value_and_overrides_come_after(house, write_notebook):
    write_notebook("a = 1\nb = 2\nc = 3", "print(1)", name="05_trap.ipynb")
    found = profile(house, "[parameters.trap]\nc = 30\na = 10\nb = 20\n").parameters("trap", {"c": 300})
    assert list(found.items()) == [("a", 10), ("b", 20), ("c", 300)]
    with pytest.raises(TenfoldError, match=r"profile 'smoke', paper 'trap' does not state a: write its value there"):
        profile(house, "[parameters.trap]\nb = 20\nc = 30\n").parameters("trap")


def test_a_paper_of_which_a_profile_states_nothing_keeps_its_own_literals(house, write_notebook):
    write_notebook("a = 1\nb = 2", "print(1)", name="05_trap.ipynb")
    assert profile(house, "").parameters("trap", {"b": 3}) == {"a": 1, "b": 3}


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
    with pytest.raises(TenfoldError, match=r"paper 'trap': no parameter 'aa' in the notebook; did you mean 'a'"):
        profile(house, "[parameters.trap]\na = 1\naa = 1\n").parameters("trap")


@pytest.mark.parametrize("paper", [*paths.paper_notebooks(), *paths.guide_notebooks()])
@pytest.mark.parametrize("name", ["smoke", "cpu", "gpu"])
def test_every_profile_states_all_values_within_their_ranges(paper, name):
    stated = profiles.load(name).values[paper]
    assert list(profiles.load(name).parameters(paper)) == list(stated)


@pytest.mark.parametrize(
    ("line", "fits", "said"),
    [
        ("n = 10  # documents [>= 2]", 2, {1: "n = 1 is below 2, the least it may be (documents)."}),
        ("n = 10  # documents [>= 2, <= 20]", 20, {21: "n = 21 is above 20, the most it may be (documents)."}),
        ("x = 0.5  # share [> 0, < 1]", 0.99, {0.0: "x = 0.0 is not above 0 (share).", 1: "x = 1 is not below 1"}),
        ("x = 1e-3  # rate [>= 1e-5]", 1e-5, {1e-6: "x = 1e-06 is below 1e-05"}),
        ("n = 64  # width [multiple of 8]", 16, {20: "n = 20 is not a multiple of 8", 0: "n = 0 is below 1"}),
        ("k = [0.9]  # kept [each > 0, each <= 1]", [1.0, 0.1], {(0.5, 1.5): "k[1] = 1.5 is above 1"}),
        ("k = [1, 2]  # of each [>= 2 items]", [3, 4, 5], {(3,): "k = [3] has fewer than 2 items"}),
        ("k = [1, 2]  # of each [2 items]", [3, 4], {(3,): "fewer than 2", (3, 4, 5): "more than 2"}),
        ("k = [1]  # of each [1 item, each >= 0]", [0], {(-1,): "k[0] = -1 is below 0"}),
        ("t = 'a'  # word [a, b-c, d/e_f.2]", "d/e_f.2", {"c": "t = 'c' is none of 'a', 'b-c' or 'd/e_f.2'"}),
        ("t = ['a']  # words [a, b, <= 2 items]", ["b", "b"], {("a", "c"): "t[1] = 'c' is none of 'a' or 'b'"}),
        ("n = 3  # a whole number", 1, {0: "n = 0 is below 1"}),
        ("n = 0  # a whole number", 0, {-1: "n = -1 is below 0"}),
        ("n = -2  # a whole number", -99, {}),
        ("n = 3  # a whole number [>= 0]", 0, {-1: "n = -1 is below 0"}),
        ("k = [0, 5]  # whole numbers", [0], {(): "k = [] has fewer than 1 items", (-1,): "k[0] = -1 is below 0"}),
        ("x = 0.5  # a number", -7.5, {float("nan"): "x = nan is not a finite number", float("inf"): "not a finite"}),
        ("k = [0.5]  # numbers", [-7.5], {(float("nan"),): "k[0] = nan is not a finite number"}),
    ],
)
def test_a_range_holds_at_its_bounds_and_refuses_what_lies_beyond(line, fits, said):
    declared = parameters.parse(line, "n")
    (name,) = declared
    assert parameters.validate(declared, {name: fits}, "n") == {name: fits}
    assert "[" not in declared[name].help
    for value, sentence in said.items():
        with pytest.raises(TenfoldError, match=re.escape(sentence)):
            parameters.validate(declared, {name: list(value) if isinstance(value, tuple) else value}, "n")


@pytest.mark.parametrize(
    ("literal", "bracket"),
    [("10", "at least 2"), ("10", ">=2"), ("10", "a, b"), ("10", "each >= 1"), ("10", "2 items"), ("10", "")]
    + [("'a'", "> 0"), ("'a'", "a b"), ("True", ">= 0"), ("[1]", ">= 1"), ("[1]", "a"), ("10", "> X")],
)
def test_a_bracket_that_is_no_range_is_refused(literal, bracket):
    declared = parameters.parse(f"n = {literal}  # of something [{bracket}]", "n")
    with pytest.raises(
        TenfoldError, match=rf"\[{re.escape(bracket)}\] is no range of n: write parts separated by commas"
    ):
        parameters.validate(declared, {}, "n")


@pytest.mark.parametrize(
    ("line", "fits", "said"),
    [
        ("n = 3  # shown [<= all]", 10, {11: "n = 11 is not <= all = 10 (shown): change one of them."}),
        ("n = 3  # shown [>= 2, < all]", 9, {10: "n = 10 is not < all = 10"}),
        ("n = 5  # in a batch [multiple of part]", 4, {6: "n = 6 is not multiple of part = 4"}),
        ("n = [3]  # shown [each <= all]", [1, 10], {(1, 11): "n = [1, 11] is not <= all = 10"}),
        ("n = [3]  # lengths [rising]", [1, 2, 4], {(1, 1): "n = [1, 1] does not rise (lengths).", (2, 1): "not rise"}),
        ("n = 3  # shown [<= al]", None, {3: "the range of n names no parameter 'al'; did you mean 'all'?"}),
    ],
)
def test_parameters_that_do_not_go_together_are_refused(line, fits, said):
    declared = parameters.parse(f"{line}\nall = 10\npart = 4", "here")
    others = {"all": 10, "part": 4}
    if fits is not None:
        parameters.agree(declared, others | {"n": fits}, "here")
    for value, sentence in said.items():
        with pytest.raises(TenfoldError, match=re.escape(sentence)):
            parameters.agree(declared, others | {"n": list(value) if isinstance(value, tuple) else value}, "here")


def test_help_may_stand_above_a_long_line_and_belongs_to_that_line_only():
    declared = parameters.parse("a = 1  # of a\n# of b [>= 0]\nb = 2\nc = 3\n", "n")
    assert [p.help for p in declared.values()] == ["of a", "of b", ""]
    assert parameters.validate(declared, {"b": 0}, "n") == {"b": 0}


SOURCE = """# how many [>= 2]
words = ["a", "ü"]
rate = 1e-3  # a second
n = 3  # a number [>= 2]
on = True  # or off
seed = 0"""
SAVED = """# how many [>= 2]
words = ['x',
         'y', ]  
rate = 7 # a second
n = 0# a number [>= 2]
on = False      # or off
seed=9"""
CPU = {"words": ["a", "ü"], "rate": 0.002, "n": 3, "on": True, "seed": 0}


def committed(source=SOURCE):
    title = {"cell_type": "markdown", "id": "t", "metadata": {}, "source": ["# Title\n", "words"]}
    cells = [title]
    for number, (text, tags) in enumerate([(source, ["parameters"]), ("print(n)", [])]):
        metadata = {"tags": tags} if tags else {}
        cells.append(
            {
                "cell_type": "code", "id": f"c{number}", "metadata": metadata, "execution_count": None, "outputs": [],
                "source": text.splitlines(keepends=True),
            }
        )  # fmt: skip
    return {"cells": cells, "metadata": {}, "nbformat": 4, "nbformat_minor": 5}


def saved_in_jupyterlab():
    notebook = committed(SAVED)
    notebook["metadata"] = {
        "kernelspec": {"name": "python3", "display_name": "Python 3 (ipykernel)", "language": "python"},
        "language_info": {"name": "python", "version": "3.11.9", "mimetype": "text/x-python"}, "widgets": {"x": 1},
    }  # fmt: skip
    output = {"output_type": "stream", "name": "stdout", "text": ["0\n"]}
    for number, cell in enumerate(notebook["cells"]):
        cell["metadata"] |= {"execution": {"iopub.status.busy": "now"}, "scrolled": True}
        cell["source"] = "".join(cell["source"])
        if cell["cell_type"] == "code":
            cell |= {"execution_count": number, "outputs": [output]}
    empty = {"cell_type": "code", "id": "e", "metadata": {}, "execution_count": None, "outputs": [], "source": []}
    notebook["cells"].append(empty)
    return notebook


def test_what_is_saved_in_jupyterlab_is_run_and_published_as_committed(tmp_path):
    once, again = (parameters.canonical(n, CPU) for n in (committed(), saved_in_jupyterlab()))
    assert json.dumps(once) == json.dumps(again)
    assert "".join(once["cells"][1]["source"]) == SOURCE.replace("1e-3", "0.002")
    assert once["cells"][1]["metadata"] == {"tags": ["parameters"]}
    digests = []
    for notebook in (committed(), saved_in_jupyterlab()):
        (tmp_path / "a.ipynb").write_text(json.dumps(notebook))
        digests.append(parameters.source_digest(tmp_path / "a.ipynb", CPU))
    assert digests[0] == digests[1] == parameters.digest(once)


def test_any_other_edit_is_another_source(tmp_path):
    def digest(notebook, values=CPU):
        (tmp_path / "a.ipynb").write_text(json.dumps(notebook))
        return parameters.source_digest(tmp_path / "a.ipynb", values)

    code, prose, tagged = committed(), committed(), committed()
    code["cells"][2]["source"] = ["print(n + 1)"]
    prose["cells"][0]["source"][1] = "other words"
    tagged["cells"][2]["metadata"] = {"tags": ["claims"]}
    digests = {digest(n) for n in (committed(), code, prose, tagged)} | {digest(committed(), CPU | {"n": 4})}
    assert len(digests) == 5
    assert digest(committed(), None) == digest(committed(), CPU | {"rate": 0.001})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"more": 1}, "the cpu profile: no parameter 'more' in the notebook"),
        ({"n": None}, "the cpu profile does not state n"),
    ],
)
def test_names_that_differ_from_the_profiles_are_refused(change, message):
    values = {name: value for name, value in (CPU | change).items() if value is not None}
    with pytest.raises(TenfoldError, match=message):
        parameters.canonical(committed(), values)


def test_the_parameters_kept_here_are_written_as_they_are_run():
    for path in (paths.paper_notebooks() | paths.guide_notebooks()).values():
        kept = parameters.load(path)
        written, run = (
            ["".join(c["source"]) for c in n["cells"] if parameters.TAG in c["metadata"].get("tags", [])]
            for n in (kept, parameters.canonical(kept, profiles.stated(path), path.name))
        )
        assert written == run


def test_a_run_takes_the_values_of_the_profile_whatever_was_saved(house, write_notebook):
    (house / "notebooks/profiles/cpu.toml").write_text("[parameters.trap]\nvalue = 1\nseed = 0\n")
    published = []
    for literals in ("value = 1  # n\nseed = 0  # s", "value = 41 # n\nseed = 7   # s"):
        path = write_notebook(literals, "print(value, seed)", name="05_trap.ipynb")
        notebook = nbformat.read(path, as_version=4)
        for number, cell in enumerate(notebook.cells):
            cell["id"] = f"cell-{number}"
        notebook.metadata["kernelspec"]["display_name"] = f"Python of {literals[8]}"
        nbformat.write(notebook, path)
        for values in (None, {"value": 2, "seed": 0}):
            options = {"profile": "smoke", "parameters": values, "echo": False, "needs_results": False}
            executed = nbformat.read(runner.run_notebook(path, house / "figures/trap", **options), as_version=4)
            executed.metadata.pop("language_info")
            for cell in executed.cells:
                cell["id"] = "" if "injected-parameters" in cell.metadata.get("tags", []) else cell["id"]
            published.append(nbformat.writes(executed))
    assert published[:2] == published[2:]
    assert "1 0\\n" in published[0]
    assert "injected-parameters" not in published[0]
    assert "2 0\\n" in published[1]


def test_in_jupyterlab_a_run_names_what_differs_from_cpu_and_is_held_to_the_ranges(house, write_notebook, monkeypatch):
    monkeypatch.delenv("TENFOLD_PROFILE", raising=False)
    path = write_notebook("a = 0  # n\nb = [1, 2]  # m [each <= 5]\nseed = 3  # s", "print(a)", name="00_tour.ipynb")
    (house / "notebooks/profiles/cpu.toml").write_text("[parameters.tour]\na = 2\nb = [1, 2]\nseed = 0\n")
    monkeypatch.setenv("TENFOLD_NOTEBOOK", str(path))

    def said(**values):
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            lab.start("tour", values)
        return [line for line in printed.getvalue().splitlines() if "profiles" in line]

    assert said(a=2, b=[1, 2], seed=0) == []
    assert said(a=3, b=[1, 2], seed=1) == ["Values that are not those of notebooks/profiles/cpu.toml: a, seed."]
    with pytest.raises(TenfoldError, match=r"tour: b\[1\] = 6 is above 5"):
        said(a=2, b=[1, 6], seed=0)
    with pytest.raises(TenfoldError, match="tour: a = 0 is below 1"):
        said(a=0, b=[1, 2], seed=0)
