"""Moments of a recording by frequency, in one pass over its windows."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

from sepprior import losses
from sepprior.data import Recording, iterate_windows

MOST_WINDOWS = 4096
"""Windows, spread over the recording, that moments are taken from."""
CHUNK_SAMPLES = 2**17
MOST_SAMPLES = 2**20


class RunningMoments:
    """Mean and variance of a stream of batches, merged pairwise (Chan et al. 1983).

    Exact to rounding however the stream is cut, and holds no sample.
    """

    def __init__(self) -> None:
        self.count = 0
        self._mean = self._square = torch.zeros((), dtype=torch.float64)

    def add(self, values: Tensor) -> None:
        """Take in a batch (n, ...); moments are those over the first dimension."""
        values = values.double()
        n = len(values)
        mean = values.mean(0)
        shift = mean - self._mean
        total = self.count + n
        self._square = (
            self._square
            + (values - mean).square().sum(0)
            + shift.square() * (self.count * n / total)
        )
        self._mean = self._mean + shift * (n / total)
        self.count = total

    @property
    def mean(self) -> Tensor:
        """Mean, float64."""
        return self._mean

    @property
    def sd(self) -> Tensor:
        """Standard deviation (of the population), float64."""
        return (self._square / self.count).clamp_min(1e-12).sqrt()


def windows_of(
    recording: Recording, *, window: int, most: int = MOST_WINDOWS
) -> Iterator[Tensor]:
    """Windows (n, N) of a recording in chunks of bounded size, float64."""
    chunk = max(1, CHUNK_SAMPLES // window)
    for part in iterate_windows(recording, window=window, limit=most, chunk=chunk):
        yield torch.from_numpy(part)


def sample_quantiles(windows: Iterator[Tensor], n: int, *, sd: float) -> Tensor:
    """Quantiles of samples over `sd` at probabilities ``(i + 1/2) / n``, (n,), float32.

    Of windows with more than `MOST_SAMPLES` samples every k-th is taken.

    Args:
        windows: batches (B, N) of noise without its mean.
        n: number of quantiles.
        sd: unit.
    """
    kept = []
    for batch in windows:
        step = max(1, MOST_WINDOWS * batch.shape[1] // MOST_SAMPLES)
        kept.append((batch.flatten()[::step] / sd).float())
    ordered = torch.cat(kept).sort().values
    place = (torch.arange(n) + 0.5) / n * len(ordered)
    return ordered[place.long()]


def plane_moments(planes: Iterator[Tensor]) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation per frequency over samples and frames, each (F, 1).

    Args:
        planes: batches (n, F, T).
    """
    moments = RunningMoments()
    for plane in planes:
        moments.add(plane.transpose(1, 2).flatten(0, 1))
    return moments.mean.float()[:, None], moments.sd.float()[:, None]


def spectrum_moments(windows: Iterator[Tensor]) -> tuple[Tensor, Tensor]:
    """Log of the mean periodogram and deviation of its logarithm, each (F,), nats.

    Args:
        windows: batches (n, N).
    """
    return power_moments(losses.periodogram(batch) for batch in windows)


def power_moments(powers: Iterable[Tensor]) -> tuple[Tensor, Tensor]:
    """Log of the mean power and deviation of its logarithm, each (F,), nats.

    Args:
        powers: batches (n, F).
    """
    power, log_power = RunningMoments(), RunningMoments()
    for batch in powers:
        p = batch.double()
        power.add(p)
        log_power.add(torch.log(p + losses.POWER_FLOOR))
    log_mean = torch.log(power.mean + losses.POWER_FLOOR)
    return log_mean.float(), log_power.sd.float()
