"""`make sweep`: papers × seeds as jobs on a Dask cluster, each a strict notebook run, merged over seeds.

Workers share the repository's folder (one machine, or a cluster with a network file system). Finished runs are kept, so
an interrupted sweep goes on where it was; the job of a lost worker is run again by another one.
"""

import contextlib
import dataclasses
import os
from collections.abc import Iterator
from typing import Any

from lib import TenfoldError
from lib.core import statistics
from lib.lab import claims, papers, paths
from lib.lab.figures import PAPER_VALUE, save, use_style
from lib.lab.reproduce import Job, Outcome, plan, run_job
from lib.lab.run import RESULTS, write_json

PATIENCE = "20s"  # for a scheduler to answer
LOSSES = 3  # workers that a job may lose before it counts as the cause


def jobs(profile: str, names: list[str], seeds: list[int]) -> list[Job]:
    """One job a paper and seed; raises TenfoldError for no seed or a seed given twice."""
    if not seeds or len(set(seeds)) != len(seeds):
        raise TenfoldError(f'a sweep needs different seeds, not {seeds}: write for example SEEDS="0 1 2".')
    names = names or list(paths.paper_notebooks())
    folder = paths.sweep_dir(profile)
    return [dataclasses.replace(job, beside=folder) for seed in seeds for job in plan(profile, names, seed)]


def sweep(todo: list[Job], *, workers: int = 2, scheduler: str = "") -> Iterator[Outcome]:
    """Run the jobs and yield each outcome as it comes: those already up to date first, then in order of completion.

    `scheduler` is the address of a running Dask scheduler; where empty, a local cluster of `workers` processes is made.
    """
    waiting = [job for job in todo if not job.up_to_date()]
    yield from (Outcome(job, "unchanged", 0.0) for job in todo if job not in waiting)
    if not waiting:
        return
    from distributed import as_completed

    with connected(workers, scheduler) as client:
        futures = {client.submit(run_job, job, echo=False, pure=False, key=job.name): job for job in waiting}
        for future in as_completed(futures):
            error = future.exception()
            yield Outcome(futures[future], "failed", 0.0, _why(error)) if error else future.result()


def _why(error: BaseException) -> str:
    from distributed.scheduler import KilledWorker

    if isinstance(error, KilledWorker):
        return f"it lost {LOSSES + 1} workers (often: out of memory); try fewer WORKERS or smaller parameters"
    return f"{type(error).__name__}: {error}"


