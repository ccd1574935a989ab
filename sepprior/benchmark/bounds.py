"""What can be reached: true covariances, the Cramer-Rao bound, and oracles.

The autocovariance of every component of the noise is known in closed form; that of a
scenario is the sum over its components. For the scenarios that are not Gaussian the
bound is that of Gaussian noise with the same covariance: a yardstick that a method
which knows the structure of the noise can beat.
"""

from __future__ import annotations

import numpy as np
from numpy.polynomial.legendre import leggauss
from numpy.typing import NDArray
from scipy.linalg import solve_triangular, toeplitz
from scipy.special import sici

from sepprior.benchmark import noise as recipe
from sepprior.benchmark.baselines import Estimate, autocovariance, gls_scipy, jacobian
from sepprior.benchmark.noise import Array
from sepprior.benchmark.scenarios import (
    PARAMETERS,
    RECORD_WINDOWS,
    SCENARIOS,
    WINDOW,
    Cell,
    Trials,
    draw_runs,
    noise_record,
)

Lags = NDArray[np.int_]

SIMULATION_SEED = 715_517
"""Key of the noise from which the autocovariance of an unknown scenario is taken."""


def true_autocovariance(cell: Cell, *, without: tuple[str, ...] = ()) -> Array:
    """Autocovariance of a cell's noise at lags 0 to 299, (300,).

    Exact for the built-in scenarios. For a scenario of your own it is estimated from
    1000 windows of noise with a fixed key of their own (for a recorded one, from its
    training record).

    Args:
        cell: Scenario and duration.
        without: Components to leave out.
    """
    scenario, rate = cell.scenario, cell.sample_rate
    if scenario != SCENARIOS.get(scenario.name):
        return autocovariance(_simulation(cell, without), WINDOW)
    lags = np.arange(WINDOW)
    total = np.zeros(WINDOW)
    for name in _COMPONENTS[scenario.name]:
        if name not in without:
            total += _component(scenario.name, name, lags, rate)
    return total


def _simulation(cell: Cell, without: tuple[str, ...]) -> list[Array]:
    if cell.scenario.recorded:
        return noise_record(cell.scenario, cell.duration, RECORD_WINDOWS)

    def rest(rng: np.random.Generator, n_samples: int, sample_rate: float) -> Array:
        parts = cell.scenario.parts(rng, n_samples, sample_rate)
        return recipe.total({k: part for k, part in parts.items() if k not in without})

    key = np.random.SeedSequence(SIMULATION_SEED)
    return draw_runs(rest, key, RECORD_WINDOWS, cell.sample_rate)


def true_covariance(cell: Cell, *, without: tuple[str, ...] = ()) -> Array:
    """Toeplitz matrix of `true_autocovariance`, (300, 300)."""
    return toeplitz(true_autocovariance(cell, without=without))


_COMPONENTS = {
    "white": ("white",),
    "pink": ("pink",),
    "ar2": ("ar2",),
    "bursts": ("pink", "white", "hum", "bursts"),
    "telegraph": ("levels", "white"),
    "pump": ("pink", "white", "pulse"),
    "article": ("white",),
}


def _component(scenario: str, name: str, lags: Lags, sample_rate: float) -> Array:
    alone = _COMPONENTS[scenario] == (name,)
    if name == "white":
        sd = recipe.WHITE_SD if alone else recipe.STRUCTURED_WHITE_SD
        return np.where(lags == 0, sd**2, 0.0)
    if name == "pink":
        sd = recipe.PINK_SD if alone else recipe.STRUCTURED_PINK_SD
        return pink_autocovariance(lags, sample_rate, sd=sd)
    if name == "ar2":
        return ar2_autocovariance(lags, sample_rate)
    if name == "hum":
        return hum_autocovariance(lags, sample_rate)
    if name == "bursts":
        return burst_autocovariance(lags)
    if name == "levels":
        return telegraph_autocovariance(lags)
    return pulse_autocovariance(lags, sample_rate)


def pink_autocovariance(lags: Lags, sample_rate: float, *, sd: float) -> Array:
    """Cosine transform of ``1 / max(f, f0)`` up to the Nyquist frequency f1.

    ``r(tau) ~ sinc(2 f0 tau) + Ci(2 pi f1 tau) - Ci(2 pi f0 tau)``.
    """
    tau = np.asarray(lags) / sample_rate
    corner = recipe.pink_corner(sample_rate)
    later = tau[tau > 0]
    r = np.full(tau.shape, recipe.pink_log_range())
    r[tau > 0] = (
        np.sinc(2 * corner * later)
        + sici(np.pi * sample_rate * later)[1]
        - sici(2 * np.pi * corner * later)[1]
    )
    return sd**2 * r / recipe.pink_log_range()


def ar2_autocovariance(lags: Lags, sample_rate: float) -> Array:
    """Yule-Walker recursion ``r_k = a1 r_{k-1} + a2 r_{k-2}`` from r_0 = sd^2."""
    a1, a2 = recipe.ar2_coefficients(sample_rate)
    r = np.empty(int(np.max(lags)) + 2)
    r[0], r[1] = 1.0, a1 / (1 - a2)
    for k in range(2, r.size):
        r[k] = a1 * r[k - 1] + a2 * r[k - 2]
    return recipe.AR2_SD**2 * r[lags]


