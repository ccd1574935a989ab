"""Fits of ``W x`` by ``W s(theta)`` for a fixed linear map W: whitening in three forms.

W is the inverse Cholesky factor of the noise's covariance (GLS), the filter of an
autoregressive model, or a discrete Fourier transform over the square root of the
noise's spectrum (Whittle). The loss on the whitened residual is quadratic or Cauchy's.
Beside them stands ESPRIT, which knows no noise at all.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
from scipy.linalg import solve_toeplitz, toeplitz
from scipy.optimize import least_squares

from sepprior.benchmark.baselines import (
    Estimate,
    autocovariance,
    estimates_of,
    gls_scipy,
    jacobian,
    model,
    record_covariance,
    record_windows,
    starts,
    whitener_of,
)
from sepprior.benchmark.noise import Array
from sepprior.benchmark.settings import PARAMETERS

AR_ORDER = 20
"""Coefficients of the autoregressive model."""
SCALES = tuple(np.geomspace(0.3, 10.0, 16))
"""Scales of the Cauchy loss that are tried, in robust standard deviations."""
ESPRIT_ROWS = 120
"""Rows of the Hankel matrix of 300 samples; two fifths is near the optimum."""


def cauchy_scipy(
    x: Array,
    runs: Sequence[Array],
    *,
    sample_rate: float,
    fmin: float,
    fmax: float,
) -> dict[str, Estimate]:
    """Robust fit: Cauchy loss on the residual whitened by its covariance.

    Started from `gls_scipy` with the same covariance; see `mapped_fit`.

    Args:
        x: (n, N) measurements.
        runs: Noise-only runs, each (M_i,).
        sample_rate: Samples per second.
        fmin: Lowest frequency in Hz.
        fmax: Highest frequency in Hz.
    """
    covariance = record_covariance(runs, x.shape[1])
    first = _gls_starts(x, covariance, sample_rate, fmin, fmax)
    return mapped_fit(
        x, first, whitener_of(covariance), runs, "cauchy", sample_rate, fmin, fmax
    )


def ar_cauchy(
    x: Array,
    runs: Sequence[Array],
    *,
    sample_rate: float,
    fmin: float,
    fmax: float,
) -> dict[str, Estimate]:
    """Cauchy loss on the residual filtered by an AR(20) model of the noise.

    The coefficients solve the Yule-Walker equations of the record; the first 20 samples
    of a window have no complete past and are whitened by their own covariance. A burst
    stays where it is in the filtered residual, where the inverse covariance smears it.
    Arguments as `cauchy_scipy`.
    """
    n_samples = x.shape[1]
    r = autocovariance(runs, n_samples)
    phi = solve_toeplitz(r[:AR_ORDER], r[1 : AR_ORDER + 1])
    sd = np.sqrt(r[0] - phi @ r[1 : AR_ORDER + 1])
    row = np.zeros(n_samples)
    row[: AR_ORDER + 1] = np.append(-phi[::-1], 1.0) / sd
    column = np.zeros(n_samples - AR_ORDER)
    column[0] = row[0]
    first = _gls_starts(x, toeplitz(r), sample_rate, fmin, fmax)
    beginning = np.zeros((AR_ORDER, n_samples))
    beginning[:, :AR_ORDER] = whitener_of(toeplitz(r[:AR_ORDER]))
    whitener = np.concatenate([beginning, toeplitz(column, row)])
    return mapped_fit(x, first, whitener, runs, "cauchy", sample_rate, fmin, fmax)


def whittle(
    x: Array,
    runs: Sequence[Array],
    *,
    sample_rate: float,
    fmin: float,
    fmax: float,
) -> dict[str, Estimate]:
    """Whittle's likelihood, ``sum_k |X_k - S_k(theta)|^2 / P_k``.

    X is the discrete Fourier transform of a window and P its mean square over the
    windows of the record: GLS as if the covariance were circulant (Whittle, 1953).
    Arguments as `cauchy_scipy`.
    """
    n_samples = x.shape[1]
    transform = np.fft.rfft(np.eye(n_samples), axis=1).T  # (N/2 + 1, N)
    spectra = np.abs(record_windows(runs, n_samples) @ transform.T) ** 2
    weight = 1 / np.sqrt(spectra.mean(axis=0))[:, None]
    real, imaginary = weight * transform.real, weight * transform.imag
    # |X_k|^2 counts twice between zero and Nyquist, as k and N - k; there the real and
    # the imaginary part have half of the variance each.
    double = np.full((len(weight), 1), np.sqrt(2.0))
    double[[0, -1] if n_samples % 2 == 0 else [0]] = 1.0
    whitener = np.concatenate([double * real, double * imaginary])
    first = starts(x, whitener, sample_rate, fmin, fmax)
    return mapped_fit(x, first, whitener, runs, "linear", sample_rate, fmin, fmax)


def _gls_starts(
    x: Array, covariance: Array, sample_rate: float, fmin: float, fmax: float
) -> Array:
    gls = gls_scipy(x, covariance, sample_rate=sample_rate, fmin=fmin, fmax=fmax)
    return np.stack([gls[name].value for name in PARAMETERS], axis=1)


def mapped_fit(
    x: Array,
    first: Array,
    whitener: Array,
    runs: Sequence[Array],
    loss: Literal["linear", "cauchy"],
    sample_rate: float,
    fmin: float,
    fmax: float,
) -> dict[str, Estimate]:
    """Least squares or a robust fit of the whitened measurement.

    Minimises ``sum_n |r_n|^2``, or ``sum_n c^2 log(1 + (r_n / c)^2)``, with
    ``r = W (x - s)``. The standard errors are those of an M-estimator,

        cov = E[psi^2] / E[psi']^2 (J^T W^T W J)^-1,     psi(r) = r / (1 + (r/c)^2),

    with the expectations over the record's whitened windows; for least squares the
    factor is one. c is the one of `SCALES` robust standard deviations (1.4826 times the
    median absolute value) of these windows that makes the factor smallest.

    Args:
        x: (n, N) measurements.
        first: (n, 4) starts.
        whitener: (M, N) W.
        runs: Noise-only runs, each (M_i,).
        loss: "linear" or "cauchy".
        sample_rate: Samples per second.
        fmin: Lowest frequency in Hz.
        fmax: Highest frequency in Hz.
    """
    scale, inflation = 1.0, 1.0
    if loss == "cauchy":
        white = record_windows(runs, x.shape[1]) @ whitener.T
        robust = 1.4826 * float(np.median(np.abs(white)))
        inflation, scale = min(
            (_inflation(white, robust * each), robust * each) for each in SCALES
        )

    time = np.arange(x.shape[1]) / sample_rate
    values, errors = np.empty((len(x), 4)), np.empty((len(x), 4))
    bounds = ([-np.inf, fmin, -np.inf, -np.inf], [np.inf, fmax, np.inf, np.inf])
    for i, (target, start) in enumerate(zip(x @ whitener.T, first, strict=True)):

        def residual(p: Array, target: Array = target) -> Array:
            return whitener @ model(time, *p) - target

        def slopes(p: Array) -> Array:
            return whitener @ jacobian(time, *p)

        fit = least_squares(
            residual,
            np.clip(start, *bounds),
            jac=slopes,  # pyright: ignore[reportArgumentType]
            bounds=bounds,
            x_scale="jac",
            loss=loss,
            f_scale=scale,
        )
        white_jacobian = slopes(fit.x)
        values[i] = fit.x
        spread = inflation * np.linalg.pinv(white_jacobian.T @ white_jacobian)
        errors[i] = np.sqrt(np.diag(spread))
    return estimates_of(values, errors)


def _inflation(white: Array, scale: float) -> float:
    """Variance of the Cauchy M-estimator over that of least squares in white noise."""
    weight = 1 / (1 + (white / scale) ** 2)
    slope = (1 - (white / scale) ** 2) * weight**2
    return float(np.mean((white * weight) ** 2) / np.mean(slope) ** 2)


def esprit(
    x: Array, *, sample_rate: float, fmin: float, fmax: float
) -> dict[str, Estimate]:
    """Frequency from the rotation of the signal subspace, the rest by least squares.

    The subspace of a bias and a sinusoid has three dimensions; the eigenvalues of the
    rotation between its first and its last rows are ``1`` and ``exp(+-2 pi i f / fs)``
    (Roy and Kailath, 1989). Of these the frequency nearest to the middle of the band is
    taken. Standard errors are those of least squares. Arguments as `cauchy_scipy`.
    """
    n_samples = x.shape[1]
    rows = ESPRIT_ROWS * n_samples // 300
    place = np.arange(rows)[:, None] + np.arange(n_samples - rows + 1)
    time = np.arange(n_samples) / sample_rate
    middle = (fmin + fmax) / 2
    values, errors = np.empty((len(x), 4)), np.empty((len(x), 4))
    for i, measurement in enumerate(x):
        basis = np.linalg.svd(measurement[place], full_matrices=False)[0][:, :3]
        rotation = np.linalg.lstsq(basis[:-1], basis[1:], rcond=None)[0]
        found = np.angle(np.linalg.eigvals(rotation)) * sample_rate / (2 * np.pi)
        f = np.clip(found[np.argmin(np.abs(found - middle))], fmin, fmax)
        angle = 2 * np.pi * f * time
        design = np.stack([np.sin(angle), np.cos(angle), np.ones_like(time)], axis=1)
        sine, cosine, bias = np.linalg.lstsq(design, measurement, rcond=None)[0]
        values[i] = np.hypot(sine, cosine), f, np.arctan2(cosine, sine), bias
        residual = measurement - model(time, *values[i])
        slopes = jacobian(time, *values[i])
        variance = residual @ residual / (n_samples - 4)
        errors[i] = np.sqrt(variance * np.diag(np.linalg.pinv(slopes.T @ slopes)))
    return estimates_of(values, errors)
