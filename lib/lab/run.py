"""A notebook's run: validated parameters, seeds, device, and every result it hands in."""

import json
import os
import random
import resource
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lib import TenfoldError, root
from lib.lab import cache, claims, figures, papers, paths, provenance
from lib.lab import parameters as cell

RESULTS = "results.json"


def start(paper: str, namespace: dict[str, Any]) -> "Run":
    """Begin a run: check the notebook's parameters (found in `namespace`, usually `globals()`), seed, print provenance.

    Headless runs get their profile and output folder from the runner; in JupyterLab the profile is `interactive`, whose
    results lie apart. Raises TenfoldError for an unknown paper or a parameter of the wrong type.
    """
    record = papers.load(paper)
    declared = cell.read(_notebook(paper))
    values = {name: namespace[name] for name in declared if name in namespace}
    checked = {name: p.default for name, p in declared.items()} | cell.validate(declared, values, paper)
    profile = os.environ.get("TENFOLD_PROFILE", "interactive")
    folder = Path(os.environ.get("TENFOLD_OUTPUT") or paths.results_dir(profile, paper))
    run = Run(paper=paper, record=record, profile=profile, parameters=checked, folder=folder)
    run.reseed()
    figures.use_style()
    print(provenance.in_one_line(run.provenance))
    return run


def _notebook(paper: str) -> Path:
    """The notebook that is running: the runner and JupyterLab both say; else the paper's own."""
    for variable in ("TENFOLD_NOTEBOOK", "JPY_SESSION_NAME"):
        path = Path(os.environ.get(variable, ""))
        if path.suffix == ".ipynb" and path.is_file():
            return path
    return paths.notebook_of(paper)


def pick_device(wanted: str) -> str:
    """Device for `auto` (an accelerator where there is one), or the one asked for."""
    import torch

    if wanted != "auto":
        return wanted
    return "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"


