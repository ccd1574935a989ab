"""The figure of one separated measurement."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from sepprior.errors import SeppriorError
from sepprior.formatting import format_uncertain
from sepprior.plotting.style import (
    BLUE,
    GREEN,
    GREY,
    INK,
    ORANGE,
    envelope,
    extremes,
    few_plain_ticks,
    legend_above,
    new_figure,
    prepare,
    saved,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.gridspec import GridSpec

    from sepprior.result import Separation

_WIDTH, _HEIGHT = 8, 7.4  # inches
_CHARACTERS = 108  # of a line under the heading
_MOST_PARAMETERS = 8  # whose error bars are drawn
_CLOSE_UP_PERIODS = 4  # of the slowest component
_CLOSE_UP_SAMPLES = (40, 3000)
_CLOSE_UP_BELOW = 0.5  # of the record: a longer close-up shows nothing new
_PEAK_RESOLUTIONS = 6  # half width of the close-up of the peak, in 1 / duration
_MARKERS_BELOW = 400  # samples up to which single ones are marked
_HISTOGRAM_SAMPLES = 2**20  # of more, every k-th is counted
_Z95 = 1.959963984540054  # normal quantile of the two-sided 95 % interval


def plot_separation(
    result: Separation,
    path: str | Path | None = None,
    *,
    truth: Mapping[str, float] | None = None,
) -> Figure:
    """One separated measurement at a glance.

    The measurement with the fitted signal and its 95 % band; the noise, with what the
    prior has decoded of it; answers and error bars beside those of least squares; the
    likelihood over frequency; what is left, whitened. Where the upper panels would be
    too dense, a close-up stands to their right.

    Args:
        result: of a single measurement.
        path: where to save the figure as well, if given.
        truth: true values of parameters, to be shown beside the answers.

    Raises:
        SeppriorError: the result is a batch.
    """
    if result.is_batch:
        raise SeppriorError(
            f"a batch of {len(result)} measurements was given, a plot shows one: "
            "choose it with result.select(i)"
        )
    heading, lines = _heading(result)
    figure = new_figure(_WIDTH, _HEIGHT, laid_out=False)
    rows, last, below = _grid(figure, n_lines=len(lines))
    part = _close_up(result)
    panels = (
        (_draw_signal, "Measurement", 3),
        (_draw_noise, "Noise", 2),
    )
    for row, (draw, title, columns) in enumerate(panels):
        main, side = _row(figure, rows, row, split=part is not None)
        draw(main, result, slice(None))
        prepare(main, x="time (s)" if row else "", y="data units", title=title)
        legend_above(main, columns=columns)
        if side is not None and part is not None:
            draw(side, result, part)
            prepare(side, x="time (s)" if row else "", title="Close-up")
            few_plain_ticks(side)

    bars, likelihood, left = (figure.add_subplot(last[0, i]) for i in range(3))
    _draw_error_bars(bars, result, truth or {})
    prepare(bars, x="standard errors of least squares", title="Answer and error bars")
    legend_above(bars, columns=3, below=below)
    _draw_likelihood(likelihood, result, _near_peak(result))
    label = "log-likelihood (nats)"
    prepare(likelihood, x="frequency (Hz)", y=label, title="Likelihood of a sinusoid")
    _draw_histogram(left, result.whitened)
    label = "standard deviations"
    prepare(left, x=label, y="density", title="What is left, whitened")
    for axes in (likelihood, left):
        axes.locator_params(axis="both", nbins=5)
    legend_above(left, columns=2, below=below)
    inch = 1.0 / _HEIGHT
    figure.suptitle(
        heading,
        y=1 - 0.1 * inch,
        va="top",
        fontsize=10.5,
        color=INK,
        fontweight="bold",
    )
    figure.text(
        0.5,
        1 - 0.36 * inch,
        "\n".join(lines),
        ha="center",
        va="top",
        fontsize=9.5,
        color=INK,
        linespacing=1.25,
    )
    return saved(figure, path)


def _grid(figure: Figure, *, n_lines: int) -> tuple[GridSpec, GridSpec, float]:
    """Two wide rows with room for close-ups, a row of three panels, and its legends'.

    The latter is how far they are below it, in its heights.
    """
    left, right, bottom = 0.9, 0.22, 0.72
    top = 0.68 + 0.2 * n_lines
    wide, between = 1.5, 0.48
    low = _HEIGHT - top - 2 * wide - between - bottom - 0.9
    sides = {"left": left / _WIDTH, "right": 1 - right / _WIDTH}
    rows = figure.add_gridspec(
        2,
        2,
        width_ratios=[2.4, 1],
        top=1 - top / _HEIGHT,
        bottom=1 - (top + 2 * wide + between) / _HEIGHT,
        hspace=between / wide,
        wspace=0.24,
        **sides,
    )
    last = figure.add_gridspec(
        1,
        3,
        width_ratios=[1.15, 1, 1],
        top=(bottom + low) / _HEIGHT,
        bottom=bottom / _HEIGHT,
        wspace=0.3,
        **sides,
    )
    return rows, last, 0.44 / low


def _row(
    figure: Figure, grid: GridSpec, row: int, *, split: bool
) -> tuple[Axes, Axes | None]:
    """The panel of a row, and the one to its right if there is one."""
    if not split:
        return figure.add_subplot(grid[row, :]), None
    return figure.add_subplot(grid[row, 0]), figure.add_subplot(grid[row, 1])


def _heading(result: Separation) -> tuple[str, list[str]]:
    """The verdict, and lines of values and, where it is not ok, of the status."""
    fits = []
    for name, p in result.parameters.items():
        value, stderr, _ = format_uncertain(float(p.value), float(p.stderr))
        fits.append(f"{name} {value} ± {stderr} {p.units}".rstrip())
    lines = textwrap.wrap(",   ".join(fits), _CHARACTERS)
    if result.status != "ok":
        lines += textwrap.wrap(f"status: {result.status}", _CHARACTERS)
    verdict = result.verdict
    return verdict[:1].upper() + verdict[1:], lines


def _frequencies(result: Separation) -> list[float]:
    """Fitted frequencies, Hz; empty for a signal that has none."""
    found = [float(p.value) for p in result.parameters.values() if p.units == "Hz"]
    return [f for f in found if np.isfinite(f) and f > 0]


def _close_up(result: Separation) -> slice | None:
    """A few periods from where there are fewest gaps, near the middle if it can be."""
    n_samples = len(result.measurement)
    slowest = min(_frequencies(result), default=np.nan)
    length = _CLOSE_UP_PERIODS * result.sample_rate / slowest
    if not np.isfinite(length):
        length = _CLOSE_UP_SAMPLES[0]
    length = int(np.clip(length, *_CLOSE_UP_SAMPLES))
    if length >= _CLOSE_UP_BELOW * n_samples:
        return None
    starts = np.linspace(0, n_samples - length, 21).astype(int)
    measured = [np.isfinite(result.measurement[s : s + length]).sum() for s in starts]
    from_middle = np.abs(np.arange(21) - 10)
    best = starts[np.lexsort((from_middle, -np.array(measured)))[0]]
    return slice(best, best + length)


def _near_peak(result: Separation) -> tuple[float, float] | None:
    """Band about the fitted frequencies, if it is a small part of what was searched."""
    frequency, gain = result.spectrum_frequency, result.spectrum_loglik
    if not len(frequency) or not np.isfinite(gain).any():
        return None
    centres = _frequencies(result) or [float(frequency[np.nanargmax(gain)])]
    half = _PEAK_RESOLUTIONS * result.sample_rate / len(result.measurement)
    low, high = min(centres) - half, max(centres) + half
    inside = (frequency >= low) & (frequency <= high)
    if high - low > 0.5 * (frequency[-1] - frequency[0]) or inside.sum() < 7:
        return None
    return low, high


def _curve(
    result: Separation, part: slice, values: Callable[[slice], np.ndarray]
) -> tuple[np.ndarray, np.ndarray]:
    """Times and values of the envelope of a part; `values` gives any part of them."""
    first, last, _ = part.indices(len(result.measurement))

    def shifted(piece: slice) -> np.ndarray:
        return values(slice(first + piece.start, first + piece.stop))

    index, kept = extremes(shifted, last - first)
    return (first + index) / result.sample_rate, kept


def _draw_signal(axes: Axes, result: Separation, part: slice) -> None:
    x, y = _curve(result, part, lambda piece: result.measurement[piece])
    mean = float(result.prior_info.get("level", 0.0))  # that of the noise
    first, last, _ = part.indices(len(result.measurement))
    dense = len(x) < last - first
    marked = last - first <= _MARKERS_BELOW
    axes.plot(
        x,
        y,
        color=GREY,
        linewidth=0.8,
        alpha=0.75,
        marker="." if marked else None,
        markersize=4,
        label="measurement",
    )
    if not dense:
        signal, band = mean + result.signal[part], result.signal_band[part]
        axes.fill_between(
            x,
            signal - _Z95 * band,
            signal + _Z95 * band,
            color=BLUE,
            alpha=0.3,
            linewidth=0,
            label="its 95 % band",
        )
    axes.plot(
        *_curve(result, part, lambda piece: mean + result.signal[piece]),
        color=BLUE,
        linewidth=0.6 if dense else 1.4,
        alpha=0.8 if dense else 1.0,
        label="signal found",
    )
    axes.margins(x=0.01)


def _draw_noise(axes: Axes, result: Separation, part: slice) -> None:
    x, noise = _curve(
        result, part, lambda piece: result.measurement[piece] - result.signal[piece]
    )
    axes.plot(
        x,
        noise,
        color=GREY,
        linewidth=0.9,
        label="measurement \N{MINUS SIGN} signal",
    )
    x, coherent = _curve(result, part, lambda piece: result.coherent[piece])
    reach = [np.ptp(x[np.isfinite(x)]) for x in (coherent, noise)]
    if reach[0] > 1e-9 * reach[1]:  # else it is the level of the noise alone
        axes.plot(
            x,
            coherent,
            color=ORANGE,
            linewidth=1.2,
            label="the part that the prior recognises",
        )
    axes.margins(x=0.01)


def _draw_error_bars(
    axes: Axes, result: Separation, truth: Mapping[str, float]
) -> None:
    """Estimates and standard errors, from the answer, in errors of least squares."""
    names = list(result.parameters)[:_MOST_PARAMETERS]
    gls = result.baselines.get("gls", {})
    for row, name in enumerate(names):
        own, other = result.parameters[name], gls.get(name, result.parameters[name])
        value, scale = float(own.value), float(other.stderr)
        if not (np.isfinite(scale) and scale > 0):
            continue
        bars = (
            (-0.17, 0.0, float(own.stderr), BLUE, "answer"),
            (0.17, float(other.value) - value, scale, GREY, "least squares"),
        )
        for shift, centre, error, color, label in bars:
            if own.units == "rad":
                centre = (centre + np.pi) % (2 * np.pi) - np.pi
            axes.errorbar(
                centre / scale,
                row + shift,
                xerr=error / scale,
                fmt="o",
                color=color,
                markersize=4,
                linewidth=2.2,
                label=None if row else label,
            )
        if name in truth:
            off, label = (truth[name] - value) / scale, None if row else "truth"
            style = {"color": "black", "markersize": 5, "linestyle": "none"}
            axes.errorbar(off, row - 0.17, fmt="d", zorder=3, label=label, **style)
    axes.axvline(0.0, color=BLUE, linewidth=0.6, alpha=0.5)
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.5, -0.5)


def _draw_histogram(axes: Axes, whitened: np.ndarray) -> None:
    values = whitened[:: max(1, len(whitened) // _HISTOGRAM_SAMPLES)]
    values = values[np.isfinite(values)]
    reach = max(3.6, 1.05 * float(np.abs(values).max(initial=0.0)))
    bins = int(np.clip(len(values) ** 0.5, 8, 60) * reach / 3.6)
    density, edges = np.histogram(
        values, bins=min(bins, 200), range=(-reach, reach), density=len(values) > 0
    )
    label = f"found, sd {values.std():.2f}" if len(values) else None
    axes.stairs(density, edges, fill=True, color=GREEN, alpha=0.55, label=label)
    level = np.linspace(-4.0, 4.0, 200)
    normal = np.exp(-(level**2) / 2) / np.sqrt(2 * np.pi)
    axes.plot(level, normal, color=INK, linewidth=1.2, label="expected")
    axes.set_ylim(bottom=0.0)


def _draw_likelihood(
    axes: Axes, result: Separation, band: tuple[float, float] | None = None
) -> None:
    frequency, gain = result.spectrum_frequency, result.spectrum_loglik
    if band is not None:
        inside = (frequency >= band[0]) & (frequency <= band[1])
        frequency, gain = frequency[inside], gain[inside]
    axes.plot(*envelope(frequency, gain), color=INK, linewidth=1.0)
    for p in result.parameters.values():
        value, stderr = float(p.value), float(p.stderr)
        if p.units != "Hz" or not np.isfinite(value):
            continue
        if band is not None and not band[0] <= value <= band[1]:
            continue
        if np.isfinite(stderr):
            low, high = value - stderr, value + stderr
            axes.axvspan(low, high, color=BLUE, alpha=0.25, linewidth=0)
        axes.axvline(value, color=BLUE, linewidth=1.3, linestyle="--")
    if len(frequency):
        axes.set_xlim(frequency[0], frequency[-1])
