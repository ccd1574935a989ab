"""`track(x, G)`: a long recording and a frozen noise prior in, a track out."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike
from torch import Tensor

from sepprior.arguments import check_prior
from sepprior.checkpoint import resolve_device
from sepprior.data import given
from sepprior.data.series import Values, check_values, sample_number
from sepprior.errors import SeppriorError, real_number, whole_number
from sepprior.priors import Prior, with_label
from sepprior.rates import check_sample_rate
from sepprior.separation import prior_info
from sepprior.signals import Bounds, Expected, Signal
from sepprior.signals import Values as Known
from sepprior.torch_state import usual_torch
from sepprior.tracking.fits import FitOptions, fit_recording
from sepprior.tracking.phase import unwrap
from sepprior.tracking.result import Track, TrackSummary, Waveform
from sepprior.tracking.rows import CENTRE_PHASE, Line, lines_of
from sepprior.tracking.spectrogram import SpectrogramBuilder
from sepprior.tracking.stitch import OverlapAdd
from sepprior.tracking.windows import check_grid, count_windows

if TYPE_CHECKING:
    import pandas


@dataclass(frozen=True)
class Grid:
    """Where the windows of a recording lie.

    Attributes:
        window: samples in a window.
        hop: samples from window to window.
        sample_rate: Hz.
        start: time of the recording's first sample, s.
    """

    window: int
    hop: int
    sample_rate: float
    start: float = 0.0


@usual_torch()
def track(
    x: ArrayLike | Tensor,
    prior: Prior,
    *,
    signal: Signal = "sinusoid",
    window: int | None = None,
    hop: int | None = None,
    sample_rate: float | None = None,
    fmin: float | None = None,
    fmax: float | None = None,
    components: int = 1,
    bounds: Bounds | None = None,
    fixed: Known | None = None,
    guess: Known | None = None,
    expected: Expected | None = None,
    objective: str = "joint",
    starts: int | None = None,
    seed: int = 0,
    label: str | None = None,
    device: str | None = None,
    start: float = 0.0,
) -> Track:
    """Follow a signal through a long recording, window by window.

    Every window is fitted by itself, as `separate` does it: a window's answer and error
    bars owe nothing to its neighbours, so a sudden change of the line is not smoothed
    away. Errors of windows that overlap are correlated. Within a window the signal is
    taken to have its form: for sinusoids, choose windows in which they are steady.

    The waveforms of the windows are joined by overlap-add with weights that add up to
    one at every sample. Phases are unwrapped by the frequencies of the windows, and
    every step says how probable its number of cycles is; those of a function of yours
    are not known, and not unwrapped.

    Args:
        x: shape (M,), data units; NaN marks missing samples.
        prior: from `load_prior` or `train_noise`.
        signal: "sinusoid", "harmonics", "damped", "chirp", or a function f(t, a, b,
            ...) of torch operations, as for `separate`; t, and phases, are counted
            from the first sample of each window.
        window: samples in a window (default: the prior's).
        hop: samples from window to window (default: half a window).
        sample_rate: Hz; must be the prior's (default).
        fmin: lowest frequency to search, Hz (default: one cycle in a window).
        fmax: highest frequency to search, Hz (default: just below Nyquist).
        components: number of sinusoids or harmonics.
        bounds: lowest and highest value of parameters by name, in every window.
        fixed: values of parameters that are known, in every window.
        guess: values to start from.
        expected: mean and standard deviation of Gaussian priors on parameters.
        objective: "joint" or "plain"; see `separate`.
        starts: periodogram peaks that are followed.
        seed: seed of the random proposals for z.
        label: kind of noise, for a prior trained with labels; inferred for each window
            by default.
        device: where to compute; default: where the prior is.
        start: time of the first sample, s.

    Raises:
        SeppriorError: `x`, the windows, the band or an option cannot be used.
    """
    check_prior(prior)
    options = FitOptions(
        signal=signal,
        fmin=fmin,
        fmax=fmax,
        components=components,
        bounds={} if bounds is None else bounds,
        fixed={} if fixed is None else fixed,
        guess={} if guess is None else guess,
        expected={} if expected is None else expected,
        objective=objective,
        starts=starts,
        seed=seed,
    )
    if device is not None:
        prior = prior.to(resolve_device(device))
    if label is not None:
        prior = with_label(prior, label)
    found = given(x, what="x")
    if found.values.ndim != 1:
        raise SeppriorError(
            f"x has shape {found.values.shape}; give one recording, shape (M,)"
        )
    values = np.asarray(found.values, dtype=np.float64)
    sample_rate = found.rate(sample_rate, what="x")
    check_values(values, what="x", where=sample_number)
    grid = grid_for(prior, window=window, hop=hop, sample_rate=sample_rate, start=start)
    separated, residual = np.full((2, len(values)), np.nan)
    blocks = track_blocks(
        values,
        prior,
        grid,
        options=options,
    )
    while True:
        try:
            block = next(blocks)
        except StopIteration as end:
            summary: TrackSummary = end.value
            break
        part = slice(block.first, block.first + len(block.signal))
        separated[part], residual[part] = block.signal, block.residual
    return Track(
        **vars(summary),
        waveform=Waveform(
            first=0,
            windows=len(summary),
            measurement=values,
            signal=separated,
            residual=residual,
        ),
    )


def grid_for(
    prior: Prior,
    *,
    window: int | None = None,
    hop: int | None = None,
    sample_rate: float | None = None,
    start: float = 0.0,
    subject: str = "x",
) -> Grid:
    """The windows to use, with defaults from the prior.

    Args:
        prior: the noise prior.
        window: samples in a window (default: the prior's).
        hop: samples from window to window (default: half a window).
        sample_rate: Hz (default: the prior's).
        start: time of the recording's first sample, s.
        subject: what the recording is, to begin an error message with.

    Raises:
        SeppriorError: the windows leave out samples, or another sample rate than the
            prior's.
    """
    check_prior(prior)
    window = prior.window if window is None else whole_number("window", window)
    hop = max(1, window // 2) if hop is None else hop
    check_grid(window, hop)
    rate = prior.sample_rate if sample_rate is None else sample_rate
    rate, start = real_number("sample_rate", rate), real_number("start", start)
    check_sample_rate(rate, prior.sample_rate, subject=subject)
    return Grid(window, hop, rate, start)


def track_blocks(
    values: Values, prior: Prior, grid: Grid, *, options: FitOptions
) -> Generator[Waveform, None, TrackSummary]:
    """Track a recording of any length, yielding the separated waveform in blocks.

    Memory holds one batch of windows and the table.

    Args:
        values: samples, NaN where missing, shape (M,); may be larger than memory.
        prior: the noise prior.
        grid: where the windows lie.
        options: how they are fitted.

    Yields:
        Consecutive samples of the recording, all of them in the end: one block for
        each batch of windows, and a last one. Some may be empty.

    Returns:
        The track.
    """
    import pandas as pd

    joined = OverlapAdd(
        window=grid.window, hop=grid.hop, length=len(values), n_waveforms=2
    )
    before, after = (
        SpectrogramBuilder(
            length=len(values),
            frame=grid.window // 2,
            sample_rate=grid.sample_rate,
            start=grid.start,
        )
        for _ in range(2)
    )
    tables: list[pandas.DataFrame] = []
    position = 0

    def block_of(waves: np.ndarray) -> Waveform:
        nonlocal position
        measurement = values[position : position + waves.shape[1]]
        block = Waveform(
            first=position,
            windows=sum(map(len, tables)),
            measurement=measurement,
            signal=waves[0],
            residual=np.where(np.isnan(measurement), np.nan, waves[1]),
        )
        position += waves.shape[1]
        before.add(block.measurement)
        after.add(block.noise)
        return block

    for fits in fit_recording(
        values,
        prior,
        window=grid.window,
        hop=grid.hop,
        sample_rate=grid.sample_rate,
        start=grid.start,
        options=options,
    ):
        tables.append(fits.table)
        waves = np.stack([fits.signal, np.nan_to_num(fits.residual)])
        yield block_of(joined.add(waves, fits.fitted))
    yield block_of(joined.finish())
    table = pd.concat(tables, ignore_index=True)
    lines = lines_of(options.signal, options.components)
    return TrackSummary(
        table=table,
        start=grid.start,
        samples=len(values),
        sample_rate=grid.sample_rate,
        window=grid.window,
        hop=grid.hop,
        lines=lines,
        reference_frequency=_add_phases(table, grid, lines),
        before=before.finish(),
        after=after.finish(),
        prior_info=prior_info(prior),
    )


def windows_in(values: Values, grid: Grid) -> int:
    """Number of windows in a recording."""
    return count_windows(len(values), window=grid.window, hop=grid.hop)


def _add_phases(
    table: pandas.DataFrame, grid: Grid, lines: tuple[Line, ...]
) -> tuple[float, ...]:
    """Unwrap the phase of each line into new columns; the reference frequencies."""
    status = table.pop("status")
    references = []
    for line in lines:
        end, name = line.end, line.frequency
        rate = None
        if line.rate is not None:
            rate = table[line.rate].to_numpy(), table[f"{line.rate}_stderr"].to_numpy()
        phase = unwrap(
            table["centre"].to_numpy(),
            line.order * table[name].to_numpy(),
            line.order * table[f"{name}_stderr"].to_numpy(),
            table[f"{CENTRE_PHASE}{end}"].to_numpy(),
            table[f"{CENTRE_PHASE}{end}_stderr"].to_numpy(),
            usable=table["detected"].to_numpy(),
            duration=grid.window / grid.sample_rate,
            epoch=grid.start,
            steady=line.steady,
            rate=rate,
        )
        table[f"unwrapped_phase{end}"] = phase.value
        table[f"cycle_probability{end}"] = phase.probability
        table[f"cycle_certain{end}"] = phase.certain
        references.append(phase.reference)
    table["status"] = status
    return tuple(references)
