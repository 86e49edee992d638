"""What readers see of a little set of results: README, terminal, picture and site, with checks and gates apart."""

import csv

import pytest

from lib import TenfoldError
from lib.__main__ import main
from lib.lab import claims, papers, paths, picture, replicate, report
from lib.lab.papers import CheckRecord, ClaimRecord, GateRecord
from lib.lab.run import write_json
from lib.lab.site import pages

RULE = {"estimate": "share | of tokens", "rule": "above", "threshold": 0.5}
FINDING = "The method | holds: 0.9."


def result(paper, **options):
    frame = {
        "paper": paper,
        "profile": "cpu",
        "minutes_cold": 1.25,
        "peak_memory_gib": 3.5,
        "claims": [],
        "figures": {},
    }
    frame |= {"machine": {"cores": 2, "processor": "an engine"}, "commit": "0123456789abcdef"}
    write_json(paths.results_dir("cpu", paper) / "results.json", frame | options)


@pytest.fixture
def finished(house, write_notebook, monkeypatch):
    """Two finished papers: `lorc` with all there can be, `grin` without checks and gates, one claim to be run again."""
    monkeypatch.setattr(report, "judged_again", lambda record, _paper: record)  # its claims are not those of a paper
    read, said = papers.load, {"headline": "half is free: {free}; and more: {gated}"}
    monkeypatch.setattr(papers, "load", lambda paper: read(paper).model_copy(update=said))
    shut = claims.measure(GateRecord(id="drafter-accepts", what="It is accepted.", **RULE), "cpu", estimate=0.17)
    open_gate = claims.measure(GateRecord(id="learned", what="It has learned.", **RULE), "cpu", estimate=0.7)
    kept = claims.measure(CheckRecord(id="exact", what="It is exact.", **RULE), "cpu", estimate=1.0, n="3 texts")
    broken = claims.measure(
        CheckRecord(id="bounded", what="It is bounded.", **RULE), "cpu", estimate=0.4, ci=(0.3, 0.6)
    )
    later = claims.unmeasured(CheckRecord(id="long", what="It is long.", profiles=("gpu",), **RULE))
    numbers = {"estimate": 0.9, "ci": (0.8, 1.0), "n": "4 seeds"}
    power = {"smallest_effect": 0.1, "planned_count": "4 seeds"}
    judged = [
        claims.judge(ClaimRecord(id="free", quote="It $ is", place="p. 1", **power, **RULE), "cpu", **numbers),
        claims.judge(
            ClaimRecord(id="gated", quote="q", place="p", gates=("drafter-accepts",), **RULE), "cpu",
            **numbers, failed_gates=[shut],
        ),
        claims.judge(ClaimRecord(id="large", quote="q", place="p", profiles=("gpu",), **RULE), "cpu"),
    ]  # fmt: skip
    for name in ("02_lorc.ipynb", "03_grin.ipynb"):
        write_notebook("seed = 0  # s", name=name)
    outcomes = {"claims": judged, "checks": [kept, broken, later], "gates": [shut, open_gate]}
    result("lorc", finding=FINDING, **{kind: [o.as_dict() for o in found] for kind, found in outcomes.items()})
    early = claims.judge(ClaimRecord(id="free", quote="q", place="p", **RULE), "cpu", estimate=0.1, ci=(0.0, 0.2))
    changed = early.as_dict() | {"id": "gated", "verdict": claims.TO_RUN, "estimate": None, "ci": None}
    result("grin", claims=[early.as_dict(), changed])
    return house


@pytest.mark.usefixtures("finished")
def test_the_claims_page_opens_with_the_finding_and_counts_checks_and_gates_apart():
    intro, lorc, grin = report.claims_page("cpu").split("\n## ")
    assert intro.startswith("# Claims\n")
    title, finding, table, apart = lorc.strip().split("\n\n")
    assert (title, finding) == ("LoRC", FINDING)
    assert apart.splitlines() == [
        "- Checks of our own code: 1/2, failed: bounded (0.4, not ≥ 0.5).",
        "- Gates of claims: 1/2, failed: drafter-accepts (0.17, not ≥ 0.5).",
    ]
    rows = [line.strip("| ").split(" | ") for line in table.splitlines()[2:]]
    assert [row[:2] for row in rows] == [
        ["✔ reproduced", "free"],
        ["⊘ not testable here (gate drafter-accepts is 0.17, not ≥ 0.5)", "gated"],
        ["· needs the gpu profile", "large"],
    ]
    assert rows[0][2:] == ["share \\| of tokens", "0.9 [0.8, 1]", "> 0.5"]
    assert grin.startswith("GRIN\n\n*Claims that read otherwise since commit 0123456789, and are to be run again: 1 (")
    assert "✘ contradicted | free" in grin
    assert "… to be run again | gated | share \\| of tokens | – |" in grin


