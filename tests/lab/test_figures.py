"""The forms of the notebooks' figures: what they draw is what the frame holds, and its names can be read."""

from itertools import pairwise

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from lib.core.statistics import Estimate
from lib.lab import figures

METHODS = ["full cache", "one rank for all layers", "progressive ranks", "a very long name of a method indeed"]


@pytest.fixture(autouse=True)
def style():
    with matplotlib.rc_context():
        figures.use_style()
        yield
    plt.close("all")


@pytest.fixture
def frame():
    """Two measures of four methods over three sizes."""
    keys = [(m, size, kind) for kind in ("loss", "time") for m in METHODS for size in (1, 8, 64)]
    estimates = {key: Estimate(float(i), i - 0.5, i + 1.0, "9 rows") for i, key in enumerate(keys)}
    return figures.tidy(estimates, ["method", "size", "kind"], value="cost")


def overlapping(axis, which):
    """Pairs of tick labels of an axis that lie over each other."""
    axis.figure.canvas.draw()
    labels = getattr(axis, f"get_{which}ticklabels")()
    boxes = [label.get_window_extent() for label in labels if label.get_text()]
    if which == "x" and labels[0].get_rotation():
        return [a for a, b in pairwise(boxes) if b.x1 - a.x1 < labels[0].get_fontsize()]
    return [a for a, b in pairwise(boxes) if a.overlaps(b)]


def test_estimates_become_a_frame(frame):
    assert list(frame) == ["method", "size", "kind", "cost", "low", "high", "n"]
    assert frame.loc[1].to_dict() == {
        "method": "full cache", "size": 8, "kind": "loss", "cost": 1, "low": 0.5, "high": 2.0, "n": "9 rows",
    }  # fmt: skip
    assert list(figures.tidy({"a": Estimate(1.0, 0.0, 2.0, "")}, ["name"])) == ["name", "value", "low", "high", "n"]


def test_lines_are_those_of_the_labels_in_their_order_with_bands(frame):
    axis = plt.figure().subplots()
    part = frame[frame["kind"] == "loss"].iloc[::-1]
    figures.lines(
        axis, part, "size", "cost", by="method", labels={METHODS[2]: "ours", METHODS[0]: "full"}, grey=[METHODS[0]]
    )
    ours, full = axis.lines
    assert [line.get_label() for line in axis.lines] == ["ours", "full"]
    assert (list(ours.get_xdata()), list(ours.get_ydata())) == ([1, 8, 64], [6, 7, 8])
    assert [full.get_linestyle(), full.get_color()] == ["--", "0.35"]
    (band, _) = axis.collections
    assert {tuple(point) for point in band.get_paths()[0].vertices} >= {(1, 5.5), (1, 7.0), (64, 7.5), (64, 9.0)}


def test_bands_only_where_asked(frame):
    axis = plt.figure().subplots()
    figures.lines(axis, frame[frame["kind"] == "loss"], "size", "cost", by="method", bands=[METHODS[1]])
    assert [len(axis.lines), len(axis.collections)] == [4, 1]
    figures.lines(axis, frame[:3].drop(columns=["low", "high"]), "size", "cost", label="alone", first=4)
    assert [axis.lines[-1].get_label(), axis.lines[-1].get_color(), len(axis.collections)] == ["alone", "C4", 1]


@pytest.mark.parametrize("upright", [False, True])
@pytest.mark.parametrize("form", [figures.forest, figures.bars])
def test_rows_have_their_names_intervals_and_series(frame, form, upright):
    axis = plt.figure(figsize=(6, 3)).subplots()
    part = frame[frame["size"] == 8].iloc[::-1]
    form(axis, part, "method", "cost", by="kind", labels={"loss": "loss (nats)", "time": "time (s)"}, upright=upright)
    axis.legend()
    names = axis.get_xticklabels() if upright else axis.get_yticklabels()
    assert [name.get_text() for name in names] == METHODS[::-1]
    assert upright or axis.yaxis_inverted()
    assert axis.get_legend_handles_labels()[1] == ["loss (nats)", "time (s)"]
    whiskers = [segment for c in axis.collections for segment in c.get_segments()]
    spans = sorted(tuple(segment[:, 1 if upright else 0]) for segment in whiskers)
    assert spans == sorted(zip(part["low"], part["high"], strict=True))
    across = [segment[0, 0 if upright else 1] for segment in whiskers]
    assert sorted(np.round(across, 6)) == [-0.2, 0.2, 0.8, 1.2, 1.8, 2.2, 2.8, 3.2]
    assert not overlapping(axis, "x" if upright else "y")


@pytest.mark.parametrize("form", [figures.forest, figures.bars])
def test_panels_that_share_their_rows_give_a_name_the_same_place(frame, form):
    _, axes = figures.multiples(["all", "fewer"], sharey=True)
    part = frame[(frame["kind"] == "loss") & (frame["size"] == 1)]
    fewer = part[part["method"].isin([METHODS[0], METHODS[2]])]
    form(axes["all"], part, "method", "cost")
    form(axes["fewer"], fewer, "method", "cost")
    assert [text.get_text() for text in axes["all"].get_yticklabels()] == METHODS
    places = (
        [line.get_ydata()[0] for line in axes["fewer"].lines]
        if form is figures.forest
        else [bar.get_y() + bar.get_height() / 2 for bar in axes["fewer"].patches]
    )
    assert {round(float(place), 6) for place in places} == {0.0, 2.0}


