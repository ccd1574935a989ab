"""The figure of a prior's fidelity: generated against real noise."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from sepprior.plotting.style import (
    BLUE,
    GREEN,
    GREY,
    INK,
    ORANGE,
    envelope,
    legend_above,
    new_figure,
    prepare,
    saved,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure, FigureBase
    from matplotlib.gridspec import SubplotSpec

    from sepprior.fidelity import Fidelity

_RANGE_DB = 50  # of the colours of the spectrograms
_LOG_FREQUENCY_ABOVE = 64  # bins
_SHARE_SHOWN = 2.5  # largest error, in limits, that fits in the panel


def plot_fidelity(fidelity: Fidelity, path: str | Path | None = None) -> Figure:
    """Generated and real noise side by side, and how each measure came out.

    Power spectral density with the ratio below it, autocorrelation, distribution of
    amplitudes, example windows, a spectrogram of each, and every measure's error as a
    fraction of its limit.

    Args:
        fidelity: from `inspect_prior`.
        path: where to save the figure as well, if given.
    """
    curves = fidelity.curves
    figure = new_figure(12, 10.5)
    # Rows are laid out one by one: their columns need not line up.
    rows = figure.add_gridspec(3, 1, height_ratios=[1.25, 1.0, 0.9])
    top, middle, bottom = (figure.add_subfigure(rows[i]) for i in range(3))
    grid = top.add_gridspec(1, 4)
    _draw_spectra(top, grid[0, :2], curves)
    _draw_autocorrelation(top.add_subplot(grid[0, 2]), curves)
    _draw_amplitudes(top.add_subplot(grid[0, 3]), curves)
    promises = "information_gain" in curves
    cells = middle.add_gridspec(1, 5 if promises else 4)
    left = middle.add_subplot(cells[0, :2])
    right = middle.add_subplot(cells[0, 2:4], sharey=left)
    right.tick_params(labelleft=False)
    _draw_waveforms(left, curves, kind="real", colour=BLUE)
    _draw_waveforms(right, curves, kind="generated", colour=ORANGE)
    if promises:
        _draw_information(middle.add_subplot(cells[0, 4]), curves)
    panels = bottom.subplots(1, 3, width_ratios=[1, 1, 1.1])
    _draw_spectrograms(bottom, panels[:2], fidelity)
    _draw_scores(panels[2], fidelity)
    head = (
        f"prior {fidelity.prior_name}: {fidelity.n_windows} generated against as many "
        f"{fidelity.real_windows} of {fidelity.window} samples"
    )
    verdict = textwrap.wrap(fidelity.verdict, 150)
    figure.suptitle("\n".join([head, *verdict]), fontsize=10, color=INK)
    return saved(figure, path)


def _draw_spectra(
    figure: FigureBase, cell: SubplotSpec, curves: dict[str, np.ndarray]
) -> None:
    parts = cell.subgridspec(2, 1, height_ratios=[2.2, 1], hspace=0.05)
    axes = figure.add_subplot(parts[0])
    ratio = figure.add_subplot(parts[1], sharex=axes)
    frequency = curves["frequency"][1:]
    real, generated = curves["psd_real"][1:], curves["psd_generated"][1:]
    tiny = 1e-12 * real.max()
    real, generated = np.maximum(real, tiny), np.maximum(generated, tiny)
    axes.plot(*envelope(frequency, real), color=BLUE, label="real")
    axes.plot(*envelope(frequency, generated), color=ORANGE, label="generated")
    axes.set_yscale("log")
    if len(frequency) > _LOG_FREQUENCY_ABOVE:
        axes.set_xscale("log")
    axes.tick_params(labelbottom=False)
    prepare(axes, y="PSD\n(data units² / Hz)", title="power spectral density")
    legend_above(axes, columns=2)
    floor = 10 * np.log10(curves["psd_floor_ratio"][1:])
    error = 10 * np.log10(generated / real)
    ratio.plot(
        *envelope(frequency, floor), color=GREY, linewidth=0.9, label="real / real"
    )
    ratio.plot(
        *envelope(frequency, error),
        color=ORANGE,
        linewidth=1.2,
        label="generated / real",
    )
    ratio.axhline(0, color=INK, linewidth=0.7)
    reach = np.clip(1.1 * np.abs(error).max(), 1.5, 30)
    ratio.set_ylim(-reach, reach)
    prepare(ratio, x="frequency (Hz)", y="ratio (dB)")
    legend_above(ratio, columns=2)


def _draw_information(axes: Axes, curves: dict[str, np.ndarray]) -> None:
    gain = curves["information_gain"]
    axes.plot(curves["information_frequency"], gain, color=GREEN)
    axes.axhline(1, color=INK, linewidth=0.7)
    axes.set_xscale("log")
    axes.set_ylim(0, max(2.0, 1.1 * float(gain.max())))
    prepare(axes, x="frequency (Hz)", y="times that of GLS", title="information")


def _draw_autocorrelation(axes: Axes, curves: dict[str, np.ndarray]) -> None:
    for kind, colour, style in (("real", BLUE, "-"), ("generated", ORANGE, "--")):
        correlation = curves[f"autocorrelation_{kind}"]
        axes.plot(
            *envelope(curves["lag"], correlation), style, color=colour, linewidth=1.2
        )
    axes.axhline(0, color=INK, linewidth=0.7)
    prepare(axes, x="lag (s)", y="autocorrelation", title="autocorrelation")


def _draw_amplitudes(axes: Axes, curves: dict[str, np.ndarray]) -> None:
    for kind, colour in (("real", BLUE), ("generated", ORANGE)):
        density = curves[f"amplitude_density_{kind}"]
        shown = np.where(density > 0, density, np.nan)
        axes.plot(
            curves["amplitude"],
            shown,
            color=colour,
            linewidth=1.2,
            drawstyle="steps-mid",
            label=kind,
        )
    axes.set_yscale("log")
    prepare(
        axes,
        x="value (data units)",
        y="probability density",
        title="amplitude distribution",
    )


def _draw_waveforms(
    axes: Axes, curves: dict[str, np.ndarray], *, kind: str, colour: str
) -> None:
    """Examples one above the other, in the same scale for real and generated."""
    step = 1.1 * float(np.ptp(curves["examples_real"], axis=1).max())
    examples = curves[f"examples_{kind}"]
    for row, example in enumerate(examples):
        x, y = envelope(curves["time"], example)
        axes.plot(x, y - row * step, color=colour, linewidth=0.8)
    axes.margins(x=0.01)
    prepare(
        axes,
        x="time (s)",
        y="data units, shifted",
        title=f"{kind} windows",
    )


def _draw_spectrograms(
    figure: FigureBase, panels: Sequence[Axes], fidelity: Fidelity
) -> None:
    from scipy import signal  # slow to import, and not needed by the other figures

    curves, rate = fidelity.curves, fidelity.sample_rate
    length = int(2 ** np.clip(np.round(np.log2(2 * fidelity.window**0.5)), 3, 10))
    length = min(length, fidelity.window)
    maps, images = [], []
    for kind in ("real", "generated"):
        _, _, power = signal.spectrogram(
            curves[f"examples_{kind}"][0],
            fs=rate,
            window="hann",
            nperseg=length,
            noverlap=length - max(length // 8, 1),
            detrend=False,  # pyright: ignore[reportArgumentType]
        )
        maps.append(10 * np.log10(np.maximum(power, np.finfo(float).tiny)))
    high = float(np.quantile(maps[0], 0.999))
    low = max(high - _RANGE_DB, float(np.quantile(maps[0], 0.01)))
    for axes, kind, values in zip(panels, ("real", "generated"), maps, strict=True):
        image = axes.imshow(
            values,
            origin="lower",
            aspect="auto",
            extent=(0, fidelity.window / rate, 0, rate / 2),
            vmin=low,
            vmax=high,
            cmap="viridis",
            interpolation="nearest",
        )
        images.append(image)
        prepare(
            axes,
            x="time (s)",
            y="frequency (Hz)",
            title=f"{kind} spectrogram",
        )
    bar = figure.colorbar(images[0], ax=list(panels), pad=0.02, aspect=18)
    bar.set_label("dB re (data units)² / Hz", fontsize=8, color=INK)
    bar.ax.tick_params(labelsize=8)


def _draw_scores(axes: Axes, fidelity: Fidelity) -> None:
    """Errors as fractions of their limits, bars; real-vs-real floors, ticks."""
    measures = list(fidelity.measures.values())
    for row, m in enumerate(measures):
        room = m.limit - m.ideal
        share = (m.error - m.ideal) / room
        share = math.inf if math.isnan(share) else share
        floor = (m.floor - m.ideal) / room
        colour = GREEN if m.within else ORANGE
        axes.barh(row, np.clip(share, 0, _SHARE_SHOWN), color=colour, height=0.7)
        axes.plot([max(floor, 0)] * 2, [row - 0.42, row + 0.42], color=INK)
        if share > _SHARE_SHOWN:
            axes.annotate(
                f"{share:.2g}",
                (_SHARE_SHOWN, row),
                (-3, 0),
                textcoords="offset points",
                ha="right",
                va="center",
                fontsize=7,
                color="white",
            )
    axes.axvline(1, color=INK, linestyle="--", linewidth=1)
    axes.set_yticks(range(len(measures)), [m.title for m in measures])
    axes.invert_yaxis()
    axes.set_xlim(0, _SHARE_SHOWN)
    label = "error / limit (mark: real against real noise)"
    prepare(axes, x=label, title="measures")
    axes.tick_params(axis="y", labelsize=7.5)
