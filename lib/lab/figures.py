"""Figures that know their data: one style, the forms that recur, and a png never without the csv of what it plots.

The forms take an axis and a tidy frame (one row a value, with columns `low` and `high` where it has an interval).
"""

import re
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lib import TenfoldError
from lib.core.statistics import Estimate
from lib.lab.cache import full_disk_refused

MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
PAPER_VALUE: dict[str, Any] = {"color": "0.35", "linestyle": "--", "linewidth": 1.0}
STYLE = Path(__file__).with_name("tenfold.mplstyle")
NAME = re.compile(r"[a-z0-9][a-z0-9_-]*")
NAMED = "_tenfold_names"  # of an axis: the names of its rows, in order


def use_style() -> None:
    """Make Tenfold's style the current one."""
    import matplotlib.pyplot as plt

    plt.style.use(STYLE)


def figure_style():
    """Make Tenfold's style the current one inside a `with` block."""
    import matplotlib.pyplot as plt

    return plt.style.context(STYLE)


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


def tidy(estimates: Mapping[Any, Estimate], names: Sequence[str], *, value: str = "value"):
    """Lay out estimates as a frame, with their intervals and what they are over; keys hold an entry for each name."""
    import pandas as pd

    keys = [key if isinstance(key, tuple) else (key,) for key in estimates]
    rows = [(*key, e.value, e.low, e.high, e.n) for key, e in zip(keys, estimates.values(), strict=True)]
    return pd.DataFrame(rows, columns=[*names, value, "low", "high", "n"])


def with_interval(axis, x, estimates: Sequence[Estimate], *, label: str, index: int = 0, **style) -> None:
    """Draw a line with markers and its 95 % band from a sequence of `Estimate`s; colour and marker by `index`."""
    (line,) = axis.plot(x, [e.value for e in estimates], label=label, **_look(index) | style)
    low, high = [e.low for e in estimates], [e.high for e in estimates]
    axis.fill_between(x, low, high, color=line.get_color(), alpha=0.15, linewidth=0)


def lines(axis, data, x: str, y: str, *, by=None, labels=None, grey=(), bands=True, first: int = 0, **style) -> None:
    """Draw a line for each value of column `by`, with a band where the frame has columns `low` and `high`.

    `labels` (value: words of the legend) also sets which values are drawn and in what order; those in `grey` are
    dashed and grey, and `bands` may be the values that get one. Colours and markers count on from `first`.
    """
    for index, (value, label, part) in _series(data, by, labels, first):
        part = part.sort_values(x)
        look = {"label": label} | _look(index) | (PAPER_VALUE if value in grey else {}) | style
        (line,) = axis.plot(part[x], part[y], **look)
        if "low" in part and (bands is True or (bands and value in bands)):
            axis.fill_between(part[x], part["low"], part["high"], color=line.get_color(), alpha=0.15, linewidth=0)


def forest(
    axis, data, name: str, value: str, *, by=None, labels=None, grey=(), colors=None, first: int = 0, upright=False
) -> None:
    """Draw estimates as points with their intervals (`low`, `high`), one row for each value of column `name`.

    Rows stand in the order of the frame, the first on top; several values of `by` share a row, one below the other, and
    get a legend's label from `labels`, as in `lines`. `colors` maps names of rows to colours, `grey` lists rows or
    series drawn grey. `upright` puts the names on the x axis.
    """
    for colours, label, marker, part, at in _rows(axis, data, name, by, labels, grey, colors, first, upright):
        for row, (place, centre, error) in enumerate(zip(at, part[value], _whiskers(part, value).T, strict=True)):
            style = {"fmt": marker, "color": colours[row], "capsize": 3, "label": None if row else label}
            if upright:
                axis.errorbar(place, centre, yerr=error[:, None], **style)
            else:
                axis.errorbar(centre, place, xerr=error[:, None], **style)


def bars(
    axis, data, name: str, value: str, *, by=None, labels=None, grey=(), colors=None, first: int = 0, upright=False
) -> None:
    """Draw a bar for each value of column `name`, with its interval where the frame has `low` and `high`.

    Arguments are those of `forest`: values of `by` stand side by side.
    """
    several = 1 if by is None else len(labels or data[by].unique())
    for colours, label, _, part, at in _rows(axis, data, name, by, labels, grey, colors, first, upright):
        spread = _whiskers(part, value) if "low" in part else None
        options = {"color": colours, "label": label, "error_kw": {"elinewidth": 0.9, "ecolor": "0.2", "capsize": 2}}
        if upright:
            axis.bar(at, part[value], 0.8 / several, yerr=spread, **options)
        else:
            axis.barh(at, part[value], 0.8 / several, xerr=spread, **options)


