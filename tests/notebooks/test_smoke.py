"""Every notebook, whole, in the smoke profile; those of papers give the numbers recorded, and some the same twice."""

import pytest

from lib.lab import golden, papers, paths, profiles, provenance
from tests.notebooks.test_jupyterlab import CHROMIUM


def longest_first(names):
    cost = profiles.load("smoke").cost
    return sorted(names, key=lambda name: cost.get(name, {}).get("minutes", 0), reverse=True)


PAPERS = longest_first(paths.paper_notebooks())
TURNS = 3  # of commits in a row, after which every notebook has run a second time on the stages of its first
IN_JUPYTERLAB = {"tour"} if CHROMIUM else set()  # guides that run there whole
GUIDES = [name for name in longest_first(paths.guide_notebooks()) if name not in IN_JUPYTERLAB]
TWICE = list(paths.paper_notebooks())[provenance.commits() % TURNS :: TURNS]


def stages_in(folder):
    return sorted(entry.name for entry in (folder / "cache").glob("*/*-*") if entry.is_dir())


@pytest.mark.notebook
@pytest.mark.timeout(900)
@pytest.mark.parametrize("paper", PAPERS)
def test_a_smoke_run_gives_the_recorded_numbers_and_a_second_one_computes_nothing(paper, tmp_path, monkeypatch):
    # The cache of stages is the test's own, so that the first run is cold; assets and converted models are shared.
    monkeypatch.setenv("TENFOLD_CACHE", str(tmp_path / "cache"))
    cold = golden.run_smoke(paper, tmp_path / "cold")
    assert golden.differences(paper, cold) == []
    assert {claim["id"] for claim in cold["claims"]} == {claim.id for claim in papers.load(paper).claims}
    if paper not in TWICE:
        return
    kept = stages_in(tmp_path)
    warm = golden.run_smoke(paper, tmp_path / "warm")
    assert stages_in(tmp_path) == kept, "a second run of the same code computes nothing"
    assert golden.numbers(warm) == golden.numbers(cold)
    assert golden.checks(warm) == golden.checks(cold)
    assert [c["verdict"] for c in warm["claims"]] == [c["verdict"] for c in cold["claims"]]


@pytest.mark.notebook
@pytest.mark.timeout(900)
@pytest.mark.parametrize("guide", GUIDES)
def test_a_guide_runs_and_keeps_its_figures(guide, tmp_path, monkeypatch):
    monkeypatch.setenv("TENFOLD_CACHE", str(tmp_path / "cache"))
    results = golden.run_smoke(guide, tmp_path)
    for name in results["figures"]:
        assert (tmp_path / guide / f"{name}.png").stat().st_size > 5000
    assert results["figures"]


def test_every_paper_is_recorded():
    assert [paper for paper in PAPERS if not golden.path_of(paper).exists()] == []
