"""Figures of a benchmark run, one panel per cell.

Every function takes the rows of a run and the methods to show, and returns a figure.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, cast

import numpy as np
import pandas as pd
from scipy.stats import binom, norm

from sepprior.benchmark import scores
from sepprior.benchmark.noise import Array
from sepprior.benchmark.scenarios import Trials
from sepprior.benchmark.settings import PARAMETERS as PARAMETERS
from sepprior.benchmark.settings import sinusoid
from sepprior.benchmark.tables import (
    CELL,
    FALSE_ALARMS,
    errors,
    over_bound,
    relative_amplitude,
    split,
)
from sepprior.plotting.style import BLUE, GREEN, GREY, INK, ORANGE, new_figure, prepare

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PURPLE, GOLD, SKY = "#CC79A7", "#C49A00", "#56B4E9"
FIXED = {"gls_scipy": ORANGE, "cauchy_1000": GOLD, "oracle": INK, "curve_fit": GREY}
"""Colours of the methods that every figure shows where they were run."""
OTHERS = (BLUE, GREEN, PURPLE, SKY)
"""Colours of the priors, in their order."""
BINS = 7
"""Bins of the logarithm of the amplitude."""
FEWEST = 8
"""Trials in a bin that are worth a point."""
COLUMNS = 4

LEGEND_SIZE = 8.5
"""Size of the letters of legends, points."""


def shown_methods(rows: pd.DataFrame, classical: Sequence[str]) -> dict[str, str]:
    """Methods for the figures and their colours: four of the classical, four priors.

    The first four that were run where none of these is among them.

    Args:
        rows: The rows of a run.
        classical: Names of all methods that need no prior.
    """
    run = list(dict.fromkeys(rows["method"]))
    priors = [name for name in run if name not in classical and ":" not in name]
    colours = {name: FIXED[name] for name in run if name in FIXED}
    shown = priors if colours or priors else run
    return colours | dict(zip(shown, OTHERS, strict=False))


def _panels(
    rows: pd.DataFrame, height: float, *, x: str, y: str
) -> tuple[Figure, Iterator[tuple[Axes, pd.DataFrame]]]:
    """A figure and, cell by cell, its panel and the rows of the cell."""
    groups = [
        (cast(tuple[str, float], key), group)
        for key, group in rows.groupby(CELL, sort=False)
    ]
    columns = min(COLUMNS, len(groups))
    lines = math.ceil(len(groups) / columns)
    # The legend takes its room from a single line of panels.
    figure = new_figure(2.6 * max(columns, 2), height * lines + 1.0 * (lines == 1))
    grid = figure.subplots(lines, columns, squeeze=False)
    for axes in grid.flat[len(groups) :]:
        axes.set_visible(False)

    def each() -> Iterator[tuple[Axes, pd.DataFrame]]:
        for number, (axes, (key, group)) in enumerate(
            zip(grid.flat, groups, strict=False)
        ):
            lowest = number + columns >= len(groups)
            prepare(
                axes,
                x=x if lowest else "",
                y=y if number % columns == 0 else "",
                title=f"{key[0]}, {key[1]:.3g} s",
            )
            yield axes, group

    return figure, each()


def _legend(figure: Figure, colours: dict[str, str]) -> None:
    from matplotlib.lines import Line2D

    handles = [
        Line2D([], [], color=colour, lw=1.8, label=name)
        for name, colour in colours.items()
    ]
    # In ems: handle, gaps, and six tenths for each letter of the longest name.
    width = 6.0 + 0.6 * max(map(len, colours), default=0)
    room = figure.get_figwidth() * 72.0 / LEGEND_SIZE
    figure.legend(
        handles=handles,
        loc="outside upper left",
        ncols=max(1, min(5, len(handles), int(room / width))),
        fontsize=LEGEND_SIZE,
        frameon=False,
        labelcolor=INK,
    )


def _plain_ticks(axes: Axes, *, x: bool, y: bool) -> None:
    """Logarithmic axes with few ticks written as plain numbers, if there are curves."""
    if not axes.lines:
        return
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    for axis, wanted in ((axes.xaxis, x), (axes.yaxis, y)):
        if wanted:
            axis.set_major_locator(LogLocator(subs=(1.0, 3.0), numticks=6))
            axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
            axis.set_minor_formatter(NullFormatter())


def _bins(amplitude: Array) -> Iterator[tuple[float, np.ndarray]]:
    """Geometric middle and members of the bins of the amplitude."""
    edges = np.geomspace(amplitude.min(), amplitude.max() * 1.000001, BINS + 1)
    for low, high in itertools.pairwise(edges):
        inside = (amplitude >= low) & (amplitude < high)
        if inside.sum() >= FEWEST:
            yield float(np.sqrt(low * high)), inside


def error_figure(rows: pd.DataFrame, colours: dict[str, str], name: str) -> Figure:
    """RMS error of a parameter over its bound, against amplitude.

    All trials count, outliers too: where the frequency is lost the curve leaves the
    bound (the threshold effect).
    """
    _, rows = split(rows)
    figure, panels = _panels(
        rows, 2.0, x="amplitude / strong", y=f"{name} error / bound"
    )
    for axes, group in panels:
        for method, colour in colours.items():
            part = group.loc[group["method"] == method]
            if part.empty:
                continue
            points = [
                (middle, scores.rms_ratio(ratio, np.ones(ratio.size)))
                for middle, inside in _bins(relative_amplitude(part))
                for ratio in [over_bound(part, name)[inside]]
            ]
            if points:
                dashes = "--" if method == "oracle" else "-"
                axes.loglog(*zip(*points, strict=True), dashes, color=colour, lw=1.5)
        _plain_ticks(axes, x=True, y=True)
        axes.axhline(1, color=GREY, lw=0.7, ls=":")
    _legend(figure, colours)
    return figure


def coverage_figure(rows: pd.DataFrame, colours: dict[str, str], name: str) -> Figure:
    """Share of the intervals that hold the truth, against the stated level (P-P plot).

    The grey band is where a correct method of as many trials stays with 95 %.
    """
    _, rows = split(rows)
    figure, panels = _panels(rows, 2.2, x="stated level", y="covered")
    levels = np.linspace(0, 1, 101)
    for axes, group in panels:
        n = 1 + int(group["trial"].to_numpy().max())
        axes.fill_between(
            levels,
            binom.ppf(0.025, n, levels) / n,
            binom.ppf(0.975, n, levels) / n,
            color=GREY,
            alpha=0.3,
            lw=0,
        )
        for method, colour in colours.items():
            part = group.loc[group["method"] == method]
            if part.empty:
                continue
            stderr = part[f"{name}_stderr"].to_numpy()
            with np.errstate(divide="ignore", invalid="ignore"):
                z = np.abs(errors(part, name)) / stderr
            z = np.where(np.isfinite(stderr) & np.isfinite(z), z, np.inf)
            stated = 2 * norm.cdf(z) - 1
            covered = np.searchsorted(np.sort(stated), levels) / len(part)
            dashes = "--" if method == "oracle" else "-"
            axes.plot(levels, covered, dashes, color=colour, lw=1.4)
        axes.set(xlim=(0, 1), ylim=(0, 1), aspect="equal")
    _legend(figure, colours)
    return figure


def detection_figure(rows: pd.DataFrame, colours: dict[str, str]) -> Figure:
    """Share of the signals told from noise at 1 % false alarms, against amplitude."""
    figure, panels = _panels(rows, 1.9, x="amplitude / strong", y="detected")
    for axes, group in panels:
        for method, colour in colours.items():
            noise, part = split(group.loc[group["method"] == method])
            if noise.empty or part.empty:
                continue
            found = scores.detected(
                part["detection"].to_numpy(),
                noise["detection"].to_numpy(),
                FALSE_ALARMS,
            )
            points = [
                (middle, found[inside].mean())
                for middle, inside in _bins(relative_amplitude(part))
            ]
            if points:
                dashes = "--" if method == "oracle" else "-"
                axes.semilogx(*zip(*points, strict=True), dashes, color=colour, lw=1.5)
        axes.set_ylim(-0.03, 1.03)
        _plain_ticks(axes, x=True, y=False)
    _legend(figure, colours)
    return figure


def speed_figure(table: pd.DataFrame, colours: dict[str, str]) -> Figure:
    """Accuracy against time per measurement, for every method that was timed.

    Accuracy is the geometric mean over the cells, and over amplitude and frequency, of
    the RMS error over the bound in strong trials.
    """
    figure = new_figure(8.0, 4.4)
    axes = figure.subplots()
    prepare(axes, x="time per measurement in a batch (ms)", y="error / bound")
    axes.set(xscale="log", yscale="log")
    full = len(table[["scenario", "duration"]].drop_duplicates())
    points: dict[str, tuple[float, float]] = {}
    for method, part in table.groupby("method", sort=False):
        ratio = part[["amplitude", "frequency"]].to_numpy()
        time = float(np.median(part["ms"].to_numpy()))
        if not np.isfinite(ratio).all() or not np.isfinite(time) or len(part) < full:
            continue
        level = float(np.exp(np.log(ratio).mean()))
        colour = colours.get(str(method), GREY)
        axes.plot(time, level, "o", color=colour, ms=6)
        points[str(method)] = (time, level)
    axes.margins(x=0.15, y=0.12)
    _plain_ticks(axes, x=True, y=True)
    _name_points(axes, points)
    return figure


def _name_points(axes: Axes, points: dict[str, tuple[float, float]]) -> None:
    """Write names to the right of points, moved up where two would overlap."""
    figure = axes.get_figure(root=True)
    assert figure is not None
    figure.draw_without_rendering()
    to_points = 72.0 / figure.dpi
    height, letter = 10.0, 5.0  # points
    taken: list[tuple[float, float, float]] = []  # left, right, bottom
    places = {
        name: axes.transData.transform(point) * to_points
        for name, point in points.items()
    }
    for name, (x, y) in sorted(places.items(), key=lambda item: float(item[1][1])):
        left, right, bottom = x + 6, x + 6 + letter * len(name), y + 3
        for other_left, other_right, other in sorted(taken, key=lambda each: each[2]):
            beside = right < other_left or left > other_right
            if not beside and abs(bottom - other) < height:
                bottom = other + height
        taken.append((left, right, bottom))
        moved = bottom > y + 3 + 1e-6
        axes.annotate(
            name,
            points[name],
            xytext=(6, bottom - y),
            textcoords="offset points",
            fontsize=8,
            color=INK,
            arrowprops={"arrowstyle": "-", "color": GREY, "lw": 0.5} if moved else None,
        )


def example_figure(trials: Trials, rows: pd.DataFrame, method: str) -> Figure | None:
    """One strong measurement of a cell: what was put in and what a method took out.

    Args:
        trials: The trials of the cell.
        rows: The rows of the cell.
        method: The method whose separation is drawn.
    """
    _, part = split(rows.loc[rows["method"] == method])
    amplitude = relative_amplitude(part)
    fitting = part.loc[(amplitude >= 0.7) & (amplitude <= 3)]
    if fitting.empty:
        return None
    row = fitting.iloc[0]
    i = int(row["trial"])
    time = trials.time
    found = sinusoid(time, {name: np.array([row[name]]) for name in PARAMETERS})[0]
    true = trials.x[i] - trials.noise[i]
    figure = new_figure(8.4, 2.9)
    left, right = figure.subplots(1, 2)
    label = f"{trials.cell.scenario.name}, {trials.cell.duration:.3g} s"
    prepare(left, x="time (s)", title=f"{label}: measurement")
    left.plot(time, trials.x[i], color=GREY, lw=0.8, label="measurement")
    left.plot(time, true, color=INK, lw=2.2, alpha=0.55, label="true signal")
    left.plot(time, found, color=BLUE, lw=1.3, label=f"signal by {method}")
    prepare(right, x="time (s)", title="noise")
    right.plot(time, trials.noise[i], color=GREY, lw=2.2, alpha=0.7, label="true noise")
    right.plot(time, trials.x[i] - found, color=ORANGE, lw=0.8, label="found")
    for axes in (left, right):
        axes.legend(
            fontsize=7.5, frameon=False, labelcolor=INK, ncols=3, loc="upper right"
        )
        low, high = axes.get_ylim()
        axes.set_ylim(low, high + 0.25 * (high - low))
    return figure
