"""What a track is: the table of its windows, in words and as a picture.

Dimensions: K windows, M samples.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from sepprior.formatting import (
    UNITS,
    format_table,
    format_uncertain,
    without_numbers,
)
from sepprior.tracking.rows import Line
from sepprior.tracking.spectrogram import Spectrogram

if TYPE_CHECKING:
    import pandas
    from matplotlib.figure import Figure

STATUSES_IN_REPORT = 8


@dataclass(frozen=True, eq=False, kw_only=True)
class Waveform:
    """Consecutive samples of the separated recording.

    Attributes:
        first: place of the first sample in the recording.
        windows: number of windows fitted so far.
        measurement: data units, NaN where missing, shape (n,).
        signal: the joined signal; NaN where no window was fitted, shape (n,).
        residual: noise minus the coherent part that the prior decodes, shape (n,).
    """

    first: int
    windows: int
    measurement: NDArray[np.float64]
    signal: NDArray[np.float64]
    residual: NDArray[np.float64]

    @property
    def noise(self) -> NDArray[np.float64]:
        """The measurement minus the signal, shape (n,)."""
        return self.measurement - self.signal


@dataclass(frozen=True, eq=False, kw_only=True)
class TrackSummary:
    """Parameters of the signal against time.

    Attributes:
        table: one row per window. `window` (its number), `start` and `centre` (s) and
            `samples` (present); of each parameter the value, `_stderr`, and the ends
            `_low`, `_high` of the 95 % interval, `phase` at the first sample of the
            window; the baselines, diagnostics and `status` as in
            `Separation.to_frame`; `centre_phase`, in (-pi, pi], and its `_stderr`;
            `unwrapped_phase`, at the centre, less ``2 pi f0 (centre - start of the
            recording)`` with f0 in `reference_frequency`; `cycle_probability` that the
            number of whole cycles since the last window with a phase is right, and
            `cycle_certain`. Several oscillations have these with endings `_1`, ...
        start: time of the first sample, s.
        samples: M.
        sample_rate: Hz.
        window: samples in a window.
        hop: samples from window to window.
        lines: the oscillations of the signal whose phase is followed.
        reference_frequency: f0 of each of them, Hz; NaN if it was never detected.
        before: spectrogram of the measurement.
        after: spectrogram of the noise.
        prior_info: which prior was used.
    """

    table: pandas.DataFrame
    start: float
    samples: int
    sample_rate: float
    window: int
    hop: int
    lines: tuple[Line, ...]
    reference_frequency: tuple[float, ...]
    before: Spectrogram
    after: Spectrogram
    prior_info: dict[str, Any]

    def __len__(self) -> int:
        """Number of windows."""
        return len(self.table)

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}({len(self)} windows of {self.window} samples, one "
            f"every {self.hop}, {self.samples} samples at {self.sample_rate:.6g} Hz)"
        )

    @property
    def parameters(self) -> list[str]:
        """Names of the signal's parameters, which are columns of the table."""
        names = [c.removesuffix("_low") for c in self.table if c.endswith("_low")]
        return [name for name in names if f"{name}_stderr" in self.table]

    def column(self, name: str) -> NDArray[np.float64]:
        """A column of numbers or truth values of the table, shape (K,)."""
        return self.table[name].to_numpy(dtype=np.float64)

    @property
    def detected(self) -> NDArray[np.bool_]:
        """Whether a signal was detected in each window, shape (K,)."""
        return self.column("detected") > 0

    def uncertain_steps(self, end: str) -> NDArray[np.bool_]:
        """Windows to which the phase steps by an uncertain number of cycles, (K,).

        Args:
            end: what the columns of the line end in.
        """
        stepped = np.isfinite(self.column(f"cycle_probability{end}"))
        return stepped & (self.column(f"cycle_certain{end}") == 0)

    def report(self) -> str:
        """The track in words: typical values, the phase, what the statuses say."""
        return _report(self)

    def summary(self) -> dict[str, Any]:
        """Medians and counts as plain types for JSON."""
        names = self.parameters
        return {
            "windows": len(self),
            "window": self.window,
            "hop": self.hop,
            "samples": self.samples,
            "sample_rate": self.sample_rate,
            "start": self.start,
            "detected": int(self.detected.sum()),
            "median": {name: _median(self.column(name)) for name in names},
            "median_stderr": {
                name: _median(self.column(f"{name}_stderr")) for name in names
            },
            "reference_frequency": list(self.reference_frequency),
            "uncertain_steps": {
                f"phase{line.end}": int(self.uncertain_steps(line.end).sum())
                for line in self.lines
            },
            "status": dict(
                Counter(map(without_numbers, self.table["status"])).most_common()
            ),
            "prior": self.prior_info,
        }

    def plot(self, path: str | Path | None = None) -> Figure:
        """The parameters and phases over time, and both spectrograms.

        Args:
            path: where to save the figure as well, if given.
        """
        from sepprior.plotting import plot_track

        return plot_track(self, path)


