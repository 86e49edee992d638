"""What is told of finished runs, from their results.json files: in the terminal, on generated pages."""

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from lib import TenfoldError, root
from lib.lab import guides, papers, paths
from lib.lab.claims import (
    CONTRADICTED,
    INCONCLUSIVE,
    NEEDS_CPU,
    NEEDS_GPU,
    NO_EFFECT,
    NOT_TESTABLE,
    REPRODUCED,
    TO_RUN,
    VERDICTS,
    interval,
    judged_again,
    read,
    verdict_in_words,
)
from lib.lab.replicate import held, with_replicates
from lib.lab.run import RESULTS, relative

BEGIN, END = "<!-- {}:begin (made by `make claims`; do not edit) -->", "<!-- {}:end -->"
# Each verdict's mark, its colour in the terminal and the one of its squares in the picture.
SHOWN = {
    REPRODUCED: ("✔", "green", "C2"),
    INCONCLUSIVE: ("~", "yellow", "#e9cf6b"),
    NO_EFFECT: ("≈", "cyan", "#8fb8cf"),
    CONTRADICTED: ("✘", "red", "C3"),
    NOT_TESTABLE: ("⊘", "magenta", "#c9b3d6"),
    NEEDS_GPU: ("·", "dim", "0.88"),
    NEEDS_CPU: ("·", "dim", "0.88"),
    TO_RUN: ("…", "dim", "0.94"),
}
UNSTEADY, UNSTEADY_MARK = "did not hold at another seed", "↺"
# Verdicts that are said otherwise where they are counted.
COUNTED = {
    NOT_TESTABLE: "not testable", NEEDS_GPU: "left to a GPU", NEEDS_CPU: "left to the cpu profile",
    UNSTEADY: "not held again",
}  # fmt: skip


def results(profile: str, only: Sequence[str] | None = None) -> list[dict[str, Any]]:
    """Read the results of all papers (or of some) that have a finished run in this profile, in the notebooks' order.

    Verdicts and findings are those of today's rules; a claim that read otherwise when it was run is to be run again.
    """
    files = [paths.results_dir(profile, paper) / RESULTS for paper in paths.paper_notebooks()]
    records = [read(path) for path in files if path.exists()]
    records = [record for record in records if not only or record["paper"] in only]
    return [as_today(record) for record in records]


def as_today(record: dict[str, Any]) -> dict[str, Any]:
    """Judge results by today's rules, beside those at other seeds."""
    paper = papers.load(record["paper"])
    return with_replicates(judged_again(record, paper), paper)


def marked(claim: dict[str, Any]) -> str:
    """Say a claim's verdict in words, with its mark before them and whether it held at other seeds behind them."""
    said = f"{SHOWN[claim['verdict']][0]} {verdict_in_words(claim)}"
    if held(claim) is None:
        return said
    others = "; ".join(f"{SHOWN[c['verdict']][0]} {c['verdict']}, {interval(c)}" for c in claim["again"])
    return f"{said}; {'held again' if held(claim) else 'at another seed'}: {others}"


def tally(measured: Sequence[dict[str, Any]]) -> str:
    """Count the checks or gates that passed, of those that this profile judged, such as `3/4`."""
    judged = [m["passed"] for m in measured if m["passed"] is not None]
    return f"{sum(judged)}/{len(judged)}"


def tally_in_words(measured: list[dict[str, Any]]) -> str:
    """Say checks or gates of a run, such as `3/4, failed: exact-at-full-rank (0.2, not ≤ 0.0001)`; empty for none."""
    failed = _failed(measured)
    return (tally(measured) + (f", failed: {'; '.join(failed)}" if failed else "")) if measured else ""


def _failed(measured: list[dict[str, Any]]) -> list[str]:
    return [f"{m['id']} ({m['estimate']:.3g}, not {m['rule']})" for m in measured if m["passed"] is False]


def failed_checks(profile: str, papers: Sequence[str]) -> list[str]:
    """Name the checks that failed in the finished runs of some papers: identities and bounds of our own code."""
    records = results(profile, papers) if papers else []
    return [f"{record['paper']}: {check}" for record in records for check in _failed(record["checks"])]


# --- the terminal ------------------------------------------------------------------------------------------------


def console():
    """Open the terminal to print tables on; wide enough for them where it is a pipe or a log."""
    from rich.console import Console

    terminal = Console()
    return terminal if terminal.is_terminal else Console(width=140)


def table(title: str, *columns: str):
    """Begin a table of the terminal whose cells break into lines where they are long."""
    from rich.markup import escape
    from rich.table import Table

    empty = Table(title=title or None, title_justify="left")
    for column in columns:
        empty.add_column(escape(column), overflow="fold")
    return empty