def heatmap(
    axis, table, *, label: str = "", fmt: str = ".2f", low=None, high=None, cmap="viridis", marked=None, colorbar=True
):
    """Draw a frame as coloured cells, each with its number (`fmt`; none where it is empty), and a colour bar.

    `marked` is a table of truth values: those cells get a red frame. Returns matplotlib's image.
    """
    import matplotlib.pyplot as plt

    values = table.to_numpy(dtype=float)
    image = axis.imshow(values, cmap=cmap, vmin=low, vmax=high, aspect="auto")
    axis.grid(False)
    _name_ticks(axis, "x", range(values.shape[1]), table.columns)
    _name_ticks(axis, "y", range(values.shape[0]), table.index)
    for (row, column), number in np.ndenumerate(values):
        if fmt and np.isfinite(number):
            red, green, blue, _ = image.cmap(image.norm(number))
            light = 0.3 * red + 0.59 * green + 0.11 * blue > 0.5
            words = f"{number:{fmt}}"
            axis.text(column, row, words, ha="center", va="center", fontsize=7, color="k" if light else "w")
        if marked is not None and np.asarray(marked)[row, column]:
            axis.add_patch(plt.Rectangle((column - 0.5, row - 0.5), 1, 1, fill=False, ec="red", lw=2))
    if colorbar:
        axis.figure.colorbar(image, ax=axis, label=label)
    return image


def pictures(axis, rows: Mapping[str, Sequence[np.ndarray]], *, columns: Sequence[str] = (), gap: int = 4) -> None:
    """Lay out images (height, width[, 3], from 0 to 1) as a grid: a named row each, a title below each column."""
    strips, starts = [], np.zeros(1)
    for images in rows.values():
        white = np.ones((images[0].shape[0], gap, *images[0].shape[2:]))
        parts = [part for image in images for part in (np.asarray(image), white)][:-1]
        starts = np.cumsum([0] + [part.shape[1] for part in parts])
        strips += [np.concatenate(parts, axis=1), np.ones((gap, int(starts[-1]), *images[0].shape[2:]))]
    axis.imshow(np.concatenate(strips[:-1]), cmap="gray", vmin=0, vmax=1)
    heights = np.cumsum([0] + [strip.shape[0] for strip in strips])
    axis.set_yticks((heights[:-1:2] + heights[1::2]) / 2 - 0.5, list(rows))
    middles = (starts[:-1:2] + starts[1::2]) / 2 - 0.5
    axis.set_xticks(middles if len(columns) else [], list(columns), fontsize=7)
    axis.tick_params(length=0)
    axis.grid(False)
    axis.spines[:].set_visible(False)


