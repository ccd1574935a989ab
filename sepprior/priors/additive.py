"""What priors share that add stationary Gaussian noise to a generated waveform."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor

from sepprior.priors.base import (
    HALF_LOG_2PI,
    Decoded,
    sample_count,
    unit_curvature,
    unit_scale,
)
from sepprior.priors.latent import LatentSpace
from sepprior.priors.marginal import laplace_nll
from sepprior.priors.range_error import RangeError
from sepprior.torch_state import usual_torch
from sepprior.transforms import Whitener

EVALUATIONS = 300
"""Of the minimisation over z: waveforms are rugged in z, and minima far away."""


class AdditivePrior(ABC):
    """``n = m(z) + e`` with a waveform m(z) and a range error e, Gaussian, of one kind.

    The *range error* is what the generator cannot produce. Its covariance does not
    depend on z, so that the features are samples whitened by it, and decoding leaves
    them unit variance.

    Args:
        space: the latent variable.
        error: whitens e.
        autocovariance: shape (N,), of the whole noise, squared data units.
        level: mean of the noise, data units.
        sample_rate: Hz.
        dtype: precision of the features and of z.
        metadata: JSON-able facts.
    """

    name: str
    learned = True
    n_candidates = 64

    def __init__(
        self,
        *,
        space: LatentSpace,
        error: Whitener | RangeError,
        autocovariance: Tensor,
        level: float,
        sample_rate: float,
        dtype: torch.dtype,
        metadata: dict[str, Any] | None,
    ) -> None:
        self.space, self.n_latent = space, space.n_latent
        self._error = error
        self.autocovariance = autocovariance.double()
        self.level, self.sample_rate = float(level), float(sample_rate)
        self.window = int(autocovariance.shape[0])
        self.dtype, self.device = dtype, autocovariance.device
        self.metadata = dict(metadata or {})

    @abstractmethod
    def coherent(self, z: Tensor) -> Tensor:
        """m(z) in data units without the level, (..., K) to (..., N)."""

    def features(self, x: Tensor) -> Tensor:
        """Samples whitened by the range error, shape (..., N)."""
        return self._error.forward(x).to(self.dtype)

    def decode(self, z: Tensor) -> Decoded:
        """Conditional Gaussian of latents (..., K)."""
        mean = self.features(self.coherent(z))
        half = torch.full_like(mean[..., 0], self._error.half_log_det)
        return Decoded(mean, torch.ones_like(mean), half)

    def latent_energy(self, z: Tensor) -> Tensor:
        """``-log p(z)`` up to a constant, shape (...)."""
        return self.space.energy(z)

    def from_normal(self, draws: Tensor) -> Tensor:
        """The draws (..., K) themselves."""
        return draws

    def propose(self, features: Tensor, *, draws: Tensor) -> Tensor:
        """Draws from p(z), the first one its mode, shape (n, ..., K)."""
        return self.space.centred(draws)

    def standardise(self, features: Tensor, decoded: Decoded) -> Tensor:
        """Whitened residual samples, shape (..., N)."""
        return features - decoded.mean

    def latent_scale(self, features: Tensor) -> Tensor:
        """Ones, the prior's own scale, (..., K)."""
        return unit_scale(features, self.n_latent)

    def latent_curvature(self, z: Tensor) -> Tensor:
        """Identities, (B, K, K)."""
        return unit_curvature(z)

    @usual_torch()
    def sample(self, n: int, *, generator: torch.Generator | None = None) -> Tensor:
        """`n` windows of noise in data units, level included, (n, N), float64."""
        n = sample_count(n, self.window)
        z = torch.randn((n, self.n_latent), generator=generator, dtype=self.dtype)
        white = torch.randn(
            (n, self.window), generator=generator, dtype=torch.float64
        ).to(self.device)
        with torch.no_grad():
            mean = self.coherent(z.to(self.device))
        return mean + self._error.inverse(white) + self.level

    def heldout_nll(self, windows: Tensor) -> Tensor:
        """``-log p`` at the most probable z plus the Laplace volume, nats, (n,)."""
        nll = laplace_nll(self, windows, max_evaluations=EVALUATIONS)
        return nll + self.window * HALF_LOG_2PI

    @abstractmethod
    @usual_torch()
    def to(self, device: torch.device | str) -> AdditivePrior:
        """The same prior on another device."""
