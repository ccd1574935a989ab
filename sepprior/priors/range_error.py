"""What a generator cannot produce: stationary Gaussian noise of another spectrum."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from sepprior.priors.base import HALF_LOG_2PI
from sepprior.transforms import Whitener


class RangeError:
    """Gaussian noise whose spectrum is the recording's times a smooth ratio.

    With W the whitener of the recording's covariance C and R the Toeplitz covariance of
    unit white noise filtered by the ratio, ``Sigma = W^-1 R W^-T``. Ratio 1 gives
    ``Sigma = C``: the generator explains nothing, and the prior is the stationary
    Gaussian exactly. Written this way, Sigma has the recording's sharp lines without
    having to estimate them again, and is positive definite whatever the ratio.

    Args:
        autocovariance: of the recording, or of white noise of its variance, which
            gives an error with a spectrum of its own (`Reach`); (N,), squared data
            units.
        ratio: autocovariance of the filtered white noise, shape (N,), in units of the
            white noise's variance.
    """

    def __init__(self, autocovariance: Tensor, ratio: Tensor) -> None:
        self.ratio = ratio.double()
        self._recording = Whitener(autocovariance)
        self._reshaped = Whitener(self.ratio)
        self.half_log_det = self._recording.half_log_det + self._reshaped.half_log_det

    def white(self, x: Tensor) -> Tensor:
        """Windows (..., N) whitened by what the ratio refers to alone."""
        return self._recording.forward(x)

    def forward(self, x: Tensor) -> Tensor:
        """Windows (..., N) with ``||y||^2 = x^T Sigma^-1 x``, float64."""
        return self._reshaped.forward(self._recording.forward(x))

    def inverse(self, y: Tensor) -> Tensor:
        """Inverse of `forward`."""
        return self._recording.inverse(self._reshaped.inverse(y))

    def nll(self, x: Tensor) -> Tensor:
        """``-log p`` of windows (..., N) that are this noise alone, nats, (...)."""
        half = self.half_log_det + 0.5 * self.forward(x).square().sum(-1)
        return half + x.shape[-1] * HALF_LOG_2PI


@dataclass(frozen=True)
class Reach:
    """How much of the noise a generator produces, and what it leaves.

    What is left by a generator that explains lines or pulses has a smooth spectrum of
    its own; of one that explains little it has the recording's, sharp lines and all.

    Attributes:
        gain: a of ``n = a sd g(z) + e``.
        ratio: spectrum of e over that of white noise of the recording's variance, or
            over the recording's, as an autocovariance (N,).
        absolute: the former.
    """

    gain: float
    ratio: Tensor
    absolute: bool = False

    def error(self, autocovariance: Tensor) -> RangeError:
        """The range error in a recording of an autocovariance (N,)."""
        if self.absolute:
            autocovariance = autocovariance[0] * unit_ratio(len(autocovariance)).to(
                autocovariance.device
            )
        return RangeError(autocovariance, self.ratio)

    def to(self, device: torch.device | str) -> Reach:
        """The same on another device."""
        return replace(self, ratio=self.ratio.to(device))


def unit_ratio(window: int) -> Tensor:
    """The ratio of a generator that explains nothing, (N,)."""
    ratio = torch.zeros(window, dtype=torch.float64)
    ratio[0] = 1.0
    return ratio
