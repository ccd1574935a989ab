"""Windows fitted batch by batch: one row of a table for each, and its waveform.

Dimensions: B windows in a batch, N samples in a window.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from sepprior.arguments import Checked, check_options
from sepprior.data import MIN_SAMPLES
from sepprior.data.series import Values
from sepprior.errors import SeppriorError
from sepprior.priors import Prior
from sepprior.separation import BATCH_WINDOWS, separate
from sepprior.signals import Bounds, Expected, Signal
from sepprior.signals import Values as Known
from sepprior.torch_state import usual_torch
from sepprior.tracking.rows import lines_of, rows_of
from sepprior.tracking.windows import WindowBatch, iterate_windows

if TYPE_CHECKING:
    import pandas

    from sepprior.result import Separation

BATCH_SAMPLES = 2**20
"""Most samples in a batch, where windows are long."""
CPU_WINDOWS = 64
"""Most windows in a batch on a CPU: as fast there as more, in less memory."""


@dataclass(frozen=True, kw_only=True)
class FitOptions:
    """How every window is fitted; see `sepprior.separate`.

    Times and phases of the signal are counted from the first sample of each window.

    Attributes:
        signal: name of the form, or a function of time and parameters.
        fmin: lowest frequency to search, Hz (default: one cycle in a window).
        fmax: highest frequency to search, Hz (default: just below Nyquist).
        components: number of sinusoids or harmonics.
        bounds: lowest and highest value of parameters by name.
        fixed: values of parameters that are known.
        guess: values to start from.
        expected: mean and standard deviation of Gaussian priors on parameters.
        objective: "joint" or "plain".
        starts: periodogram peaks that are followed.
        seed: seed of the random proposals for z.
    """

    signal: Signal = "sinusoid"
    fmin: float | None = None
    fmax: float | None = None
    components: int = 1
    bounds: Bounds = field(default_factory=dict)
    fixed: Known = field(default_factory=dict)
    guess: Known = field(default_factory=dict)
    expected: Expected = field(default_factory=dict)
    objective: str = "joint"
    starts: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse what cannot be used, before anything is read."""
        check_options(**vars(self))
        if self.components == "auto":
            raise SeppriorError(
                "components='auto' chooses for one measurement: give the number of "
                "sinusoids"
            )


@dataclass(frozen=True, eq=False)
class WindowFits:
    """Fits of a batch of windows.

    Attributes:
        windows: what was fitted.
        table: one row per window: `window` (its number), `start` and `centre` (s),
            `samples` (that are not missing), then the columns of
            `Separation.to_frame`, with several sinusoids in ascending order of
            frequency, and `centre_phase` with its `_stderr`: the phase at the centre,
            where its error and that of the frequency are least correlated (of a chirp
            also `centre_frequency`; of a function neither). A window that cannot be
            fitted has NaN there, and the reason as its `status`.
        signal: fitted signal, NaN in windows that were not fitted, shape (B, N).
        residual: noise without its coherent part, NaN also where samples are missing,
            shape (B, N).
    """

    windows: WindowBatch
    table: pandas.DataFrame
    signal: NDArray[np.float64]
    residual: NDArray[np.float64]

    @property
    def fitted(self) -> NDArray[np.bool_]:
        """Whether each window was fitted, shape (B,)."""
        return np.isfinite(self.signal[:, 0])


def fit_recording(
    values: Values,
    prior: Prior,
    *,
    window: int,
    hop: int,
    sample_rate: float,
    start: float = 0.0,
    options: FitOptions | None = None,
    begin: int = 0,
) -> Iterator[WindowFits]:
    """Fit all windows of a recording, batch after batch.

    A window's answer does not depend on its neighbours. The batches are the same
    wherever the work begins, if `begin` is a whole number of batches.

    Args:
        values: samples, NaN where missing, shape (M,); may be larger than memory.
        prior: the noise prior.
        window: samples in a window.
        hop: samples from window to window.
        sample_rate: Hz.
        start: time of the first sample, s.
        options: how to fit.
        begin: number of the first window.

    Raises:
        SeppriorError: the windows, the band or an option cannot be used.
    """
    batch = windows_per_batch(window, prior)
    for windows in iterate_windows(
        values, window=window, hop=hop, batch=batch, begin=begin
    ):
        yield fit_windows(
            windows, prior, sample_rate=sample_rate, start=start, options=options
        )


