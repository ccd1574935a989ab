"""The phase of a line across windows, and how sure the count of its cycles is.

A window tells the phase only up to whole cycles. Between the centres of two windows,
``D`` apart, the frequencies say how far the phase has gone:

    advance = pi D (f + f'),     r = wrap(psi' - psi - advance) in (-pi, pi]

with psi, psi' the phases at the centres. The whole number of cycles is the one that
makes the remainder r smallest. It is right if the error of r is well below half a
cycle. With every number equally likely beforehand, ``r ~ N(0, v)`` for the true one,
and any r at all where the line was lost or has jumped (in one step of a thousand, e),
it is right with probability

    P = (1 - e) N(r; v) / ((1 - e) sum_m N(r + 2 pi m; v) + e / 2 pi)

The variance has two parts. One is that of the estimates. Windows that overlap share
noise; least squares reads the phase at the centre off white noise by constant weights
and the frequency by weights linear in time, and the inner products of these weights
give, with ``u = D / T`` and T the length of a window, the correlations

    (psi, psi'): 1 - u      (f, f'): 1 - 3u + 2u^3      (psi', f): sqrt(3) u (1 - u)

and the negative of the last for (psi, f'); none for u >= 1.

The other is the wander of the line itself between the centres: a frequency that walks
at random, by a variance q per second, departs from the mean of the two ends by a phase
of variance ``(2 pi)^2 q D^3 / 12`` (a Brownian bridge integrated). q is what the steps
of the frequency have in excess of their errors, in the median of all steps.

Where rates of change c, c' were fitted too (a chirp), their drift is taken off first,
and the advance is that of the cubic through both ends, ``2 pi D^2 (c - c') / 12`` more.

Dimensions: K windows.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import median_filter

CERTAIN = 0.99
"""Probability from which the number of cycles of a step counts as certain."""
LOST = 1e-3
"""Probability beforehand that a step tells nothing: the line was lost, or jumped."""
NEIGHBOURS = 5
"""Windows among which a frequency is compared with the median."""
_ROUNDING = 1e-9  # rad
_RESOLUTIONS = 0.5  # departure from that median in 1 / T beyond which a line is lost
_MEDIAN_CHI2 = 0.45493642311957283  # of one degree of freedom
_CYCLES = 20  # whole cycles to either side in the sum over m; beyond, P is negligible


@dataclass(frozen=True, eq=False)
class Phase:
    """An unwrapped phase.

    Attributes:
        reference: frequency that the phase is relative to, Hz; NaN without any phase.
        value: phase at the centre of each window, rad, unwrapped, minus
            ``2 pi reference (centre - epoch)``; NaN in windows that were left out
            because they do not hold the line, shape (K,).
        probability: that the number of cycles since the window before that has a phase
            is right, shape (K,); NaN where there is no phase, or none before.
    """

    reference: float
    value: NDArray[np.float64]
    probability: NDArray[np.float64]

    @property
    def certain(self) -> NDArray[np.bool_]:
        """Whether the number of cycles of the step to each window is certain, (K,)."""
        return self.probability >= CERTAIN


def unwrap(
    centre: NDArray[np.float64],
    frequency: NDArray[np.float64],
    frequency_stderr: NDArray[np.float64],
    phase: NDArray[np.float64],
    phase_stderr: NDArray[np.float64],
    *,
    usable: NDArray[np.bool_],
    duration: float,
    epoch: float,
    steady: bool = True,
    rate: tuple[NDArray[np.float64], NDArray[np.float64]] | None = None,
) -> Phase:
    """Count the cycles from window to window.

    Args:
        centre: times of the centres, s, ascending, shape (K,).
        frequency: Hz, shape (K,).
        frequency_stderr: Hz, shape (K,).
        phase: at the centre, rad, shape (K,).
        phase_stderr: rad, shape (K,).
        usable: windows that hold the line; the count goes over the others, shape (K,).
        duration: T, length of a window, s.
        epoch: time at which the phase of the reference is zero, s.
        steady: whether the windows were fitted with a steady sinusoid, so that the
            errors of those that overlap are correlated as above; else they are taken
            to be independent.
        rate: fitted change of the frequency, Hz/s, and its standard error, shape (K,)
            each; by default none was fitted.
    """
    value, probability = np.full((2, len(centre)), np.nan)
    rows = np.flatnonzero(
        usable & np.isfinite(frequency_stderr) & np.isfinite(phase_stderr)
    )
    if not len(rows):
        return Phase(math.nan, value, probability)
    around = median_filter(frequency[rows], NEIGHBOURS, mode="mirror")
    rows = rows[np.abs(frequency[rows] - around) <= _RESOLUTIONS / duration]
    t, f, sf = centre[rows], frequency[rows], frequency_stderr[rows]
    psi, sp = phase[rows], phase_stderr[rows]
    reference = float(np.median(f))
    step = np.diff(t)
    # Relative to the reference nothing is lost to rounding in long recordings.
    relative = wrap(psi - 2 * np.pi * np.remainder(reference * (t - epoch), 1.0))
    advance = np.pi * step * ((f[:-1] - reference) + (f[1:] - reference))
    shift = step / duration if steady else np.ones_like(step)
    variance = step_variance(step, sf, sp, shift=shift)
    drift, drift_stderr = np.zeros((2, len(step)))
    if rate is not None:
        c, sc = (values[rows] for values in rate)
        error = np.hypot(sc[:-1], sc[1:])
        drift, drift_stderr = 0.5 * step * (c[:-1] + c[1:]), 0.5 * step * error
        bend = 2 * np.pi * step**2 / 12
        advance -= bend * np.diff(c)
        variance += (bend * error) ** 2
    variance += _wander(step, np.diff(f) - drift, sf, drift_stderr, shift=shift)
    remainder = wrap(np.diff(relative) - advance)
    value[rows] = relative[0] + np.cumsum([0.0, *(advance + remainder)])
    probability[rows[1:]] = probability_of_count(remainder, variance)
    return Phase(reference, value, probability)


def wrap(phase: NDArray[np.float64]) -> NDArray[np.float64]:
    """Radians wrapped to (-pi, pi]."""
    return np.pi - np.remainder(np.pi - phase, 2 * np.pi)


def probability_of_count(
    remainder: NDArray[np.float64], variance: NDArray[np.float64]
) -> NDArray[np.float64]:
    """P that the smallest remainder belongs to the true number of cycles.

    Args:
        remainder: r in (-pi, pi], any shape.
        variance: v, rad^2, same shape.
    """
    cycles = 2 * np.pi * np.arange(-_CYCLES, _CYCLES + 1)
    excess = (remainder[..., None] + cycles) ** 2 - remainder[..., None] ** 2
    v = np.maximum(variance, _ROUNDING**2)
    # all relative to N(r; v)
    others = np.exp(-np.minimum(excess / (2 * v[..., None]), 700.0)).sum(-1)
    exponent = np.minimum(remainder**2 / (2 * v), 700.0)
    lost = LOST / (1 - LOST) * np.sqrt(v / (2 * np.pi)) * np.exp(exponent)
    return 1 / (others + lost)


def step_variance(
    step: NDArray[np.float64],
    frequency_stderr: NDArray[np.float64],
    phase_stderr: NDArray[np.float64],
    *,
    shift: NDArray[np.float64],
) -> NDArray[np.float64]:
    """Variance of ``psi' - psi - pi D (f + f')`` from the errors of the fits, rad^2.

    Args:
        step: D, s, shape (K - 1,).
        frequency_stderr: Hz, shape (K,).
        phase_stderr: rad, shape (K,).
        shift: u, from window to window, shape (K - 1,).
    """
    phases, frequencies, mixed = _overlap(shift)
    sf, sf2 = frequency_stderr[:-1], frequency_stderr[1:]
    sp, sp2 = phase_stderr[:-1], phase_stderr[1:]
    of_phase = sp**2 + sp2**2 - 2 * phases * sp * sp2
    of_frequency = sf**2 + sf2**2 + 2 * frequencies * sf * sf2
    # cov(psi', f) = -cov(psi, f') = mixed: both make the advance follow the phase
    covariance = mixed * (sp2 * sf + sp * sf2)
    slope = np.pi * step
    return np.maximum(of_phase + slope**2 * of_frequency - 2 * slope * covariance, 0.0)


def _overlap(
    u: NDArray[np.float64],
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Correlations of the errors of two windows that are u window lengths apart.

    Between the phases, between the frequencies, and between the later phase and the
    earlier frequency; for u >= 1 all are zero.
    """
    u = np.minimum(u, 1.0)
    return 1 - u, 1 - 3 * u + 2 * u**3, np.sqrt(3.0) * u * (1 - u)


def _wander(
    step: NDArray[np.float64],
    change: NDArray[np.float64],
    stderr: NDArray[np.float64],
    drift_stderr: NDArray[np.float64],
    *,
    shift: NDArray[np.float64],
) -> NDArray[np.float64]:
    """Variance of the phase from wander of the line between the centres, rad^2.

    Args:
        step: D, s, shape (K - 1,).
        change: steps of the frequency beyond its fitted drift, Hz, shape (K - 1,).
        stderr: of the frequencies, Hz, shape (K,).
        drift_stderr: of the drifts, Hz, shape (K - 1,).
        shift: u, shape (K - 1,).
    """
    if not len(step):
        return np.zeros(0)
    _, correlation, _ = _overlap(shift)
    expected = (
        stderr[:-1] ** 2 + stderr[1:] ** 2 - 2 * correlation * stderr[:-1] * stderr[1:]
    )
    expected += drift_stderr**2
    rate = np.median((change**2 / _MEDIAN_CHI2 - expected) / step)
    return (2 * np.pi) ** 2 * max(float(rate), 0.0) * step**3 / 12
