"""Benchmarks: two things measured in turn in one process, so that the ratio holds when the machine's speed drifts.

A room's `study/bench.py` yields `cases()`: dicts of `name`, `unit`, `ours` and `peer` (zero-argument callables),
`peer_name`, `goal` (the ratio ours/peer hoped for); where work grows, `curve` names what is followed and `size` says
how much there is of it. Unit `s` times the callables; any other unit takes the number they return, or a sequence of
them, one a sample (a prompt) and paired with the peer's: the ratio is then that of their means.
"""

import importlib
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lib import TenfoldError
from lib.core import statistics
from lib.lab import papers, paths, provenance, report
from lib.lab.figures import save_frame
from lib.lab.run import write_json

if TYPE_CHECKING:
    import pandas as pd

PAIRS = 7


def folder_of(profile: str) -> Path:
    """Folder of a profile's benchmarks: one json and csv a paper."""
    return paths.figures_dir() / profile / "benchmarks"


def recorded(profile: str) -> "pd.DataFrame":
    """All rows measured under a profile, one table: paper, case, ours, peer, ratio with its interval, goal, machine.

    Raises TenfoldError where nothing was measured yet.
    """
    import pandas as pd

    frames = []
    for paper in paths.paper_notebooks():
        path = folder_of(profile) / f"{paper}.json"
        if path.exists():
            record = json.loads(path.read_text(encoding="utf8"))
            frames.append(pd.DataFrame(record["rows"]).assign(paper=paper, machine=record["machine"]["processor"]))
    if not frames:
        raise TenfoldError(f"nothing was measured under the profile {profile!r}: run `make bench PROFILE={profile}`.")
    return pd.concat(frames, ignore_index=True)


def has_bench(paper: str) -> bool:
    """Tell whether a paper's study has benchmarks."""
    return (papers.path_of(paper).parent / "study" / "bench.py").exists()


def measure(case: dict[str, Any], pairs: int = PAIRS) -> dict[str, Any]:
    """Ours, the peer's and the ratio ours/peer with its 95 % interval over pairs (a single number has none).

    Times are summed up by their medians over pairs taken in turn and their ratio by `statistics.ratio_of_pairs`, which
    one slow run does not move; samples that a case returns by their means and the ratio of those.
    """
    if case["unit"] == "s":
        case["ours"](), case["peer"]()  # warm-up: caches, lazy initialisation
        couples = np.array([(_seconds(case["ours"]), _seconds(case["peer"])) for _ in range(pairs)])
    else:
        couples = np.stack([np.atleast_1d(case["ours"]()), np.atleast_1d(case["peer"]())], axis=1).astype(float)
    middle = (np.median if case["unit"] == "s" else np.mean)(couples, axis=0)
    if case["unit"] == "s":
        ratio = statistics.ratio_of_pairs(*couples.T)
    elif len(couples) > 1:
        ratio = statistics.ratio_of_sums(*couples.T)
    else:
        single = float(middle[0] / middle[1])
        ratio = statistics.Estimate(single, single, single, "1 number")
    return {
        "case": case["name"], "unit": case["unit"], "ours": float(middle[0]), "peer": float(middle[1]),
        "peer_name": case["peer_name"], "ratio": ratio.value, "low": ratio.low, "high": ratio.high,
        "goal": case.get("goal"), "pairs": len(couples), "curve": case.get("curve", ""), "size": case.get("size"),
    }  # fmt: skip


def _seconds(call: Callable[[], Any]) -> float:
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def run(paper: str, profile: str) -> list[dict[str, Any]]:
    """Run a room's benchmarks and keep them under `figures/<profile>/benchmarks/`."""
    import pandas as pd
    from tqdm import tqdm

    if not has_bench(paper):
        raise TenfoldError(f"{paper} has no benchmarks: write lib/{paper}/study/bench.py with `cases()`.")
    cases = importlib.import_module(f"lib.{paper}.study.bench").cases(quick=profile == "smoke")
    rows = [measure(case) for case in tqdm(cases, desc=f"bench {paper}", unit="case")]
    folder = folder_of(profile)
    save_frame(pd.DataFrame(rows), folder, paper)
    record = {
        "machine": provenance.machine(),
        "versions": provenance.versions(),
        **provenance.git_state(),
        "rows": rows,
    }
    write_json(folder / f"{paper}.json", record)
    return rows


def print_rows(rows: list[dict[str, Any]]) -> None:
    """Print ratios beside their peers."""
    table = report.table("ours / peer, in one run", "case", "ours", "peer", "ratio [95 %]", "goal")
    for row in rows:
        goal = "" if row["goal"] is None else f"≤ {row['goal']:g}"
        ratio = f"{row['ratio']:.3f} [{row['low']:.3f}, {row['high']:.3f}]"
        peer = f"{row['peer']:.4g} {row['unit']} ({row['peer_name']})"
        table.add_row(row["case"], f"{row['ours']:.4g} {row['unit']}", peer, ratio, goal)
    report.console().print(table)
