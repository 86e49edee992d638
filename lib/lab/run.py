"""A notebook's run: validated parameters, seeds, device, and every result it hands in."""

import json
import math
import os
import random
import sys
import time
import uuid
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from lib import TenfoldError, root
from lib.lab import cache, claims, figures, keys, papers, paths, profiles, provenance, rehearsal
from lib.lab import parameters as cell

RESULTS = "results.json"
CAPTIONS = {
    "claims": "Claims of the paper, each judged by its interval.",
    "checks": "Checks: identities and bounds of this repository's code, which say nothing about the paper.",
    "gates": "Gates: preconditions of the claims that name them, each judged by its estimate.",
}


def start(paper: str, namespace: dict[str, Any]) -> "Run":
    """Begin a run: check the notebook's parameters (found in `namespace`, usually `globals()`), seed, print provenance.

    Headless runs get their profile and output folder from the runner; in JupyterLab the profile is `interactive`, whose
    results lie apart, and what differs from the `cpu` profile is named. Raises TenfoldError for an unknown paper, or a
    parameter of the wrong type, out of its range or at odds with another.
    """
    if rehearsal.VARIABLE in os.environ:
        rehearsal.begin()
    record = papers.load(paper)
    declared = profiles.declared(_notebook(paper), paper)
    values = {name: namespace[name] for name in declared if name in namespace}
    checked = {name: p.default for name, p in declared.items()} | cell.validate(declared, values, paper)
    cell.agree(declared, checked, paper)
    profile = os.environ.get("TENFOLD_PROFILE", "interactive")
    folder = Path(os.environ.get("TENFOLD_OUTPUT") or paths.results_dir(profile, paper))
    run = Run(paper=paper, record=record, profile=profile, parameters=checked, folder=folder, namespace=namespace)
    run.reseed()
    figures.use_style()
    print(provenance.in_one_line(run.provenance))
    changed = [name for name, value in checked.items() if value != declared[name].default]
    if profile == "interactive" and changed:
        print(f"Values that are not those of notebooks/profiles/{profiles.DEFAULT}.toml: {', '.join(changed)}.")
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

    infrastructure: ClassVar[bool] = True  # a stage that calls the run's methods does not depend on its state

    paper: str
    record: papers.PaperRecord
    profile: str
    parameters: dict[str, Any]
    folder: Path
    results: dict[str, Any] = field(default_factory=lambda: {"metrics": {}, "figures": {}, "tables": {}})
    claimed: dict[str, dict[str, Any]] = field(default_factory=dict)  # estimates by claim, judged in `finish`
    checks: dict[str, claims.Measured] = field(default_factory=dict)
    gates: dict[str, claims.Measured] = field(default_factory=dict)
    namespace: dict[str, Any] = field(default_factory=dict, repr=False)  # the notebook's names, which stages read
    stages: dict[str, dict[str, Any]] = field(default_factory=dict, repr=False)  # by key, in the order of first use

    def __post_init__(self) -> None:
        self.seed = int(self.parameters.get("seed", 0))
        self.device = pick_device(self.parameters.get("device", "auto"))
        self.dtype = self.parameters.get("dtype", "float32")
        self._began = time.monotonic()
        self.provenance = {
            "profile": self.profile, "seed": self.seed, "device": self.device, "dtype": self.dtype,
            **provenance.git_state(), "versions": provenance.versions(), "machine": provenance.machine(),
        }  # fmt: skip

    def _spared(self) -> float:
        """Seconds that the stages found kept would have taken."""
        return sum((stage["seconds"] for stage in self.stages.values() if stage["loaded"]), 0.0)

    def reseed(self, purpose: str = "") -> None:
        """Seed Python, NumPy and torch from the run's seed and a purpose."""
        import numpy as np
        import torch

        seed = int(cache.key_of({"seed": self.seed, "purpose": purpose})[:8], 16)
        random.seed(seed)
        np.random.seed(seed)  # noqa: NPY002 - libraries still draw from the global state
        torch.manual_seed(seed)

    def stage(self, name: str, compute: Callable[[], Any]) -> Any:
        """Result of an expensive step, computed once for each state of what it is made from.

        The key is derived from the function (`lib.lab.keys`): its code, what it reads, the modules of `lib` it can
        reach, versions, data and the run's seed. Keeps a data frame, a dict of tensors, or plain JSON values. Raises
        TenfoldError where the function reads something whose content cannot be told, or returns what cannot be kept.
        """
        return self._kept(cache.stage, name, compute)

    def folder_stage(self, name: str, build: Callable[[Path], None]) -> Path:
        """Folder that `build(path)` fills once (a trained model), kept like a stage."""
        return self._kept(cache.folder_stage, name, build)

    def _kept(self, how, name: str, make) -> Any:
        parts = {"paper": self.paper, "stage": name, "seed": self.seed, **keys.parts_of(name, make, self.namespace)}
        self.reseed(name)
        if edited := keys.changed_under_us(parts):
            keys.warn_of_edited(name, edited)
            parts = parts | {"not kept": uuid.uuid4().hex}  # a key that no later run asks for
        kept = how(paths.cache_dir() / self.paper, name, parts, make)
        key = cache.key_of(parts)
        told = {"loaded": kept.loaded, "seconds": kept.seconds, "peak": kept.peak}
        self.stages.setdefault(key, {"name": name} | told)
        self.reseed(name)  # what follows must not depend on whether the stage ran
        return kept.value

    def progress(self, items: Iterable, label: str) -> Iterable:
        """Items with a progress bar; where no one watches, quiet steps of some seconds and no bar below another."""
        from tqdm import tqdm

        seconds, position = (5.0, 0) if "TENFOLD_OUTPUT" in os.environ else (0.2, None)
        return tqdm(items, desc=label, file=sys.stderr, leave=True, mininterval=seconds, position=position)

    def metric(self, name: str, value: float) -> float:
        """Keep one number for results.json and the regression test; raises TenfoldError where it is not finite."""
        if not math.isfinite(value):
            raise TenfoldError(f"metric {name!r} is {value}, which is no number to keep: find out where it came from.")
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

    def gate(self, gate_id: str, *, estimate: float, ci=None, n: str = "") -> bool:
        """Hand in the number of a gate of paper.toml; returns whether it passes, which its estimate alone decides.

        `above` and `below` include the threshold. The order of gates and claims does not matter.
        """
        gate = claims.measure(self.record.gate(gate_id), self.profile, estimate=estimate, ci=ci, n=n)
        self.gates[gate_id] = gate
        return bool(gate.passed)

    def check(self, check_id: str, *, estimate: float, ci=None, n: str = "") -> bool:
        """Hand in the number of a check of paper.toml; returns whether its whole interval (or number) keeps the rule.

        Where this profile does not judge the check, the number is kept, and the answer is True.
        """
        check = claims.measure(self.record.check(check_id), self.profile, estimate=estimate, ci=ci, n=n)
        self.checks[check_id] = check
        return check.passed is not False

    def claim(self, claim_id: str, *, estimate: float | None = None, ci=None, n: str = "") -> str:
        """Hand in the estimate that decides a claim of paper.toml; returns its verdict as far as it is known.

        A gate handed in later may still make it "not testable here". Without an estimate the claim must be one that
        this profile cannot test, or have a gate that fails.
        """
        record = self.record.claim(claim_id)
        given = {"estimate": estimate, "ci": ci, "n": n}
        waits = estimate is None and any(gate not in self.gates for gate in record.gates)
        known = claims.NOT_TESTABLE if waits and claims.decides(record, self.profile) else self._judge(record, given)
        self.claimed[claim_id] = given
        return known if isinstance(known, str) else known.verdict

    def _judge(self, record: papers.ClaimRecord, given: dict[str, Any]) -> claims.JudgedClaim:
        gates = [self.gates[name] for name in record.gates if name in self.gates]
        failed = [gate for gate in gates if not gate.passed]
        return claims.judge(record, self.profile, failed_gates=failed, **given)

    def finish(self) -> None:
        """Judge the claims, write results.json, and show what was found: finding, verdicts, checks and gates apart.

        Raises TenfoldError where a claim, check or gate was not handed in, or a place of the finding stays empty.
        """
        missing = self._missing()
        if missing:
            raise TenfoldError(
                f"not handed in: {', '.join(missing)}; call run.claim, run.check or run.gate for each before finish."
            )
        judged = {c.id: self._judge(c, self.claimed[c.id]) for c in self.record.claims}
        checks = {c.id: self.checks.get(c.id) or claims.unmeasured(c) for c in self.record.checks}
        gates = {g.id: self.gates.get(g.id) or claims.unmeasured(g) for g in self.record.gates}
        finding = claims.fill(self.record.finding, self.results["metrics"], judged | checks | gates)
        outcomes = {"claims": judged, "checks": checks, "gates": gates}
        wall = time.monotonic() - self._began
        content = {
            "paper": self.paper, "title": self.record.title, **self.provenance, "parameters": self.parameters,
            "finding": finding, **{kind: [o.as_dict() for o in found.values()] for kind, found in outcomes.items()},
            **self.results, "minutes": round(wall / 60, 2),
            "minutes_cold": round((wall + self._spared()) / 60, 2),
            "peak_memory_gib": round(max([cache.peak_memory_gib(), *(s["peak"] for s in self.stages.values())]), 2),
            "stages": [f"{stage['name']}-{key}" for key, stage in self.stages.items()],
        }  # fmt: skip
        write_json(self.folder / RESULTS, content)
        _show_outcome(content)

    def _missing(self) -> list[str]:
        """Claims, checks and gates that this profile decides and nobody handed in."""
        decided = [c for c in self.record.claims if claims.decides(c, self.profile)]
        needed = {name for claim in decided for name in claim.gates}
        missing = [f"claim {c.id!r}" for c in self.record.claims if c.id not in self.claimed]
        missing += [
            f"check {c.id!r}" for c in self.record.checks if claims.decides(c, self.profile) and c.id not in self.checks
        ]
        return missing + [f"gate {g.id!r}" for g in self.record.gates if g.id in needed and g.id not in self.gates]

    def _name(self, name: str) -> None:
        figures.check_name(name, self.results["figures"] | self.results["tables"])


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
    import pandas as pd
    from IPython.core.getipython import get_ipython
    from IPython.display import Markdown, display

    shell = get_ipython()
    if shell is None:
        return
    if hasattr(thing, "savefig"):  # the inline backend does so itself, but MPLBACKEND=Agg keeps it away
        from IPython.core.pylabtools import select_figure_formats

        select_figure_formats(shell, {"png"})
    with pd.option_context("display.max_colwidth", None):  # a sentence in a cell is read whole
        display(thing)
    if caption:
        display(Markdown(f"*{caption}*"))


def _show_outcome(content: dict[str, Any]) -> None:
    """Show a finished run in its notebook: the finding, the verdicts, then checks and gates."""
    import pandas as pd
    from IPython.core.getipython import get_ipython
    from IPython.display import Markdown, display

    if get_ipython() is None:
        return
    if content["finding"]:
        display(Markdown(content["finding"]))
    for kind, caption in CAPTIONS.items():
        rows = [_row(outcome, judged=kind == "claims") for outcome in content[kind]]
        if rows:
            _show(pd.DataFrame(rows).style.hide(axis="index").format(escape="html"), caption)


def _row(outcome: dict[str, Any], *, judged: bool) -> dict[str, str]:
    row = {key: outcome[key] for key in ("id", "measured", "rule", "n")}
    row["estimate [95 % interval]"] = claims.interval(outcome)
    if judged:
        return row | {"verdict": claims.verdict_in_words(outcome)}
    return row | {"outcome": claims.passed_in_words(outcome["passed"])}


def relative(path: Path) -> str:
    """Path as a reader should see it: from the repository's root where it lies inside."""
    try:
        return str(path.relative_to(root()))
    except ValueError:
        return str(path)
