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
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import cast

import torch
from scipy.fft import next_fast_len
from torch import Tensor

from sepprior.inference.least_squares import SAMPLES_AT_ONCE
from sepprior.inference.record import MaskedWhitener, Record

OVERSAMPLING = 8
MATCHED_OVERSAMPLING = 4
MATCHED_BYTES = 2**27
"""Memory for the gains of a family of matched filters; bounds the batch."""
BINS_AT_ONCE = 2**21
"""Frequencies whose sums are kept together; bounds the memory of wide bands."""
GAINS_AT_ONCE = 2**20
"""Gains that are worked out together; bounds memory."""
SHORT = 2**20
"""Longest record, in samples, that gets the full oversampling; longer ones get 2."""
STRIDE = 16
"""Parts in which long records are transformed."""


@dataclass(frozen=True)
class Periodogram:
    """Likelihood gain of a sinusoid over a constant.

    Attributes:
        frequency: shape (F,), Hz.
        gain: shape (B, F), nats.
    """

    frequency: Tensor
    gain: Tensor

    def within(self, low: float, high: float) -> Periodogram:
        """The part of a narrower band, Hz: at least its nearest frequency."""
        inside = (self.frequency >= low) & (self.frequency <= high)
        if bool(inside.all()):
            return self
        if not bool(inside.any()):
            inside = torch.zeros_like(inside)
            inside[(self.frequency - 0.5 * (low + high)).abs().argmin()] = True
        return Periodogram(self.frequency[inside], self.gain[:, inside])

    def at(self, frequency: Tensor) -> Tensor:
        """Gain (B, k) at frequencies (B, k) of the grid."""
        index = torch.searchsorted(self.frequency, frequency.contiguous())
        return self.gain.gather(1, index.clamp_max(self.gain.shape[1] - 1))

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
        local = gain.masked_fill(~(gain >= pooled[:, 0]), -math.inf)
        del pooled  # as long as the band is wide
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
    size = fourier_size(record.x.shape[1] * record.x.shape[2])
    resolution = record.sample_rate / size
    first, last = math.ceil(fmin / resolution), math.floor(fmax / resolution)
    if last < first:
        first = last = round(0.5 * (fmin + fmax) / resolution)
    everyone = torch.arange(len(record.x), device=record.x.device)
    gain = record.x.new_empty(len(everyone), last + 1 - first)
    # Without gaps all measurements have the same sums over the precision.
    at_once = len(everyone) if whitener.complete else 1
    for row in range(0, len(everyone), at_once):
        rows = slice(row, row + at_once)
        columns = record.x[rows].unsqueeze(1)
        weighted = precision_times(whitener, columns, everyone[rows])[:, 0]
        for begin in range(first, last + 1, BINS_AT_ONCE):
            part = slice(begin, min(begin + BINS_AT_ONCE, last + 1))
            gram = gram_of(whitener, row, record, size, part)
            own = slice(part.start - first, part.stop - first)
            gain[rows, own] = _gain(weighted, gram, size, part)
            del gram
    grid = torch.arange(first, last + 1, dtype=torch.float64, device=record.x.device)
    return Periodogram(grid.mul_(resolution), gain)