def windows_per_batch(window: int, prior: Prior) -> int:
    """Windows fitted at a time: what `separate` works on at once, or fewer."""
    most = CPU_WINDOWS if prior.device.type == "cpu" else BATCH_WINDOWS
    return max(1, min(most // -(-window // prior.window), BATCH_SAMPLES // window))


@usual_torch()
def fit_windows(
    windows: WindowBatch,
    prior: Prior,
    *,
    sample_rate: float,
    start: float = 0.0,
    options: FitOptions | None = None,
) -> WindowFits:
    """Separate the windows of one batch.

    Args:
        windows: the batch.
        prior: the noise prior.
        sample_rate: Hz.
        start: time of the recording's first sample, s.
        options: how to fit.

    Raises:
        SeppriorError: the band or an option cannot be used, or the windows hold
            infinite values.
    """
    import pandas as pd

    options = options or FitOptions()
    present = np.isfinite(windows.x).sum(1)
    faults = [_fault(row) for row in windows.x]
    usable = np.array([fault is None for fault in faults])
    whole = present == windows.x.shape[1]
    signal = np.full_like(windows.x, np.nan)
    residual = np.full_like(windows.x, np.nan)
    frames = []
    # A window with gaps is whitened by a matrix of its own: kept apart, it does not
    # slow down the others.
    for which in (usable & whole, usable & ~whole):
        rows = np.flatnonzero(which)
        if len(rows):
            result = _separate(windows.x[rows], prior, sample_rate, options)
            signal[rows], residual[rows] = result.signal, result.residual
            frames.append(_rows(result, options).set_index(rows))
    rows = np.flatnonzero(~usable)
    if len(rows):
        frames.append(_blank(windows, prior, sample_rate, options).loc[[0] * len(rows)])
        frames[-1] = frames[-1].set_index(rows)
        frames[-1]["status"] = [faults[row] for row in rows]
    fits = pd.concat(frames).sort_index()
    first = start + windows.first / sample_rate
    places = pd.DataFrame(
        {
            "window": windows.number,
            "start": first,
            "centre": first + 0.5 * (windows.x.shape[1] - 1) / sample_rate,
            "samples": present,
        }
    )
    return WindowFits(windows, pd.concat([places, fits], axis=1), signal, residual)


def _separate(
    x: NDArray[np.float64], prior: Prior, rate: float, options: FitOptions
) -> Separation:
    if not isinstance(options.components, int):
        raise SeppriorError(
            f"components={options.components!r}: windows are fitted with a given "
            "number of sinusoids: give a positive integer"
        )
    return separate(
        Checked(x),
        prior,
        signal=options.signal,
        sample_rate=rate,
        fmin=options.fmin,
        fmax=options.fmax,
        components=options.components,
        bounds=options.bounds,
        fixed=options.fixed,
        guess=options.guess,
        expected=options.expected,
        objective=options.objective,
        starts=options.starts,
        seed=options.seed,
    )


def _rows(result: Separation, options: FitOptions) -> pandas.DataFrame:
    return rows_of(result, lines_of(options.signal, options.components))


def _fault(row: NDArray[np.float64]) -> str | None:
    """Why a window cannot be fitted, or None; `separate` refuses infinities."""
    present = row[~np.isnan(row)]
    if len(present) < MIN_SAMPLES:
        return (
            f"not fitted: {len(present)} samples present, at least {MIN_SAMPLES} needed"
        )
    if present.min() == present.max():
        return f"not fitted: constant at {present[0]:.6g}"
    return None


def _blank(
    windows: WindowBatch, prior: Prior, rate: float, options: FitOptions
) -> pandas.DataFrame:
    """The row of a window without a fit: the usual columns and types, no content."""
    import pandas as pd

    # The columns are those of a fit, so one is made, of white noise.
    noise = np.random.default_rng(0).standard_normal((1, windows.x.shape[1]))
    row = _rows(_separate(noise, prior, rate, options), options)
    for name, column in row.items():
        empty = {"f": np.nan, "b": False, "i": 0}.get(column.dtype.kind, "none")
        row[name] = pd.Series([empty]).astype(column.dtype)
    return row