def print_verdicts(profile: str, only: list[str] | None = None) -> None:
    """Print the claims of a profile with their verdicts, and apart from them its checks and gates."""
    from rich.markup import escape

    verdicts = table(
        f"verdicts, profile {profile}", "paper", "claim", "estimate [95 % interval]", "holds if", "n", "verdict"
    )
    apart = table("checks of our own code, gates of claims", "paper", "checks", "gates")
    for record in results(profile, only):
        for claim in record["claims"]:
            mark = f"[{SHOWN[claim['verdict']][1]}]{escape(marked(claim))}[/]"
            told = [escape(text) for text in (interval(claim), claim["rule"], claim["n"])]
            verdicts.add_row(record["paper"], claim["id"], *told, mark)
        verdicts.add_section()
        if record["checks"] or record["gates"]:
            apart.add_row(record["paper"], *(escape(tally_in_words(record[kind])) for kind in ("checks", "gates")))
    console().print(verdicts if verdicts.row_count else "No results yet: run `make reproduce`.")
    if apart.row_count:
        console().print(apart)


def print_findings(profile: str, only: list[str] | None = None) -> None:
    """Print what was found: one line a paper."""
    from rich.markup import escape

    told = [record for record in results(profile, only) if record["finding"]]
    if told:
        console().print("[bold]What we found[/]")
    for record in told:
        console().print(f"[bold]{record['paper']}[/]: {escape(record['finding'])}", highlight=False)


def print_sweep(rows: list[dict[str, Any]]) -> None:
    """Print the claims of a sweep over its seeds."""
    from rich.markup import escape

    over = table("claims over seeds", "paper", "claim", "seeds", "mean [95 % interval]", "holds if", "verdict")
    for row in rows:
        colour = SHOWN[row["verdict"]][1] if row["verdict"] in SHOWN else "default"
        verdict = f"[{colour}]{escape(verdict_in_words(row))}[/]"
        told = [escape(text) for text in (interval(row), row["rule"])]
        over.add_row(row["paper"], row["claim"], str(len(row["seeds"])), *told, verdict)
    console().print(over if over.row_count else "No run of this sweep has finished.")


def print_replicates(profile: str, only: Sequence[str]) -> None:
    """Print each verdict beside those of runs at other seeds."""
    from rich.markup import escape

    twice = table("verdicts, and those at another seed", "paper", "claim", "published", "at another seed", "held")
    claims = [(record["paper"], claim) for record in results(profile, only) for claim in record["claims"]]
    for paper, claim in claims:
        if held(claim) is not None:
            told = [escape(f"{c['verdict']}, {interval(c)}") for c in (claim, *claim["again"])]
            twice.add_row(paper, claim["id"], told[0], "\n".join(told[1:]), "yes" if held(claim) else "[red]no[/]")
    console().print(twice if twice.row_count else "Nothing to compare: run `make reproduce` too.")
    print(_again(claim for _, claim in claims))


def print_outcomes(outcomes) -> None:
    """Print papers × verdicts × minutes at the end of `make reproduce`."""
    from rich.markup import escape

    ended = table("papers", "paper", "run", "minutes", "verdicts", "results")
    for outcome in outcomes:
        verdicts = ""
        if outcome.state != "failed":
            counted = Counter(claim["verdict"] for claim in read(outcome.job.results / RESULTS)["claims"])
            verdicts = ", ".join(f"{count} {verdict}" for verdict, count in counted.items())
        where = escape(outcome.reason or f"{relative(outcome.job.results)}/")
        ended.add_row(outcome.job.paper, outcome.state, f"{outcome.minutes:.1f}", verdicts, where)
    console().print(ended)


# --- pages of the repository: README, claims, what the gpu profile needs -----------------------------------------


def line(*cells: str) -> str:
    """Write one row of a markdown table."""
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def counted(claims: Iterable[dict[str, Any]], *, words: bool = True) -> str:
    """Count claims by verdict, such as `3 ✔ reproduced, 1 ✘ contradicted`; apart those not held at another seed.

    With `words=False` by the marks alone: `3 ✔ 1 ✘`.
    """
    counts = Counter(map(_counted_as, claims))
    names = [name for name in (*VERDICTS, UNSTEADY) if counts[name]]
    return (", " if words else " ").join(f"{counts[name]} {_said(name) if words else _mark(name)}" for name in names)


def _counted_as(claim: dict[str, Any]) -> str:
    return UNSTEADY if held(claim) is False else claim["verdict"]


def _mark(name: str) -> str:
    return UNSTEADY_MARK if name == UNSTEADY else SHOWN[name][0]


def _said(name: str) -> str:
    return f"{_mark(name)} {COUNTED.get(name, name)}"


def headline(record: dict[str, Any]) -> str:
    """Say a paper's main point with the verdicts of the claims that it names."""
    claims, parts = {c["id"]: c for c in record["claims"]}, papers.places(papers.load(record["paper"]).headline)
    return "".join(words + (f"**{_said(_counted_as(claims[name]))}**" if name else "") for words, name, _ in parts)