@dataclass(frozen=True, eq=False, kw_only=True, repr=False)
class Track(TrackSummary):
    """Parameters of the signal against time, and the separated recording.

    Attributes:
        waveform: measurement, signal and residual of the whole recording, joined from
            the windows without seams, shape (M,) each.
    """

    waveform: Waveform

    @property
    def time(self) -> NDArray[np.float64]:
        """Times of the samples, s, shape (M,)."""
        return self.start + np.arange(self.samples) / self.sample_rate

    @property
    def measurement(self) -> NDArray[np.float64]:
        """As given, shape (M,)."""
        return self.waveform.measurement

    @property
    def signal(self) -> NDArray[np.float64]:
        """The separated signal, shape (M,); NaN where no window was fitted."""
        return self.waveform.signal

    @property
    def noise(self) -> NDArray[np.float64]:
        """The measurement minus the signal, shape (M,)."""
        return self.waveform.noise

    @property
    def residual(self) -> NDArray[np.float64]:
        """The noise minus the coherent part that the prior decodes, shape (M,)."""
        return self.waveform.residual


def _median(values: NDArray[np.float64]) -> float:
    """The median without NaN; NaN if there is nothing else."""
    values = values[~np.isnan(values)]
    return float(np.median(values)) if len(values) else np.nan


def _report(track: TrackSummary) -> str:
    total, rate = len(track), track.sample_rate
    head = (
        f"{total} windows of {track.window} samples "
        f"({track.window / rate:.6g} s), one every {track.hop} ({track.hop / rate:.6g} "
        f"s)\na signal is detected in {int(track.detected.sum())} of {total} windows"
    )
    rows = [
        ["name", "median", "+/- stderr of a window", "(5 % to 95 % of windows)", ""]
    ]
    # The phase at the first sample of a window means nothing for the whole.
    phases = {f"phase{line.end}" for line in track.lines}
    for name in track.parameters:
        if name in phases:
            continue
        values = track.column(name)
        values = values[~np.isnan(values)]
        if not len(values):
            continue
        low, middle, high = np.quantile(values, [0.05, 0.5, 0.95]).tolist()
        stderr = _median(track.column(f"{name}_stderr"))
        value, error, (low, high) = format_uncertain(middle, stderr, low, high)
        unit = UNITS.get(name.split("_")[0], "") if track.lines else ""
        rows.append([name, value, f"+/- {error}", f"({low}, {high})", unit])
    lines = [head, format_table(rows)]
    references = zip(track.lines, track.reference_frequency, strict=True)
    lines += [_phase_in_words(track, line.end, f0) for line, f0 in references]
    counts = _counts(track.table["status"])
    said = [f"  {n} of {total}: {s}" for s, n in counts[:STATUSES_IN_REPORT]]
    if len(counts) > STATUSES_IN_REPORT:
        rest = sum(n for _, n in counts[STATUSES_IN_REPORT:])
        said.append(f"  {rest} of {total}: others")
    lines.append("\n".join(["status of the windows", *said]))
    return "\n\n".join(lines)


def _phase_in_words(track: TrackSummary, end: str, reference: float) -> str:
    if not np.isfinite(reference):
        return f"phase{end}: no window with a detected signal"
    steps = int(np.isfinite(track.column(f"cycle_probability{end}")).sum())
    uncertain = int(track.uncertain_steps(end).sum())
    count = (
        f"is not certain in {uncertain} of {steps} steps: read the phase across them "
        "modulo 2 pi"
        if uncertain
        else f"is certain in all {steps} steps"
    )
    return (
        f"phase{end}: unwrapped relative to {reference:.9g} Hz from the first sample; "
        f"the number of cycles {count}"
    )


def _counts(statuses: Iterable[str]) -> list[tuple[str, int]]:
    """How often each status stands, whatever its numbers, the most frequent first."""
    return Counter(map(without_numbers, statuses)).most_common()
