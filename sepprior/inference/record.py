"""Measurements laid out in windows, and whitening that knows about gaps.

A measurement longer than the prior's window is cut into windows that share the
signal's parameters; what is missing (gaps, the rest of the last window) is masked.
B measurements, W windows each, N samples per window.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from sepprior.errors import SeppriorError
from sepprior.transforms import (
    MAX_DENSE_WINDOW,
    Whitener,
    cholesky_covariance,
    toeplitz,
)


@dataclass(frozen=True)
class Record:
    """A batch of measurements of one length, in windows.

    Attributes:
        x: shape (B, W, N), float64, noise level subtracted, 0 where missing.
        present: shape (B, W, N).
        length: samples of the measurement before padding.
        sample_rate: Hz.
        first: number of windows of the measurement before these.
    """

    x: Tensor
    present: Tensor
    length: int
    sample_rate: float
    first: int = 0

    @property
    def t(self) -> Tensor:
        """Times (W, N), s, from the middle of the measurement; made when asked for."""
        n_windows, n = self.x.shape[1:]
        begin = self.first * n
        t = torch.arange(
            begin, begin + n_windows * n, dtype=torch.float64, device=self.x.device
        )
        return t.sub_(self.middle_sample).div_(self.sample_rate).view(n_windows, n)

    @property
    def middle_sample(self) -> float:
        """Number of the sample, or half of one, in the middle of the measurement."""
        return 0.5 * (self.length - 1)

    @property
    def duration(self) -> float:
        """Length of the measurement, s."""
        return self.length / self.sample_rate

    @property
    def middle(self) -> float:
        """Time of the middle after the first sample, s."""
        return self.middle_sample / self.sample_rate

    def select(self, which: Tensor | slice) -> Record:
        """A sub-batch."""
        return replace(self, x=self.x[which], present=self.present[which])

    def windows(self, part: slice) -> Record:
        """Some of the windows; the times stay those of the whole measurement."""
        begin, _, _ = part.indices(self.x.shape[1])
        return replace(
            self,
            x=self.x[:, part],
            present=self.present[:, part],
            first=self.first + begin,
        )

    def with_values(self, x: Tensor) -> Record:
        """The same layout with other values (B, W, N); missing samples become zero."""
        return replace(self, x=torch.where(self.present, x, torch.zeros_like(x)))


def lay_out(
    x: Tensor, *, window: int, level: float | Tensor, sample_rate: float
) -> Record:
    """Cut measurements (B, M) with NaN gaps into windows of a `Record`.

    The `level`, one or (B, 1), is taken off in float64.
    """
    n_measurements, length = x.shape
    n_windows = -(-length // window)
    present = torch.zeros(
        (n_measurements, n_windows * window), dtype=torch.bool, device=x.device
    )
    present[:, :length] = torch.isfinite(x)
    filled = torch.zeros(present.shape, dtype=torch.float64, device=x.device)
    torch.sub(x, level, out=filled[:, :length])
    filled.masked_fill_(~present, 0.0)
    shape = (n_measurements, n_windows, window)
    return Record(filled.view(shape), present.view(shape), length, sample_rate)


def unlay(windows: Tensor, length: int) -> Tensor:
    """Windows (..., W, N) back to one row (..., M)."""
    return windows.flatten(-2)[..., :length]


@dataclass(frozen=True)
class _Present:
    """Whitening of the n present samples of a window with gaps.

    Attributes:
        index: shape (n,), which they are.
        inverse: shape (n, n), inverse Cholesky factor of their covariance.
    """

    index: Tensor
    inverse: Tensor

    @classmethod
    def of(cls, covariance: Tensor, present: Tensor) -> _Present:
        """From the covariance (N, N) of whole windows and a mask (N,)."""
        index = present.nonzero().flatten()
        factor = cholesky_covariance(covariance[index][:, index])
        eye = torch.eye(len(index), dtype=factor.dtype, device=factor.device)
        return cls(index, torch.linalg.solve_triangular(factor, eye, upper=False))


class MaskedWhitener:
    """Whitening of windows with missing samples, exact for a Gaussian process.

    The whitener of the present samples is the inverse Cholesky factor of their own
    covariance. Where only the end of a window is missing, the causal filter of the
    full window already is that; missing outputs are zero.

    Args:
        whitener: for complete windows.
        present: shape (B, W, N).

    Raises:
        SeppriorError: gaps inside windows longer than the dense limit.
    """

    def __init__(self, whitener: Whitener, present: Tensor) -> None:
        self.whitener, self.present = whitener, present
        flat = present.flatten(0, 1)
        prefix = (flat[:, 1:] <= flat[:, :-1]).all(-1)
        self._gapped = (~prefix).nonzero().flatten().tolist()
        if self._gapped and whitener.window > MAX_DENSE_WINDOW:
            raise SeppriorError(
                f"gaps inside windows of {whitener.window} samples are not supported; "
                f"use a prior with a window of at most {MAX_DENSE_WINDOW} samples"
            )
        # Only what is between present samples is kept: long records have many windows.
        self._factors: dict[int, _Present] = {}
        patterns: dict[bytes, _Present] = {}
        covariance = toeplitz(whitener.autocovariance) if self._gapped else None
        for row in self._gapped:
            key = flat[row].cpu().numpy().tobytes()
            if key not in patterns:
                assert covariance is not None
                patterns[key] = _Present.of(covariance, flat[row])
            self._factors[row] = patterns[key]
        self.complete = bool(present.all())

    def windows(self, begin: int, end: int) -> MaskedWhitener:
        """The same for some of the windows."""
        part = copy.copy(self)
        part.present = self.present[:, begin:end]
        whole, count = self.present.shape[1], part.present.shape[1]
        part._factors = {
            row // whole * count + row % whole - begin: factor
            for row, factor in self._factors.items()
            if begin <= row % whole < end
        }
        return part

    def select(self, rows: Tensor) -> MaskedWhitener:
        """The same for some of the measurements."""
        return MaskedWhitener(self.whitener, self.present[rows])

    def forward(self, columns: Tensor, which: Tensor) -> Tensor:
        """Whiten columns (Q, k, W, N) of the measurements `which` (Q,)."""
        white = self.whitener.forward(columns)
        if self.complete:
            return white
        white = white * self.present[which].unsqueeze(1)
        n_windows = self.present.shape[1]
        for q, b in enumerate(which.tolist()):
            for w in range(n_windows):
                factor = self._factors.get(b * n_windows + w)
                if factor is not None:
                    own = columns[q, :, w][:, factor.index]
                    white[q, :, w, factor.index] = own @ factor.inverse.mT
        return white

    def adjoint(self, white: Tensor, which: Tensor) -> Tensor:
        """``W^T`` applied to whitened columns (Q, k, W, N), zero where missing."""
        columns = self.whitener.adjoint(white)
        if not self._factors:
            return columns
        n_windows = self.present.shape[1]
        for q, b in enumerate(which.tolist()):
            for w in range(n_windows):
                factor = self._factors.get(b * n_windows + w)
                if factor is not None:
                    own = white[q, :, w][:, factor.index]
                    columns[q, :, w] = 0.0
                    columns[q, :, w, factor.index] = own @ factor.inverse
        return columns

    def matrix(self, measurement: int, window: int) -> Tensor:
        """W of one window, shape (N, N), rows and columns of missing samples zero."""
        factor = self._factors.get(measurement * self.present.shape[1] + window)
        present = self.present[measurement, window]
        eye = torch.eye(len(present), dtype=torch.float64, device=present.device)
        if factor is not None:
            eye.zero_()[factor.index[:, None], factor.index] = factor.inverse
            return eye
        return self.whitener.forward(eye).mT * present[:, None]

    def half_log_det(self) -> Tensor:
        """``log det C_present / 2`` per measurement, (B,)."""
        counts = self.present.sum(-1).flatten()
        whole = torch.cat(
            [counts.new_zeros(1).double(), self.whitener.log_innovation.cumsum(0)]
        )
        each = whole[counts]
        for row, factor in self._factors.items():
            each[row] = -factor.inverse.diagonal().log().sum()
        return each.view(self.present.shape[:2]).sum(-1)