def papers_table(profile: str) -> str:
    """Write the README's table: a row a paper with its headline and verdicts; below, their sum and what runs took."""
    found = {record["paper"]: record for record in results(profile)}
    lines = ["| paper | in a line | what we found | notebook | guide |", "|---|---|---|---|---|"]
    for name, notebook in paths.paper_notebooks().items():
        paper, guide = papers.load(name), guides.load(name)
        told = "not run yet"
        if name in found:
            marks = counted(found[name]["claims"], words=False)
            told = f"{headline(found[name])} [({marks})](figures/{profile}/CLAIMS.md#{anchor(paper.short)})".strip()
        cells = [f"[{paper.short}](https://arxiv.org/abs/{paper.arxiv})", guide.plain if guide else paper.title, told]
        cells += [f"[{notebook.stem[:2]}](notebooks/{notebook.name})"]
        lines.append(line(*cells, f"[guide](docs/{name}.md)" if guide else f"`lib.{name}`"))
    if found:
        claims = [claim for record in found.values() for claim in record["claims"]]
        told = [f"All {len(claims)} claims: {counted(claims)}.", _again(claims), _taken(list(found.values()))]
        lines += ["", " ".join(part for part in told if part)]
    return "\n".join(lines)


def _again(claims: Iterable[dict[str, Any]]) -> str:
    answers = [answer for answer in map(held, claims) if answer is not None]
    return f"{sum(answers)} of the {len(answers)} verdicts tried at another seed held." if answers else ""


def _taken(records: list[dict[str, Any]]) -> str:
    minutes, peak = sum(r["minutes_cold"] for r in records), max(r["peak_memory_gib"] for r in records)
    on = ", ".join(sorted({f"{r['machine']['cores']} cores of {r['machine']['processor']}" for r in records}))
    return f"The runs took {minutes:.0f} minutes in all and {peak:.1f} GiB at most, on {on}."


def anchor(title: str) -> str:
    """Name the place of a heading, as GitHub and the site do."""
    return re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")


def claims_page(profile: str) -> str:
    """Write the page of all claims, paper by paper: the finding, a row a claim, then checks and gates apart."""
    records = results(profile)
    intro = (
        "# Claims\n\nEvery verdict is computed from an estimate and its 95 % interval by the rule in the paper's "
        f"`paper.toml`, in the `{profile}` profile. Checks are identities and bounds of our own code, and say nothing "
        "about a paper. A gate is a measured precondition: where one fails, the claims that name it are not testable "
        "here. Estimates of finished runs are judged by today's rules; an executed notebook shows those of its "
        "commit. Behind a verdict stands what the same claim came to at another seed (`make replicate`), where it was "
        "tried; counts leave out verdicts that did not hold there.\n"
    )
    return "\n".join([intro, *(_claims_of(record) for record in records)]) if records else f"{intro}\nNo run yet.\n"


def _claims_of(record: dict[str, Any]) -> str:
    lines = [f"## {papers.load(record['paper']).short}", ""]
    if stale := sum(claim["verdict"] == TO_RUN for claim in record["claims"]):
        since = f" since commit {record['commit'][:10]}" if record["commit"] else ""  # a downloaded archive has none
        again = f"`make reproduce PAPERS={record['paper']}`"
        lines += [f"*Claims that read otherwise{since}, and are to be run again: {stale} ({again}).*", ""]
    lines += [record["finding"].strip(), ""] if record["finding"] else []
    lines += ["| verdict | claim | measured | estimate [95 % interval] | holds if |", "|---|---|---|---|---|"]
    for claim in record["claims"]:
        lines.append(line(marked(claim), claim["id"], claim["measured"], interval(claim), claim["rule"]))
    told = {"Checks of our own code": record["checks"], "Gates of claims": record["gates"]}
    apart = [f"- {kind}: {tally_in_words(measured)}." for kind, measured in told.items() if measured]
    return "\n".join([*lines, "", *apart, ""] if apart else [*lines, ""])


def generated(profile: str = "cpu") -> dict[Path, str]:
    """Write the generated pages anew, and return their texts; raises TenfoldError where a marker is missing."""
    from lib.lab import requirements

    parts = {root() / "README.md": ("papers", papers_table(profile))}
    parts[guides.folder() / "running.md"] = ("gpu", requirements.markdown())
    texts = {path: with_part(path.read_text(encoding="utf8"), *part, path.name) for path, part in parts.items()}
    return {**texts, paths.figures_dir() / profile / "CLAIMS.md": claims_page(profile)}


def with_part(text: str, name: str, written: str, file: str) -> str:
    """Write what stands between two markers of a file anew; raises TenfoldError where one of them is missing."""
    begin, end = BEGIN.format(name), END.format(name)
    if begin not in text or end not in text:
        raise TenfoldError(f"{file} has lost its {name} markers: put `{begin}` and `{end}` back.")
    head, rest = text.split(begin, 1)
    return f"{head}{begin}\n{written}\n{end}{rest.split(end, 1)[1]}"


def update_pages() -> list[str]:
    """Write the generated pages of the default profile, and its picture; returns the files whose text changed.

    Results that lie elsewhere (`TENFOLD_FIGURES`) are somebody's own, and stay out of them.
    """
    from lib.lab import picture

    if paths.figures_dir() != root() / "figures":
        return []
    changed = []
    for path, text in generated().items():
        if not path.exists() or path.read_text(encoding="utf8") != text:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf8")
            changed.append(path)
    records = results("cpu")
    if records and (changed or not picture.file_of("cpu").exists()):
        picture.draw(records, picture.file_of("cpu"))
    return [relative(path) for path in changed]
