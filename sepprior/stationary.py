"""Second-order statistics of a recording: level, autocovariance, continuum.

Everything here streams over blocks, so a recording need not fit in memory.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sepprior.transforms import MAX_DENSE_WINDOW, toeplitz

CONTINUUM_PERIODOGRAM = 16
"""Periodogram length of the continuum estimate, in windows."""
EDGE = 0.5
"""Ramp at the ends of a block, in windows."""
FEWEST_PAIRS = 0.5
"""Share of the pairs at no lag that must be there at the last one."""


def autocovariance(
    blocks: Iterable[np.ndarray], *, n_lags: int
) -> tuple[float, Tensor]:
    """Mean and autocovariance of a recording.

    ``r_k = sum_t w_t w_{t+k} (x_t - m)(x_{t+k} - m) / sum_t w_t w_{t+k}``, summed over
    pairs inside each block. The weights w fall to zero as a squared sine towards the
    ends of a block and towards gaps (NaN): a sharp end leaks power from where the
    spectrum is high to where it is low (Percival and Walden 1993, section 6.4).

    This is unbiased, but the covariance matrix of few short blocks need not be
    positive definite. Where the blocks hold less than `FEWEST_PAIRS` of the pairs at
    the last lag, or the matrix is not, all lags are divided by ``sum_t w_t^2``: biased
    towards zero, it is (same source, section 6.2).

    Args:
        blocks: one-dimensional arrays in data units; NaN marks gaps.
        n_lags: number of lags N, from 0 to N - 1.

    Returns:
        The mean and the autocovariance, shape (N,), float64, squared data units.
    """
    total = count = 0.0
    products = np.zeros(n_lags)
    pairs = np.zeros(n_lags)
    pivot: float | None = None
    first_moment = np.zeros(n_lags)
    for block in blocks:
        x = np.asarray(block, dtype=np.float64)
        present = np.isfinite(x)
        if not present.any():
            continue
        if pivot is None:
            pivot = float(x[present].mean())
        filled = np.where(present, x - pivot, 0.0)
        total += filled.sum()
        count += present.sum()
        weights = _weights(present, longest=EDGE * n_lags)
        size = 2 ** math.ceil(math.log2(x.size + n_lags))
        spectrum = np.fft.rfft(filled * weights, size)
        mask = np.fft.rfft(weights, size)
        products += np.fft.irfft(np.abs(spectrum) ** 2, size)[:n_lags]
        pairs += np.fft.irfft(np.abs(mask) ** 2, size)[:n_lags]
        cross = np.fft.irfft(spectrum * mask.conj(), size)
        first_moment += cross[:n_lags] + cross[(-np.arange(n_lags)) % size]
    if pivot is None or count < 2:
        raise ArithmeticError("no finite samples to estimate an autocovariance from")
    mean = total / count
    products = torch.from_numpy(products - mean * first_moment + mean**2 * pairs)
    weight = torch.from_numpy(pairs)
    if bool((weight >= FEWEST_PAIRS * weight[0]).all()):
        unbiased = products / weight
        covariance = toeplitz(unbiased[:MAX_DENSE_WINDOW])
        if int(torch.linalg.cholesky_ex(covariance).info) == 0:
            return pivot + mean, unbiased
    return pivot + mean, products / weight[0]


def _weights(present: NDArray[np.bool_], *, longest: float) -> NDArray[np.float64]:
    """Weights that rise from the ends of every stretch of present samples, (n,).

    The ramps take `longest` samples, or an eighth of a shorter stretch.
    """
    n = present.size
    place = np.arange(n)
    before = np.maximum.accumulate(np.where(present, -1, place))
    after = np.minimum.accumulate(np.where(present, n, place)[::-1])[::-1]
    ramp = np.clip((after - before - 1) / 8, 1.0, max(1.0, longest))
    depth = np.minimum(place - before, after - place) - 0.5
    return np.sin(0.5 * np.pi * np.clip(depth / ramp, 0.0, 1.0)) ** 2


def continuum_autocovariance(
    blocks: Iterable[np.ndarray], *, n_lags: int, mean: float
) -> Tensor | None:
    """Autocovariance of the noise without its spectral lines.

    The periodogram is averaged over segments of 16 windows, then replaced, frequency
    by frequency, by its running median over two window resolutions (4 / N): a line
    narrower than that leaves the median unchanged. The median of an average of m
    periodograms is less than its mean, by the ratio of the median of a gamma variate
    of shape m to m, and is scaled up by that.

    Args:
        blocks: one-dimensional arrays in data units.
        n_lags: N.
        mean: level to subtract.

    Returns:
        Shape (N,), float64, or None when the recording holds no segment long enough.
    """
    from scipy.ndimage import median_filter
    from scipy.special import gammaincinv

    size = CONTINUUM_PERIODOGRAM * n_lags
    taper = np.sin(np.pi * (np.arange(size) + 0.5) / size) ** 2
    power = np.zeros(size // 2 + 1)
    count = 0
    for block in blocks:
        x = np.asarray(block, dtype=np.float64) - mean
        for start in range(0, x.size - size + 1, size // 2):
            segment = x[start : start + size]
            if np.isfinite(segment).all():
                power += np.abs(np.fft.rfft(segment * taper)) ** 2
                count += 1
    if count == 0:
        return None
    power /= count * (taper**2).sum()
    width = 2 * 2 * CONTINUUM_PERIODOGRAM + 1
    smooth = median_filter(power, width, mode="nearest")
    # Neighbours at half overlap correlate by 1/6 under this taper (Welch 1967).
    averages = count / (1.0 + 2.0 / 36.0 * (1.0 - 1.0 / count))
    smooth *= averages / gammaincinv(averages, 0.5)
    # The running median flattens a steep spectrum near zero frequency: keep the
    # measured periodogram there, where no line can be told from the continuum.
    smooth[:CONTINUUM_PERIODOGRAM] = power[:CONTINUUM_PERIODOGRAM]
    return torch.from_numpy(np.fft.irfft(smooth, size)[:n_lags].copy())


def expected_periodogram(autocovariance: Tensor, *, n_fft: int) -> Tensor:
    """Expectation of a window's periodogram (Percival and Walden 1993, section 6.3).

    Args:
        autocovariance: shape (N,), squared data units.
        n_fft: points of the transform, zero-padded.

    Returns:
        Shape (n_fft // 2 + 1,), squared data units per cycle per sample.
    """
    n = len(autocovariance)
    lag = torch.arange(n).to(autocovariance)
    tapered = autocovariance * (1.0 - lag / n)
    spectrum = 2.0 * torch.fft.rfft(tapered, n_fft).real - tapered[0]
    return spectrum.clamp_min(1e-12 * float(tapered[0]))
