"""One picture of all verdicts: a row a paper, a square a claim. The README and the site open with it."""

from pathlib import Path
from typing import Any

from lib.lab.claims import CONTRADICTED, INCONCLUSIVE, NOT_TESTED, REPRODUCED
from lib.lab.paths import figures_dir

ORDER = (REPRODUCED, INCONCLUSIVE, CONTRADICTED, NOT_TESTED)
FILLS = {REPRODUCED: "C2", INCONCLUSIVE: "#e9cf6b", CONTRADICTED: "C3", NOT_TESTED: "0.85"}
MARKS = {REPRODUCED: "✔", INCONCLUSIVE: "~", CONTRADICTED: "✘", NOT_TESTED: "·"}


def place(profile: str) -> Path:
    """File of the picture."""
    return figures_dir() / profile / "guides" / "verdicts.png"


def draw(records: list[dict[str, Any]], path: Path) -> None:
    """Draw the verdicts of finished runs, given as their results, into a png."""
    import matplotlib.pyplot as plt

    with plt.style.context(Path(__file__).with_name("tenfold.mplstyle")):
        widest = max(len(record["claims"]) for record in records)
        fig, axis = plt.subplots(figsize=(1.7 + 0.36 * (widest + 4), 0.9 + 0.36 * len(records)))
        for row, record in enumerate(records):
            verdicts = sorted((claim["verdict"] for claim in record["claims"]), key=ORDER.index)
            for column, verdict in enumerate(verdicts):
                axis.add_patch(plt.Rectangle((column, row), 0.9, 0.8, color=FILLS[verdict], lw=0))
                axis.text(column + 0.45, row + 0.42, MARKS[verdict], ha="center", va="center", fontsize=9)
            held = sum(verdict == REPRODUCED for verdict in verdicts)
            axis.text(widest + 0.3, row + 0.42, f"{held} of {len(verdicts)} hold", va="center", fontsize=9)
        axis.set(xlim=(-0.1, widest + 4), ylim=(len(records), -0.2), xticks=[], title="claims, by verdict of a run")
        axis.set_yticks([row + 0.4 for row in range(len(records))], [record["paper"] for record in records])
        axis.grid(False)
        axis.tick_params(length=0)
        axis.spines[:].set_visible(False)
        handles = [plt.Rectangle((0, 0), 1, 1, color=FILLS[verdict]) for verdict in ORDER]
        names = [f"{MARKS[verdict]} {verdict}" for verdict in ORDER]
        fig.legend(handles, names, loc="outside lower center", ncols=4, fontsize=8)
        path.parent.mkdir(parents=True, exist_ok=True)
        fig.savefig(path, metadata={"Software": None})
        plt.close(fig)
