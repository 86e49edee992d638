"""The picture of what was found: a row a paper, a square a claim, checks and gates counted apart from them."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from lib.lab import paths
from lib.lab.claims import NEEDS_CPU, REPRODUCED, TO_RUN, VERDICTS, passed_in_words
from lib.lab.figures import figure_style
from lib.lab.replicate import held
from lib.lab.report import SHOWN, UNSTEADY, tally

UNSTEADY_SQUARE: dict[str, Any] = {"hatch": "////", "edgecolor": "0.55", "lw": 0.0}  # such a verdict's square
WORDS = 2.6  # squares that a column of words takes


def file_of(profile: str) -> Path:
    """Name the file of a profile's picture."""
    return paths.figures_dir() / profile / "guides" / "verdicts.png"


def draw(records: list[dict[str, Any]], path: Path) -> None:
    """Draw the verdicts of finished runs, given as their results, into a png with its csv beside it."""
    import matplotlib.pyplot as plt
    import pandas as pd

    with figure_style():
        widest = max(len(record["claims"]) for record in records)
        kinds = [kind for kind in ("checks", "gates") if any(record[kind] for record in records)]
        width = widest + WORDS * (1 + len(kinds)) + 0.6
        fig, axis = plt.subplots(figsize=(1.3 + 0.36 * width, 0.9 + 0.36 * len(records)))
        for row, record in enumerate(records):
            _draw_row(axis, row, record, widest, kinds)
        axis.set(xlim=(-0.1, width), ylim=(len(records), -0.2), xticks=[], title="claims, by verdict of a run")
        axis.set_yticks([row + 0.4 for row in range(len(records))], [record["paper"] for record in records])
        axis.grid(False)
        axis.tick_params(length=0)
        axis.spines[:].set_visible(False)
        drawn = {claim["verdict"] for record in records for claim in record["claims"]}
        named = [verdict for verdict in VERDICTS if verdict not in (NEEDS_CPU, TO_RUN) or verdict in drawn]
        handles = [plt.Rectangle((0, 0), 1, 1, color=SHOWN[verdict][2]) for verdict in named]
        labels = [f"{SHOWN[verdict][0]} {verdict}" for verdict in named]
        if any(held(claim) is False for record in records for claim in record["claims"]):
            handles.append(plt.Rectangle((0, 0), 1, 1, **UNSTEADY_SQUARE, facecolor="white"))
            labels.append(UNSTEADY)
        fig.legend(handles, labels, loc="outside lower center", ncols=(len(handles) + 1) // 2, fontsize=8)
        path.parent.mkdir(parents=True, exist_ok=True)
        fig.savefig(path, metadata={"Software": None})
        pd.DataFrame(_rows(records)).to_csv(path.with_suffix(".csv"), index=False)
        plt.close(fig)


def _draw_row(axis, row: int, record: dict[str, Any], widest: int, kinds: list[str]) -> None:
    import matplotlib.pyplot as plt

    by_verdict = sorted(record["claims"], key=lambda claim: (VERDICTS.index(claim["verdict"]), held(claim) is False))
    for column, claim in enumerate(by_verdict):
        mark, _, fill = SHOWN[claim["verdict"]]
        filled: dict[str, Any] = UNSTEADY_SQUARE if held(claim) is False else {"lw": 0}
        axis.add_patch(plt.Rectangle((column, row), 0.9, 0.8, facecolor=fill, **filled))
        axis.text(column + 0.45, row + 0.42, mark, ha="center", va="center", fontsize=9)
    hold = sum(claim["verdict"] == REPRODUCED and held(claim) is not False for claim in by_verdict)
    axis.text(widest + 0.3, row + 0.42, f"{hold} of {len(by_verdict)} hold", va="center", fontsize=9)
    for column, kind in enumerate(kinds, start=1):
        if record[kind]:
            missed = any(measured["passed"] is False for measured in record[kind])
            style = {"color": "C3", "fontweight": "bold"} if missed else {"color": "0.35"}
            said = f"{kind} {tally(record[kind])}"
            axis.text(widest + 0.6 + WORDS * column, row + 0.42, said, va="center", fontsize=8, **style)


def _rows(records: Iterable[dict[str, Any]]) -> list[dict[str, str]]:
    return [
        {
            "paper": record["paper"], "kind": kind[:-1], "id": one["id"],
            "verdict": one["verdict"] if kind == "claims" else passed_in_words(one["passed"]),
        }
        for record in records for kind in ("claims", "checks", "gates") for one in record[kind]
    ]  # fmt: skip
