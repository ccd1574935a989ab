"""The Gaussian part of noise whose other part a generator makes, learned beside it."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor, nn

N_BANDS = 16
"""Bands, equal in the logarithm of frequency."""
PACE = 0.2
"""Nats a band's level moves where a weight of the generator moves by one: slowly, so
that the generator gives way first."""


class RangeNoise(nn.Module):
    """Stationary Gaussian noise with a spectrum that is linear between bands.

    A generator whose samples are judged with such noise added learns what that noise
    is not (Bora et al. 2018), and need not draw a texture that no z can be found for.

    Args:
        power: mean periodogram of the recording without frequency zero, (N // 2,), in
            units of its variance.
        window: N.
        share: level at the start over the median of the recording's in each band, which
            takes no notice of lines.
    """

    weight: Tensor
    first: Tensor

    def __init__(self, power: Tensor, *, window: int, share: float) -> None:
        super().__init__()
        bins = torch.arange(1, len(power) + 1, dtype=torch.float64)
        last = math.log10(len(power) + 1)
        edges = torch.logspace(0.0, last, N_BANDS + 1, dtype=torch.float64)
        centres, levels = [], []
        for low, high in pairwise(edges):
            inside = (bins >= low.floor()) & (bins < high.floor())
            if inside.any():
                centres.append(float(bins[inside].log().mean()))
                levels.append(float(share * power[inside].median()))
        self.window = window
        self.shift = nn.Parameter(torch.zeros(len(levels)))
        self.register_buffer("first", torch.tensor(levels).log())
        # Each frequency of twice the window between the centres of two bands.
        log_bin = np.log(np.maximum(np.arange(window + 1) / 2.0, 0.5))
        rows = [np.interp(log_bin, centres, row) for row in np.eye(len(centres))]
        weight = torch.from_numpy(np.stack(rows, 1)).float()
        self.register_buffer("weight", weight)

    def density(self) -> Tensor:
        """Spectrum at N + 1 frequencies from 0 to Nyquist; 1 is unit white noise."""
        return torch.exp(self.weight @ (self.first + PACE * self.shift))

    def forward(self, white: Tensor) -> Tensor:
        """Noise (B, N) from white noise of unit variance (B, 2 N)."""
        made = torch.fft.rfft(white) * self.density().sqrt()
        return torch.fft.irfft(made, 2 * self.window)[..., : self.window]

    def autocovariance(self) -> Tensor:
        """Of the noise, (N,), float64, in units of the recording's variance."""
        density = self.density().detach().double()
        return torch.fft.irfft(density, 2 * self.window)[: self.window]
