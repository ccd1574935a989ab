"""The oracle of `telegraph`: the exact likelihood of two levels and white noise.

The noise is a hidden Markov chain with the two known levels, the known rate of
switching and the known white noise; what is not known are the times of the switches.
Marginalised over all of them by the forward algorithm the likelihood is exact, so that
its maximum is the best that any method can do without being told the levels.

It is maximised by expectation and maximisation: given the parameters, the posterior
mean of the level at every sample (forward and backward algorithm, Rabiner 1989); given
that, a least-squares step of the sinusoid. The likelihood has many local maxima in
short windows, where a slow sinusoid can be bent to follow the levels, so each
measurement has many starts: the GLS estimate, draws from its error distribution, and
the peaks of the periodogram. The most probable ones are followed to the end.

The levels are 12 standard deviations of the white noise apart and are recognised
nearly always, so that the maximum has the errors of GLS that is told the levels
(`bounds.oracle`): amplitude and frequency RMS over the bound of .15 and .14 in windows
of 10 s and of .04 in windows of 1 s. A search from one GLS estimate alone falls short
of that (RMS ratios above 1 in amplitude at 10 s); annealed, it reaches the same at 10 s
but ends in a local maximum for about every fifth measurement of 1 s, and the RMS ratio
is then .4 to .9, with one weak trial in seven an outlier. Such a
figure tells of the search, not of the information in the data.
"""

from __future__ import annotations

import numpy as np

from sepprior.benchmark import noise as recipe
from sepprior.benchmark.baselines import (
    Estimate,
    estimates_of,
    gls_scipy,
    jacobian,
    model,
    whitened_periodogram,
    whitener_of,
)
from sepprior.benchmark.noise import Array
from sepprior.benchmark.settings import PARAMETERS

N_DRAWS, N_PEAKS, N_FOLLOWED = 24, 7, 3
"""Starts around the GLS estimate, further starts over the band, starts kept."""
SPREAD = 1.5
"""Spread of the draws, in standard deviations of GLS."""
SCREENING, POLISH = 15, 50
"""Steps with all starts, and with those that are kept."""
BLOCK = 50
"""Measurements at a time: bounds the memory."""


def forward_backward(
    residual: Array,
    *,
    level: float = recipe.TELEGRAPH_LEVEL,
    switch: float = 1 / recipe.TELEGRAPH_DWELL,
    sd: float = recipe.STRUCTURED_WHITE_SD,
) -> tuple[Array, Array]:
    """Likelihood and posterior mean of a two-level chain seen through white noise.

    Args:
        residual: (n, N) levels plus white noise.
        level: The levels are +- this.
        switch: Probability of a switch between two samples.
        sd: Standard deviation of the white noise.

    Returns:
        ``log p(residual)`` in nats, (n,), and ``E[level_t | residual]``, (n, N).
    """
    n, n_samples = residual.shape
    levels = np.array([-level, level])
    log_density = -0.5 * ((residual[..., None] - levels) / sd) ** 2
    top = log_density.max(axis=-1, keepdims=True)
    density = np.exp(log_density - top)  # (n, N, 2)
    step = np.array([[1 - switch, switch], [switch, 1 - switch]])
    forward, scale = np.empty((n_samples, n, 2)), np.empty((n_samples, n))
    state = np.full((n, 2), 0.5)
    for t in range(n_samples):
        state = (state @ step if t else state) * density[:, t]
        scale[t] = state.sum(axis=1)
        state = state / scale[t][:, None]
        forward[t] = state
    backward, mean = np.ones((n, 2)), np.empty((n, n_samples))
    for t in reversed(range(n_samples)):
        both = forward[t] * backward
        mean[:, t] = both @ levels / both.sum(axis=1)
        backward = (density[:, t] * backward) @ step / scale[t][:, None]
    constant = n_samples * np.log(sd * np.sqrt(2 * np.pi))
    return np.log(scale).sum(axis=0) + top[..., 0].sum(axis=1) - constant, mean


