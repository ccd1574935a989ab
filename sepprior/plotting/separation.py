"""The figure of one separated measurement."""

from __future__ import annotations

import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from sepprior.errors import SeppriorError
from sepprior.formatting import format_uncertain, units_of
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

_WIDTH, _HEIGHT = 11, 10.5  # inches
_CLOSE_UP_PERIODS = 4  # of the slowest component
_CLOSE_UP_SAMPLES = (40, 3000)
_CLOSE_UP_BELOW = 0.5  # of the record: a longer close-up shows nothing new
_PEAK_RESOLUTIONS = 6  # half width of the close-up of the peak, in 1 / duration
_MARKERS_BELOW = 400  # samples up to which single ones are marked
_HISTOGRAM_SAMPLES = 2**20  # of more, every k-th is counted
_Z95 = 1.959963984540054  # normal quantile of the two-sided 95 % interval


def plot_separation(result: Separation, path: str | Path | None = None) -> Figure:
    """Four panels of one separated measurement.

    (a) the measurement with the fitted signal and its 68 and 95 % bands; (b) the noise
    estimate with the coherent part that the prior decoded; (c) the whitened residual
    and its distribution; (d) the likelihood over frequency. Where a panel would be too
    dense, a close-up stands to its right.

    Args:
        result: of a single measurement.
        path: where to save the figure as well, if given.

    Raises:
        SeppriorError: the result is a batch.
    """
    if result.is_batch:
        raise SeppriorError(
            f"a batch of {len(result)} measurements was given, a plot shows one: "
            "choose it with result.select(i)"
        )
    title = _title(result)
    figure = new_figure(_WIDTH, _HEIGHT, laid_out=False)
    grid = _grid(figure, title_lines=title.count("\n") + 1)
    part, near = _close_up(result), _near_peak(result)

    main, side = _row(figure, grid, 0, split=part is not None)
    _draw_signal(main, result, slice(None))
    prepare(main, y="measurement\n(data units)", title="a  signal")
    legend_above(main, columns=4)
    if side is not None and part is not None:
        _draw_signal(side, result, part)
        prepare(side, title="close-up")
        few_plain_ticks(side)

    main, side = _row(figure, grid, 1, split=part is not None)
    _draw_noise(main, result, slice(None))
    prepare(main, y="noise estimate\n(data units)", title="b  noise")
    legend_above(main, columns=2)
    if side is not None and part is not None:
        _draw_noise(side, result, part)
        prepare(side, title="close-up")
        few_plain_ticks(side)

    main, side = figure.add_subplot(grid[2, 0]), figure.add_subplot(grid[2, 1])
    _draw_whitened(main, result)
    label = "whitened residual\n(standard deviations)"
    prepare(main, x="time (s)", y=label, title="c  what is left, whitened")
    _draw_histogram(side, result.whitened, limits=main.get_ylim())
    prepare(side, x="probability density", title="distribution")
    legend_above(side, columns=2)

    main, side = _row(figure, grid, 3, split=near is not None)
    _draw_likelihood(main, result)
    label = "log-likelihood gain\nover no signal (nats)"
    prepare(main, x="frequency (Hz)", y=label, title="d  likelihood over frequency")
    legend_above(main, columns=3)
    if side is not None:
        _draw_likelihood(side, result, near)
        prepare(side, x="frequency (Hz)", title="close-up")
        few_plain_ticks(side)

    figure.suptitle(
        title, y=1 - 0.07 / _HEIGHT, va="top", fontsize=10.5, color=INK, linespacing=1.1
    )
    return saved(figure, path)


def _grid(figure: Figure, *, title_lines: int) -> GridSpec:
    """Four rows of a wide and a narrow panel, with room for what stands around each."""
    left, right, bottom = 1.0, 0.1, 0.5
    top = 0.45 + 0.175 * title_lines
    across, between = 0.8, 0.68
    height = (_HEIGHT - top - bottom - 3 * between) / 4
    width = (_WIDTH - left - right - across) / 2
    return figure.add_gridspec(
        4,
        2,
        width_ratios=[3, 1.15],
        left=left / _WIDTH,
        right=1 - right / _WIDTH,
        bottom=bottom / _HEIGHT,
        top=1 - top / _HEIGHT,
        hspace=between / height,
        wspace=across / width,
    )


def _row(
    figure: Figure, grid: GridSpec, row: int, *, split: bool
) -> tuple[Axes, Axes | None]:
    """The panel of a row, and the one to its right if there is one."""
    if not split:
        return figure.add_subplot(grid[row, :]), None
    return figure.add_subplot(grid[row, 0]), figure.add_subplot(grid[row, 1])


