"""`make reproduce`: run the papers of a profile one after another, skip what has not changed, go on after a failure."""

import ast
import hashlib
import json
import os
import re
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import lib
from lib import TenfoldError, root
from lib.lab import figures, forecast, keys, papers, paths, profiles, requirements, runner
from lib.lab import parameters as cell
from lib.lab.run import RESULTS, write_json
from lib.zoo.assets import ASSETS

HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+(:[\w.-]+)?")


@dataclass(frozen=True)
class Job:
    """One paper's run under a profile, with all its parameters."""

    paper: str
    notebook: Path
    profile: str
    parameters: dict[str, Any]
    cost: dict[str, Any]
    requires: dict[str, Any] = field(default_factory=dict)
    beside: Path | None = None  # folder of runs at other seeds than the published one, such as those of a sweep

    @property
    def results(self) -> Path:
        """Folder of the finished run; beside the published runs there is one a seed."""
        return self.beside / self.name if self.beside else paths.results_dir(self.profile, self.paper)

    @property
    def name(self) -> str:
        """Short name of the run: its paper, and beside the published runs its seed."""
        return f"{self.paper}-seed-{self.parameters['seed']}" if self.beside else self.paper

    def models_and_data(self) -> list[str]:
        """Names of the models and data sets among the parameters: short names, and `owner/name` of the hub.

        What a server holds (`served` in the profile's `requires`) and files are none of them.
        """
        apart = {*self.requires.get("served", []), *self.requires.get("files", [])}
        values = [value for name, value in self.parameters.items() if name not in apart]
        texts = [item for value in values for item in (value if isinstance(value, list) else [value])]
        return sorted(
            {text for text in texts if isinstance(text, str) and (text in ASSETS or HUB_NAME.fullmatch(text))}
        )

    def cells(self) -> list[str]:
        """Code cells of the notebook as it is run, the parameters' literals being those of the `cpu` profile.

        Raises TenfoldError for a cell that is not Python.
        """
        source = cell.canonical(cell.load(self.notebook), profiles.stated(self.notebook), self.notebook.name)
        found = ["".join(c["source"]) for c in source["cells"] if c["cell_type"] == "code"]
        for number, text in enumerate(found, start=1):
            try:
                ast.parse(text)
            except SyntaxError as error:
                raise TenfoldError(
                    f"{self.notebook.name}: line {error.lineno} of code cell {number} is not Python ({error.msg}): "
                    "mend it; what starts with % or ! is for JupyterLab alone."
                ) from None
        return found

    def modules(self) -> dict[str, str]:
        """Digest of each module of `lib` that the run can reach: the same that the keys of its stages hold."""
        return forecast.code_of({"lib.lab", "lib.lab.runner", *forecast.imported(self.cells()).values()})

    def data(self) -> dict[str, str]:
        """Fingerprints of what the run reads beside code and assets: what is shipped for its rooms, files it needs."""
        needed = [self.parameters[name] for name in self.requires.get("files", [])]
        reads = keys.Reads({})
        return keys.shipped_to(self.modules()) | {name: reads.digest(root() / name) for name in needed}

    def inputs(self) -> str:
        """Hash of everything the run is made from: notebook, code, data, its records, parameters, pinned versions.

        What an edit in JupyterLab leaves behind (literals, outputs, metadata), comments and docstrings of `lib`, and
        code that the notebook cannot reach do not count.
        """
        source = cell.source_digest(self.notebook, profiles.stated(self.notebook))
        imitated = {name: os.environ[name] for name in keys.IMITATED if name in os.environ}
        parts = [self.profile, self.parameters, source, self.modules(), self.data(), imitated]
        digest = hashlib.sha256(json.dumps(parts, sort_keys=True).encode())
        beside = [papers.path_of(self.paper), figures.STYLE]
        for file in [*beside, root() / "requirements.lock", lib.pins_file()]:
            digest.update(file.read_bytes() if file.exists() else b"")
        return digest.hexdigest()

    def stamp(self) -> Path:
        """Where this machine remembers its last finished run; git knows nothing of it, so a fresh clone runs."""
        folder = paths.cache_dir() / "runs" / self.profile / (self.beside.name if self.beside else "")
        return folder / f"{self.name}.json"

    def up_to_date(self) -> bool:
        """Whether the results that lie there came from exactly these inputs on this machine.

        What cannot be read is not up to date: its run says why, and those of other papers go on.
        """
        kept = self._stamped()
        try:
            return bool(kept) and kept["inputs"] == self.inputs() and kept["results"] == _hash(self.results / RESULTS)
        except TenfoldError:
            return False

    def stages(self) -> list[forecast.Forecast]:
        """What a run would keep and compute, stage by stage; empty where this machine has not run it yet."""
        before = self._stamped()
        if not before:
            return []
        return forecast.stages(self.paper, self.results / RESULTS, before, self.cells(), self.parameters)

    def _stamped(self) -> dict[str, Any]:
        try:
            return json.loads(self.stamp().read_text())
        except (OSError, ValueError):
            return {}

    def made_from(self) -> dict[str, Any]:
        """What a run that begins now is made from, to be remembered when it has finished."""
        told_from = {"parameters": self.parameters, "cells": self.cells(), "modules": self.modules()}
        return {"inputs": self.inputs(), **told_from}

    def remember(self, made_from: dict[str, Any]) -> None:
        """Write the stamp of the run that just finished; raises TenfoldError where the cache cannot be written."""
        try:
            write_json(self.stamp(), made_from | {"results": _hash(self.results / RESULTS)})
        except OSError as error:
            raise lib.unwritable(self.stamp().parent, "TENFOLD_CACHE", error) from None


def plan(
    profile_name: str, names: list[str], seed: int | None = None, overrides: dict[str, Any] | None = None
) -> list[Job]:
    """Jobs for the papers named (where none is: all, then the guides), every parameter checked before anything runs."""
    profile = profiles.load(profile_name)
    extra = dict(overrides or {}) | ({} if seed is None else {"seed": seed})
    jobs = []
    for paper in names or [*paths.paper_notebooks(), *paths.guide_notebooks()]:
        notebook = paths.notebook_of(paper)
        costs, requires = profile.cost.get(paper, {}), profile.requires.get(paper, {})
        parameters = profile.parameters(paper, extra)
        jobs.append(Job(paper, notebook, profile_name, parameters, costs, requires=requires))
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
        requirements.refuse_missing(job.paper, job.requires, job.parameters)
        made_from = job.made_from()
        runner.run_notebook(job.notebook, job.results, profile=job.profile, parameters=job.parameters, echo=echo)
        job.remember(made_from)
        return Outcome(job, "ran", (time.monotonic() - began) / 60)
    except TenfoldError as error:
        return Outcome(job, "failed", (time.monotonic() - began) / 60, str(error))


def _hash(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.exists() else ""
