"""Second-order statistics of a recording: level, autocovariance, continuum.

Everything here streams over blocks, so a recording need not fit in memory.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from itertools import islice

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sepprior.transforms import (
    MAX_DENSE_WINDOW,
    MAX_FILTER_ORDER,
    cholesky_covariance,
    levinson,
    toeplitz,
)

CONTINUUM_PERIODOGRAM = 16
"""Periodogram length of the continuum estimate, in windows."""
EDGE = 0.5
"""Ramp at the ends of a block, in windows."""
FEWEST_PAIRS = 0.5
"""Share of the pairs at no lag that are enough at the last one."""
NO_PAIRS = 1e-12
"""Share of the pairs at no lag that is rounding: there is none."""
JUDGE_EVERY = 8
"""Of so many short blocks one helps to judge the estimates from the others."""
FEWEST_JUDGES, JUDGES = 8, 64
"""Windows at least and at most that these are judged by."""
FOLDS = 4
"""Parts of a short recording, each predicted by what the others say."""


def autocovariance(
    blocks: Iterable[np.ndarray], *, n_lags: int
) -> tuple[float, Tensor]:
    """Mean and autocovariance of a recording.

    ``r_k = sum_t w_t w_{t+k} (x_t - m)(x_{t+k} - m) / sum_t w_t w_{t+k}``, summed over
    pairs inside each block. The weights w fall to zero as a squared sine towards the
    ends of a block and towards gaps (NaN): a sharp end leaks power from where the
    spectrum is high to where it is low (Percival and Walden 1993, section 6.4).

    This is unbiased, but the covariance matrix of few short blocks need not be
    positive definite, nor near the true one. Divided by ``sum_t w_t^2`` at all lags it
    is positive definite, and spectral lines are broader (same source, section 6.2).
    That is done where the matrix is not. Where blocks are so short that they hold less
    than `FEWEST_PAIRS` of the pairs at the last lag, it is done unless the unbiased
    estimate from seven of eight blocks makes windows of the eighth likelier.

    Args:
        blocks: one-dimensional arrays in data units; NaN marks gaps.
        n_lags: number of lags N, from 0 to N - 1.

    Returns:
        The mean and the autocovariance, shape (N,), float64, squared data units.

    Raises:
        ArithmeticError: fewer than two samples are present.
    """
    most, rest = _Sums(n_lags), _Sums(n_lags)
    judges: list[np.ndarray] = []
    number = 0
    for block in blocks:
        x = np.asarray(block, dtype=np.float64)
        if not np.isfinite(x).any():
            continue
        number += 1
        if number % JUDGE_EVERY:
            most.add(x)
        else:
            rest.add(x)
            judges += _complete(x, min(n_lags, MAX_DENSE_WINDOW), len(judges))
    whole = most + rest
    if whole.count < 2:
        raise ArithmeticError("no finite samples to estimate an autocovariance from")
    mean = whole.mean
    unbiased, biased = whole.estimates(mean)
    pairs = whole.pairs
    if (pairs >= FEWEST_PAIRS * pairs[0]).all():
        usable = _positive_definite(unbiased)
    else:
        windows = torch.from_numpy(np.array(judges) - mean)
        enough = len(windows) >= FEWEST_JUDGES
        usable = enough and _likelier(*most.estimates(mean), windows)
    return mean, unbiased if usable else biased


class _Sums:
    """Weighted sums over pairs, of values less the first block's mean.

    Attributes:
        count: samples that are present.
        pairs: sums of the weights, (N,).
    """

    def __init__(self, n_lags: int) -> None:
        self.n_lags = n_lags
        self.pivot: float | None = None
        self.total = self.count = 0.0
        self.products, self.pairs, self.first = np.zeros((3, n_lags))

    def add(self, x: NDArray[np.float64]) -> None:
        """Take in a block with at least one finite value."""
        present = np.isfinite(x)
        if self.pivot is None:
            self.pivot = float(x[present].mean())
        filled = np.where(present, x - self.pivot, 0.0)
        self.total += filled.sum()
        self.count += present.sum()
        weights = _weights(present, longest=EDGE * self.n_lags)
        n = self.n_lags
        size = 2 ** math.ceil(math.log2(x.size + n))
        spectrum = np.fft.rfft(filled * weights, size)
        mask = np.fft.rfft(weights, size)
        self.products += np.fft.irfft(np.abs(spectrum) ** 2, size)[:n]
        self.pairs += np.fft.irfft(np.abs(mask) ** 2, size)[:n]
        cross = np.fft.irfft(spectrum * mask.conj(), size)
        self.first += cross[:n] + cross[(-np.arange(n)) % size]

    @property
    def mean(self) -> float:
        """Mean of all samples."""
        return (self.pivot or 0.0) + self.total / self.count

    def about(self, centre: float) -> NDArray[np.float64]:
        """Sums of the products of values less `centre`, (N,)."""
        shift = centre - (self.pivot or 0.0)
        return self.products - shift * self.first + shift**2 * self.pairs

    def estimates(self, centre: float) -> tuple[Tensor, Tensor]:
        """The unbiased and the biased autocovariance about `centre`, (N,) each."""
        products = self.about(centre)
        exist = self.pairs > NO_PAIRS * self.pairs[0]
        unbiased = np.where(exist, products, 0.0) / np.where(exist, self.pairs, 1.0)
        return torch.from_numpy(unbiased), torch.from_numpy(products / self.pairs[0])

    def __add__(self, other: _Sums) -> _Sums:
        """The sums over the blocks of both."""
        if other.pivot is None or self.pivot is None:
            return self if other.pivot is None else other
        both = _Sums(self.n_lags)
        both.pivot, both.count = self.pivot, self.count + other.count
        shift = other.pivot - self.pivot
        both.total = self.total + other.total + shift * other.count
        both.products = self.products + other.about(other.pivot - shift)
        both.pairs = self.pairs + other.pairs
        both.first = self.first + other.first + 2.0 * shift * other.pairs
        return both


def _complete(x: NDArray[np.float64], size: int, found: int) -> list[np.ndarray]:
    """Windows of `size` samples of a block without gaps, as far as more are wanted."""
    windows = (x[i : i + size] for i in range(0, x.size - size + 1, size))
    complete = (w for w in windows if np.isfinite(w).all())
    return list(islice(complete, max(0, JUDGES - found)))


def _positive_definite(r: Tensor) -> bool:
    """Whether the matrix of the lags that windows are whitened by is."""
    factor = torch.linalg.cholesky_ex(toeplitz(r[:MAX_DENSE_WINDOW]))
    return int(factor.info) == 0


def _likelier(one: Tensor, other: Tensor, windows: Tensor) -> bool:
    """Whether Gaussian noise of one autocovariance makes windows (n, M) likelier."""
    return _energy(one, windows) < _energy(other, windows)


def _energy(r: Tensor, windows: Tensor) -> float:
    """Minus the log-likelihood of windows (n, M) up to a constant, nats."""
    try:
        root = cholesky_covariance(toeplitz(r[: windows.shape[1]]))
    except ArithmeticError:
        return math.inf
    white = torch.linalg.solve_triangular(root, windows.mT, upper=False)
    return float(
        0.5 * white.square().sum() + root.diagonal().log().sum() * len(windows)
    )


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


def autoregressive_order(
    blocks: Sequence[np.ndarray], *, n_lags: int, mean: float
) -> int | None:
    """Order p of the autoregressive process that predicts a short recording best.

    N lags from a few windows follow the noise of their own estimate. Each of `FOLDS`
    parts is predicted, sample by sample, with the coefficients of the Yule-Walker
    equations of the others; the likeliest of p = 0, 1, 2, 4, ... is chosen.

    Args:
        blocks: the recording, one-dimensional arrays in data units; NaN marks gaps.
        n_lags: N.
        mean: level to subtract.

    Returns:
        The order; None where all N lags predict as well as any fewer.
    """
    from scipy.signal import oaconvolve

    present = [np.isfinite(block) for block in blocks]
    filled = [np.where(p, b - mean, 0.0) for p, b in zip(present, blocks, strict=True)]
    count = sum(int(p.sum()) for p in present)
    full = (n_lags if n_lags <= MAX_DENSE_WINDOW else MAX_FILTER_ORDER) - 1
    orders = [0, *(2**i for i in range(64) if 2**i < min(full, count / FOLDS)), full]
    total = np.zeros(len(orders))
    place = np.cumsum(np.concatenate(present)) * FOLDS // (count + 1)
    cuts = np.cumsum([b.size for b in blocks])[:-1]
    folds = np.split(place, cuts)
    for fold in range(FOLDS):
        sums = _Sums(n_lags)
        for block, here in zip(blocks, folds, strict=True):
            rest = np.where(here == fold, np.nan, block)
            if np.isfinite(rest).any():
                sums.add(rest)
        _, covariance = sums.estimates(mean)
        for i, order in enumerate(orders):
            taps, variance = _prediction(covariance, order)
            for x, p, here in zip(filled, present, folds, strict=True):
                error = oaconvolve(x, taps.numpy())[: x.size][p & (here == fold)]
                total[i] += (error**2 / variance + math.log(variance)).sum()
    best = int(total.argmin())
    return None if best == len(orders) - 1 else orders[best]


def autoregressive(autocovariance: Tensor, order: int, *, n_lags: int) -> Tensor:
    """Autocovariance (n_lags,) of the AR process with the first `order` + 1 lags."""
    taps, _ = _prediction(autocovariance, order)
    r = torch.zeros(n_lags, dtype=torch.float64)
    r[: order + 1] = autocovariance[: order + 1]
    back = -taps[1:].flip(0)
    for lag in range(order + 1, n_lags if order else 0):
        r[lag] = back @ r[lag - order : lag]
    return r.to(autocovariance.device)


def _prediction(autocovariance: Tensor, order: int) -> tuple[Tensor, float]:
    """`levinson` for any order, also 0; a variance that is never below rounding."""
    least = max(1e-12 * float(autocovariance[0]), 1e-300)
    if not order:
        return torch.ones(1, dtype=torch.float64), max(float(autocovariance[0]), least)
    raised = autocovariance.double().cpu().clone()
    raised[0] *= 1.0 + 1e-9
    taps, variance = levinson(raised, order)
    return taps, max(float(variance), least)


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