def chain_oracle(
    x: Array, covariance: Array, *, sample_rate: float, fmin: float, fmax: float
) -> dict[str, Estimate]:
    """Maximum of the exact likelihood over the sinusoid's parameters.

    The standard errors are those of the white noise alone, the levels taken as found.

    Args:
        x: (n, N) measurements.
        covariance: (N, N) true covariance of the noise, for the starts.
        sample_rate: Samples per second.
        fmin: Lowest frequency in Hz.
        fmax: Highest frequency in Hz.
    """
    time = np.arange(x.shape[1]) / sample_rate
    whitener = whitener_of(covariance)
    rng = np.random.default_rng(0)
    found = []
    for block in np.split(x, range(BLOCK, len(x), BLOCK)):
        gls = gls_scipy(
            block, covariance, sample_rate=sample_rate, fmin=fmin, fmax=fmax
        )
        center = np.stack([gls[name].value for name in PARAMETERS], axis=1)
        theta = np.concatenate(
            [
                _draws(rng, center, whitener, time),
                _peaks(block, whitener, sample_rate, fmin, fmax),
            ],
            axis=1,
        )
        theta = _climb(block, theta, time, SCREENING, fmin, fmax, keep=N_FOLLOWED)
        found.append(_climb(block, theta, time, POLISH, fmin, fmax, keep=1)[:, 0])
    best = np.concatenate(found)
    errors = np.empty_like(best)
    for i, row in enumerate(best):
        slopes = jacobian(time, *row)
        spread = np.linalg.pinv(slopes.T @ slopes) * recipe.STRUCTURED_WHITE_SD**2
        errors[i] = np.sqrt(np.diag(spread))
    return estimates_of(best, errors)


def _signals(time: Array, theta: Array) -> Array:
    a, f, phi, b = theta.T[..., None]
    return np.asarray(model(time, a, f, phi, b))


def _step(theta: Array, x: Array, time: Array, fmin: float, fmax: float) -> Array:
    """One step of expectation and maximisation, for (m, 4) parameters."""
    residual = x - _signals(time, theta)
    remainder = residual - forward_backward(residual)[1]
    a, f, phi, _ = theta.T[..., None]
    angle = 2 * np.pi * f * time + phi
    slope = a * np.cos(angle)
    slopes = np.stack(
        [np.sin(angle), 2 * np.pi * time * slope, slope, np.ones_like(slope)], axis=2
    )
    normal = np.einsum("mnp,mnq->mpq", slopes, slopes)
    size = np.sqrt(np.einsum("mpp->mp", normal)) + 1e-12
    normal = normal / size[:, :, None] / size[:, None, :] + 1e-6 * np.eye(4)
    gradient = np.einsum("mnp,mn->mp", slopes, remainder) / size
    theta = theta + np.linalg.solve(normal, gradient[..., None])[..., 0] / size
    theta[:, 1] = np.clip(theta[:, 1], fmin, fmax)
    return theta


def _climb(
    x: Array,
    theta: Array,
    time: Array,
    steps: int,
    fmin: float,
    fmax: float,
    *,
    keep: int,
) -> Array:
    """Steps from every start (n, K, 4); the `keep` most probable ends, (n, keep, 4)."""
    n_starts = theta.shape[1]
    flat, repeated = theta.reshape(-1, 4), np.repeat(x, n_starts, axis=0)
    for _ in range(steps):
        flat = _step(flat, repeated, time, fmin, fmax)
    gain = forward_backward(repeated - _signals(time, flat))[0].reshape(-1, n_starts)
    order = np.argsort(-gain, axis=1)[:, :keep, None]
    return np.take_along_axis(flat.reshape(-1, n_starts, 4), order, axis=1)


def _draws(
    rng: np.random.Generator, center: Array, whitener: Array, time: Array
) -> Array:
    """The GLS estimates and draws around them, (n, N_DRAWS, 4)."""
    draws = []
    for row in center:
        slopes = whitener @ jacobian(time, *row)
        spread = SPREAD**2 * np.linalg.pinv(slopes.T @ slopes)
        draws.append(rng.multivariate_normal(row, spread, size=N_DRAWS))
        draws[-1][0] = row
    return np.stack(draws)


def _peaks(
    x: Array, whitener: Array, sample_rate: float, fmin: float, fmax: float
) -> Array:
    """The best frequency in each of equal parts of the band, (n, N_PEAKS, 4)."""
    grid, gain, linear = whitened_periodogram(
        x, whitener, sample_rate=sample_rate, fmin=fmin, fmax=fmax
    )
    parts = np.array_split(np.arange(grid.size), N_PEAKS)
    local = [part[np.argmax(gain[:, part], axis=1)] for part in parts]
    place = np.stack(local, axis=1)
    offset, cosine, sine = np.moveaxis(linear[np.arange(len(x))[:, None], place], -1, 0)
    return np.stack(
        [np.hypot(cosine, sine), grid[place], np.arctan2(cosine, sine), offset], axis=-1
    )