def fourier_size(n_samples: int) -> int:
    """Length of the transform for records of so many samples."""
    if n_samples <= SHORT:
        return 2 ** math.ceil(math.log2(OVERSAMPLING * n_samples))
    return STRIDE * cast(int, next_fast_len(-(-2 * n_samples // STRIDE), real=True))


Taper = Callable[[Tensor, Tensor], tuple[Tensor, float]]
"""(times (..., N), shape parameter) -> complex taper (..., N) and swept band, Hz."""


def matched_gain(
    record: Record,
    whitener: MaskedWhitener,
    taper: Taper,
    shapes: Tensor,
    *,
    fmin: float,
    fmax: float,
    count: int,
) -> Tensor:
    """Best frequencies and shapes of a family of tapered sinusoids.

    The matched filter of ``w(t) exp(2 pi i f t)`` in noise of precision P gains
    ``|w^H e^H P x|^2 / (w^H e^H P e w)`` nats. The denominator is approximated by that
    of the plain sinusoid, averaged over the band that the taper sweeps and scaled by
    the taper's energy: exact in white noise, good enough to rank starts elsewhere.

    Args:
        record: B measurements.
        whitener: of the stationary noise.
        taper: of the family.
        shapes: shape parameters to try, (S,).
        fmin: lowest frequency, Hz.
        fmax: highest frequency, Hz.
        count: points to return.

    Returns:
        Shape (B, count, 2): frequency and shape of the highest local maxima, best
        first; the best is repeated where there are fewer.
    """
    n_samples = record.x.shape[1] * record.x.shape[2]
    size = 2 ** math.ceil(math.log2(MATCHED_OVERSAMPLING * n_samples))
    resolution = record.sample_rate / size
    first = max(1, math.ceil(fmin / resolution))
    last = max(first, math.floor(fmax / resolution))
    everyone = torch.arange(len(record.x), device=record.x.device)
    whole = slice(0, size // 2 + 1)
    gram = gram_of(whitener, 0, record, size, whole)
    ones = record.present.to(record.x).unsqueeze(1)
    both = torch.cat([record.x.unsqueeze(1), ones], 1)
    weighted = precision_times(whitener, both, everyone)
    level = weighted[:, :1].sum((-1, -2), keepdim=True)
    level = level / weighted[:, 1:].sum((-1, -2), keepdim=True)
    data = (weighted[:, 0] - level[:, 0] * weighted[:, 1]).flatten(1)
    share = record.present.to(data).flatten(1)
    present = share[0].sum()
    tapers, scales = [], []
    for shape in shapes:
        window, swept = taper(record.t, shape)
        flat = window.flatten()
        reach = round(0.5 * swept / resolution)
        smooth = _running_mean(gram.h, reach)[first : last + 1]
        energy = (flat.abs().square() * share[0]).sum() / present
        tapers.append(flat.conj())
        scales.append(smooth * energy)
    scale = torch.stack(scales).clamp_min(1e-300)
    bank = torch.stack(tapers)
    n_shapes, n_bins = scale.shape
    at_once = max(1, MATCHED_BYTES // (16 * n_shapes * size))
    near = max(1, round(0.5 / record.duration / resolution))
    points = []
    for rows in data.split(at_once):
        spectrum = torch.fft.fft(rows[:, None] * bank, size)[..., first : last + 1]
        gain = spectrum.abs().square() / scale
        pooled = torch.nn.functional.max_pool2d(
            gain[:, None], (3, 2 * near + 1), 1, (1, near)
        )[:, 0]
        local = torch.where(gain >= pooled, gain, -math.inf).flatten(1)
        kept = min(count, local.shape[1])
        values, index = local.topk(kept)
        index = torch.where(torch.isfinite(values), index, index[:, :1])
        if kept < count:
            index = torch.cat([index, index[:, :1].expand(-1, count - kept)], 1)
        frequency = (first + index % n_bins) * resolution
        points.append(torch.stack([frequency.to(data), shapes[index // n_bins]], -1))
    return torch.cat(points)


def _running_mean(values: Tensor, reach: int) -> Tensor:
    """Mean over `reach` neighbours on either side, fewer at the ends, (F,)."""
    total = torch.cat([values.new_zeros(1), values.cumsum(0)])
    index = torch.arange(len(values), device=values.device)
    low = (index - reach).clamp_min(0)
    high = (index + reach + 1).clamp_max(len(values))
    return (total[high] - total[low]) / (high - low)


@dataclass(frozen=True)
class Gram:
    """Sums over a precision matrix P, with ``e_n = exp(i omega n)``.

    Attributes:
        h: ``e^H P e``, (F,).
        g: ``e^T P e``, (F,).
        u: ``1^T P e``, (F,).
        total: ``1^T P 1``.
    """

    h: Tensor
    g: Tensor
    u: Tensor
    total: Tensor

    def select(self, which: Tensor | slice) -> Gram:
        """At some of the frequencies."""
        return Gram(self.h[which], self.g[which], self.u[which], self.total)

    def information(self) -> Tensor:
        """``X^T P X`` of columns 1, cos and sin from sample 0 on, (..., 3, 3)."""
        one = self.total.expand_as(self.h)
        even, odd = 0.5 * (self.h + self.g.real), 0.5 * (self.h - self.g.real)
        cross = 0.5 * self.g.imag
        rows = (one, self.u.real, self.u.imag, self.u.real, even, cross)
        rows = (*rows, self.u.imag, cross, odd)
        return torch.stack(rows, -1).unflatten(-1, (3, 3))

    def log_volume(self) -> Tensor:
        """``log det X^T P X`` but for a constant; infinite where degenerate, (F,)."""
        determinant, usable = self._determinant()
        return torch.where(usable, determinant.clamp_min(1e-300).log(), torch.inf)

    def _centred(self) -> tuple[Tensor, Tensor, Tensor]:
        """Sums over cosine and sine with the constant taken out: cc, ss and cs."""
        u, total = self.u, self.total
        cc = 0.5 * (self.h + self.g.real) - u.real.square() / total
        ss = 0.5 * (self.h - self.g.real) - u.imag.square() / total
        return cc, ss, 0.5 * self.g.imag - u.real * u.imag / total

    def _determinant(self) -> tuple[Tensor, Tensor]:
        """Of the centred sums, and where it is more than rounding."""
        cc, ss, cs = self._centred()
        determinant = cc * ss - cs.square()
        return determinant, determinant > 1e-8 * (0.5 * self.h).square()

    def gain(self, x_hat: Tensor, b0: Tensor) -> Tensor:
        """Gains (B, F) from the sums of P x at the frequencies and plain (B, 1)."""
        cc, ss, cs = self._centred()
        determinant, usable = self._determinant()
        rc = x_hat.real - self.u.real * b0 / self.total
        rs = x_hat.imag - self.u.imag * b0 / self.total
        gain = 0.5 * (rc.square() * ss - 2.0 * rc * rs * cs + rs.square() * cc)
        return torch.where(usable, gain / determinant.clamp_min(1e-300), gain * 0.0)


def precision_times(whitener: MaskedWhitener, x: Tensor, which: Tensor) -> Tensor:
    """P x per window, (Q, k, W, N), worked out some windows at a time."""
    n_windows = x.shape[2]
    at_once = max(1, SAMPLES_AT_ONCE // x[:, :, 0].numel())
    if at_once >= n_windows:
        return whitener.adjoint(whitener.forward(x, which), which)
    product = torch.empty_like(x)
    for begin in range(0, n_windows, at_once):
        end = min(begin + at_once, n_windows)
        own = whitener.windows(begin, end)
        white = own.forward(x[:, :, begin:end], which)
        product[:, :, begin:end] = own.adjoint(white, which)
    return product


def gram_of(
    whitener: MaskedWhitener, b: int, record: Record, size: int, bins: slice
) -> Gram:
    """Fourier sums over the precision of measurement `b`."""
    n_windows, n = record.x.shape[1:]
    which = torch.tensor([b], device=record.x.device)
    ones = record.present[b].double()[None, None]
    u = precision_times(whitener, ones, which)[0, 0].flatten()
    del ones
    u_hat = sums(u, size, bins)
    total = u.sum()
    del u  # as long as the measurement, like the next
    if whitener.whitener.taps is not None:
        taps = torch.fft.rfft(whitener.whitener.taps, size)[bins]
        share = record.present[b].double().sum()
        return Gram(taps.abs().square() * share, torch.zeros_like(u_hat), u_hat, total)

    def matrices() -> Iterator[tuple[list[int], Tensor]]:
        whole = record.present[b].all(-1)
        groups = [whole.nonzero().flatten().tolist()]
        groups += [[row] for row in (~whole).nonzero().flatten().tolist()]
        for group in groups:
            if group:
                matrix = whitener.matrix(b, group[0])
                yield group, matrix.mT @ matrix

    h, g = matrix_sums(matrices(), (n_windows, n), size, bins)
    return Gram(h, g, u_hat, total)


def matrix_sums(
    matrices: Iterable[tuple[list[int], Tensor]],
    shape: tuple[int, int],
    size: int,
    bins: slice,
) -> tuple[Tensor, Tensor]:
    """``e^H P e`` and ``e^T P e`` of a block-diagonal P, (F,) each.

    Args:
        matrices: numbers of windows, and the block (N, N) that they have.
        shape: W and N.
        size: of the transform: frequencies are multiples of the sample rate over it.
        bins: which of them.
    """
    n_windows, n = shape
    lag = torch.arange(n)
    distance = (lag[:, None] - lag[None, :]).abs().flatten()
    place = (lag[:, None] + lag[None, :]).flatten()
    diagonals = cross = None
    for rows, block in matrices:
        if diagonals is None or cross is None:
            diagonals, cross = block.new_zeros(n), block.new_zeros(n_windows, 2 * n)
            distance, place = distance.to(block.device), place.to(block.device)
        flat = block.flatten()
        diagonals.index_add_(0, distance, flat, alpha=len(rows))
        # Those of window w begin at twice its first sample.
        cross[rows] = flat.new_zeros(2 * n).index_add_(0, place, flat)
    assert diagonals is not None and cross is not None
    return sums(diagonals, size, bins).real.clone(), sums(cross.flatten(), size, bins)


def sums(values: Tensor, size: int, bins: slice) -> Tensor:
    """``sum_n exp(+i omega n) values_n``, (..., n) to (..., F), in the bins alone.

    Of long records every `STRIDE`-th sample is transformed by itself and the parts are
    put together in the bins (Cooley and Tukey 1965): memory for one part is enough.
    """
    if size <= OVERSAMPLING * SHORT:
        return torch.fft.rfft(values, size)[..., bins].conj().clone()
    length = size // STRIDE
    count = bins.stop - bins.start
    total = torch.zeros(
        (*values.shape[:-1], count), dtype=torch.complex128, device=values.device
    )
    for offset in range(STRIDE):
        part = torch.fft.rfft(values[..., offset::STRIDE], length).conj()
        for begin in range(0, count, GAINS_AT_ONCE):
            here = slice(begin, min(begin + GAINS_AT_ONCE, count))
            k = torch.arange(here.start, here.stop, device=values.device) + bins.start
            place = k % length
            # Beyond the middle a part's spectrum is the conjugate of the first half.
            mirrored = place > length // 2
            own = part[..., torch.where(mirrored, length - place, place)]
            own = torch.where(mirrored, own.conj(), own)
            angle = (k * offset % size).to(values) * (2.0 * math.pi / size)
            total[..., here] += own * torch.polar(torch.ones_like(angle), angle)
    return total


def _gain(weighted: Tensor, gram: Gram, size: int, bins: slice) -> Tensor:
    """Gains (B, F) from P x (B, W, N), some frequencies at a time."""
    flat = weighted.flatten(1)
    x_hat = sums(flat, size, bins)
    b0 = flat.sum(-1, keepdim=True)
    gain = flat.new_empty(x_hat.shape)
    at_once = max(1, GAINS_AT_ONCE // len(flat))
    for begin in range(0, x_hat.shape[1], at_once):
        part = slice(begin, begin + at_once)
        gain[:, part] = gram.select(part).gain(x_hat[:, part], b0)
    return gain