def _title(result: Separation) -> str:
    fits = []
    for name, p in result.parameters.items():
        value, stderr, _ = format_uncertain(float(p.value), float(p.stderr))
        unit = p.units or units_of(name)
        fits.append(f"{name} {value} ± {stderr} {unit}".rstrip())
    lines = textwrap.wrap(",   ".join(fits), 130)
    return "\n".join([*lines, *textwrap.wrap(f"status: {result.status}", 130)])


def _frequencies(result: Separation) -> list[float]:
    """Fitted frequencies, Hz; empty for a signal that has none."""
    found = [
        float(p.value)
        for name, p in result.parameters.items()
        if name.split("_")[0] == "frequency"
    ]
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
    """Band around the highest peak, if it is a small part of what was searched."""
    frequency, gain = result.spectrum_frequency, result.spectrum_loglik
    if not len(frequency) or not np.isfinite(gain).any():
        return None
    peak = frequency[np.nanargmax(gain)]
    fitted = _frequencies(result)
    centre = min(fitted, key=lambda f: abs(f - peak)) if fitted else peak
    half = _PEAK_RESOLUTIONS * result.sample_rate / len(result.measurement)
    inside = np.abs(frequency - centre) <= half
    if 2 * half > 0.5 * (frequency[-1] - frequency[0]) or inside.sum() < 7:
        return None
    return centre - half, centre + half


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
        signal, band = result.signal[part], result.signal_band[part]
        for width, alpha, label in ((_Z95, 0.2, "95 % band"), (1.0, 0.4, "68 % band")):
            axes.fill_between(
                x,
                signal - width * band,
                signal + width * band,
                color=BLUE,
                alpha=alpha,
                linewidth=0,
                label=label,
            )
    axes.plot(
        *_curve(result, part, lambda piece: result.signal[piece]),
        color=BLUE,
        linewidth=0.6 if dense else 1.4,
        alpha=0.8 if dense else 1.0,
        label="fitted signal",
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
            label="of which coherent, as decoded by the prior",
        )
    axes.margins(x=0.01)


def _draw_whitened(axes: Axes, result: Separation) -> None:
    x, y = _curve(result, slice(None), lambda piece: result.whitened[piece])
    if len(result.whitened) <= 3 * _MARKERS_BELOW:
        axes.plot(x, y, ".", color=GREEN, markersize=4, alpha=0.8)
    else:
        axes.plot(x, y, color=GREEN, linewidth=0.6)
    for level in (-2, 2):
        axes.axhline(level, color=INK, linewidth=0.9, linestyle="--")
    axes.axhline(0, color=INK, linewidth=0.6)
    reach = 1.08 * max(np.nanmax(np.abs(y), initial=0.0), 3.5)
    axes.set_ylim(-reach, reach)
    axes.margins(x=0.01)


def _draw_histogram(
    axes: Axes, whitened: np.ndarray, *, limits: tuple[float, float]
) -> None:
    values = whitened[:: max(1, len(whitened) // _HISTOGRAM_SAMPLES)]
    values = values[np.isfinite(values)]
    bins = int(np.clip(len(values) ** 0.5, 8, 60) * max(limits[1] / 3.5, 1))
    axes.hist(
        values,
        bins=min(bins, 200),
        range=limits,
        density=True,
        orientation="horizontal",
        color=GREEN,
        alpha=0.55,
        label=f"sd {values.std():.2f}" if len(values) else None,
    )
    level = np.linspace(-4.5, 4.5, 300)
    normal = np.exp(-(level**2) / 2) / np.sqrt(2 * np.pi)
    axes.plot(normal, level, color=INK, linewidth=1.2, label="N(0, 1)")
    for value in (-2, 2):
        axes.axhline(value, color=INK, linewidth=0.9, linestyle="--")
    axes.set_ylim(*limits)


def _draw_likelihood(
    axes: Axes, result: Separation, band: tuple[float, float] | None = None
) -> None:
    frequency, gain = result.spectrum_frequency, result.spectrum_loglik
    if band is not None:
        inside = (frequency >= band[0]) & (frequency <= band[1])
        frequency, gain = frequency[inside], gain[inside]
    axes.plot(*envelope(frequency, gain), color=INK, linewidth=1.0)
    for name, p in result.parameters.items():
        value, stderr = float(p.value), float(p.stderr)
        if name.split("_")[0] != "frequency" or not np.isfinite(value):
            continue
        if band is not None and not band[0] <= value <= band[1]:
            continue
        if np.isfinite(stderr):
            low, high = value - stderr, value + stderr
            axes.axvspan(low, high, color=BLUE, alpha=0.25, linewidth=0)
        text, error, _ = format_uncertain(value, stderr)
        axes.axvline(
            value,
            color=BLUE,
            linewidth=1.3,
            linestyle="--",
            label=f"{name} {text} ± {error} Hz",
        )
    axes.margins(x=0.01)
