"""Verdict tables, made from results.json files only: in the terminal and between two markers of the README."""

from collections import Counter
from pathlib import Path
from typing import Any

from lib import TenfoldError, root
from lib.lab import overview, paths
from lib.lab.claims import (
    CONTRADICTED,
    INCONCLUSIVE,
    NEEDS_CPU,
    NEEDS_GPU,
    NOT_TESTABLE,
    REPRODUCED,
    interval,
    read,
    verdict_in_words,
)
from lib.lab.overview import MARKS, tally
from lib.lab.run import RESULTS

BEGIN, END = "<!-- verdicts:begin (made by `make claims`; do not edit) -->", "<!-- verdicts:end -->"
COLOURS = {
    REPRODUCED: "green",
    CONTRADICTED: "red",
    INCONCLUSIVE: "yellow",
    NOT_TESTABLE: "magenta",
    NEEDS_GPU: "dim",
    NEEDS_CPU: "dim",
}


def results(profile: str) -> list[dict[str, Any]]:
    """Results of every paper that has a finished run in this profile, in the order of the notebooks."""
    found = []
    for paper in paths.paper_notebooks():
        path = paths.results_dir(profile, paper) / RESULTS
        if path.exists():
            found.append(read(path))
    return found


def markdown(profile: str) -> str:
    """What the README says of a profile: a row a paper (finding, checks, gates), then a row a claim."""
    records = results(profile)
    if not records:
        return "No paper has been run in this profile yet."
    lines = [
        "| paper | claim | measured | estimate [95 % interval] | holds if | verdict |",
        "|---|---|---|---|---|---|",
    ]
    for record in records:
        shown = f"**{record['paper']}** ({record['minutes_cold']:.1f} min)"
        for claim in record["claims"]:
            verdict = f"{MARKS[claim['verdict']]} {verdict_in_words(claim)}"
            lines.append(_line(shown, claim["id"], claim["measured"], interval(claim), claim["rule"], verdict))
            shown = ""
    return "\n".join([*_findings(records), *lines])


def _findings(records: list[dict[str, Any]]) -> list[str]:
    told = [record for record in records if record["finding"] or record["checks"] or record["gates"]]
    if not told:
        return []
    lines = ["| paper | what we found | checks of our code | gates of claims |", "|---|---|---|---|"]
    for record in told:
        counts = [tally_in_words(record[kind]) for kind in ("checks", "gates")]
        lines.append(_line(f"**{record['paper']}**", record["finding"], *counts))
    return [*lines, ""]


def _line(*cells: str) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def tally_in_words(measured: list[dict[str, Any]]) -> str:
    """Checks or gates of a run, such as `3/4, failed: exact-at-full-rank (0.2, not ≤ 0.0001)`; empty for none."""
    if not measured:
        return ""
    failed = [f"{m['id']} ({m['estimate']:.3g}, not {m['rule']})" for m in measured if m["passed"] is False]
    return tally(measured) + (f", failed: {'; '.join(failed)}" if failed else "")


def console():
    """Terminal to print tables on; wide enough for them where it is a pipe or a log."""
    from rich.console import Console

    found = Console()
    return found if found.is_terminal else Console(width=140)


def print_verdicts(profile: str, only: list[str] | None = None) -> None:
    """Print the claims of a profile with their verdicts, and apart from them its checks and gates."""
    from rich.markup import escape
    from rich.table import Table

    records = [record for record in results(profile) if not only or record["paper"] in only]
    table = Table(title=f"verdicts, profile {profile}", title_justify="left")
    for column in ("paper", "claim", "estimate [95 % interval]", "holds if", "n", "verdict"):
        table.add_column(escape(column), overflow="fold")
    for record in records:
        for claim in record["claims"]:
            words = f"{MARKS[claim['verdict']]} {escape(verdict_in_words(claim))}"
            mark = f"[{COLOURS[claim['verdict']]}]{words}[/]"
            table.add_row(record["paper"], claim["id"], escape(interval(claim)), claim["rule"], claim["n"], mark)
        table.add_section()
    console().print(table if table.row_count else "No results yet: run `make reproduce`.")
    apart = Table(title="checks of our own code, gates of claims", title_justify="left")
    for column in ("paper", "checks", "gates"):
        apart.add_column(column, overflow="fold")
    for record in records:
        if record["checks"] or record["gates"]:
            apart.add_row(record["paper"], *(escape(tally_in_words(record[kind])) for kind in ("checks", "gates")))
    if apart.row_count:
        console().print(apart)


def print_findings(profile: str, only: list[str] | None = None) -> None:
    """Print what was found: one line a paper."""
    from rich.markup import escape

    told = [record for record in results(profile) if record["finding"] and (not only or record["paper"] in only)]
    if told:
        console().print("[bold]What we found[/]")
    for record in told:
        console().print(f"[bold]{record['paper']}[/]: {escape(record['finding'])}", highlight=False)


def print_sweep(rows: list[dict[str, Any]]) -> None:
    """Print the claims of a sweep over its seeds."""
    from rich.markup import escape
    from rich.table import Table

    table = Table(title="claims over seeds", title_justify="left")
    for column in ("paper", "claim", "seeds", "mean [95 % interval]", "holds if", "verdict"):
        table.add_column(escape(column), overflow="fold")
    for row in rows:
        verdict = f"[{COLOURS.get(row['verdict'], 'default')}]{escape(verdict_in_words(row))}[/]"
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
            record = read(outcome.job.results / RESULTS)
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
    """Write the table of the default profile into README.md, and its picture; returns whether the text changed.

    Results that lie elsewhere (`TENFOLD_FIGURES`) are somebody's own, and stay out of the README.
    """
    if paths.figures_dir() != root() / "figures":
        return False
    path = root() / "README.md"
    before = path.read_text(encoding="utf8")
    after = readme_with_table(before)
    if after != before:
        path.write_text(after, encoding="utf8")
    records = results("cpu")
    if records and (after != before or not overview.place("cpu").exists()):
        overview.draw(records, overview.place("cpu"))
    return after != before