def test_long_titles_of_small_panels_do_not_run_into_each_other():
    figure, axes = figures.multiples(["probability of the right choice", "gold log-probability (nats/token)", 1, 2])
    figure.canvas.draw()
    boxes = [axis.title.get_window_extent() for axis in axes.values()]
    assert not any(a.overlaps(b) for a, b in pairwise(boxes))


def test_colours_of_rows(frame):
    axis = plt.figure().subplots()
    part = frame[(frame["size"] == 8) & (frame["kind"] == "loss")]
    figures.bars(axis, part, "method", "cost", colors={METHODS[1]: "C3"}, grey=[METHODS[0]])
    shown = [bar.get_facecolor() for bar in axis.patches]
    assert shown == [matplotlib.colors.to_rgba(c) for c in ("0.5", "C3", "C0", "C0")]
    assert [bar.get_width() for bar in axis.patches] == list(part["cost"])


def test_cells_show_their_numbers_on_readable_ground():
    table = pd.DataFrame([[0.0, 0.5], [np.nan, 1.0]], index=["a", "b"], columns=["few", "many"])
    axis = plt.figure().subplots()
    figures.heatmap(axis, table, label="share", marked=table == 1.0)
    assert [(t.get_text(), t.get_color()) for t in axis.texts] == [("0.00", "w"), ("0.50", "w"), ("1.00", "k")]
    assert [tuple(p.get_xy()) for p in axis.patches if not p.get_fill()] == [(0.5, 0.5)]
    assert [t.get_text() for t in axis.get_xticklabels()] == ["few", "many"]
    assert axis.figure.axes[1].get_ylabel() == "share"


@pytest.mark.parametrize(("count", "width"), [(4, 5.0), (12, 8.0), (30, 9.0)])
def test_many_names_do_not_overlap(count, width):
    axis = plt.figure(figsize=(width, 4)).subplots()
    names = [f"task type number {i}" for i in range(count)]
    figures.heatmap(axis, pd.DataFrame(np.eye(count), index=names, columns=names), fmt="", colorbar=False)
    assert not overlapping(axis, "x")
    assert not overlapping(axis, "y")


def test_pictures_stand_in_their_rows_and_columns():
    axis = plt.figure().subplots()
    dark, light = np.zeros((8, 8, 3)), np.full((8, 8, 3), 0.5)
    figures.pictures(axis, {"first": [dark, light], "second": [light, dark]}, columns=["k = 1", "k = 2"], gap=2)
    shown = axis.images[0].get_array()
    assert shown.shape == (18, 18, 3)
    assert [shown[2, 2, 0], shown[2, 12, 0], shown[12, 2, 0], shown[9, 9, 0]] == [0, 0.5, 0.5, 1]
    assert [list(axis.get_yticks()), list(axis.get_xticks())] == [[3.5, 13.5]] * 2
    assert [label.get_text() for label in axis.get_yticklabels()] == ["first", "second"]


def test_multiples_share_one_legend_below_them(frame):
    fig, axes = figures.multiples(["loss", "time", "size"], columns=2, height=2.5)
    assert list(axes) == ["loss", "time", "size"]
    assert list(fig.get_size_inches()) == [9.5, 5.0]
    assert [axis.get_visible() for axis in fig.axes] == [True, True, True, False]
    for kind in ("loss", "time"):
        figures.lines(axes[kind], frame[frame["kind"] == kind], "size", "cost", by="method")
    axes["loss"].legend()
    figures.one_legend(fig, columns=2)
    fig.canvas.draw()
    assert axes["loss"].get_legend() is None
    (legend,) = fig.legends
    assert [text.get_text() for text in legend.get_texts()] == METHODS
    lowest = min(axis.get_tightbbox().y0 for axis in axes.values() if axis.get_title() != "time")
    assert legend.get_window_extent().y1 <= lowest


def test_levels_and_ticks():
    axis = plt.figure().subplots()
    axis.plot([1, 2, 8], [0.2, 0.4, 0.9])
    figures.baseline(axis, y=0.7, label="paper")
    figures.chance(axis, y=0.5)
    figures.ticks(axis, x=[1, 2, 8], y={0: "none", 1: "all"}, log=None)
    _, paper, guess = axis.lines
    assert [paper.get_linestyle(), guess.get_linestyle(), paper.get_ydata()[0]] == ["--", ":", 0.7]
    assert axis.get_legend_handles_labels()[1] == ["paper"]
    assert [t.get_text() for t in axis.get_xticklabels()] == ["1", "2", "8"]
    figures.ticks(axis, x=[1, 2, 8], log=2)
    assert axis.get_xscale() == "log"
    assert [t.get_text() for t in axis.get_yticklabels()] == ["none", "all"]
    assert len(axis.xaxis.get_minorticklocs()) == 0
