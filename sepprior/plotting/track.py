"""The figure of a track: parameters over time, spectrograms before and after."""

from __future__ import annotations

import textwrap
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from sepprior.formatting import UNITS
from sepprior.plotting.style import (
    BLUE,
    GREY,
    INK,
    ORANGE,
    legend_above,
    new_figure,
    prepare,
    saved,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from sepprior.tracking.result import TrackSummary
    from sepprior.tracking.spectrogram import Spectrogram

_POINTS = 500  # of a curve; more windows than that are drawn in groups
_COLOURS = (BLUE, "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
_Z95 = 1.959963984540054  # normal quantile of the two-sided 95 % interval
_MARKED_STEPS = 40
_ABOVE = 3.0  # the spectrograms reach to so many times the highest frequency


@dataclass(frozen=True)
class _Curve:
    """Value and 95 % interval of one parameter, shape (n,) each, NaN in gaps.

    Where several windows make up a point, all are medians over them, and `least` and
    `most` the extremes of the value.
    """

    time: NDArray[np.float64]
    value: NDArray[np.float64]
    low: NDArray[np.float64]
    high: NDArray[np.float64]
    least: NDArray[np.float64]
    most: NDArray[np.float64]


def plot_track(track: TrackSummary, path: str | Path | None = None) -> Figure:
    """The panels of one track.

    The signal's parameters over time with their 95 % bands, of the windows in which a
    signal was detected: amplitude, frequency and what else the form has but the bias,
    or all parameters of a function; the phase, where it is followed; the spectrograms
    of the measurement and of the noise that is left.

    Args:
        track: the track.
        path: where to save the figure as well, if given.
    """
    groups = _groups(track)
    count = len(groups) + bool(track.lines) + 2
    figure = new_figure(11, 2.6 * count)
    rows = figure.add_gridspec(count, 2, width_ratios=[60, 1])
    first: Axes | None = None
    panels = []
    for row in range(count):
        axes = figure.add_subplot(rows[row, 0], sharex=first)
        first = first or axes
        panels.append(axes)
    *curves, before, after = panels
    letters = iter("abcdefghijklmnopqrstuvwxyz")
    for axes, (stem, names) in zip(curves, groups.items(), strict=False):
        _draw(axes, track, names)
        words = stem.replace("_", " ")
        prepare(
            axes,
            y=f"{words}{_unit(stem, track)}",
            title=f"{next(letters, '')}  {words}",
        )
        axes.ticklabel_format(axis="y", useOffset=False)
    if track.lines:
        _draw_phase(curves[-1], track)
        title = f"{next(letters, '')}  {_phase_title(track)}"
        prepare(curves[-1], y="phase (rad)", title=title)
    for axes in curves:
        if axes.get_legend_handles_labels()[0]:
            legend_above(axes, columns=4)
    colours = _colour_range(track)
    _draw_spectrogram(before, track.before, colours, track)
    title = f"{next(letters, '')}  measurement"
    prepare(before, y="frequency (Hz)", title=title)
    image = _draw_spectrogram(after, track.after, colours, track)
    title = f"{next(letters, '')}  after removal of the signal"
    prepare(after, x="time (s)", y="frequency (Hz)", title=title)
    bar = figure.colorbar(image, cax=figure.add_subplot(rows[-2:, 1]))
    bar.set_label("power density (dB re 1 unit²/Hz)", fontsize=9, color=INK)
    bar.ax.tick_params(labelsize=8, labelcolor=INK)
    for axes in panels[:-1]:
        axes.tick_params(labelbottom=False)
    after.set_xlim(track.before.edges[0], track.before.edges[-1])
    figure.suptitle(_title(track), fontsize=10.5, color=INK)
    return saved(figure, path)


def _title(track: TrackSummary) -> str:
    seen = int(track.detected.sum())
    text = (
        f"{len(track)} windows of {track.window} samples "
        f"({track.window / track.sample_rate:.4g} s), one every "
        f"{track.hop / track.sample_rate:.4g} s; a signal is detected in {seen}"
    )
    return "\n".join(textwrap.wrap(text, 130))


def _phase_title(track: TrackSummary) -> str:
    named = [f"{f:.9g} Hz" for f in track.reference_frequency if np.isfinite(f)]
    return f"phase relative to {', '.join(named)}" if named else "phase"


def _groups(track: TrackSummary) -> dict[str, list[str]]:
    """Names of the parameters that share a panel, by what they have in common."""
    if not track.lines:
        return {name: [name] for name in track.parameters}
    groups: dict[str, list[str]] = {}
    # A frequency that changes in a window is drawn as it is at the centre.
    changing = {line.source: line.frequency for line in track.lines if line.rate}
    for name in track.parameters:
        ends = [line.end for line in track.lines if line.end]
        end = next((end for end in ends if name.endswith(end)), "")
        stem = name.removesuffix(end)
        if stem not in ("phase", "bias"):
            groups.setdefault(stem, []).append(changing.get(name, name))
    return groups


def _unit(stem: str, track: TrackSummary) -> str:
    """In brackets; of a user's function nothing is known."""
    if not track.lines:
        return ""
    unit = (UNITS | {"amplitude": "data units"}).get(stem.split("_")[0], "")
    return f"\n({unit})" if unit else ""


def _label(track: TrackSummary, name: str) -> str:
    """What a curve shows: one of several sinusoids or harmonics, or the only value."""
    for line in track.lines:
        if line.end and name.endswith(line.end):
            kind = "sinusoid" if line.source.endswith(line.end) else "harmonic"
            return f"{kind} {line.end[1:]}"
    return "value"


def _colour(number: int) -> str:
    return _COLOURS[number % len(_COLOURS)]


def _draw(axes: Axes, track: TrackSummary, names: list[str]) -> None:
    for number, name in enumerate(names):
        value = np.where(track.detected, track.column(name), np.nan)
        if f"{name}_low" in track.table:
            low, high = track.column(f"{name}_low"), track.column(f"{name}_high")
        else:
            half = _Z95 * track.column(f"{name}_stderr")
            low, high = value - half, value + half
        low, high = (np.where(track.detected, end, np.nan) for end in (low, high))
        curve = _curve(track.column("centre"), value, low, high)
        _draw_curve(axes, curve, colour=_colour(number), label=_label(track, name))
    _draw_unseen(axes, track, names)


def _draw_unseen(axes: Axes, track: TrackSummary, names: list[str]) -> None:
    """Answers of windows without a detected signal, as far as they lie in the panel."""
    missed = ~track.detected
    if not 0 < missed.sum() <= _POINTS:
        return
    limits = axes.get_ylim()
    for name in names:
        axes.plot(
            track.column("centre")[missed],
            track.column(name)[missed],
            "x",
            color=GREY,
            markersize=4,
            label="not detected" if name == names[0] else None,
        )
    if not missed.all():
        axes.set_ylim(limits)


def _draw_phase(axes: Axes, track: TrackSummary) -> None:
    centre = track.column("centre")
    for number, line in enumerate(track.lines):
        end = line.end
        value = track.column(f"unwrapped_phase{end}")
        half = _Z95 * track.column(f"centre_phase{end}_stderr")
        broken = track.uncertain_steps(end)
        curve = _curve(centre, value, value - half, value + half, breaks=broken)
        label = _label(track, f"phase{end}")
        _draw_curve(axes, curve, colour=_colour(number), label=label)
        places = np.flatnonzero(broken)
        if 0 < len(places) <= _MARKED_STEPS:
            known = np.flatnonzero(np.isfinite(value))
            for count, place in enumerate(places):
                before = known[np.searchsorted(known, place) - 1]
                axes.axvline(
                    0.5 * (centre[before] + centre[place]),
                    color=ORANGE,
                    linewidth=0.9,
                    linestyle=":",
                    label=None if count else "number of cycles not certain",
                )


def _curve(
    time: NDArray[np.float64],
    value: NDArray[np.float64],
    low: NDArray[np.float64],
    high: NDArray[np.float64],
    *,
    breaks: NDArray[np.bool_] | None = None,
) -> _Curve:
    """A curve of at most about `_POINTS` points; not joined to the point at a break."""
    group = -(-len(value) // _POINTS)
    columns = [time, value, low, high]
    if group == 1:
        if breaks is not None:
            where = np.flatnonzero(breaks)
            columns = [np.insert(c, where, np.nan) for c in columns]
        time, value, low, high = columns
        return _Curve(time, value, low, high, value, value)
    pad = -len(value) % group
    grouped = [
        np.ma.masked_invalid(np.append(c, np.full(pad, np.nan)).reshape(-1, group))
        for c in columns
    ]
    time, value, low, high = (
        np.ma.median(columns, axis=1).filled(np.nan) for columns in grouped
    )
    least, most = (
        extreme(axis=1).filled(np.nan) for extreme in (grouped[1].min, grouped[1].max)
    )
    return _Curve(time, value, low, high, least, most)


def _draw_curve(axes: Axes, curve: _Curve, *, colour: str, label: str) -> None:
    finite = np.isfinite(curve.value)
    if not finite.any():
        return
    if curve.least is not curve.value:
        axes.fill_between(
            curve.time,
            curve.least,
            curve.most,
            color=GREY,
            alpha=0.3,
            linewidth=0,
            label="extremes",
        )
    axes.fill_between(
        curve.time,
        curve.low,
        curve.high,
        color=colour,
        alpha=0.25,
        linewidth=0,
        label="95 % interval",
    )
    marker = "." if finite.sum() <= _POINTS // 4 else ""
    axes.plot(
        curve.time, curve.value, color=colour, marker=marker, linewidth=1.1, label=label
    )
    _limit(axes, curve)


def _limit(axes: Axes, curve: _Curve) -> None:
    """Let a few lost windows not squeeze the curve."""
    ends = np.concatenate([curve.low, curve.high])
    ends = ends[np.isfinite(ends)]
    low, high = np.percentile(ends, [1, 99])
    margin = 0.25 * (high - low) or 1e-3 * abs(high) or 1.0
    low, high = max(low - margin, ends.min()), min(high + margin, ends.max())
    room = 0.05 * (high - low) or 1e-3 * abs(high) or 1.0
    low, high = low - room, high + room
    if len(axes.lines) > 1:
        below, above = axes.get_ylim()
        low, high = min(low, below), max(high, above)
    axes.set_ylim(low, high)


def _colour_range(track: TrackSummary) -> tuple[float, float]:
    with np.errstate(divide="ignore"):
        before, after = (10 * np.log10(s.density) for s in (track.before, track.after))
    finite = after[np.isfinite(after)]
    low = float(np.percentile(finite, 5)) if len(finite) else 0.0
    high = float(before[np.isfinite(before)].max(initial=low + 1.0))
    return low, max(high, low + 1.0)


def _draw_spectrogram(
    axes: Axes,
    spectrogram: Spectrogram,
    colours: tuple[float, float],
    track: TrackSummary,
):
    frequency = spectrogram.frequency
    half = 0.5 * frequency[1]
    edges = np.append(frequency - half, frequency[-1] + half)
    with np.errstate(divide="ignore"):
        level = 10 * np.log10(spectrogram.density)
    image = axes.pcolormesh(
        spectrogram.edges,
        edges,
        np.maximum(level, colours[0]),
        vmin=colours[0],
        vmax=colours[1],
        cmap="viridis",
        rasterized=True,
    )
    found = [f for f in track.reference_frequency if np.isfinite(f)]
    top = max(_ABOVE * max(found, default=np.inf), 24 * frequency[1])
    axes.set_ylim(0, min(top, frequency[-1]))
    return image