@pytest.mark.usefixtures("finished")
def test_the_readme_has_a_row_a_paper_and_counts_its_verdicts():
    rows, below = report.papers_table("cpu").split("\n\n")
    assert rows.splitlines()[2] == (
        "| [LoRC](https://arxiv.org/abs/2410.03111) | cache a short latent instead of keys and values "
        "| half is free: **✔ reproduced**; and more: **⊘ not testable** [(1 ✔ 1 ⊘ 1 ·)](figures/cpu/CLAIMS.md#lorc) "
        "| [02](notebooks/02_lorc.ipynb) | [guide](docs/lorc.md) |"
    )
    told = "half is free: **✘ contradicted**; and more: **… to be run again** [(1 ✘ 1 …)](figures/cpu/CLAIMS.md#grin)"
    assert f"| {told} |" in rows.splitlines()[3]
    assert below == (
        "All 5 claims: 1 ✔ reproduced, 1 ✘ contradicted, 1 ⊘ not testable, 1 · left to a GPU, 1 … to be run again. "
        "The runs took 2 minutes in all and 3.5 GiB at most, on 2 cores of an engine."
    )


@pytest.mark.usefixtures("finished")
def test_a_verdict_that_does_not_hold_at_another_seed_is_shown_beside_it_and_counted_apart(
    tmp_path, monkeypatch, capsys
):
    published = paths.results_dir("cpu", "lorc") / "results.json"
    monkeypatch.setattr(replicate, "judged_again", lambda run, _paper: run)
    record = claims.read(published) | {"parameters": {"seed": 0, "documents": 24}}
    write_json(published, record)
    again = paths.replicate_dir("cpu") / "lorc-seed-1" / "results.json"
    write_json(again, record)
    moved = [claim | {"estimate": claim["estimate"] and claim["estimate"] + 0.01} for claim in record["claims"]]
    write_json(again, record | {"claims": moved})
    assert "| ✔ reproduced; held again: ✔ reproduced, 0.91 [0.8, 1] | free |" in report.claims_page("cpu")
    assert "1 … to be run again. 2 of the 2 verdicts tried at another seed held." in report.papers_table("cpu")
    write_json(again, record | {"claims": moved, "parameters": record["parameters"] | {"documents": 8}})
    assert "another seed" not in report.papers_table("cpu"), "a smaller run says nothing"
    write_json(again, record)
    assert "reproduced; held again" not in report.claims_page("cpu"), "nor does a number that the seed does not move"
    moved[0] |= {"verdict": claims.INCONCLUSIVE, "estimate": 0.5, "ci": [0.3, 0.7]}
    write_json(again, record | {"claims": moved})
    assert "| ✔ reproduced; at another seed: ~ inconclusive, 0.5 [0.3, 0.7] | free |" in report.claims_page("cpu")
    table = report.papers_table("cpu")
    assert "claims: 1 ✘ contradicted, 1 ⊘ not testable, 1 · left to a GPU, 1 … to be run again, 1 ↺ not held" in table
    assert " again. 1 of the 2" in table
    assert "half is free: **↺ not held again**; and more" in table
    report.print_replicates("cpu", ["lorc"])
    assert "1 of the 2 verdicts tried at another seed held." in capsys.readouterr().out
    picture.draw(report.results("cpu"), tmp_path / "verdicts.png")
    old = [claim | {"verdict": claims.TO_RUN} for claim in moved]
    write_json(again, record | {"claims": old})
    assert "another seed" not in report.papers_table("cpu"), "a claim that read otherwise says nothing"


def test_a_claim_that_reads_otherwise_than_in_its_run_is_to_be_run_again_and_the_others_stand():
    paper, options = papers.load("grin"), {"estimate": 1.0, "ci": (0.9, 1.1)}
    gates = [claims.measure(gate, "cpu", estimate=1.0).as_dict() for gate in paper.gates]
    judged = [claims.judge(claim, "cpu", **options).as_dict() for claim in paper.claims]
    assert judged[0]["gates"]

    def to_run(told, gates=gates):
        content = {"claims": told, "checks": [], "gates": gates, "metrics": {}, "finding": "As it was told."}
        again = claims.judged_again(content, paper.model_copy(update={"finding": "{a-new-metric}"}))
        assert [claim["id"] for claim in again["claims"]] == [claim["id"] for claim in judged]
        assert again["finding"] == "As it was told."
        return [claim["id"] for claim in again["claims"] if claim["verdict"] == claims.TO_RUN]

    first, *others = judged
    with pytest.raises(TenfoldError, match="cannot be filled"):
        to_run(judged)
    assert to_run(others) == [first["id"]]
    assert to_run([first | {"measured": "something else"}, *others]) == [first["id"]]
    assert to_run([first | {"gates": ()}, *others]) == [first["id"]]
    assert to_run([first | {"verdict": claims.NEEDS_GPU}, *others]) == [first["id"]]
    with pytest.raises(TenfoldError, match="cannot be filled"):
        to_run([first | {"rule": "> 7"}, *others])
    moved = [gate | {"rule": "≥ 7"} if gate["id"] == first["gates"][0] else gate for gate in gates]
    kept = [claim.id for claim in paper.claims if first["gates"][0] in claim.gates]
    assert to_run(judged, moved) == kept, "what a gate kept back stays so"


