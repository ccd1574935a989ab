"""Linear maps between a window of samples and the domain where noise is simple.

Two maps are used, one after the other. A *whitener* ``y = W (x - level)`` turns the
stationary part of the noise into white noise of unit variance, so that
``||y||^2 = (x - level)^T C^-1 (x - level)``. A *tight short-time Fourier frame* turns
``y`` into time-frequency coefficients whose weighted squares still sum to ``||y||^2``.
With unit variance in every bin the likelihood is therefore that of generalised least
squares, exactly.

Shapes: N samples in a window, F frequency bins, T frames, ``...`` any batch.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

MAX_DENSE_WINDOW = 2048
"""Longest window whitened by a dense triangular matrix; longer ones by an AR filter."""

MAX_FILTER_ORDER = 512
"""Order of the AR whitening filter for windows longer than `MAX_DENSE_WINDOW`."""


def frame_length(window: int) -> int:
    """Frame length of the STFT for a window of `window` samples.

    The time-frequency plane is made as square as a power of two allows,
    ``2^round(log2(2 sqrt(N)))``: 256 for 16384 samples (128 x 128, the published
    SpecGAN; Donahue et al. 2019), 32 for 300 samples. Frames overlap by half.
    """
    return 2 ** max(3, round(math.log2(2.0 * math.sqrt(window))))


@dataclass(frozen=True)
class TightSTFT:
    """Short-time Fourier transform with a sine window, by default at half overlap.

    The window's squares at one sample's place in its frames add up to one, at half
    overlap ``w_n^2 + w_{n+h}^2 = 1`` (Princen and Bradley 1986), so the analysis is a
    Parseval frame and its adjoint is the matching dual: synthesis restores the samples
    to rounding.

    Attributes:
        window: N, samples.
        length: frame length L, samples; even.
        overlap: frames in which a sample lies, even; the hop is L / overlap.
    """

    window: int
    length: int
    overlap: int = 2

    @property
    def hop(self) -> int:
        """Samples between frames."""
        return self.length // self.overlap

    @property
    def n_bins(self) -> int:
        """F = L / 2 + 1, from zero frequency to Nyquist."""
        return self.length // 2 + 1

    @property
    def n_frames(self) -> int:
        """T: every sample lies in exactly `overlap` frames."""
        return math.ceil(self.window / self.hop) + self.overlap - 1

    @property
    def _before(self) -> int:
        """Samples of the first frame that precede the window."""
        return self.length - self.hop

    @property
    def _span(self) -> int:
        """Samples of all frames together."""
        return (self.n_frames + self.overlap - 1) * self.hop

    def _taper(self, like: Tensor) -> Tensor:
        n = torch.arange(self.length, dtype=like.dtype, device=like.device)
        sine = torch.sin(math.pi * (n + 0.5) / self.length)
        return sine if self.overlap == 2 else sine * math.sqrt(2.0 / self.overlap)

    def multiplicity(self, like: Tensor) -> Tensor:
        """k_f, shape (F, 1): 1 at zero frequency and Nyquist, 2 between."""
        k = torch.full((self.n_bins, 1), 2.0, dtype=like.dtype, device=like.device)
        k[0] = k[-1] = 1.0
        return k

    def frame_share(self, like: Tensor) -> Tensor:
        """e_t, shape (T,): the part of each frame's energy inside the window."""
        inside = torch.zeros(self._span, dtype=like.dtype, device=like.device)
        inside[self._before : self._before + self.window] = 1.0
        energy = self._taper(like).square()
        frames = inside.unfold(-1, self.length, self.hop)
        return (frames * energy).sum(-1) / energy.sum()

    def analyse(self, y: Tensor) -> Tensor:
        """Complex coefficients of `y`.

        Args:
            y: shape (..., N), real.

        Returns:
            Shape (..., F, T), complex, with ``sum_ft k_f |Y_ft|^2 = ||y||^2``.
        """
        tail = self._span - self._before - self.window
        padded = torch.nn.functional.pad(y, (self._before, tail))
        frames = padded.unfold(-1, self.length, self.hop) * self._taper(y)
        return torch.fft.rfft(frames, norm="ortho").transpose(-1, -2)

    def synthesise(self, coefficients: Tensor) -> Tensor:
        """Adjoint of `analyse`, and its inverse on its range.

        Args:
            coefficients: shape (..., F, T), complex.

        Returns:
            Shape (..., N), real.
        """
        frames = torch.fft.irfft(
            coefficients.transpose(-1, -2), n=self.length, norm="ortho"
        )
        frames = frames * self._taper(frames)
        # Overlap-add: the parts of each frame, a hop long, fall into successive hops.
        late = self.overlap - 1
        total = None
        for i, part in enumerate(frames.split(self.hop, -1)):
            placed = torch.nn.functional.pad(part, (0, 0, i, late - i))
            total = placed if total is None else total + placed
        assert total is not None
        return total.flatten(-2)[..., self._before : self._before + self.window]


def levinson(autocovariance: Tensor, order: int) -> tuple[Tensor, Tensor]:
    """Prediction-error filter of a stationary process (Levinson 1947, Durbin 1960).

    Args:
        autocovariance: shape (>= order + 1,), lags 0, 1, ...; float64.
        order: number of past samples used.

    Returns:
        The filter ``(1, a_1, ..., a_order)`` and the variance of its output.
    """
    r = autocovariance.double().cpu().numpy()
    from scipy.linalg import solve_toeplitz

    a = solve_toeplitz(r[:order], -r[1 : order + 1])
    variance = r[0] + a @ r[1 : order + 1]
    taps = torch.cat([torch.ones(1, dtype=torch.float64), torch.from_numpy(a)])
    return taps, torch.tensor(float(variance), dtype=torch.float64)