@dataclass
class Run:
    """One run of one paper's notebook; `finish()` writes `results.json`."""

    paper: str
    record: papers.PaperRecord
    profile: str
    parameters: dict[str, Any]
    folder: Path
    results: dict[str, Any] = field(default_factory=lambda: {"metrics": {}, "figures": {}, "tables": {}})
    judged: dict[str, claims.JudgedClaim] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.seed = int(self.parameters.get("seed", 0))
        self.device = pick_device(self.parameters.get("device", "auto"))
        self.dtype = self.parameters.get("dtype", "float32")
        self._began = time.monotonic()
        self._spared: dict[str, float] = {}  # seconds of each stage, where its first use found it kept
        self.provenance = {
            "profile": self.profile, "seed": self.seed, "device": self.device, "dtype": self.dtype,
            **provenance.git_state(), "versions": provenance.versions(), "machine": provenance.machine(),
        }  # fmt: skip

    def reseed(self, purpose: str = "") -> None:
        """Seed Python, NumPy and torch from the run's seed and a purpose."""
        import numpy as np
        import torch

        seed = int(cache.key_of({"seed": self.seed, "purpose": purpose})[:8], 16)
        random.seed(seed)
        np.random.seed(seed)  # noqa: NPY002 - libraries still draw from the global state
        torch.manual_seed(seed)

    def stage(self, name: str, compute: Callable[[], Any], *, version: int = 1, **depends_on: Any) -> Any:
        """Result of an expensive step, computed once for each value of what it depends on (and of the seed).

        Keeps a data frame, a dict of tensors, or plain JSON values. Raise `version` when the computation changes.
        """
        return self._kept(cache.stage, name, compute, version, depends_on)

    def folder_stage(self, name: str, build: Callable[[Path], None], *, version: int = 1, **depends_on: Any) -> Path:
        """Folder that `build(path)` fills once (a trained model), kept like a stage."""
        return self._kept(cache.folder_stage, name, build, version, depends_on)

    def _kept(self, how, name: str, make, version: int, depends_on: dict[str, Any]) -> Any:
        parts = {"paper": self.paper, "stage": name, "version": version, "seed": self.seed, **depends_on}
        self.reseed(name)
        kept = how(paths.cache_dir() / self.paper, name, parts, make)
        self._spared.setdefault(cache.key_of(parts), kept.seconds if kept.loaded else 0.0)
        self.reseed(name)  # what follows must not depend on whether the stage ran
        return kept.value

    def progress(self, items: Iterable, label: str) -> Iterable:
        """Items with a progress bar; quiet steps of some seconds where the terminal only gets lines."""
        from tqdm import tqdm

        headless = "TENFOLD_OUTPUT" in os.environ
        return tqdm(items, desc=label, mininterval=5.0 if headless else 0.2, file=sys.stderr, leave=True)

    def metric(self, name: str, value: float) -> float:
        """Keep one number for results.json and the regression test."""
        self.results["metrics"][name] = float(value)
        return value

    def figure(self, figure, name: str, *, data, caption: str) -> None:
        """Keep a figure as png with the csv of what it plots, and show it with its caption."""
        import matplotlib.pyplot as plt

        self._name(name)
        figures.save(figure, data, self.folder, name)
        self.results["figures"][name] = caption
        _show(figure, caption)
        plt.close(figure)

    def table(self, frame, name: str, *, caption: str = "") -> None:
        """Keep a table as csv, and show it."""
        self._name(name)
        figures.save_frame(frame, self.folder, name)
        self.results["tables"][name] = caption
        _show(frame, caption)

    def claim(self, claim_id: str, *, estimate: float | None = None, ci=None, n: str = "") -> str:
        """Hand in the estimate that decides a claim of paper.toml; returns its verdict.

        Without an estimate the claim must be one that this profile cannot test.
        """
        judged = claims.judge(self.record.claim(claim_id), self.profile, estimate=estimate, ci=ci, n=n)
        self.judged[claim_id] = judged
        return judged.verdict

    def finish(self):
        """Write results.json and return the verdict table (None where the notebook judges no claims).

        Raises TenfoldError where a claim was not handed in.
        """
        import pandas as pd

        missing = [claim.id for claim in self.record.claims if claim.id not in self.judged]
        if missing:
            raise TenfoldError(
                f"claims without an estimate: {', '.join(missing)}; call run.claim for each before finish."
            )
        wall = time.monotonic() - self._began
        content = {
            "paper": self.paper, "title": self.record.title, **self.provenance, "parameters": self.parameters,
            "claims": [judged.as_dict() for judged in self.judged.values()], **self.results,
            "minutes": round(wall / 60, 2), "minutes_cold": round((wall + sum(self._spared.values())) / 60, 2),
            "peak_memory_gib": round(peak_memory_gib(), 2),
        }  # fmt: skip
        write_json(self.folder / RESULTS, content)
        if not self.judged:
            return None
        frame = pd.DataFrame([judged.as_dict() for judged in self.judged.values()])
        return (
            frame[["id", "measured", "rule", "estimate", "ci", "n", "verdict"]]
            .style.hide(axis="index")
            .format(
                {"estimate": _number, "ci": lambda ci: "" if ci is None else f"[{_number(ci[0])}, {_number(ci[1])}]"}
            )
        )

    def _name(self, name: str) -> None:
        figures.check_name(name, self.results["figures"] | self.results["tables"])


def _number(value: float | None) -> str:
    return "" if value is None or value != value else f"{value:.4g}"


def peak_memory_gib() -> float:
    """Largest resident size of this process so far, in GiB."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30


def write_json(path: Path, content: Any) -> None:
    """Write JSON whole or not at all."""
    with cache.full_disk_refused(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.{os.getpid()}")
        try:
            temporary.write_text(
                json.dumps(content, indent=1, allow_nan=False, default=cache.plain) + "\n", encoding="utf8"
            )
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)


def _show(thing, caption: str) -> None:
    from IPython.core.getipython import get_ipython
    from IPython.display import Markdown, display

    shell = get_ipython()
    if shell is None:
        return
    if hasattr(thing, "savefig"):  # the inline backend does so itself, but MPLBACKEND=Agg keeps it away
        from IPython.core.pylabtools import select_figure_formats

        select_figure_formats(shell, {"png"})
    display(thing)
    if caption:
        display(Markdown(f"*{caption}*"))


def relative(path: Path) -> str:
    """Path as a reader should see it: from the repository's root where it lies inside."""
    try:
        return str(path.relative_to(root()))
    except ValueError:
        return str(path)
