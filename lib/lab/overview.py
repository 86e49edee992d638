"""One picture of all verdicts: a row a paper, a square a claim, with checks and gates counted apart from them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lib.lab.claims import (
    CONTRADICTED,
    INCONCLUSIVE,
    NEEDS_CPU,
    NEEDS_GPU,
    NOT_TESTABLE,
    REPRODUCED,
    VERDICTS,
    passed_in_words,
)
from lib.lab.paths import figures_dir

FILLS = {
    REPRODUCED: "C2", INCONCLUSIVE: "#e9cf6b", CONTRADICTED: "C3", NOT_TESTABLE: "#c9b3d6", NEEDS_GPU: "0.88",
    NEEDS_CPU: "0.88",
}  # fmt: skip
MARKS = {
    REPRODUCED: "✔", INCONCLUSIVE: "~", CONTRADICTED: "✘", NOT_TESTABLE: "⊘", NEEDS_GPU: "·", NEEDS_CPU: "·",
}  # fmt: skip
APART = 2.6  # squares that a column of words takes


def place(profile: str) -> Path:
    """File of the picture."""
    return figures_dir() / profile / "guides" / "verdicts.png"


def tally(measured: Sequence[dict[str, Any]]) -> str:
    """Checks or gates that passed, of those that this profile judged, such as `3/4`."""
    judged = [m["passed"] for m in measured if m["passed"] is not None]
    return f"{sum(judged)}/{len(judged)}"


def draw(records: list[dict[str, Any]], path: Path) -> None:
    """Draw the verdicts of finished runs, given as their results, into a png with its csv beside it."""
    import matplotlib.pyplot as plt
    import pandas as pd

    with plt.style.context(Path(__file__).with_name("tenfold.mplstyle")):
        widest = max(len(record["claims"]) for record in records)
        words = [kind for kind in ("checks", "gates") if any(record[kind] for record in records)]
        width = widest + APART * (1 + len(words)) + 0.6
        fig, axis = plt.subplots(figsize=(1.3 + 0.36 * width, 0.9 + 0.36 * len(records)))
        for row, record in enumerate(records):
            verdicts = sorted((claim["verdict"] for claim in record["claims"]), key=VERDICTS.index)
            for column, verdict in enumerate(verdicts):
                axis.add_patch(plt.Rectangle((column, row), 0.9, 0.8, color=FILLS[verdict], lw=0))
                axis.text(column + 0.45, row + 0.42, MARKS[verdict], ha="center", va="center", fontsize=9)
            held = sum(verdict == REPRODUCED for verdict in verdicts)
            axis.text(widest + 0.3, row + 0.42, f"{held} of {len(verdicts)} hold", va="center", fontsize=9)
            for column, kind in enumerate(words, start=1):
                if record[kind]:
                    missed = any(measured["passed"] is False for measured in record[kind])
                    axis.text(
                        widest + 0.6 + APART * column, row + 0.42, f"{kind} {tally(record[kind])}", va="center",
                        fontsize=8, color="C3" if missed else "0.35", fontweight="bold" if missed else "normal",
                    )  # fmt: skip
        axis.set(xlim=(-0.1, width), ylim=(len(records), -0.2), xticks=[], title="claims, by verdict of a run")
        axis.set_yticks([row + 0.4 for row in range(len(records))], [record["paper"] for record in records])
        axis.grid(False)
        axis.tick_params(length=0)
        axis.spines[:].set_visible(False)
        _legend(fig, {claim["verdict"] for record in records for claim in record["claims"]})
        path.parent.mkdir(parents=True, exist_ok=True)
        fig.savefig(path, metadata={"Software": None})
        pd.DataFrame(_rows(records)).to_csv(path.with_suffix(".csv"), index=False)
        plt.close(fig)


def _legend(fig, drawn: set[str]) -> None:
    import matplotlib.pyplot as plt

    shown = [verdict for verdict in VERDICTS if verdict != NEEDS_CPU or verdict in drawn]
    handles = [plt.Rectangle((0, 0), 1, 1, color=FILLS[verdict]) for verdict in shown]
    names = [f"{MARKS[verdict]} {verdict}" for verdict in shown]
    fig.legend(handles, names, loc="outside lower center", ncols=len(shown), fontsize=8)


def _rows(records: list[dict[str, Any]]) -> list[dict[str, str]]:
    rows = []
    for record in records:
        for kind in ("claims", "checks", "gates"):
            for one in record[kind]:
                verdict = one["verdict"] if kind == "claims" else passed_in_words(one["passed"])
                rows.append({"paper": record["paper"], "kind": kind[:-1], "id": one["id"], "verdict": verdict})
    return rows
