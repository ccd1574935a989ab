"""Measures of how two sets of noise windows differ, as pure functions.

Every function takes windows of shape (n, N), or spectra computed from them, and none
knows about priors. Closed forms for Gaussian noise, to which the tests hold them:
periodogram ordinates are exponentially distributed, hence `ln E P - E ln P` is Euler's
constant 0.577 and `10 log10 P` has the standard deviation 5.57 dB.

Dimensions: n and m windows, N samples each, F frequencies.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from scipy import linalg, signal, stats

SPECKLE_GAP_GAUSSIAN = 0.5772156649015329  # nats
SPECKLE_SPREAD_GAUSSIAN = 10 / math.log(10) * math.pi / math.sqrt(6)  # 5.57 dB

_AVERAGES_PER_BAND = 200  # periodogram ordinates averaged per band: 0.3 dB of scatter
_PHASE_BINS = 8  # positions modulo the hop are pooled into as many bins
_VALUES_PER_LEVEL = 10  # values per different value in recordings of few levels
_OFF_GRID = 0.1  # steps by which a value on a grid may be off
_EDGE_BINS = 2  # at both ends of the spectrum the taper mixes bins: not exponential
_MAX_AMPLITUDES = 65536  # samples compared in the amplitude distribution
_MAX_DENSE = 2048  # longest window whose covariance is factored in full
_FILTER_ORDER = 512  # samples that predict the next one in longer windows


def periodograms(windows: np.ndarray, *, sample_rate: float = 1.0) -> np.ndarray:
    """One-sided periodograms with a Hann taper.

    Args:
        windows: (n, N), zero mean.
        sample_rate: Hz.

    Returns:
        (n, N // 2 + 1) in squared data units per Hz.
    """
    n_samples = windows.shape[1]
    taper = np.sin(np.pi * np.arange(n_samples) / n_samples) ** 2
    power = np.abs(np.fft.rfft(windows * taper, axis=1)) ** 2
    power /= sample_rate * (taper**2).sum()
    power[:, 1 : (n_samples + 1) // 2] *= 2  # the negative frequencies
    return power


def quantisation(values: np.ndarray) -> tuple[float, float] | None:
    """The grid that recorded values lie on, as offset and step, or None.

    Values from a converter are multiples of its step, but for rounding in a file.

    Args:
        values: any shape, data units.
    """
    levels = np.unique(values)
    if len(levels) < 2 or len(levels) > values.size / _VALUES_PER_LEVEL:
        return None
    gaps = np.diff(levels)
    number = np.concatenate([[0], np.cumsum(np.round(gaps / gaps.min()))])
    step, offset = np.polyfit(number, levels, 1)
    away = np.abs(levels - (offset + step * number)).max()
    return (float(offset), float(step)) if away < _OFF_GRID * step else None


def band_ratio_db(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Ratio of two mean periodograms in bands, `10 log10(S_2 / S_1)`.

    A band is as many bins as it takes to average 200 ordinates, so that the scatter
    is the same whether there are many windows or few.

    Args:
        first: (n, F) periodograms.
        second: (m, F) periodograms.

    Returns:
        (bands,) dB.
    """
    width = math.ceil(_AVERAGES_PER_BAND / min(len(first), len(second)))
    edges = np.arange(0, max(first.shape[1] - width + 1, 1), width)
    means = [np.add.reduceat(p.mean(0), edges) for p in (first, second)]
    tiny = 1e-12 * max(means[0].max(), np.finfo(float).tiny)
    return 10 * np.log10(np.maximum(means[1], tiny) / np.maximum(means[0], tiny))


def psd_error_db(first: np.ndarray, second: np.ndarray) -> float:
    """Root mean square over frequency of `band_ratio_db`, dB."""
    return float(np.sqrt(np.mean(band_ratio_db(first, second) ** 2)))


def autocovariances(windows: np.ndarray) -> np.ndarray:
    """Biased autocovariance of each window, lags 0 to N // 2.

    `c_k = (1 / N) sum_t x_t x_(t+k)`; windows (n, N) of zero mean; (n, N // 2 + 1).
    """
    n_samples = windows.shape[1]
    spectrum = np.abs(np.fft.rfft(windows, 2 * n_samples, axis=1)) ** 2
    return np.fft.irfft(spectrum, axis=1)[:, : n_samples // 2 + 1] / n_samples


def autocorrelation(covariances: np.ndarray) -> np.ndarray:
    """Mean autocovariance over windows (n, K) divided by its value at lag 0; (K,)."""
    mean = covariances.mean(0)
    return mean / mean[0] if mean[0] > 0 else np.zeros_like(mean)


def autocorrelation_error(first: np.ndarray, second: np.ndarray) -> float:
    """Rms over lags 1 to N // 2 of the difference of two autocorrelations."""
    difference = autocorrelation(first) - autocorrelation(second)
    return float(np.sqrt(np.mean(difference[1:] ** 2)))


def raw_moments(
    windows: np.ndarray, *, centre: float = 0.0, scale: float = 1.0
) -> np.ndarray:
    """Means of `u, u^2, u^3, u^4` over each window, `u = (x - centre) / scale`; (n, 4).

    Their averages over windows are all that `moments` needs.
    """
    u = (windows - centre) / scale
    squared = u**2
    powers = (u, squared, squared * u, squared**2)
    return np.stack([p.mean(1) for p in powers], axis=1)


def moments(raw: np.ndarray) -> np.ndarray:
    """Mean, standard deviation, skewness and kurtosis (3 for Gaussian noise); (4,).

    A constant has skewness 0 and kurtosis 1, the least that a distribution can have.

    Args:
        raw: (n, 4) from `raw_moments`.
    """
    m1, m2, m3, m4 = raw.mean(0)
    variance = m2 - m1**2
    if variance <= 1e-14 * m2:
        return np.array([m1, 0.0, 0.0, 1.0])
    third = m3 - 3 * m1 * m2 + 2 * m1**3
    fourth = m4 - 4 * m1 * m3 + 6 * m1**2 * m2 - 3 * m1**4
    sd = math.sqrt(variance)
    return np.array([m1, sd, third / sd**3, fourth / variance**2])


def jackknife_stderr(
    statistic: Callable[[np.ndarray], np.ndarray | float],
    items: np.ndarray,
    *,
    blocks: int = 20,
) -> np.ndarray:
    """Standard error by leaving out one contiguous block at a time (Kunsch 1989).

    `sqrt((B - 1) / B sum_b (T_b - mean T)^2)`; blocks rather than single windows so
    that neighbouring windows may be correlated.

    Args:
        statistic: function of items (n', ...).
        items: (n, ...), at least as many as blocks.
        blocks: number B of blocks.
    """
    block = np.arange(len(items)) * blocks // len(items)
    left_out = np.array([statistic(items[block != b]) for b in range(blocks)])
    return left_out.std(0) * math.sqrt(blocks - 1)


def amplitude_distance(first: np.ndarray, second: np.ndarray) -> float:
    """Wasserstein-1 distance of the sample values, in standard deviations of first."""
    a, b = _amplitudes(first), _amplitudes(second)
    sd = float(a.std()) or 1.0
    return float(stats.wasserstein_distance(a, b)) / sd


def kolmogorov_smirnov(first: np.ndarray, second: np.ndarray) -> float:
    """Largest difference of the two distribution functions of the sample values."""
    a, b = np.sort(_amplitudes(first)), np.sort(_amplitudes(second))
    grid = np.concatenate([a, b])
    below = [np.searchsorted(s, grid, side="right") / len(s) for s in (a, b)]
    return float(np.abs(below[0] - below[1]).max())


def speckle(spectra: np.ndarray) -> np.ndarray:
    """Gap `ln E P - E ln P` (nats) and spread `sd of 10 log10 P` (dB); (2,).

    Both are averages over frequency of what is estimated over windows. A generator
    that has collapsed to few waveforms has too small a gap and spread; noise whose
    level varies between windows has larger ones.

    Args:
        spectra: (n, F) periodograms.
    """
    inner = spectra[:, _EDGE_BINS:-_EDGE_BINS]
    mean = np.maximum(inner.mean(0), np.finfo(float).tiny)
    log = np.log(np.maximum(inner / mean, 1e-12))
    spread = 10 / math.log(10) * log.std(0, ddof=1).mean()
    return np.array([-log.mean(), spread])


def hop_variance_ratio(windows: np.ndarray, hop: int) -> tuple[float, float]:
    """Largest over smallest variance among the positions modulo `hop`.

    Noise that knows nothing of the frames has the ratio 1; overlap artefacts and
    Griffin-Lim phases modulate the variance with the period of the hop. Positions are
    pooled into at most 8 bins; `hop = N` compares the parts of the window.

    Args:
        windows: (n, N), zero mean.
        hop: samples, 2 to N.

    Returns:
        the ratio, and its standard error due to the number of windows.
    """
    bins = min(hop, _PHASE_BINS)
    bin_of_sample = (np.arange(windows.shape[1]) % hop) * bins // hop
    one_hot = np.eye(bins)[bin_of_sample]
    power = windows**2 @ (one_hot / one_hot.sum(0))  # (n, bins)
    mean = power.mean(0)
    if mean.min() <= 0:
        return (1.0, 0.0) if mean.max() <= 0 else (math.inf, 0.0)
    high, low = int(mean.argmax()), int(mean.argmin())
    log_ratio = power[:, high] / mean[high] - power[:, low] / mean[low]
    ratio = float(mean[high] / mean[low])
    return ratio, ratio * float(log_ratio.std(ddof=1)) / math.sqrt(len(windows))


def gaussian_nll(
    windows: np.ndarray, autocovariance: np.ndarray, mean: float = 0.0
) -> np.ndarray:
    """Negative log-likelihood of stationary Gaussian noise, nats per window.

    `(x^T C^-1 x + log det C + N log 2 pi) / 2` with the Toeplitz matrix
    `C_ij = c_|i-j|`, by Cholesky factor. In windows longer than 2048 samples each one
    after the first 512 is predicted from the 511 before it, which is exact for
    autoregressive noise of that order (Kay 1988, section 6).

    Args:
        windows: (n, N).
        autocovariance: (N,), lags 0 to N - 1.
        mean: level of the noise.

    Returns:
        (n,)
    """
    centred = np.asarray(windows, dtype=np.float64) - mean
    n_samples = centred.shape[1]
    order = n_samples if n_samples <= _MAX_DENSE else _FILTER_ORDER
    factor = _toeplitz_cholesky(np.asarray(autocovariance, dtype=np.float64)[:order])
    innovations = linalg.solve_triangular(factor, centred[:, :order].T, lower=True)
    diagonal = np.diag(factor)
    nll = 0.5 * (innovations**2).sum(0) + np.log(diagonal).sum()
    if n_samples > order:
        last = np.zeros(order)
        last[-1] = 1.0
        predictor = linalg.solve_triangular(factor, last, lower=True, trans=1)
        later = signal.oaconvolve(
            centred[:, 1:], predictor[None, ::-1], mode="valid", axes=1
        )
        nll += 0.5 * (later**2).sum(1)
        nll += (n_samples - order) * math.log(diagonal[-1])
    return nll + 0.5 * n_samples * math.log(2 * math.pi)


def _toeplitz_cholesky(column: np.ndarray) -> np.ndarray:
    """Lower factor; a white floor is added, as little as makes it positive definite."""
    jitter = 0.0
    while jitter <= 1:
        padded = column.copy()
        padded[0] *= 1 + jitter
        try:
            return linalg.cholesky(linalg.toeplitz(padded), lower=True)
        except linalg.LinAlgError:
            jitter = max(10 * jitter, 1e-12)
    raise linalg.LinAlgError("the autocovariance is not that of a stationary process")


def _amplitudes(windows: np.ndarray) -> np.ndarray:
    """At most 65536 sample values, from all positions in the window alike."""
    stride = math.ceil(windows.size / _MAX_AMPLITUDES)
    while math.gcd(stride, windows.shape[-1]) > 1:
        stride += 1
    return windows.ravel()[::stride]
