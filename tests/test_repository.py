"""The repository itself: what git keeps, versions that agree, tables that are generated, imports that stay light."""

import datetime
import hashlib
import re
import subprocess
import sys
import tomllib

import pytest
import yaml

from lib import __version__, root
from lib.lab import doctor, paths, profiles, report, structure
from lib.zoo import shipped
from lib.zoo.assets import ASSETS
from lib.zoo.models import SHAPES

PYPROJECT = tomllib.loads((root() / "pyproject.toml").read_text())


def git(*arguments):
    return subprocess.run(["git", "-C", str(root()), *arguments], capture_output=True, text=True)


@pytest.mark.parametrize(
    "path", ["lib/lab/run.py", "lib/zoo/assets.py", "data/assets.txt", "figures/cpu/lorc/results.json"]
)
def test_git_does_not_ignore_what_must_be_kept(path):
    assert git("check-ignore", "-q", path).returncode == 1


@pytest.mark.parametrize("path", ["data/raw/x", "data/cache/x", "figures/smoke/lorc/results.json", ".venv/x"])
def test_git_ignores_what_is_made(path):
    assert git("check-ignore", "-q", path).returncode == 0


def test_environment_yml_agrees_with_pyproject():
    environment = yaml.safe_load((root() / "environment.yml").read_text())
    assert "python=3.11" in environment["dependencies"]
    assert PYPROJECT["project"]["requires-python"].startswith(">=3.11")
    (pip,) = [entry["pip"] for entry in environment["dependencies"] if isinstance(entry, dict)]
    assert pip == ["-c requirements.lock", "-e .[all]"], "versions live in pyproject.toml and the lock, nowhere else"


def requirements():
    project = PYPROJECT["project"]
    groups = [project["dependencies"], *project["optional-dependencies"].values()]
    return [r for group in groups for r in group if not r.startswith("tenfold[")]


def test_the_citation_is_of_this_version():
    citation = yaml.safe_load((root() / "CITATION.cff").read_text(encoding="utf8"))
    assert citation["version"] == __version__
    assert isinstance(citation["date-released"], datetime.date)
    assert f"version = {{{__version__}}}" in (root() / "README.md").read_text(encoding="utf8")


def test_every_range_is_locked_to_a_version_inside_it():
    from packaging.requirements import Requirement

    locked = {name.lower().replace("_", "-"): version for name, version in doctor.lock().items()}
    for text in requirements():
        requirement = Requirement(text)
        name = requirement.name.lower().replace("_", "-")
        if name != "pip":
            assert requirement.specifier.contains(locked[name]), text


def test_the_owners_packages_are_there():
    names = {re.split(r"[<>=]", r)[0] for r in requirements()}
    cards = {
        "jupyterlab",
        "papermill",
        "torch",
        "transformers",
        "datasets",
        "matplotlib",
        "seaborn",
        "diffusers",
        "trl",
    }
    assert cards <= names


def test_the_lock_leaves_the_cpu_or_cuda_choice_open():
    text = (root() / "requirements.lock").read_text()
    assert re.search(r"^torch==[\d.]+$", text, re.MULTILINE)
    assert "torchvision" not in text
    assert "nvidia" not in text


def test_generated_pages_are_as_they_would_be_written_now():
    for path, text in report.generated().items():
        assert path.read_text(encoding="utf8") == text, f"{path.name}: run `make claims`"


@pytest.mark.parametrize("path", sorted(paths.notebooks_dir().glob("*.ipynb")), ids=lambda p: p.stem)
def test_every_notebook_keeps_the_anatomy(path):
    assert structure.problems(path) == []


@pytest.mark.parametrize("paper", paths.paper_notebooks())
def test_a_method_is_a_room_that_can_be_read_through(paper):
    count = len(structure.files_of_method(paper))
    assert count <= structure.LARGER_ROOMS.get(paper, structure.LARGEST_ROOM), (
        f"lib/{paper} has {count} files: merge some, or move some to its study"
    )


def test_every_figure_kept_in_git_has_its_csv_twin():
    for png in (root() / "figures").glob("cpu/*/*.png"):
        assert png.with_suffix(".csv").exists(), png.name


def test_every_shipped_file_is_the_one_of_its_card():
    """And its commit is in this history, so that anyone can make the file again."""
    files = list(shipped.files())
    for path in files:
        card = shipped.card_of(path)
        assert card["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest(), path.name
        assert {"command", "commit", "machine", "minutes"} <= set(card)
        assert path.stat().st_size <= shipped.LARGEST
        if git("rev-parse", "--is-shallow-repository").stdout.strip() == "false":
            assert git("merge-base", "--is-ancestor", card["commit"].split()[0], "HEAD").returncode == 0, path.name
    cards = list((root() / "data" / "weights").glob(f"*/*{shipped.CARD}"))
    assert len(cards) == len(files)
    assert sum(path.stat().st_size for path in files) <= shipped.LARGEST_IN_ALL


def test_every_room_is_named_in_the_import_contracts():
    layers = PYPROJECT["tool"]["importlinter"]["contracts"][0]["layers"][0]
    for paper in paths.paper_notebooks():
        assert f"lib.{paper})" in layers, f"add (lib.{paper}) to the papers' layer in pyproject.toml"


@pytest.mark.parametrize("paper", paths.paper_notebooks())
def test_the_gpu_profile_can_be_planned_without_a_hub(paper):
    for name, value in profiles.load("gpu").parameters(paper).items():
        loaded = name.endswith("model") and isinstance(value, str) and value not in ("", "recorded")
        if loaded:  # nobody and a recording have no weights to plan for
            assert value in ASSETS or value in SHAPES, f"add the shape of {value!r} to lib/zoo/models.py"


def seconds_to_import(module):
    script = f"import time; began = time.perf_counter(); import {module}; print(time.perf_counter() - began)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=root())
    return float(done.stdout)


@pytest.mark.parametrize("module", ["lib", "lib.zoo", "lib.__main__"])
def test_imports_stay_light(module):
    assert min(seconds_to_import(module) for _ in range(3)) < 1.0
    script = f"import sys, {module}; print([m for m in ('torch', 'transformers', 'pandas') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
