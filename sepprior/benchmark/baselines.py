"""Classical fits of a sinusoid in noise, in plain numpy and scipy.

They are what a good engineer would do without a learned prior, and they share no code
with the library's own solvers, so that each can be held against the other. All start
from the peak of a whitened periodogram over the search band and return

    {"amplitude": Estimate, "frequency": Estimate, "phase": Estimate, "bias": Estimate}

with a value and a standard error per measurement. Amplitudes are >= 0, phases in
(-pi, pi], frequencies inside the band.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy.linalg import solve_triangular, toeplitz
from scipy.optimize import OptimizeWarning, curve_fit

from sepprior.benchmark.noise import Array
from sepprior.benchmark.scenarios import PARAMETERS
from sepprior.errors import SeppriorError

GRID_STEP = 0.05
"""Spacing of the frequency grid in units of 1 / duration."""


class Estimate(NamedTuple):
    """A parameter of n measurements: value and standard error, each (n,).

    A standard error that could not be estimated is infinite. `interval` has the ends of
    the 95 % interval, (n, 2), where it is not the Gaussian one of value and stderr.
    """

    value: Array
    stderr: Array
    interval: Array | None = None


# --- the signal ---------------------------------------------------------------------


def model(time: Array, a: float, f: float, phi: float, b: float) -> Array:
    """``a sin(2 pi f t + phi) + b``, (N,)."""
    return a * np.sin(2 * np.pi * f * time + phi) + b


def jacobian(time: Array, a: float, f: float, phi: float, b: float) -> Array:
    """Derivatives of `model` by amplitude, frequency, phase and bias, (N, 4)."""
    del b
    angle = 2 * np.pi * f * time + phi
    sine, cosine = np.sin(angle), np.cos(angle)
    return np.stack(
        [sine, a * 2 * np.pi * time * cosine, a * cosine, np.ones_like(time)], axis=1
    )


def wrap(phase: Array) -> Array:
    """Angle in (-pi, pi]."""
    return np.pi - np.mod(np.pi - phase, 2 * np.pi)


# --- the noise ----------------------------------------------------------------------


def autocovariance(runs: Sequence[Array], n_lags: int) -> Array:
    """Biased estimate ``r_k = sum_i sum_t y_it y_i,t+k / M``, pooled over runs.

    y are the M samples of all runs less their common mean; no product crosses the end
    of a run. The divisor M, not the number of products, keeps the Toeplitz matrix
    positive definite.

    Args:
        runs: Noise-only runs, each (M_i,) with M_i > n_lags.
        n_lags: Number of lags, from 0.

    Returns:
        (n_lags,)

    Raises:
        SeppriorError: There is no run, or one is not longer than `n_lags`.
    """
    series = [np.asarray(run, dtype=np.float64) for run in runs]
    short = [run.shape for run in series if run.ndim != 1 or run.size <= n_lags]
    if short or not series:
        raise SeppriorError(
            f"noise-only runs of shape {short or 'none'}: expected series of more than "
            f"{n_lags} samples"
        )
    n_samples = sum(run.size for run in series)
    mean = sum(float(run.sum()) for run in series) / n_samples
    products = np.zeros(n_lags)
    for run in series:
        power = np.abs(np.fft.rfft(run - mean, 2 * run.size)) ** 2
        products += np.fft.irfft(power)[:n_lags]
    return products / n_samples


def record_covariance(runs: Sequence[Array], window: int) -> Array:
    """Toeplitz covariance of a window, (window, window), from noise-only runs."""
    return toeplitz(autocovariance(runs, window))


def record_windows(runs: Sequence[Array], window: int) -> Array:
    """Consecutive windows of the runs less their common mean, (n, window)."""
    mean = np.concatenate(list(runs)).mean()
    cut = [run[: run.size // window * window].reshape(-1, window) for run in runs]
    return np.concatenate(cut) - mean


def whitener_of(covariance: Array) -> Array:
    """Inverse of the lower Cholesky factor, so that ``W C W^T = 1``."""
    lower = np.linalg.cholesky(covariance)
    return solve_triangular(lower, np.eye(len(lower)), lower=True)


# --- the start ----------------------------------------------------------------------


def whitened_periodogram(
    x: Array,
    whitener: Array | None,
    *,
    sample_rate: float,
    fmin: float,
    fmax: float,
) -> tuple[Array, Array, Array]:
    """Fit offset, cosine and sine linearly at every frequency of a grid.

    With ``D_f = W [1, cos, sin]`` and its QR factors the gain in log-likelihood over
    no signal and no offset is ``|Q_f^T W x|^2 / 2`` (variable projection).

    Args:
        x: (n, N) measurements.
        whitener: (N, N) W, or None for white noise.
        sample_rate: Samples per second.
        fmin: Lowest frequency in Hz.
        fmax: Highest frequency in Hz.

    Returns:
        Frequencies (F,), gain (n, F) and offset, cosine and sine (n, F, 3).
    """
    n_samples = x.shape[1]
    time = np.arange(n_samples) / sample_rate
    step = GRID_STEP * sample_rate / n_samples
    grid = np.linspace(fmin, fmax, int(np.ceil((fmax - fmin) / step)) + 1)
    angle = 2 * np.pi * grid[:, None] * time
    design = np.stack([np.ones_like(angle), np.cos(angle), np.sin(angle)], axis=2)
    if whitener is not None:
        design = whitener @ design
        x = x @ whitener.T
    q, r = np.linalg.qr(design)
    projected = np.einsum("fnk,bn->bfk", q, x)
    linear = np.linalg.solve(r, projected[..., None])[..., 0]
    return grid, 0.5 * np.sum(projected**2, axis=-1), linear


def starts(
    x: Array,
    whitener: Array | None,
    sample_rate: float,
    fmin: float,
    fmax: float,
) -> Array:
    """Amplitude, frequency, phase and bias at the highest peak, (n, 4)."""
    grid, gain, linear = whitened_periodogram(
        x, whitener, sample_rate=sample_rate, fmin=fmin, fmax=fmax
    )
    best = np.argmax(gain, axis=1)
    offset, cosine, sine = linear[np.arange(len(x)), best].T
    amplitude = np.hypot(cosine, sine)
    return np.stack([amplitude, grid[best], np.arctan2(cosine, sine), offset], axis=1)


# --- the fits -----------------------------------------------------------------------


def gls_scipy(
    x: Array, covariance: Array, *, sample_rate: float, fmin: float, fmax: float
) -> dict[str, Estimate]:
    """Generalised least squares: ``curve_fit(..., sigma=C, absolute_sigma=True)``.

    Args:
        x: (n, N) measurements.
        covariance: (N, N) covariance of the noise, e.g. `record_covariance`.
        sample_rate: Samples per second.
        fmin: Lowest frequency in Hz.
        fmax: Highest frequency in Hz.
    """
    first = starts(x, whitener_of(covariance), sample_rate, fmin, fmax)
    return fit_all(x, first, covariance, sample_rate, fmin, fmax)


def curve_fit_plain(
    x: Array, *, sample_rate: float, fmin: float, fmax: float
) -> dict[str, Estimate]:
    """Ordinary least squares, as if the noise were white; arguments as `gls_scipy`.

    The noise level is taken from the residual of the fit.
    """
    first = starts(x, None, sample_rate, fmin, fmax)
    return fit_all(x, first, None, sample_rate, fmin, fmax)


def fit_all(
    x: Array,
    first: Array,
    covariance: Array | None,
    sample_rate: float,
    fmin: float,
    fmax: float,
) -> dict[str, Estimate]:
    """`curve_fit` for every measurement from its start, (n, 4) in `first`."""
    time = np.arange(x.shape[1]) / sample_rate
    values, errors = np.empty((len(x), 4)), np.empty((len(x), 4))
    for i, (measurement, start) in enumerate(zip(x, first, strict=True)):
        values[i], errors[i] = _fit_one(
            time, measurement, start, covariance, fmin, fmax
        )
    return estimates_of(values, errors)


def _fit_one(
    time: Array,
    x: Array,
    start: Array,
    covariance: Array | None,
    fmin: float,
    fmax: float,
) -> tuple[Array, Array]:
    """Levenberg-Marquardt; bounded by the band only where it leaves the band."""
    absolute = covariance is not None
    with warnings.catch_warnings():
        # An inestimable covariance comes back infinite, which is what we return.
        warnings.simplefilter("ignore", OptimizeWarning)
        try:
            value, spread = curve_fit(
                model,
                time,
                x,
                p0=start,
                sigma=covariance,
                absolute_sigma=absolute,
                jac=jacobian,
            )[:2]
            if fmin <= value[1] <= fmax:
                return value, np.sqrt(np.diag(spread))
        except RuntimeError:  # no convergence
            pass
        bounds = ([-np.inf, fmin, -np.inf, -np.inf], [np.inf, fmax, np.inf, np.inf])
        try:
            value, spread = curve_fit(
                model,
                time,
                x,
                p0=start,
                sigma=covariance,
                absolute_sigma=absolute,
                bounds=bounds,
                jac=jacobian,
            )[:2]
        except RuntimeError:
            return start, np.full(4, np.inf)
    return value, np.sqrt(np.diag(spread))


def estimates_of(values: Array, errors: Array) -> dict[str, Estimate]:
    """Fold negative amplitudes and wrap phases, then split the columns."""
    a, f, phi, b = values.T
    phi = wrap(phi + np.where(a < 0, np.pi, 0.0))
    columns = (np.abs(a), f, phi, b)
    return {
        name: Estimate(column, error)
        for name, column, error in zip(PARAMETERS, columns, errors.T, strict=True)
    }
