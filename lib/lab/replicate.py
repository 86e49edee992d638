"""`make replicate`: judge the claims once more, at another seed and under another processor's instructions.

A verdict that does not hold there was luck of a seed or of rounding, and headlines do not count it. Where the seed
draws nothing that an estimate rests on, the number comes out again and says nothing: such a claim was not tried. Of
such a run only results.json is kept in git, beside the published one.
"""

import dataclasses
import math
from collections.abc import Iterator, Mapping
from typing import Any

from lib import TenfoldError
from lib.lab import paths, runner
from lib.lab.claims import NEEDS_CPU, NEEDS_GPU, TO_RUN, judged_again, read
from lib.lab.golden import INSTRUCTIONS, imitated
from lib.lab.papers import PaperRecord
from lib.lab.reproduce import Job, Outcome, plan, run_job
from lib.lab.run import RESULTS

UNJUDGED = (NEEDS_CPU, NEEDS_GPU, TO_RUN)


def jobs(profile: str, names: list[str], seed: int, instructions: str) -> list[Job]:
    """One job a paper, at another seed than the published one.

    Raises TenfoldError where it is the same, or for an instruction set that is none of `golden.INSTRUCTIONS`.
    """
    if instructions not in INSTRUCTIONS:
        raise TenfoldError(f"no instruction set is called {instructions!r}: take {', '.join(INSTRUCTIONS)}.")
    published = plan(profile, names or list(paths.paper_notebooks()))
    if same := [job.paper for job in published if job.parameters["seed"] == seed]:
        raise TenfoldError(
            f"seed {seed} is that of the published run of {same[0]}: give another, such as SEED={seed + 1}."
        )
    folder = paths.replicate_dir(profile)
    return [dataclasses.replace(job, beside=folder) for job in plan(profile, [job.paper for job in published], seed)]


def replicate(todo: list[Job], instructions: str) -> Iterator[Outcome]:
    """Run the jobs that are not up to date as on a processor with these instructions; yield each outcome."""
    with runner.environment(imitated(instructions)):
        for job in todo:
            yield Outcome(job, "unchanged", 0.0) if job.up_to_date() else run_job(job)


def with_replicates(record: Mapping[str, Any], paper: PaperRecord) -> dict[str, Any]:
    """Add to each claim of a published run `again`: the same claim as the finished runs at other seeds judge it.

    Runs whose other parameters differ say nothing, and neither does a claim that read otherwise there, nor an estimate
    that the seed did not move.
    """
    files = sorted(paths.replicate_dir(record["profile"]).glob(f"{record['paper']}-seed-*/{RESULTS}"))
    same = [run for run in map(read, files) if _sizes(run) == _sizes(record)]
    again = [{claim["id"]: claim for claim in judged_again(run, paper)["claims"]} for run in same]
    claims = [
        claim | {"again": [run[claim["id"]] for run in again if _says(run[claim["id"]], claim)]}
        for claim in record["claims"]
    ]
    return dict(record) | {"claims": claims}


def _sizes(run: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in run["parameters"].items() if name != "seed"}


def _says(other: Mapping[str, Any], claim: Mapping[str, Any]) -> bool:
    if TO_RUN in (other["verdict"], claim["verdict"]):
        return False
    one, two = claim["estimate"], other["estimate"]
    return one is None or two is None or not math.isclose(one, two, rel_tol=1e-6, abs_tol=1e-12)


def held(claim: Mapping[str, Any]) -> bool | None:
    """Whether the verdict of a claim was the same in every other run; None where there is none, or nothing to judge."""
    again = claim.get("again", ())
    if not again or claim["verdict"] in UNJUDGED:
        return None
    return all(other["verdict"] == claim["verdict"] for other in again)
