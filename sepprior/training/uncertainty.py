"""Noise as it may be, given how little of it was recorded.

The spectrum of a short recording is known to within its sampling error. Relative to the
estimate S' it is distributed as the estimate S* from a simulated recording of the same
length is relative to the spectrum that was simulated: ``S / S' ~ S' / S*``, which for
independent frequencies is the inverse chi-square law. Noise w of the estimate,
whitened by the filter W* of S* and coloured by L of S' again, ``n = L W* w``, is noise
that the recording allows for. What is measured on it (error bars, false alarms) is
wider by what the prior does not know of the spectrum: Student's t for normal, F for
chi-square.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import fft
from torch import Tensor

from sepprior.data import Recording, iterate_blocks, random_crops
from sepprior.errors import SeppriorError
from sepprior.priors import GaussianPrior
from sepprior.stationary import (
    autocovariance,
    autoregressive,
    autoregressive_order,
    expected_periodogram,
)
from sepprior.training.contract import block_size
from sepprior.transforms import MAX_DENSE_WINDOW, MAX_FILTER_ORDER, Whitener

FEW_WINDOWS = 40
"""Windows of noise with fewer of which its spectrum is that of an AR process, and noise
is taken to be Gaussian as far as it was not heard."""
MANY_WINDOWS = 1000
"""Windows of noise from which the spectrum is taken for known."""
REPLICAS, FEWEST_REPLICAS = 100, 20
REPLICA_COST = 2e10
"""Operations for the factors of all replicas together, about."""
ROOM = 8
"""Windows more than are used of a simulated stream, whose ends meet."""


def spectrum_of(training: Recording, window: int) -> tuple[float, Tensor, int | None]:
    """Level and autocovariance (N,) of a recording.

    Returns:
        Both, and the order of the autoregressive process whose the autocovariance is:
        None where the recording is long, or no process predicts it better.

    Raises:
        ArithmeticError: fewer than two samples are present.
    """
    size = block_size(window)
    level, covariance = autocovariance(
        iterate_blocks(training, block=size), n_lags=window
    )
    if training.n_samples // window >= FEW_WINDOWS:
        return level, covariance, None
    blocks = list(iterate_blocks(training, block=size))
    order = autoregressive_order(blocks, n_lags=window, mean=level)
    if order is not None:
        covariance = autoregressive(covariance, order, n_lags=window)
    return level, covariance, order


@dataclass(frozen=True)
class PossibleNoise:
    """Noise of spectra that a short recording allows for.

    Attributes:
        gaussian: the estimate.
        spectrum: of the simulated noise, on the grid of a stream, (F,).
        whiteners: of the estimates from simulated recordings; none where the recording
            is long.
    """

    gaussian: GaussianPrior
    spectrum: Tensor
    whiteners: list[Whitener]

    @classmethod
    def of(
        cls, training: Recording, gaussian: GaussianPrior, rng: np.random.Generator
    ) -> PossibleNoise:
        """From what the estimate was made from.

        What is simulated has a spectrum of higher order than is estimated again, so
        that what a low order does not follow counts as error.
        """
        window, n_windows = gaussian.window, training.n_samples // gaussian.window
        if n_windows >= MANY_WINDOWS:
            return cls(gaussian, gaussian.autocovariance[:0], [])
        blocks = list(iterate_blocks(training, block=block_size(window)))
        _, raw = autocovariance(blocks, n_lags=window)
        order = spectrum_of(training, window)[2]
        full = (window if window <= MAX_DENSE_WINDOW else MAX_FILTER_ORDER) - 1
        truth = full if order is None else min(full, 2 * order + 2)
        extended = autoregressive(raw, truth, n_lags=ROOM * window)
        length = 2 * cast(
            int, fft.next_fast_len(training.n_samples // 2 + ROOM * window)
        )
        spectrum = expected_periodogram(extended, n_fft=length)
        most = REPLICA_COST / max(1, min(window, MAX_DENSE_WINDOW)) ** 3
        count = int(np.clip(most, FEWEST_REPLICAS, REPLICAS))
        if n_windows >= FEW_WINDOWS:
            count = FEWEST_REPLICAS
        whiteners = []
        for _ in range(count):
            stream = _stream(spectrum, rng)
            parts, begin = [], 0
            for block in blocks:
                part = stream[begin : begin + block.size]
                parts.append(np.where(np.isfinite(block), part, np.nan))
                begin += block.size
            _, covariance = autocovariance(parts, n_lags=window)
            if order is not None:
                covariance = autoregressive(covariance, order, n_lags=window)
            whiteners.append(Whitener(covariance.to(gaussian.device)))
        return cls(gaussian, spectrum, whiteners)

    def crops(
        self, parts: list[Recording], n: int, rng: np.random.Generator
    ) -> NDArray[np.float64]:
        """Windows (n, N), data units, in random order where some are simulated.

        Of few recorded windows so many are taken as these are of `FEW_WINDOWS`; the
        rest is Gaussian.
        """
        window = self.gaussian.window
        share = sum(p.n_samples for p in parts) // window / FEW_WINDOWS
        count = n if share >= 1 else int(rng.binomial(n, share))
        recorded = recorded_crops(parts, window, count, rng)
        if not self.whiteners:
            return recorded
        noise = [recorded - self.gaussian.level, self._stationary(n - count, rng)]
        which = rng.integers(len(self.whiteners), size=n)
        varied = self._varied(np.concatenate(noise), which)
        return self.gaussian.level + rng.permutation(varied)

    def simulated(self, n: int, rng: np.random.Generator) -> NDArray[np.float64]:
        """Gaussian windows (n, N) without the level, as many in turn of each spectrum.

        None where the recording is long.
        """
        count = len(self.whiteners)
        each = n // count if count else 0
        return self._varied(
            self._stationary(each * count, rng), np.arange(each * count) // max(1, each)
        )

    def _stationary(self, n: int, rng: np.random.Generator) -> NDArray[np.float64]:
        """Gaussian windows (n, N) of the simulated spectrum."""
        window = self.gaussian.window
        each = max(1, 2 * (len(self.spectrum) - 1) // window)
        streams = [
            _stream(self.spectrum, rng)[: each * window] for _ in range(-(-n // each))
        ]
        return np.concatenate([*streams, np.empty(0)]).reshape(-1, window)[:n]

    def _varied(
        self, noise: NDArray[np.float64], which: NDArray[np.int64]
    ) -> NDArray[np.float64]:
        """Noise (n, N) of the estimate as noise of the spectra `which`, (n,)."""
        varied = np.empty_like(noise)
        for i in np.unique(which):
            rows = which == i
            x = torch.from_numpy(noise[rows]).to(self.gaussian.device)
            white = self.whiteners[i].forward(x)
            varied[rows] = self.gaussian.whitener.inverse(white).cpu().numpy()
        return varied


def recorded_crops(
    parts: list[Recording], window: int, n: int, rng: np.random.Generator
) -> NDArray[np.float64]:
    """Windows from several parts in proportion to their length, (n, N)."""
    weights = np.array([p.n_samples for p in parts], dtype=float)
    counts = rng.multinomial(n, weights / weights.sum())
    drawn = [np.empty((0, window))]
    for part, count in zip(parts, counts, strict=True):
        if not count:
            continue
        try:
            drawn.append(random_crops(part, window=window, n=int(count), generator=rng))
        except SeppriorError:
            continue  # a part whose pieces are all shorter than a window
    return np.concatenate(drawn)


def _stream(spectrum: Tensor, rng: np.random.Generator) -> NDArray[np.float64]:
    """A period of Gaussian noise of a spectrum (F,), shape (2 F - 2,)."""
    length = 2 * (len(spectrum) - 1)
    white = np.fft.rfft(rng.standard_normal(length))
    return np.fft.irfft(spectrum.sqrt().numpy() * white, length)
