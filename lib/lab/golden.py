"""Golden results of the smoke profile: numbers that one seed gives on every processor, and how far rounding moves them.

A record runs each notebook at one seed under several settings: one thread and two, and the instruction sets of older
processors, which torch's variables imitate. The spread over those runs is what rounding does; three of it are allowed.
A number that rounding moves by much against its size could not tell an error from another processor: it is dropped, and
listed by name.
"""

import json
import os
import platform
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from lib import TenfoldError, root
from lib.lab import paths, profiles, provenance, runner
from lib.lab.run import RESULTS, write_json

SEED = 0
SPREADS = 3
RELATIVE_FLOOR = 2e-3  # beyond the settings tried: a library of another version sums in another order
LARGEST = 1 / 5  # a tolerance above this share of its number proves nothing
ZERO = 1e-6  # absolute tolerance of a number that is exactly 0 in all runs
ROUNDING = 1e-3  # differences of logits below this are sums in another order, amplified by the model
WORKERS = 2  # one-thread runs at a time

# What torch, oneDNN and MKL read when they are loaded; "native" leaves the choice to them (AMX, bfloat16, …).
INSTRUCTIONS: dict[str, dict[str, str]] = {
    "avx2": {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2", "MKL_ENABLE_INSTRUCTIONS": "AVX2"},
    "avx512": {
        "ATEN_CPU_CAPABILITY": "avx512", "ONEDNN_MAX_CPU_ISA": "AVX512_CORE", "MKL_ENABLE_INSTRUCTIONS": "AVX512",
    },
    "native": {},
}  # fmt: skip
VARIABLES = tuple(INSTRUCTIONS["avx2"])


def imitated(instructions: str) -> dict[str, str | None]:
    """Variables by which processes that begin under them take an instruction set of `INSTRUCTIONS`."""
    return {name: INSTRUCTIONS[instructions].get(name) for name in VARIABLES}


@dataclass(frozen=True)
class Setting:
    """How one recorded run computes: threads, and the instruction set by its name in `INSTRUCTIONS`."""

    threads: int
    instructions: str

    def in_force(self) -> AbstractContextManager[None]:
        """Set the variables for processes that begin inside the block; a process that has loaded torch ignores them.

        Threads that wait give way: where something else runs beside two that spin, they stand still.
        """
        threads = {"OMP_NUM_THREADS": str(self.threads), "OMP_WAIT_POLICY": "PASSIVE"}
        return runner.environment(threads | imitated(self.instructions))


# Threads and instructions each vary beside a common run: what they do together is less than what they do apart.
SETTINGS = (Setting(1, "avx2"), Setting(1, "avx512"), Setting(1, "native"), Setting(2, "native"))


def path_of(paper: str) -> Path:
    """Golden file of a paper."""
    return root() / "tests" / "golden" / f"{paper}.json"


def numbers(results: dict[str, Any]) -> dict[str, float]:
    """All numbers of a results.json that a regression test compares: metrics, estimates of claims and of gates.

    What rests on a clock is left out. Errors at the level of rounding are left to their claim's own rule: their size
    changes with threads and processor. One that grows past that level appears here as a new number, and so fails.
    """
    claims = {f"claim {c['id']}": c["estimate"] for c in results["claims"] if not _untold(c)}
    gates = {f"gate {g['id']}": g["estimate"] for g in results.get("gates", []) if g["estimate"] is not None}
    return results["metrics"] | claims | gates


def _untold(claim: dict[str, Any]) -> bool:
    estimate = claim["estimate"]
    return estimate is None or claim.get("timed", False) or (claim["rule"].startswith("<") and 0 <= estimate < ROUNDING)


def checks(results: dict[str, Any]) -> dict[str, bool]:
    """Whether each check of a results.json passed, but for those on a clock or not judged in the profile."""
    judged = [c for c in results.get("checks", []) if c["passed"] is not None and not c.get("timed", False)]
    return {c["id"]: bool(c["passed"]) for c in judged}


def run_smoke(paper: str, folder: Path, *, echo: bool = False) -> dict[str, Any]:
    """Results of one smoke run, kept in `folder/<paper>`."""
    parameters = profiles.load("smoke").parameters(paper, {"seed": SEED})
    runner.run_notebook(paths.notebook_of(paper), folder / paper, profile="smoke", parameters=parameters, echo=echo)
    return json.loads((folder / paper / RESULTS).read_text(encoding="utf8"))


def record(papers: Sequence[str], told: Callable[[str], None] = print) -> list[Path]:
    """Record the golden files of some papers; `told` hears of each run and file.

    Raises TenfoldError on a dirty tree, since nobody could tell what the numbers came from; on a processor that cannot
    imitate the others; and at the end for papers whose runs failed (the others' files are written).
    """
    if provenance.git_state()["dirty"] is not False:
        raise TenfoldError("golden results are recorded from a clean commit only: commit or stash your changes first.")
    _check_processor()
    written, failed = [], []
    with tempfile.TemporaryDirectory(prefix="tenfold-golden-") as folder:
        for paper, outcome in _all_runs(papers, Path(folder), told):
            try:
                write_json(path_of(paper), _golden(outcome))
            except TenfoldError as error:
                reason = str(error).split("; see ")[0].rstrip(".")  # the failed notebook goes with the folder
                failed.append(f"{paper} ({reason})")
                continue
            written.append(path_of(paper))
            told(f"{path_of(paper).name}: {summary(paper)}")
    if failed:
        raise TenfoldError(
            f"not recorded: {'; '.join(failed)}: see `make reproduce PROFILE=smoke`, mend them, record again."
        )
    return written


def _check_processor() -> None:
    try:
        flags = Path("/proc/cpuinfo").read_text(encoding="utf8")
    except OSError:
        flags = ""
    if platform.machine() not in ("x86_64", "AMD64") or " avx512f" not in flags:
        raise TenfoldError(
            "golden results are recorded on an x86 processor with AVX-512 under Linux, which can imitate older ones: "
            "record them on such a machine (they are compared on any)."
        )


def _all_runs(
    papers: Sequence[str], folder: Path, told: Callable[[str], None]
) -> Iterator[tuple[str, dict[Setting, dict[str, Any] | TenfoldError]]]:
    """Results of each paper under each setting; one-thread runs two at a time, the others alone after them."""
    found: dict[str, dict[Setting, Any]] = {paper: {} for paper in papers}
    single = [(paper, setting) for paper in papers for setting in SETTINGS if setting.threads == 1]
    # A process of its own for each run: the runner tells its kernel by the environment, which threads would share.
    with ProcessPoolExecutor(WORKERS, mp_context=get_context("spawn"), max_tasks_per_child=1) as pool:
        jobs = {job: pool.submit(_run, *job, folder) for job in single}
        for (paper, setting), job in jobs.items():
            found[paper][setting] = _outcome(job)
            told(f"{paper}: {setting.threads} thread, {setting.instructions} done")
    for paper in papers:
        for setting in SETTINGS:
            if setting.threads > 1:
                with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
                    found[paper][setting] = _outcome(pool.submit(_run, paper, setting, folder))
                told(f"{paper}: {setting.threads} threads, {setting.instructions} done")
        yield paper, found[paper]


def _run(paper: str, setting: Setting, folder: Path) -> dict[str, Any]:
    """One run under a setting, with a cache of its own, since what a stage computed depends on the setting."""
    place = folder / f"{setting.threads}-{setting.instructions}"
    os.environ["TENFOLD_CACHE"] = str(place / "cache" / paper)
    with setting.in_force():
        return run_smoke(paper, place)


def _outcome(job: "Future[dict[str, Any]]") -> dict[str, Any] | TenfoldError:
    try:
        return job.result()
    except TenfoldError as error:
        return error


def _golden(outcomes: dict[Setting, Any]) -> dict[str, Any]:
    """Content of a golden file from a run under each setting; raises TenfoldError where a run failed."""
    for outcome in outcomes.values():
        if isinstance(outcome, TenfoldError):
            raise outcome
    runs = [outcomes[setting] for setting in SETTINGS]
    metrics, dropped = kept_and_dropped([numbers(run) for run in runs])
    of_one = runs[0]
    return {
        **{key: of_one[key] for key in ("commit", "versions", "machine", "parameters")}, "seed": SEED,
        "settings": [asdict(setting) for setting in SETTINGS],
        "metrics": metrics, "checks": _agreed([checks(run) for run in runs]), "dropped": dropped,
    }  # fmt: skip


def kept_and_dropped(runs: Sequence[dict[str, float]]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Numbers by name with their tolerance, and those that rounding moves too much to be compared.

    The value is the middle of the runs. A number that some runs lack is dropped too.
    """
    metrics, dropped = {}, {}
    for name in sorted({name for run in runs for name in run}):
        seen = [run[name] for run in runs if name in run]
        low, high = min(seen), max(seen)
        value, spread = (low + high) / 2, high - low
        allowed = tolerance(value, spread)
        if allowed is None or len(seen) < len(runs):
            dropped[name] = {"value": value, "spread": spread, "runs": len(seen)}
        else:
            metrics[name] = {"value": value, "tolerance": allowed, "spread": spread}
    return metrics, dropped


def tolerance(value: float, spread: float) -> float | None:
    """Error allowed around a number: three spreads and .2 % of it; None where that is more than a fifth of it."""
    if value == 0 and spread == 0:
        return ZERO
    allowed = SPREADS * spread + RELATIVE_FLOOR * abs(value)
    return allowed if allowed <= LARGEST * abs(value) else None


def _agreed(runs: Sequence[dict[str, bool]]) -> dict[str, bool]:
    """Outcome of each check; raises TenfoldError where rounding decides one, since a check is to hold everywhere."""
    torn = sorted(name for name, passed in runs[0].items() if any(run.get(name) is not passed for run in runs))
    if torn:
        raise TenfoldError(
            f"rounding decides the check {torn[0]!r}: give its rule room for it, or mend what it checks."
        )
    return runs[0]


def summary(paper: str) -> str:
    """What a golden file holds, in a line."""
    golden = json.loads(path_of(paper).read_text(encoding="utf8"))
    return f"{len(golden['metrics'])} numbers, {len(golden['checks'])} checks, {len(golden['dropped'])} dropped"


def differences(paper: str, results: dict[str, Any]) -> list[str]:
    """One line for each number that left its tolerance and each check that turned, appeared or vanished.

    Empty where all is as recorded; numbers that were dropped when recording may have any value.
    """
    return compared(json.loads(path_of(paper).read_text(encoding="utf8")), results)


def compared(golden: dict[str, Any], results: dict[str, Any]) -> list[str]:
    """`differences` of results and the content of a golden file."""
    wanted, dropped = golden["metrics"], golden.get("dropped", {})
    found = {name: value for name, value in numbers(results).items() if name not in dropped}
    lines = [f"{name} is missing" for name in wanted.keys() - found.keys()]
    lines += [f"{name} is new: run `make record`" for name in found.keys() - wanted.keys()]
    for name in wanted.keys() & found.keys():
        value, allowed = wanted[name]["value"], wanted[name]["tolerance"]
        if not abs(found[name] - value) <= allowed:
            lines.append(f"{name} = {found[name]:.6g}, recorded {value:.6g} ± {allowed:.2g}")
    was, now = golden.get("checks", {}), checks(results)
    lines += [f"check {name} is missing" for name in was.keys() - now.keys()]
    lines += [f"check {name} is new: run `make record`" for name in now.keys() - was.keys()]
    for name in was.keys() & now.keys():
        if now[name] is not was[name]:
            lines.append(f"check {name} {'passes' if now[name] else 'fails'}, which was recorded otherwise")
    return sorted(lines)
