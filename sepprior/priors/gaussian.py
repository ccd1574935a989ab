"""Stationary Gaussian noise: the exact reference, the baseline and the fallback."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sepprior.priors.base import HALF_LOG_2PI, Decoded, sample_count, unit_curvature
from sepprior.torch_state import usual_torch
from sepprior.transforms import Whitener


class GaussianPrior:
    """Noise known by its mean and autocovariance alone.

    ``-log p(n) = ||W n||^2 / 2 + log det C / 2 + N/2 log 2 pi``, with W the inverse
    Cholesky factor of the Toeplitz covariance C. There is nothing to decode (K = 0), so
    separation with this prior is generalised least squares (Aitken 1935).

    Args:
        autocovariance: shape (N,), lags 0 to N - 1, squared data units.
        level: mean of the noise, data units.
        sample_rate: Hz.
        metadata: JSON-able facts stored with the prior.
    """

    name = "gaussian"
    learned = False
    n_latent = 0
    n_candidates = 1
    dtype = torch.float64

    def __init__(
        self,
        autocovariance: Tensor,
        *,
        level: float,
        sample_rate: float,
        metadata: dict[str, Any] | None = None,
    ) -> None:
        self.autocovariance = autocovariance.double()
        self.window = int(autocovariance.shape[0])
        self.level = float(level)
        self.sample_rate = float(sample_rate)
        self.metadata = dict(metadata or {})
        self.device = autocovariance.device
        self.whitener = Whitener(self.autocovariance)

    def features(self, x: Tensor) -> Tensor:
        """Whitened samples, shape (..., N)."""
        return self.whitener.forward(x)

    def decode(self, z: Tensor) -> Decoded:
        """Zero mean and unit variance whatever the (empty) latent (..., 0)."""
        zero = torch.zeros(
            (*z.shape[:-1], self.window), dtype=self.dtype, device=self.device
        )
        half = torch.full_like(zero[..., 0], self.whitener.half_log_det)
        return Decoded(zero, torch.ones_like(zero), half)

    def coherent(self, z: Tensor) -> Tensor:
        """Zeros, shape (..., N)."""
        return torch.zeros(
            (*z.shape[:-1], self.window), dtype=self.dtype, device=self.device
        )

    def latent_energy(self, z: Tensor) -> Tensor:
        """Zeros, shape (...)."""
        return torch.zeros(z.shape[:-1], dtype=self.dtype, device=self.device)

    def from_normal(self, draws: Tensor) -> Tensor:
        """Empty latents, shape (..., 0)."""
        return draws

    def propose(self, features: Tensor, *, draws: Tensor) -> Tensor:
        """Empty latents, shape (n, ..., 0)."""
        return draws

    def standardise(self, features: Tensor, decoded: Decoded) -> Tensor:
        """Whitened residual samples, shape (..., N)."""
        return features - decoded.mean

    def latent_scale(self, features: Tensor) -> Tensor:
        """Empty scales (..., 0)."""
        return features[..., :0]

    def latent_curvature(self, z: Tensor) -> Tensor:
        """Empty matrices (B, 0, 0)."""
        return unit_curvature(z)

    @usual_torch()
    def sample(self, n: int, *, generator: torch.Generator | None = None) -> Tensor:
        """Noise windows in data units, shape (n, N)."""
        n = sample_count(n, self.window)
        white = torch.randn((n, self.window), generator=generator, dtype=self.dtype)
        return self.whitener.inverse(white.to(self.device)) + self.level

    def heldout_nll(self, windows: Tensor) -> Tensor:
        """Exact ``-log p`` of windows (n, N) in data units, nats, shape (n,)."""
        white = self.features(windows.to(self.device).double() - self.level)
        return (
            0.5 * white.square().sum(-1)
            + self.whitener.half_log_det
            + self.window * HALF_LOG_2PI
        )

    def scaled(self, factor: float) -> GaussianPrior:
        """Noise so many times as loud."""
        return GaussianPrior(
            self.autocovariance * factor**2,
            level=self.level,
            sample_rate=self.sample_rate,
            metadata=self.metadata,
        )

    @usual_torch()
    def to(self, device: torch.device | str) -> GaussianPrior:
        """The same prior on another device."""
        return GaussianPrior(
            self.autocovariance.to(device),
            level=self.level,
            sample_rate=self.sample_rate,
            metadata=self.metadata,
        )
