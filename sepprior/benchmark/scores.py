"""How good a method is on trials with a known answer.

Every score splits the trials into strong and weak ones: an amplitude of at least 1 or
less, where the setting does not scale it. A trial is an
*outlier* when its frequency is off by more than ``0.5 / T``: it found another peak.
Conventions:

- An RMS ratio is ``sqrt(mean(((estimate - truth) / bound)^2))`` over the trials of the
  split that are not outliers, the bound being each trial's own Cramer-Rao bound. It is
  to be read together with the outlier rate, which stands beside it.
- Coverage is over *all* trials of the split, outliers and failed fits included: an
  error bar that does not say that the frequency may be a different one is wrong.
- Phases are compared on the circle.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import beta, norm

from sepprior.benchmark.baselines import wrap
from sepprior.benchmark.noise import Array
from sepprior.errors import SeppriorError

OUTLIER = 0.5
"""Largest frequency error of a trial that is not an outlier, in units of 1 / T."""


def errors(name: str, estimate: Array, truth: Array) -> Array:
    """``estimate - truth``, (n,); on the circle when `name` is a phase."""
    difference = np.asarray(estimate) - np.asarray(truth)
    return wrap(difference) if name.startswith("phase") else difference


def is_outlier(frequency_error: Array, duration: float) -> NDArray[np.bool_]:
    """Trials whose frequency is off by more than 0.5 / T, or not a number, (n,)."""
    return ~(np.abs(frequency_error) <= OUTLIER / duration)


def rms_ratio(error: Array, bound: Array) -> float:
    """RMS of ``error / bound``; NaN without trials."""
    if len(error) == 0:
        return float("nan")
    return float(np.sqrt(np.mean((np.asarray(error) / bound) ** 2)))


def rms_intervals(
    squares: Array, *, level: float = 0.95, resamples: int = 1000
) -> Array:
    """Percentile bootstrap over trials of the root of the mean of each row.

    Args:
        squares: (k, n) squares of error over bound, of k parameters in n trials.
        level: Probability of the intervals.
        resamples: Bootstrap resamples; all rows share them.

    Returns:
        (k, 2) ends; NaN with fewer than two trials.
    """
    k, n = squares.shape
    if n < 2:
        return np.full((k, 2), np.nan)
    means = _resampled(squares, resamples, seed=0) / n
    tail = 50 * (1 - level)
    return np.sqrt(np.percentile(means, [tail, 100 - tail], axis=1)).T


def rate_interval(hits: int, trials: int, level: float = 0.95) -> tuple[float, float]:
    """Clopper-Pearson interval of a rate; NaN without trials."""
    if trials == 0:
        return float("nan"), float("nan")
    tail = (1 - level) / 2
    low = beta.ppf(tail, hits, trials - hits + 1) if hits else 0.0
    high = beta.ppf(1 - tail, hits + 1, trials - hits) if hits < trials else 1.0
    return float(low), float(high)


def detected(statistic: Array, noise: Array, false_alarms: float) -> NDArray[np.bool_]:
    """Which trials exceed the threshold that noise alone exceeds at a given rate, (n,).

    The threshold is the empirical quantile over the trials without a signal: with 400
    of them and a rate of 1 % the true rate lies between 0.3 and 2.5 % (95 %).
    """
    threshold = np.quantile(noise, 1 - false_alarms, method="higher")
    return np.asarray(statistic) > threshold


def _resampled(squares: Array, resamples: int, seed: int) -> Array:
    """Sums over bootstrap samples of the trials, (k, resamples) from (k, n)."""
    rng = np.random.default_rng(seed)
    n = squares.shape[1]
    return squares @ rng.multinomial(n, np.full(n, 1 / n), size=resamples).T


def coverage(error: Array, stderr: Array, level: float) -> float:
    """Share of the trials whose interval at `level` contains the truth.

    The interval is ``estimate +- q stderr`` with the Gaussian quantile q, 0.994 at 68 %
    and 1.960 at 95 %. An estimate or standard error that is not finite does not cover.
    For intervals that are not symmetric see `interval_coverage`.
    """
    if len(error) == 0:
        return float("nan")
    quantile = norm.ppf(0.5 + level / 2)
    inside = np.abs(error) <= quantile * np.asarray(stderr)
    return float(np.mean(inside & np.isfinite(stderr)))


def gaussian_interval(value: Array, stderr: Array, level: float = 0.95) -> Array:
    """``value +- q stderr`` with the Gaussian quantile q, (n, 2)."""
    quantile = norm.ppf(0.5 + level / 2)
    half = quantile * np.asarray(stderr)
    return np.stack([value - half, value + half], axis=-1)


def interval_coverage(
    name: str, estimate: Array, truth: Array, interval: Array
) -> float:
    """Share of the trials whose stated interval contains the truth.

    Args:
        name: Name of the parameter; a phase is compared on the circle.
        estimate: (n,) estimates, inside their intervals.
        truth: (n,) true values.
        interval: (n, 2) lower and upper ends; one that is not finite covers nothing.
    """
    if len(estimate) == 0:
        return float("nan")
    offset = -errors(name, estimate, truth)  # truth - estimate
    low, high = (np.asarray(interval) - np.asarray(estimate)[:, None]).T
    finite = np.isfinite(low) & np.isfinite(high)
    return float(np.mean(finite & (low <= offset) & (offset <= high)))


@dataclass(frozen=True)
class Ratio:
    """A ratio with its bootstrap interval."""

    value: float
    low: float
    high: float


def paired_ratio(
    error: Array,
    reference: Array,
    bound: Array,
    *,
    level: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> Ratio:
    """RMS error of a method over that of another one on the same trials.

    The interval is the percentile bootstrap over trials: a resampled trial takes both
    methods' errors along, so that what they have in common cancels.

    Args:
        error: (n,) errors of the method.
        reference: (n,) errors of the other method, in the same trials.
        bound: (n,) bounds; they set the weight of the trials.
        level: Probability of the interval.
        resamples: Bootstrap resamples.
        seed: Key of the bootstrap.

    Raises:
        SeppriorError: The numbers of trials differ.
    """
    if not len(error) == len(reference) == len(bound):
        raise SeppriorError(
            f"paired ratio of {len(error)} and {len(reference)} errors with "
            f"{len(bound)} bounds: expected the same trials in all three"
        )
    if len(error) == 0:
        return Ratio(float("nan"), float("nan"), float("nan"))
    squares = np.stack([(error / bound) ** 2, (reference / bound) ** 2])
    top, bottom = _resampled(squares, resamples, seed)
    tail = 50 * (1 - level)
    low, high = np.percentile(np.sqrt(top / bottom), [tail, 100 - tail])
    value = np.sqrt(squares[0].sum() / squares[1].sum())
    return Ratio(float(value), float(low), float(high))
