"""Figures that know their data: one style, and a png never without the csv of what it plots."""

import re
from pathlib import Path
from typing import Any

from lib import TenfoldError
from lib.lab.cache import full_disk_refused

MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
PAPER_VALUE: dict[str, Any] = {"color": "0.35", "linestyle": "--", "linewidth": 1.0}
NAME = re.compile(r"[a-z0-9][a-z0-9_-]*")


def use_style() -> None:
    """Make Tenfold's style the current one."""
    import matplotlib.pyplot as plt

    plt.style.use(Path(__file__).with_name("tenfold.mplstyle"))


def with_interval(axes, x, estimates, *, label: str, index: int = 0, **options) -> None:
    """Line with markers and its 95 % band from a sequence of `Estimate`s; colour and marker by `index`."""
    values = [e.value for e in estimates]
    low, high = [e.low for e in estimates], [e.high for e in estimates]
    options = {"color": f"C{index}", "marker": MARKERS[index % len(MARKERS)]} | options
    (line,) = axes.plot(x, values, label=label, **options)
    axes.fill_between(x, low, high, color=line.get_color(), alpha=0.15, linewidth=0)


def check_name(name: str, taken) -> None:
    """Refuse a result name that cannot be a file name or is already used in this run."""
    if not NAME.fullmatch(name):
        raise TenfoldError(f"{name!r} cannot name a result: use lower-case letters, digits, '-' and '_'.")
    if name in taken:
        raise TenfoldError(f"this run already has a result named {name!r}: give each figure and table its own name.")


def save(figure, data, folder: Path, name: str) -> None:
    """Write `<name>.png` and its csv twin; raises TenfoldError where the data is missing or the disk is full."""
    if data is None or len(data) == 0:
        raise TenfoldError(f"figure {name!r} comes without data: pass the frame that it plots.")
    with full_disk_refused(folder):
        folder.mkdir(parents=True, exist_ok=True)
        figure.savefig(folder / f"{name}.png", metadata={"Software": None})
        save_frame(data, folder, name)


def save_frame(data, folder: Path, name: str) -> None:
    """Write a frame as csv, rounded to six digits so that noise in the last bit does not show in a diff."""
    with full_disk_refused(folder):
        folder.mkdir(parents=True, exist_ok=True)
        data.to_csv(folder / f"{name}.csv", index=False, float_format="%.6g")
