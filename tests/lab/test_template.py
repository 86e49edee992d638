"""An eleventh paper: what the template writes keeps the anatomy, and its notebook runs to a verdict on a real model."""

import json

import nbformat
import pytest

from lib import TenfoldError
from lib.lab import papers, profiles, structure, template


@pytest.fixture
def rooms(house, monkeypatch):
    """The rooms' folder of the little house."""
    monkeypatch.setattr(template, "room", lambda paper: house / "lib" / paper)
    monkeypatch.setattr(papers, "path_of", lambda paper: house / "lib" / paper / "paper.toml")
    return house


def test_a_new_paper_keeps_the_anatomy(rooms):
    assert "make record PAPERS=eleventh" in template.create("eleventh")
    assert structure.problems(rooms / "notebooks" / "01_eleventh.ipynb") == []
    assert [claim.id for claim in papers.load("eleventh").claims] == ["first-claim"]
    for name in ("smoke", "cpu", "gpu"):
        profile = profiles.load(name)
        assert profile.cost["eleventh"]["minutes"] > 0
        assert profile.values["eleventh"] == profile.parameters("eleventh"), "all values are stated"


@pytest.mark.parametrize(("name", "message"), [("Two Words", "cannot be a package"), ("lab", "here already")])
def test_names_that_cannot_be_are_refused(rooms, name, message):
    with pytest.raises(TenfoldError, match=message):
        template.create(name)
    template.create("eleventh")
    with pytest.raises(TenfoldError, match="here already"):
        template.create("eleventh")


def test_its_cells_run_to_a_verdict_on_the_real_model(rooms, monkeypatch):
    monkeypatch.delenv("TENFOLD_DATA")  # the real assets
    monkeypatch.setenv("TENFOLD_CACHE", str(rooms / "cache"))
    template.create("eleventh")
    notebook = nbformat.read(rooms / "notebooks" / "01_eleventh.ipynb", as_version=4)
    namespace: dict = {}
    for cell in notebook.cells:
        if cell.cell_type == "code":
            exec(cell.source.replace("answers = 8", "answers = 2"), namespace)
    (results,) = (rooms / "figures").rglob("results.json")
    content = json.loads(results.read_text())
    (claim,), (check,), (gate,) = content["claims"], content["checks"], content["gates"]
    assert (claim["id"], claim["n"]) == ("first-claim", "2 answers")
    assert (check["passed"], gate["passed"]) == (True, True)
    assert content["finding"].startswith("On 2 real answers the model needs ")