def toeplitz(autocovariance: Tensor) -> Tensor:
    """Covariance matrix (N, N) from the autocovariance (N,)."""
    n = autocovariance.shape[0]
    lag = torch.arange(n, device=autocovariance.device)
    return autocovariance[(lag[:, None] - lag[None, :]).abs()]


def cholesky_covariance(covariance: Tensor) -> Tensor:
    """Lower Cholesky factor of a covariance matrix of stationary noise, in float64.

    An estimated autocovariance can miss positive definiteness by rounding; the
    smallest power-of-ten fraction of the variance that mends it goes on the diagonal.
    """
    matrix = covariance.double()
    eye = torch.eye(matrix.shape[0], dtype=matrix.dtype, device=matrix.device)
    for exponent in (None, *range(-12, 1)):
        jitter = 0.0 if exponent is None else 10.0**exponent
        factor, info = torch.linalg.cholesky_ex(matrix + jitter * matrix[0, 0] * eye)
        if int(info) == 0:
            return factor
    raise ArithmeticError("the autocovariance is not that of any stationary process")


class Whitener:
    """Causal whitening of stationary noise: ``y = W (x - level)``, ``W C W^T = 1``.

    For windows up to `MAX_DENSE_WINDOW` samples W is the inverse Cholesky factor of
    the Toeplitz covariance (exact). For longer ones it is the prediction-error filter
    of an autoregressive process of order `MAX_FILTER_ORDER` with the same
    autocovariance up to that lag, with the exact factor for the first samples, so
    that no sample is lost (Kay 1988, section 6).

    Args:
        autocovariance: shape (N,), lags 0 to N - 1, squared data units.
    """

    def __init__(self, autocovariance: Tensor) -> None:
        self.autocovariance = autocovariance.double()
        self.window = int(autocovariance.shape[0])
        self.order = self.window
        if self.window > MAX_DENSE_WINDOW:
            self.order = MAX_FILTER_ORDER
        factor = cholesky_covariance(toeplitz(self.autocovariance[: self.order]))
        self._factor = factor
        eye = torch.eye(self.order, dtype=factor.dtype, device=factor.device)
        self._head = torch.linalg.solve_triangular(factor, eye, upper=False)
        self.log_innovation = factor.diagonal().log()
        """Log standard deviation of each sample given those before it, (N,)."""
        self.taps: Tensor | None = None
        if self.order < self.window:
            taps, variance = levinson(self.autocovariance, self.order - 1)
            self.taps = (taps / variance.sqrt()).to(factor.device)
            rest = 0.5 * variance.log().to(factor.device)
            tail = rest.expand(self.window - self.order)
            self.log_innovation = torch.cat([self.log_innovation, tail])
        self.half_log_det = float(self.log_innovation.sum())
        """``log det C / 2``, so that ``-log p = ||y||^2/2 + half_log_det + ...``."""

    @property
    def filtered(self) -> bool:
        """Whether W is a filter (long windows) instead of a dense matrix."""
        return self.taps is not None

    def to(self, device: torch.device | str) -> Whitener:
        """A copy whose matrices live on `device`."""
        return Whitener(self.autocovariance.to(device))

    def forward(self, x: Tensor) -> Tensor:
        """Whiten windows of shape (..., N), in float64."""
        x = x.double()
        if self.taps is None:
            return x @ self._head.mT
        head = x[..., : self.order] @ self._head.mT
        tail = _causal_filter(x, self.taps)[..., self.order :]
        return torch.cat([head, tail], -1)

    def adjoint(self, y: Tensor) -> Tensor:
        """``W^T y``, shape (..., N), float64.

        For the AR filter the first `order` rows are taken as the filter's own, an edge
        effect that only the choice of starting frequencies sees.
        """
        if self.taps is None:
            return y.double() @ self._head
        return _causal_filter(y.double().flip(-1), self.taps).flip(-1)

    def inverse(self, y: Tensor) -> Tensor:
        """Colour white windows of shape (..., N), in float64: the inverse map."""
        y = y.double()
        if self.taps is None:
            return y @ self._factor.mT
        from scipy.signal import lfilter, lfiltic

        head = y[..., : self.order] @ self._factor.mT
        taps = self.taps.cpu().numpy()
        flat_head = head.reshape(-1, self.order).cpu().numpy()
        flat_tail = y[..., self.order :].reshape(flat_head.shape[0], -1).cpu().numpy()
        rows = []
        for past, innovation in zip(flat_head, flat_tail, strict=True):
            state = lfiltic([1.0], taps, past[::-1])
            rows.append(torch.from_numpy(lfilter([1.0], taps, innovation, zi=state)[0]))
        tail = torch.stack(rows).reshape(*y.shape[:-1], -1).to(y.device)
        return torch.cat([head, tail], -1)


def _causal_filter(x: Tensor, taps: Tensor) -> Tensor:
    """First N samples of the convolution of `x` (..., N) with `taps`."""
    n = x.shape[-1] + taps.shape[0] - 1
    size = 2 ** math.ceil(math.log2(n))
    spectrum = torch.fft.rfft(x, size) * torch.fft.rfft(taps.to(x.dtype), size)
    return torch.fft.irfft(spectrum, size)[..., : x.shape[-1]]
