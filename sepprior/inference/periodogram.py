"""Profile log-likelihood of a sinusoid over frequency, for all measurements at once.

With P the precision of the noise, ``e_n = exp(i omega n)`` and the bias profiled out,
the generalised least-squares fit at each frequency needs only ``e^H P e``, ``e^T P e``,
``1^T P e`` and ``e^T P x``. The first two are Fourier sums over the diagonals and the
antidiagonals of P, so one fast Fourier transform gives each at all frequencies: the
exact form of the whitened Lomb-Scargle periodogram with floating mean (Zechmeister and
Kuerster 2009) for correlated noise.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from sepprior.inference.record import MaskedWhitener, Record

OVERSAMPLING = 8
SHORT = 2**20
"""Longest record, in samples, that gets the full oversampling; longer ones get 2."""


@dataclass(frozen=True)
class Periodogram:
    """Likelihood gain of a sinusoid over a constant.

    Attributes:
        frequency: shape (F,), Hz.
        gain: shape (B, F), nats.
    """

    frequency: Tensor
    gain: Tensor

    def peaks(self, count: int, *, separation: float) -> Tensor:
        """Frequencies (B, count) of the highest local maxima, best first.

        Args:
            count: how many; measurements with fewer maxima repeat the best.
            separation: smallest distance between two, Hz.
        """
        gain = self.gain
        reach = 1
        if len(self.frequency) > 1:
            step = float(self.frequency[1] - self.frequency[0])
            reach = max(1, round(separation / step))
        pooled = torch.nn.functional.max_pool1d(gain[:, None], 2 * reach + 1, 1, reach)
        pooled = pooled[:, 0]
        local = torch.where(gain >= pooled, gain, torch.full_like(gain, -math.inf))
        count_here = min(count, gain.shape[-1])
        values, index = local.topk(count_here, dim=-1)
        index = torch.where(torch.isfinite(values), index, index[:, :1])
        if count_here < count:
            index = torch.cat([index, index[:, :1].expand(-1, count - count_here)], 1)
        return self.frequency[index]


def periodogram(
    record: Record, whitener: MaskedWhitener, *, fmin: float, fmax: float
) -> Periodogram:
    """Likelihood gain over the band, in nats.

    Args:
        record: B measurements.
        whitener: of the stationary noise.
        fmin: lower edge, Hz.
        fmax: upper edge, Hz.

    Returns:
        Gains on a grid of at most ``1 / (8 T)`` spacing (``1 / (2 T)`` for records
        longer than `SHORT`).
    """
    n_samples = record.x.shape[1] * record.x.shape[2]
    oversampling = OVERSAMPLING if n_samples <= SHORT else 2
    size = 2 ** math.ceil(math.log2(oversampling * n_samples))
    resolution = record.sample_rate / size
    first, last = math.ceil(fmin / resolution), math.floor(fmax / resolution)
    if last < first:
        first = last = round(0.5 * (fmin + fmax) / resolution)
    bins = slice(first, last + 1)
    grid = torch.arange(first, last + 1, device=record.x.device) * resolution
    everyone = torch.arange(len(record.x), device=record.x.device)
    if whitener.complete:
        gram = _gram(whitener, 0, record, size, bins)
        weighted = _precision_times(whitener, record.x.unsqueeze(1), everyone)[:, 0]
        gain = _gain(weighted, gram, size, bins)
        return Periodogram(grid.double(), gain)
    gains = []
    for b in range(len(record.x)):
        gram = _gram(whitener, b, record, size, bins)
        weighted = _precision_times(
            whitener, record.x[b : b + 1].unsqueeze(1), everyone[b : b + 1]
        )[:, 0]
        gains.append(_gain(weighted, gram, size, bins))
    return Periodogram(grid.double(), torch.cat(gains))


@dataclass(frozen=True)
class _Gram:
    h: Tensor
    g: Tensor
    u: Tensor
    total: Tensor


def _precision_times(whitener: MaskedWhitener, x: Tensor, which: Tensor) -> Tensor:
    """P x per window, (Q, k, W, N): whiten, then the adjoint."""
    return whitener.adjoint(whitener.forward(x, which), which)


def _gram(
    whitener: MaskedWhitener, b: int, record: Record, size: int, bins: slice
) -> _Gram:
    """Fourier sums over the precision of measurement `b`."""
    n_windows, n = record.x.shape[1:]
    which = torch.tensor([b], device=record.x.device)
    ones = record.present[b].double()[None, None]
    u = _precision_times(whitener, ones, which)[0, 0].flatten()
    u_hat = torch.fft.rfft(u, size)[bins].conj()
    total = u.sum()
    if whitener.whitener.taps is not None:
        taps = torch.fft.rfft(whitener.whitener.taps, size)[bins]
        share = record.present[b].double().sum()
        return _Gram(taps.abs().square() * share, torch.zeros_like(u_hat), u_hat, total)
    dtype, device = record.x.dtype, record.x.device
    lag = torch.arange(n, device=device)
    diagonals = torch.zeros(n, dtype=dtype, device=device)
    cross = torch.zeros(2 * n_windows * n, dtype=dtype, device=device)
    cache: Tensor | None = None
    whole = record.present[b].all(-1)
    for w in range(n_windows):
        if cache is None or not bool(whole[w]):
            matrix = whitener.matrix(b, w)
            precision = matrix.mT @ matrix
            if bool(whole[w]):
                cache = precision
        else:
            precision = cache
        distance = (lag[:, None] - lag[None, :]).abs().flatten()
        diagonals.index_add_(0, distance, precision.flatten())
        place = (lag[:, None] + lag[None, :]).flatten() + 2 * w * n
        cross.index_add_(0, place, precision.flatten())
    h = torch.fft.rfft(diagonals, size)[bins].real
    g = torch.fft.rfft(cross, size)[bins].conj()
    return _Gram(h, g, u_hat, total)


def _gain(weighted: Tensor, gram: _Gram, size: int, bins: slice) -> Tensor:
    """Gains (B, F) from P x (B, W, N)."""
    flat = weighted.flatten(1)
    x_hat = torch.fft.rfft(flat, size)[:, bins].conj()
    b0 = flat.sum(-1, keepdim=True)
    u, total = gram.u, gram.total
    cc = 0.5 * (gram.h + gram.g.real) - u.real.square() / total
    ss = 0.5 * (gram.h - gram.g.real) - u.imag.square() / total
    cs = 0.5 * gram.g.imag - u.real * u.imag / total
    rc = x_hat.real - u.real * b0 / total
    rs = x_hat.imag - u.imag * b0 / total
    determinant = cc * ss - cs.square()
    usable = determinant > 1e-8 * (0.5 * gram.h).square()
    gain = 0.5 * (rc.square() * ss - 2.0 * rc * rs * cs + rs.square() * cc)
    return torch.where(usable, gain / determinant.clamp_min(1e-300), gain * 0.0)
