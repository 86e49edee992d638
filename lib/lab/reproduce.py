"""`make reproduce`: run the papers of a profile one after another, skip what has not changed, go on after a failure."""

import hashlib
import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lib
from lib import TenfoldError, root
from lib.lab import paths, profiles, runner
from lib.lab.run import RESULTS, write_json


@dataclass(frozen=True)
class Job:
    """One paper's run under a profile, with all its parameters."""

    paper: str
    notebook: Path
    profile: str
    parameters: dict[str, Any]
    cost: dict[str, Any]
    sweep: bool = False

    @property
    def results(self) -> Path:
        """Folder of the finished run; a run of a sweep has one a seed."""
        if self.sweep:
            return paths.sweep_dir(self.profile) / self.name
        return paths.results_dir(self.profile, self.paper)

    @property
    def name(self) -> str:
        """Short name of the run: its paper, and in a sweep its seed."""
        return f"{self.paper}-seed-{self.parameters['seed']}" if self.sweep else self.paper

    def models_and_data(self) -> list[str]:
        """Names of the models and data sets among the parameters: those whose name ends in `model` or `dataset`."""
        found = {v for k, v in self.parameters.items() if k.endswith(("model", "dataset")) and isinstance(v, str)}
        return sorted(found)

    def inputs(self) -> str:
        """Hash of everything the run is made from: notebook, our code it may import, parameters, pinned versions."""
        digest = hashlib.sha256(json.dumps([self.profile, self.parameters], sort_keys=True).encode())
        package = Path(lib.__file__).parent
        rooms = [package / name for name in ("lab", "zoo", "preference", self.paper)]
        sources = [f for room in rooms for f in sorted(room.rglob("*")) if f.suffix in (".py", ".toml", ".mplstyle")]
        pins = [root() / "requirements.lock", lib.data_dir() / "assets.txt"]
        for source in [self.notebook, *sources, *(pin for pin in pins if pin.exists())]:
            digest.update(source.name.encode() + b"\0" + source.read_bytes())
        return digest.hexdigest()

    def stamp(self) -> Path:
        """Where this machine remembers its last finished run; git knows nothing of it, so a fresh clone runs."""
        return paths.cache_dir() / "runs" / self.profile / f"{self.name}.json"

    def up_to_date(self) -> bool:
        """Whether the results that lie there came from exactly these inputs on this machine."""
        try:
            kept = json.loads(self.stamp().read_text())
            return kept == {"inputs": self.inputs(), "results": _hash(self.results / RESULTS)}
        except (OSError, ValueError):
            return False

    def remember(self) -> None:
        """Write the stamp of the run that just finished."""
        write_json(self.stamp(), {"inputs": self.inputs(), "results": _hash(self.results / RESULTS)})


def plan(
    profile_name: str, names: list[str], seed: int | None = None, overrides: dict[str, Any] | None = None
) -> list[Job]:
    """Jobs for the papers named (where none is: all, then the guides), every parameter checked before anything runs."""
    profile = profiles.load(profile_name)
    extra = dict(overrides or {}) | ({} if seed is None else {"seed": seed})
    jobs = []
    for paper in names or [*paths.paper_notebooks(), *paths.guide_notebooks()]:
        notebook = paths.notebook_of(paper)
        jobs.append(Job(paper, notebook, profile_name, profile.parameters(paper, extra), profile.cost.get(paper, {})))
    return jobs


@dataclass(frozen=True)
class Outcome:
    """How one job ended: `ran`, `unchanged` or `failed`, with the reason."""

    job: Job
    state: str
    minutes: float
    reason: str = ""


def reproduce(jobs: list[Job], *, force: bool = False) -> list[Outcome]:
    """Run the jobs in order; a failure is kept for the end and the next paper goes on."""
    outcomes = []
    for job in jobs:
        outcomes.append(Outcome(job, "unchanged", 0.0) if not force and job.up_to_date() else run_job(job))
        if outcomes[-1].reason:
            print(f"\n{outcomes[-1].reason}\n", flush=True)
    return outcomes


def run_job(job: Job, *, echo: bool = True) -> Outcome:
    """Run one job and remember it; a refusal or a failed notebook is an outcome, not an error."""
    began = time.monotonic()
    try:
        runner.run_notebook(job.notebook, job.results, profile=job.profile, parameters=job.parameters, echo=echo)
        job.remember()
        return Outcome(job, "ran", (time.monotonic() - began) / 60)
    except TenfoldError as error:
        return Outcome(job, "failed", (time.monotonic() - began) / 60, str(error))


def _hash(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