def multiples(names: Iterable[Any], *, columns: int | None = None, width: float = 9.5, height: float = 3.2, **options):
    """Make small multiples: a figure and a dictionary of axes by name, each with its name as title, in lines if long.

    `height` is that of a row of panels; `options` go to `plt.subplots` (`sharey=True`, `width_ratios=[2, 1]`).
    """
    import matplotlib.pyplot as plt

    names = list(names)
    columns = columns or len(names)
    count = -(-len(names) // columns)
    figure, axes = plt.subplots(count, columns, figsize=(width, height * count), squeeze=False, **options)
    for axis in axes.flat[len(names) :]:
        axis.set_visible(False)
    panels = dict(zip(names, axes.flat, strict=False))
    for title, axis in panels.items():
        letters = int(72 * axis.get_position().width * width / (0.6 * axis.title.get_fontsize()))
        axis.set_title(textwrap.fill(str(title), max(letters, 8)))
    return figure, panels


def one_legend(figure, *, columns: int = 4, title: str | None = None) -> None:
    """Give all panels of a figure one legend below them; a label that several panels share stands once."""
    entries = {}
    for axis in figure.axes:
        handles, words = axis.get_legend_handles_labels()
        entries = dict(zip(words, handles, strict=True)) | entries
        if axis.get_legend():
            axis.get_legend().remove()
    figure.legend(entries.values(), entries.keys(), loc="outside lower center", ncols=columns, title=title)


def baseline(axis, *, x=None, y=None, label=None) -> None:
    """Draw what the values are compared with as a dashed line behind them."""
    _level(axis, x, y, label=label, zorder=1, **PAPER_VALUE)


def chance(axis, *, x=None, y=None, label=None) -> None:
    """Draw what guessing reaches as a dotted line behind the values."""
    _level(axis, x, y, label=label, zorder=1, **PAPER_VALUE | {"linestyle": ":"})


def ticks(axis, *, x=None, y=None, log: int | None = None) -> None:
    """Put ticks at these values alone, or at the keys of a mapping with its words; `log` is the base of the axis."""
    for which, values in (("x", x), ("y", y)):
        if values is not None:
            if log:
                getattr(axis, f"set_{which}scale")("log", base=log)
            words = values.values() if isinstance(values, Mapping) else [f"{value:g}" for value in values]
            getattr(axis, f"set_{which}ticks")(list(values), list(words))
            getattr(axis, f"{which}axis").minorticks_off()


def _look(index: int) -> dict[str, Any]:
    return {"color": f"C{index % 9}", "marker": MARKERS[index % len(MARKERS)]}


def _level(axis, x, y, **style) -> None:
    if x is not None:
        axis.axvline(x, **style)
    if y is not None:
        axis.axhline(y, **style)


def _series(data, by, labels, first: int):
    """Index, (value, label, rows) of each series, in the order of `labels` or else of the frame."""
    if by is None:
        return [(first, (None, None, data))]
    labels = labels or {value: str(value) for value in data[by].unique()}
    parts = [(value, label, data[data[by] == value]) for value, label in labels.items()]
    return [(index, part) for index, part in enumerate(parts, first) if len(part[2])]


def _rows(axis, data, name: str, by, labels, grey, colors, first: int, upright: bool):
    """Colours, label, marker, rows of the frame and places of each series; names the axis of the rows.

    Panels that share that axis share its names too: each has its own place, whichever panel has a row of it.
    """
    which = "x" if upright else "y"
    together = getattr(axis, f"get_shared_{which}_axes")().get_siblings(axis)
    names = list(dict.fromkeys([*(n for panel in together for n in getattr(panel, NAMED, ())), *data[name]]))
    setattr(axis, NAMED, names)
    series = _series(data, by, labels, first)
    _name_ticks(axis, which, range(len(names)), names)
    if not upright:
        axis.set_ylim(len(names) - 0.4, -0.6)
    axis.grid(axis="x" if upright else "y", visible=False)
    step = 0.8 / (1 if by is None else len(labels or data[by].unique()))
    for index, (value, label, part) in series:
        colour = "0.5" if value is not None and value in grey else f"C{index % 9}"
        colours = ["0.5" if n in grey else (colors or {}).get(n, colour) for n in part[name]]
        offset = 0.0 if by is None else step * (index - first + 0.5) - 0.4
        at = np.array([names.index(n) for n in part[name]]) + offset
        marker = MARKERS[(index - first if by is None else index) % len(MARKERS)]
        yield colours, label, marker, part, at


def _whiskers(part, value: str) -> np.ndarray:
    """Distances from the values down to `low` and up to `high` [2, rows]; rounding never makes one negative."""
    return np.stack([part[value] - part["low"], part["high"] - part[value]]).clip(0)


def _name_ticks(axis, which: str, places, names) -> None:
    """Name the places of an axis so that names do not overlap: smaller where there are many, slanted where long."""
    words = [f"{name:g}" if isinstance(name, float) else str(name) for name in names]
    figure_width, figure_height = axis.get_figure(root=True).get_size_inches()
    spec = axis.get_subplotspec()
    if which == "y":
        room = 72 * figure_height / (spec.get_gridspec().nrows if spec else 1) * 0.75 / max(1, len(words))
        axis.set_yticks(places, words, fontsize=float(np.clip(room / 1.2, 5, 8)))
        return
    room = 72 * figure_width / (spec.get_gridspec().ncols if spec else 1) * 0.75 / max(1, len(words))
    slanted = max(map(len, words), default=0) * 8 * 0.62 > room
    size = float(np.clip(room / 1.2, 5, 8))
    axis.set_xticks(places, words, fontsize=size, rotation=35 if slanted else 0, ha="right" if slanted else "center")
