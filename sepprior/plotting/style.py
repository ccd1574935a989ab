"""What the figures have in common: colours, axes, curves of any length."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito (2008): told apart with every kind of colour vision.
BLUE, ORANGE, GREEN = "#0072B2", "#D55E00", "#009E73"
GREY, INK = "#8C8C8C", "#333333"

_ENVELOPE_BINS = 1500  # about one per pixel of the widest panel
_SAMPLES_AT_ONCE = 2**18  # of a long curve
_DOTS_PER_INCH = 120
_COMPRESSION = 2  # of PNG, 0 to 9: more takes far longer and saves little


def envelope(
    x: np.ndarray, y: np.ndarray, *, bins: int = _ENVELOPE_BINS
) -> tuple[np.ndarray, np.ndarray]:
    """A curve with the same picture and at most about `2 bins` points.

    Of each run of samples the smallest and the largest are kept, in their order, so
    that no extreme is lost. NaN (a gap) is ignored within a run, and kept where a run
    holds nothing else. Short curves come back as they are.

    Args:
        x: (N,)
        y: (N,)
        bins: number of runs.
    """
    index, values = extremes(lambda part: y[part], len(y), bins=bins)
    if len(index) == len(y):
        return x, y
    return x[index], values


def extremes(
    values: Callable[[slice], np.ndarray], n: int, *, bins: int = _ENVELOPE_BINS
) -> tuple[np.ndarray, np.ndarray]:
    """What `envelope` keeps of a curve that is worked out piece by piece.

    Args:
        values: gives a part of the curve.
        n: samples of the whole curve.
        bins: number of runs.

    Returns:
        The numbers of the kept samples, rising, and their values.
    """
    if n <= 2 * bins:
        return np.arange(n), values(slice(0, n))
    width = math.ceil(n / bins)
    piece = width * max(1, _SAMPLES_AT_ONCE // width)
    kept = [
        _extremes_of(values(slice(begin, min(begin + piece, n))), begin, width)
        for begin in range(0, n, piece)
    ]
    index, found = (np.concatenate(part) for part in zip(*kept, strict=True))
    return index, found


def _extremes_of(
    y: np.ndarray, begin: int, width: int
) -> tuple[np.ndarray, np.ndarray]:
    """Those of one piece, whose first sample has the number `begin`."""
    runs = math.ceil(len(y) / width)
    padded = np.full(runs * width, np.nan)
    padded[: len(y)] = y
    rows = padded.reshape(runs, width)
    gaps = np.isnan(rows)
    lowest = np.where(gaps, np.inf, rows).argmin(1)
    highest = np.where(gaps, -np.inf, rows).argmax(1)
    kept = np.sort(np.stack([lowest, highest], axis=1), axis=1)
    index = (kept + width * np.arange(runs)[:, None]).ravel()
    return begin + index, y[index]


def new_figure(width: float, height: float, *, laid_out: bool = True) -> Figure:
    """An empty figure, inches.

    Args:
        width: in inches.
        height: in inches.
        laid_out: whether it finds room for its panels by itself, which takes as long as
            drawing them.
    """
    from matplotlib.figure import Figure

    layout = "constrained" if laid_out else None
    return Figure(figsize=(width, height), layout=layout, facecolor="white")


def prepare(axes: Axes, *, x: str = "", y: str = "", title: str = "") -> None:
    """Labels and a plain frame."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(GREY)
    axes.tick_params(labelsize=8, color=GREY, labelcolor=INK)
    for axis in (axes.xaxis, axes.yaxis):
        axis.get_offset_text().set(fontsize=8, color=INK)
    axes.set_xlabel(x, fontsize=9, color=INK)
    axes.set_ylabel(y, fontsize=9, color=INK)
    if title:
        axes.set_title(title, fontsize=9.5, color=INK, loc="left", fontweight="bold")


def few_plain_ticks(axes: Axes) -> None:
    """Few ticks along x, written in full: for a close-up far from zero."""
    axes.ticklabel_format(axis="x", useOffset=False)
    axes.locator_params(axis="x", nbins=4)


def legend_above(axes: Axes, *, columns: int, below: float = 0.0) -> None:
    """A legend in one line over the right end of the panel, clear of the data.

    A panel without anything to name has none. With `below` it is so many heights of
    the panel under it, for a narrow panel whose title takes the line above.
    """
    if not axes.get_legend_handles_labels()[1]:
        return
    axes.legend(
        loc="upper center" if below else "lower right",
        bbox_to_anchor=(0.5, -below) if below else (1.0, 1.0),
        ncols=columns,
        fontsize=8,
        frameon=False,
        borderaxespad=0.1,
        handlelength=1.6,
        columnspacing=1.2,
        labelcolor=INK,
    )


def saved(figure: Figure, path: str | Path | None) -> Figure:
    """The figure, written to `path` if there is one.

    A PNG is drawn once and packed lightly: `Figure.savefig` draws it twice.
    """
    if path is None:
        return figure
    if Path(path).suffix.lower() != ".png":
        figure.savefig(path, dpi=_DOTS_PER_INCH)
        return figure

    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from PIL import Image

    before = figure.dpi
    figure.set_dpi(_DOTS_PER_INCH)
    try:
        canvas = FigureCanvasAgg(figure)
        canvas.draw()
        picture = Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")
    finally:
        figure.set_dpi(before)
    resolution = (_DOTS_PER_INCH, _DOTS_PER_INCH)
    picture.save(path, dpi=resolution, compress_level=_COMPRESSION)
    return figure
