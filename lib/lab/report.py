"""Verdict tables, made from results.json files only: in the terminal and between two markers of the README."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

from lib import TenfoldError, root
from lib.lab import overview, paths
from lib.lab.claims import CONTRADICTED, INCONCLUSIVE, NOT_TESTED, REPRODUCED
from lib.lab.overview import MARKS
from lib.lab.run import RESULTS

BEGIN, END = "<!-- verdicts:begin (made by `make claims`; do not edit) -->", "<!-- verdicts:end -->"
COLOURS = {REPRODUCED: "green", CONTRADICTED: "red", INCONCLUSIVE: "yellow", NOT_TESTED: "dim"}


def results(profile: str) -> list[dict[str, Any]]:
    """Results of every paper that has a finished run in this profile, in the order of the notebooks."""
    found = []
    for paper in paths.paper_notebooks():
        path = paths.results_dir(profile, paper) / RESULTS
        if path.exists():
            found.append(json.loads(path.read_text(encoding="utf8")))
    return found


def interval(claim: dict[str, Any]) -> str:
    """Estimate with its interval, or a dash where this scale gave none."""
    if claim["estimate"] is None:
        return "–"
    low, high = claim["ci"]
    return f"{claim['estimate']:.3g} [{low:.3g}, {high:.3g}]"


def markdown(profile: str) -> str:
    """Table papers × claims × verdict × minutes for the README."""
    lines = [
        "| paper | claim | measured | estimate [95 % interval] | holds if | verdict |",
        "|---|---|---|---|---|---|",
    ]
    for record in results(profile):
        shown = f"**{record['paper']}** ({record['minutes_cold']:.1f} min)"
        for claim in record["claims"]:
            cells = [shown, claim["id"], claim["measured"], interval(claim), claim["rule"]]
            lines.append("| " + " | ".join([*cells, f"{MARKS[claim['verdict']]} {claim['verdict']}"]) + " |")
            shown = ""
    if len(lines) == 2:
        return "No paper has been run in this profile yet."
    return "\n".join(lines)


def console():
    """Terminal to print tables on; wide enough for them where it is a pipe or a log."""
    from rich.console import Console

    found = Console()
    return found if found.is_terminal else Console(width=140)


def print_verdicts(profile: str, only: list[str] | None = None) -> None:
    """Print the verdict table of a profile."""
    from rich.markup import escape
    from rich.table import Table

    table = Table(title=f"verdicts, profile {profile}", title_justify="left")
    for column in ("paper", "claim", "estimate [95 % interval]", "holds if", "n", "verdict"):
        table.add_column(escape(column), overflow="fold")
    for record in results(profile):
        if only and record["paper"] not in only:
            continue
        for claim in record["claims"]:
            mark = f"[{COLOURS[claim['verdict']]}]{MARKS[claim['verdict']]} {claim['verdict']}[/]"
            table.add_row(record["paper"], claim["id"], escape(interval(claim)), claim["rule"], claim["n"], mark)
        table.add_section()
    console().print(table if table.row_count else "No results yet: run `make reproduce`.")


def print_sweep(rows: list[dict[str, Any]]) -> None:
    """Print the claims of a sweep over its seeds."""
    from rich.markup import escape
    from rich.table import Table

    table = Table(title="claims over seeds", title_justify="left")
    for column in ("paper", "claim", "seeds", "mean [95 % interval]", "holds if", "verdict"):
        table.add_column(escape(column), overflow="fold")
    for row in rows:
        verdict = f"[{COLOURS[row['verdict']]}]{row['verdict']}[/]" if row["verdict"] in COLOURS else row["verdict"]
        table.add_row(row["paper"], row["claim"], str(len(row["seeds"])), escape(interval(row)), row["rule"], verdict)
    console().print(table if table.row_count else "No run of this sweep has finished.")


def print_outcomes(outcomes) -> None:
    """Print papers × verdicts × minutes at the end of `make reproduce`."""
    from rich.table import Table

    table = Table(title="papers", title_justify="left")
    for column in ("paper", "run", "minutes", "verdicts", "results"):
        table.add_column(column, overflow="fold")
    for outcome in outcomes:
        verdicts = ""
        if outcome.state != "failed":
            record = json.loads((outcome.job.results / RESULTS).read_text(encoding="utf8"))
            counted = Counter(claim["verdict"] for claim in record["claims"])
            verdicts = ", ".join(f"{count} {verdict}" for verdict, count in counted.items())
        where = outcome.reason or _relative(outcome.job.results)
        table.add_row(outcome.job.paper, outcome.state, f"{outcome.minutes:.1f}", verdicts, where)
    console().print(table)


def _relative(path: Path) -> str:
    from lib.lab.run import relative

    return relative(path) + "/"


def readme_with_table(text: str, profile: str = "cpu") -> str:
    """README text with the part between the markers made anew; raises TenfoldError where a marker is missing."""
    if BEGIN not in text or END not in text:
        raise TenfoldError(
            "README.md has lost its verdict markers: put the verdicts:begin and verdicts:end comments back."
        )
    head, rest = text.split(BEGIN, 1)
    return f"{head}{BEGIN}\n{markdown(profile)}\n{END}{rest.split(END, 1)[1]}"


def update_readme() -> bool:
    """Write the table of the default profile into README.md, and its picture; returns whether the text changed."""
    path = root() / "README.md"
    before = path.read_text(encoding="utf8")
    after = readme_with_table(before)
    if after != before:
        path.write_text(after, encoding="utf8")
    records = results("cpu")
    if records and (after != before or not overview.place("cpu").exists()):
        overview.draw(records, overview.place("cpu"))
    return after != before