@contextlib.contextmanager
def connected(workers: int, scheduler: str):
    """Client of the scheduler named, or of a local cluster with the cores shared out among its workers."""
    try:
        import dask
        from distributed import Client, LocalCluster
    except ImportError:
        raise TenfoldError("a sweep needs Dask: pip install -e '.[cluster]'") from None
    dask.config.set({"distributed.scheduler.allowed-failures": LOSSES})
    if scheduler:
        try:
            client = Client(scheduler, timeout=PATIENCE)
        except (OSError, ValueError) as error:
            raise TenfoldError(
                f"no Dask scheduler answers at {scheduler!r} ({error}): start one, or leave it out."
            ) from None
        with client:
            yield client
        return
    threads = str(max(1, (os.cpu_count() or 1) // workers))
    quiet: dict[str, Any] = {"memory_limit": 0, "dashboard_address": None, "silence_logs": "ERROR"}
    with (
        LocalCluster(n_workers=workers, threads_per_worker=1, env={"OMP_NUM_THREADS": threads}, **quiet) as cluster,
        Client(cluster) as client,
    ):
        yield client


def merge(profile: str, names: list[str]) -> list[dict[str, Any]]:
    """Claims of the finished runs of a sweep, over seeds: mean, Student's t interval and the verdict by the same rule.

    A gate passes or fails by its mean over seeds. Checks are left out on purpose: they are about the code, not about
    chance, and each run holds its own. Writes `<paper>.csv`, `.json` and `.png` beside the runs. Fewer than three seeds
    give no interval and no verdict. Runs of the experiment as it was before an edit do not count.
    """
    rows = []
    for paper in names or list(paths.paper_notebooks()):
        runs = _finished(profile, paper)
        if not runs:
            continue
        record = papers.load(paper)
        merged = [{"paper": paper} | _over_seeds(profile, record, claim, runs) for claim in record.claims]
        _write(profile, paper, [row for row in merged if row["seeds"]])
        rows += merged
    return rows


def _finished(profile: str, paper: str) -> dict[int, dict[str, Any]]:
    """Results by seed of the runs that are up to date."""
    found = paths.sweep_dir(profile).glob(f"{paper}-seed-*/{RESULTS}")
    seeds = sorted(int(path.parent.name.rsplit("-", 1)[1]) for path in found)
    runs = jobs(profile, [paper], seeds) if seeds else []
    return {job.parameters["seed"]: claims.read(job.results / RESULTS) for job in runs if job.up_to_date()}


def _over_seeds(
    profile: str, record: papers.PaperRecord, claim: papers.ClaimRecord, runs: dict[int, dict[str, Any]]
) -> dict[str, Any]:
    estimates = _estimates(runs, "claims", claim.id)
    row: dict[str, Any] = {
        "claim": claim.id,
        "seeds": estimates,
        "rule": claims.rule_in_words(claim),
        "bounds": [b for b in (claim.threshold, claim.low, claim.high) if b is not None],
        "estimate": None,
        "ci": None,
        "failed_gates": [],
        "verdict": "fewer than three seeds",
    }
    if len(estimates) < 3:
        return row
    gates = []
    for gate in map(record.gate, claim.gates if claims.decides(claim, profile) else ()):
        values = _estimates(runs, "gates", gate.id)
        if not values:
            return row | {"verdict": f"gate {gate.id} was not measured"}
        gates.append(claims.measure(gate, profile, estimate=sum(values.values()) / len(values)))
    over = statistics.over_seeds(list(estimates.values()))
    failed = [gate for gate in gates if not gate.passed]
    judged = claims.judge(claim, profile, failed_gates=failed, **over.as_claim())
    kept = ("estimate", "ci", "failed_gates", "verdict")
    return row | {key: judged.as_dict()[key] for key in kept}


def _estimates(runs: dict[int, dict[str, Any]], kind: str, wanted: str) -> dict[int, float]:
    """Estimate of a claim or gate by seed, where a run has one."""
    found = {seed: one for seed, run in runs.items() for one in run[kind] if one["id"] == wanted}
    return {seed: found[seed]["estimate"] for seed in sorted(found) if found[seed]["estimate"] is not None}


def _write(profile: str, paper: str, rows: list[dict[str, Any]]) -> None:
    import pandas as pd

    folder = paths.sweep_dir(profile)
    write_json(folder / f"{paper}.json", {"paper": paper, "profile": profile, "claims": rows})
    long = [
        {"claim": r["claim"], "seed": seed, "estimate": value, "mean": r["estimate"], "verdict": r["verdict"]}
        for r in rows
        for seed, value in r["seeds"].items()
    ]
    if not long:
        return
    frame = pd.DataFrame(long)
    save(_drawn(paper, rows), frame, folder, paper)


def _drawn(paper: str, rows: list[dict[str, Any]]):
    import matplotlib.pyplot as plt

    use_style()
    figure, axes = plt.subplots(len(rows), 1, figsize=(7, 0.75 * len(rows) + 0.6), squeeze=False)
    for axis, row in zip(axes[:, 0], rows, strict=True):
        values = list(row["seeds"].values())
        axis.plot(values, [0] * len(values), "o", color="C0", alpha=0.7)
        if row["ci"]:
            axis.plot(row["ci"], [0, 0], "-", color="C0", linewidth=2)
        for bound in row["bounds"]:
            axis.axvline(bound, **PAPER_VALUE)
        axis.set_yticks([0], [f"{row['claim']}\n{row['rule']}"])
        axis.set_title(row["verdict"], loc="right", fontsize="small")
        axis.grid(axis="y", visible=False)
    title = f"{paper}: estimate of each claim, one point a seed, line = 95 % interval of the mean"
    figure.suptitle(f"{title},\ndashed = what its rule compares with")
    return figure
