"""The anatomy check itself: a good notebook passes, and each way to break it is named."""

import nbformat
import pytest

from lib.lab import papers, structure


def anatomy():
    v4 = nbformat.v4
    code = [v4.new_code_cell("seed = 0  # seed"), v4.new_code_cell("x = 1"), v4.new_code_cell("y = 2")]
    for cell, tag in zip(code, ["parameters", "setup", "claims"], strict=True):
        cell.metadata["tags"] = [tag]
    title = v4.new_markdown_cell("# T\n[paper](https://arxiv.org/abs/1)")
    prose = [v4.new_markdown_cell("What to see."), v4.new_markdown_cell("## Deviations")]
    notebook = v4.new_notebook(cells=[title, *code[:2], prose[0], code[2], prose[1]])
    notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
    return notebook


def problems(tmp_path, notebook):
    path = tmp_path / "trap.ipynb"
    nbformat.write(notebook, path)
    return structure.problems(path)


def test_a_good_notebook_has_no_problems(tmp_path):
    assert problems(tmp_path, anatomy()) == []


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (lambda n: n.cells[1].metadata.pop("tags"), "tagged 'parameters'"),
        (lambda n: n.cells.insert(1, n.cells.pop(2)), "the order is"),
        (lambda n: n.cells.pop(0), "the first cell"),
        (lambda n: n.cells.pop(), "the last cell"),
        (lambda n: n.metadata.pop("kernelspec"), "kernelspec"),
        (lambda n: n.cells[2].update(execution_count=3), "holds outputs"),
        (lambda n: n.metadata.update(papermill={}), "papermill's metadata"),
        (lambda n: n.cells[2].update(source="import sys\nsys.path.append('x')"), "sys.path"),
        (lambda n: n.cells[2].update(source="open('/home/me/x')"), "absolute path"),
        (lambda n: n.cells[2].update(source="if profile == 'smoke':\n    x = 1"), "branches on the profile"),
        (lambda n: n.cells[2].update(source="!ls"), "shell"),
        (lambda n: n.cells[2].update(source="x = 1\n" * 26), "longest cell: 26, where at most 25"),
        (lambda n: [c.update(source="x = 1\n" * 13) for c in n.cells[2::2]], "median cell: 13, where at most 12"),
        (lambda n: n.cells.pop(3), "code cells in a row: 3, where at most 2"),
        (lambda n: n.cells[1].update(source="seed = 0"), "has no help"),
        (lambda n: n.cells[1].update(source="rate = 0.1  # r"), "no `seed` parameter"),
        (lambda n: n.cells[1].update(source="seed = int('3')  # s"), "is computed"),
    ],
)
def test_each_broken_rule_is_named(tmp_path, break_it, message):
    notebook = anatomy()
    break_it(notebook)
    assert message in " ".join(problems(tmp_path, notebook))


def test_a_guide_judges_nothing_but_is_held_to_the_rest(tmp_path):
    notebook = anatomy()
    notebook.cells[1].source = 'profile = "cpu"  # profile shown\nseed = 0  # seed'
    del notebook.cells[4].metadata["tags"]
    notebook.cells[4].source = "run.finish()"
    path = tmp_path / "90_benchmarks.ipynb"
    nbformat.write(notebook, path)
    assert structure.problems(path) == []
    notebook.cells[2].metadata["tags"] = []
    notebook.cells[4].source = "y = 2"
    nbformat.write(notebook, path)
    assert structure.problems(path) == ["code cell 2 is not tagged 'setup'", "the last code cell calls run.finish()"]


@pytest.mark.parametrize(
    ("cpu", "gpu", "message"),
    [
        ("a = 1\nseed = 0", "a = 9\nseed = 0", ""),
        ("a = 2\nseed = 0", "a = 9\nseed = 0", "a = 1 here and 2 in notebooks/profiles/cpu.toml: write the value"),
        ("a = 1.0\nseed = 0", "a = 9\nseed = 0", "notebooks/profiles/cpu.toml: a = 1.0 does not fit"),
        ("a = 1\nseed = 0", "seed = 0", "notebooks/profiles/gpu.toml does not state a: write its value there"),
        ("a = 1\nseed = 0\nb = 1", "a = 9\nseed = 0", "notebooks/profiles/cpu.toml: no parameter 'b'"),
        ("a = 1\nseed = 0", "a = 0\nseed = 0", "notebooks/profiles/gpu.toml: a = 0 is below 1"),
        ("a = 1\nseed = 0", None, "notebooks/profiles/gpu.toml states no values of benchmarks: add [parameters."),
    ],
)
def test_the_profiles_state_all_values_and_the_literals_are_those_of_cpu(house, cpu, gpu, message):
    notebook = anatomy()
    notebook.cells[1].source = "a = 1  # a number\nseed = 0  # seed"
    del notebook.cells[4].metadata["tags"]
    notebook.cells[4].source = "run.finish()"
    nbformat.write(notebook, house / "notebooks/90_benchmarks.ipynb")
    for profile, values in {"smoke": cpu, "cpu": cpu, "gpu": gpu}.items():
        text = "[cost.benchmarks]\nminutes = 1\n" + ("" if values is None else f"[parameters.benchmarks]\n{values}\n")
        (house / f"notebooks/profiles/{profile}.toml").write_text(text)
    found = " ".join(structure.problems(house / "notebooks/90_benchmarks.ipynb"))
    assert (message in found) if message else (found == "")


def test_what_paper_toml_asks_for_is_handed_in_and_hangs_together(monkeypatch):
    rule = {"estimate": "e", "rule": "above", "threshold": 0.0}
    large = papers.ClaimRecord(id="large", quote="q", place="p", profiles=("gpu",), **rule)
    record = papers.load("lorc").model_copy(
        update={
            "claims": (large,),
            "checks": (papers.CheckRecord(id="exact", what="w", **rule),),
            "gates": (papers.GateRecord(id="idle", what="w", **rule),),
            "finding": "It is {large}, {large:verdict}, and exact to {exact}.",
            "headline": "",
        }
    )
    monkeypatch.setattr(papers, "load", lambda paper: record)
    code = [nbformat.v4.new_code_cell('run.claim("large")\nrun.gate("idle", estimate=1.0)')]
    assert structure._paper("lorc", code) == [
        "check 'exact' of paper.toml is not handed in",
        "gate 'idle' of paper.toml is named by no claim",
        "the finding rests on 'large', which the cpu profile does not decide",
        "paper.toml has no `headline`: the paper's main point in words, with {claim} for its verdict",
    ]