def test_a_page_that_lost_its_markers_is_not_written():
    text = "\n".join(["head", report.BEGIN.format("gpu"), "stale", report.END.format("gpu"), "tail"])
    assert report.with_part(text, "gpu", "fresh", "x.md") == text.replace("stale", "fresh")
    with pytest.raises(TenfoldError, match="x.md has lost its gpu markers"):
        report.with_part("head", "gpu", "fresh", "x.md")


@pytest.mark.usefixtures("finished")
def test_the_terminal_ends_with_what_was_found(capsys, monkeypatch):
    monkeypatch.setattr(report, "update_pages", list)
    assert main(["claims", "--profile", "cpu", "--papers", "lorc"]) == 0
    verdicts, apart = capsys.readouterr().out.split("checks of our own code")
    assert "⊘ not testable here" in verdicts
    assert "bounded" not in verdicts
    assert "1/2, failed: bounded" in apart
    assert apart.rstrip().splitlines()[-1] == f"lorc: {FINDING}"


def test_every_verdict_has_a_mark_of_its_own():
    shown = [verdict for verdict in claims.VERDICTS if verdict != claims.NEEDS_CPU]
    assert len({report.SHOWN[verdict][0] for verdict in shown}) == len(shown) == 7
    assert set(claims.VERDICTS) == set(report.SHOWN)


@pytest.mark.usefixtures("finished")
def test_the_picture_draws_squares_for_claims_and_words_for_the_rest(tmp_path, monkeypatch):
    import matplotlib.axes

    said, squares = [], []
    text, patch = matplotlib.axes.Axes.text, matplotlib.axes.Axes.add_patch
    monkeypatch.setattr(matplotlib.axes.Axes, "text", lambda *a, **k: (said.append(a[3]), text(*a, **k))[1])
    monkeypatch.setattr(matplotlib.axes.Axes, "add_patch", lambda *a, **k: (squares.append(a[1]), patch(*a, **k))[1])
    picture.draw(report.results("cpu"), tmp_path / "verdicts.png")
    assert len(squares) == 5, "one a claim"
    assert said == ["✔", "⊘", "·", "1 of 3 hold", "checks 1/2", "gates 1/2", "✘", "…", "0 of 2 hold"]
    with (tmp_path / "verdicts.csv").open(encoding="utf8") as file:
        rows = [tuple(row.values()) for row in csv.DictReader(file)]
    assert rows[1] == ("lorc", "claim", "gated", "not testable here")
    assert rows[3:8] == [
        ("lorc", "check", "exact", "passed"),
        ("lorc", "check", "bounded", "failed"),
        ("lorc", "check", "long", "not judged in this profile"),
        ("lorc", "gate", "drafter-accepts", "failed"),
        ("lorc", "gate", "learned", "passed"),
    ]
    assert len(rows) == 10


@pytest.mark.usefixtures("finished")
def test_a_papers_page_opens_with_the_finding_and_holds_checks_and_gates_apart(monkeypatch):
    monkeypatch.setattr(pages, "_run", lambda results: "")
    for paper in ("lorc", "grin"):
        executed = paths.results_dir("cpu", paper) / paths.notebook_of(paper).name
        executed.write_text(
            '{"cells": [{"cell_type": "markdown", "id": "a", "metadata": {}, "source": "# T"},'
            ' {"cell_type": "markdown", "id": "b", "metadata": {}, "source": "## End"}],'
            ' "metadata": {}, "nbformat": 4, "nbformat_minor": 5}'
        )
    page = pages.paper("lorc")
    titles = [line[3:] for line in page.splitlines() if line.startswith("## ")]
    assert [title.split(":")[0] for title in titles[:6]] == [
        "What we found", "Use it", "The paper says, we measure", "Checks of our own code", "Gates", "Figures",
    ]  # fmt: skip
    assert page.index(FINDING) < page.index("| ✔ reproduced | It \\$ is (p. 1) |")
    assert "0.9 [0.8, 1] (4 seeds); planned: 4 seeds, to find 0.1 |" in page
    assert "| failed | It is bounded. | share \\| of tokens | 0.4 [0.3, 0.6] | ≥ 0.5 |" in page
    assert "| not judged in this profile | It is long. | share \\| of tokens | – | ≥ 0.5 |" in page
    old = pages.paper("grin")
    assert "| ✘ contradicted | q (p) |" in old
    assert all(title not in old for title in titles[:1] + titles[3:5])
    assert papers.load("grin").idea in old