def hum_autocovariance(lags: Lags, sample_rate: float) -> Array:
    """``sum a^2/2 cos(2 pi f tau)``: sinusoids of random phase."""
    tau = np.asarray(lags) / sample_rate
    return sum(
        (a**2 / 2 * np.cos(2 * np.pi * f * tau) for f, a in recipe.HUM),
        np.zeros(tau.shape),
    )


def burst_autocovariance(lags: Lags) -> Array:
    """Campbell's theorem, ``lambda E[a^2] E_d[ sum_m exp(-(2m + k)/d) ]``.

    The sum over m is ``exp(-k/d) / (1 - exp(-2/d))``; the mean over the decay d is a
    Gauss-Legendre quadrature.
    """
    low, high = recipe.BURST_DECAY
    nodes, weights = leggauss(60)
    decay = low + (high - low) * (nodes + 1) / 2
    each = np.exp(-np.asarray(lags)[:, None] / decay) / -np.expm1(-2 / decay)
    mean = np.asarray(each @ weights, dtype=np.float64) / 2
    return recipe.BURSTS_PER_SAMPLE * recipe.BURST_SD**2 * mean


def telegraph_autocovariance(lags: Lags) -> Array:
    """``level^2 (1 - 2 / dwell)^k`` for a symmetric two-state Markov chain."""
    correlation = np.float64(1 - 2 / recipe.TELEGRAPH_DWELL)
    return recipe.TELEGRAPH_LEVEL**2 * np.power(correlation, lags)


def pulse_autocovariance(lags: Lags, sample_rate: float) -> Array:
    """``2 sum_k |c_k|^2 cos(2 pi k f tau)`` over the harmonics k >= 1 of the pulse.

    The coefficients of ``exp(-u/a)`` are ``(1 - exp(-1/a)) / (1/a + 2 pi i k)``; 3000
    harmonics leave out less than 1e-9 of the variance.
    """
    k = np.arange(1, 3001)
    a, b = recipe.PULSE_FALL, recipe.PULSE_RISE
    coefficient = -np.expm1(-1 / a) / (1 / a + 2j * np.pi * k)
    coefficient += np.expm1(-1 / b) / (1 / b + 2j * np.pi * k)
    _, sd = recipe.pulse_moments()
    power = 2 * np.abs(coefficient) ** 2 * (recipe.PULSE_SD / sd) ** 2
    cycles = recipe.PULSE_FREQUENCY * np.asarray(lags) / sample_rate
    return np.cos(2 * np.pi * cycles[:, None] * k) @ power


# --- the bound and the oracle -------------------------------------------------------


def cramer_rao(
    truth: dict[str, Array], covariance: Array, *, sample_rate: float
) -> dict[str, Array]:
    """Smallest standard deviation of an unbiased estimate in Gaussian noise.

    ``sqrt(diag((J^T C^-1 J)^-1))`` with J the derivatives of the sinusoid by amplitude,
    frequency, phase and bias (Kay, Fundamentals of Statistical Signal Processing:
    Estimation Theory, eq. 3.31).

    Args:
        truth: The true parameters, each (n,).
        covariance: (N, N) covariance C of the noise.
        sample_rate: Samples per second.

    Returns:
        The bound on every parameter, each (n,).
    """
    lower = np.linalg.cholesky(covariance)
    time = np.arange(len(covariance)) / sample_rate
    rows = zip(*(truth[name] for name in PARAMETERS), strict=True)
    bound = []
    for row in rows:
        white = solve_triangular(lower, jacobian(time, *row), lower=True)
        bound.append(np.sqrt(np.diag(np.linalg.inv(white.T @ white))))
    return dict(zip(PARAMETERS, np.reshape(bound, (-1, 4)).T, strict=True))


def trial_bounds(trials: Trials) -> dict[str, Array]:
    """`cramer_rao` for trials with the true covariance of their noise, each (n,)."""
    covariance = true_covariance(trials.cell)
    return cramer_rao(trials.truth, covariance, sample_rate=trials.sample_rate)


def gls_true(trials: Trials) -> dict[str, Estimate]:
    """GLS with the true covariance of the noise."""
    return _gls(trials, trials.x, ())


def oracle(trials: Trials) -> dict[str, Estimate]:
    """GLS that is told the structured part of the noise.

    The waveform of the bursts, of the levels or of the pulse is subtracted, and the
    rest (pink, white and hum; white; pink and white) has its true covariance. Where
    nothing is known in advance this is `gls_true`.
    """
    known = trials.cell.scenario.known
    x = trials.x - sum(trials.components[name] for name in known)
    return _gls(trials, x, known)


def _gls(trials: Trials, x: Array, without: tuple[str, ...]) -> dict[str, Estimate]:
    return gls_scipy(
        x,
        true_covariance(trials.cell, without=without),
        sample_rate=trials.sample_rate,
        fmin=trials.fmin,
        fmax=trials.fmax,
    )
