"""Golden results of the smoke profile: recorded over three seeds, compared with a tolerance per metric.

Two spreads are allowed. What was recorded on another processor with the same parameters counts as one more run, since
rounding flips a draw here and there: a number that moves with the seed moves between processors too.
"""

import json
import tempfile
from pathlib import Path
from typing import Any

from lib import TenfoldError, root
from lib.lab import paths, profiles, provenance, runner
from lib.lab.run import RESULTS, write_json

SEEDS = (0, 1, 2)
SPREADS = 2
RELATIVE_FLOOR = 2e-3  # two processors differ by this much even at one seed (float32 sums in another order)

ROUNDING = 1e-3  # differences of logits below this are sums in another order, amplified by the model


def path_of(paper: str) -> Path:
    """Golden file of a paper."""
    return root() / "tests" / "golden" / f"{paper}.json"


def numbers(results: dict[str, Any]) -> dict[str, float]:
    """All numbers of a results.json that a regression test compares: metrics, and estimates of claims.

    What rests on a clock is left out. Errors at the level of rounding are left to their claim's own rule: their size
    changes with threads and processor. One that grows past that level appears here as a new number, and so fails.
    """
    estimates = {f"claim {c['id']}": c["estimate"] for c in results["claims"] if not _untold(c)}
    return results["metrics"] | estimates


def _untold(claim: dict[str, Any]) -> bool:
    estimate = claim["estimate"]
    return estimate is None or claim.get("timed", False) or (claim["rule"].startswith("<") and 0 <= estimate < ROUNDING)


def run_smoke(paper: str, seed: int, folder: Path, *, echo: bool = False) -> dict[str, Any]:
    """Results of one smoke run in a folder of its own."""
    job_parameters = profiles.load("smoke").parameters(paper, {"seed": seed})
    target = folder / str(seed) / paper
    runner.run_notebook(paths.notebook_of(paper), target, profile="smoke", parameters=job_parameters, echo=echo)
    return json.loads((target / RESULTS).read_text(encoding="utf8"))


def record(paper: str) -> Path:
    """Record a paper's golden file; raises TenfoldError on a dirty tree, since nobody could tell what it came from."""
    state = provenance.git_state()
    if state["dirty"] is not False:
        raise TenfoldError("golden results are recorded from a clean commit only: commit or stash your changes first.")
    with tempfile.TemporaryDirectory() as folder:
        runs = [run_smoke(paper, seed, Path(folder)) for seed in SEEDS]
    values, elsewhere, metrics = [numbers(run) for run in runs], recorded_elsewhere(paper, runs[0]), {}
    for name, value in values[0].items():
        others = elsewhere.get(name, {})
        seen = [v[name] for v in values] + list(others.values())
        spread = max(seen) - min(seen)
        allowed = max(SPREADS * spread, RELATIVE_FLOOR * abs(value), 1e-6)
        metrics[name] = {"value": value, "tolerance": allowed, "spread": spread, "elsewhere": others}
    kept = {key: runs[0][key] for key in ("commit", "versions", "machine", "parameters")}
    write_json(path_of(paper), kept | {"seeds": SEEDS, "metrics": metrics})
    return path_of(paper)


def recorded_elsewhere(paper: str, results: dict[str, Any]) -> dict[str, dict[str, float]]:
    """Numbers of the golden file there is, by name and processor: those of other processors at the same parameters."""
    if not path_of(paper).exists():
        return {}
    old = json.loads(path_of(paper).read_text(encoding="utf8"))
    if old["parameters"] != results["parameters"]:
        return {}
    here, there = results["machine"]["processor"], old["machine"]["processor"]
    found = {name: m.get("elsewhere", {}) | {there: m["value"]} for name, m in old["metrics"].items()}
    return {name: {at: v for at, v in seen.items() if at != here} for name, seen in found.items()}


def differences(paper: str, results: dict[str, Any]) -> list[str]:
    """One line for each number that left its tolerance, appeared or vanished; empty where all is as recorded."""
    golden = json.loads(path_of(paper).read_text(encoding="utf8"))["metrics"]
    found = numbers(results)
    lines = [f"{name} is missing" for name in golden.keys() - found.keys()]
    lines += [f"{name} is new: run `make record`" for name in found.keys() - golden.keys()]
    for name in golden.keys() & found.keys():
        wanted, tolerance = golden[name]["value"], golden[name]["tolerance"]
        if abs(found[name] - wanted) > tolerance:
            lines.append(f"{name} = {found[name]:.6g}, recorded {wanted:.6g} ± {tolerance:.2g}")
    return sorted(lines)
