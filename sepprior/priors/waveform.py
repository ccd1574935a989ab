"""Any generator of waveforms with a fixed covariance for what it cannot reach."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from sepprior.priors.base import HALF_LOG_2PI, Decoded
from sepprior.transforms import Whitener


class WaveformPrior:
    """``n = g(z) + e`` with ``z ~ N(0, 1)`` and stationary Gaussian ``e``.

    The *range error* e is what the generator cannot produce. With a linear generator
    ``g(z) = L z`` the noise is Gaussian with covariance ``L L^T + Sigma``, so that
    every result of a separation has a closed form; the tests rest on it.

    Args:
        generator: differentiable map (..., K) to (..., N), data units, no level.
        n_latent: K.
        range_autocovariance: shape (N,), autocovariance of e, squared data units.
        autocovariance: shape (N,), of the whole noise, for the Gaussian baseline.
        sample_rate: Hz.
        level: mean of the noise, data units.
        dtype: precision of the features and of z.
        metadata: JSON-able facts.
    """

    name = "waveform"
    learned = True
    n_candidates = 64

    def __init__(
        self,
        generator: Callable[[Tensor], Tensor],
        *,
        n_latent: int,
        range_autocovariance: Tensor,
        autocovariance: Tensor,
        sample_rate: float,
        level: float = 0.0,
        dtype: torch.dtype = torch.float64,
        metadata: dict[str, Any] | None = None,
    ) -> None:
        self.generator = generator
        self.n_latent = n_latent
        self.window = int(autocovariance.shape[0])
        self.autocovariance = autocovariance.double()
        self.whitener = Whitener(range_autocovariance)
        self.sample_rate, self.level = float(sample_rate), float(level)
        self.dtype, self.device = dtype, autocovariance.device
        self.metadata = dict(metadata or {})

    def features(self, x: Tensor) -> Tensor:
        """Samples whitened by the range error, shape (..., N)."""
        return self.whitener.forward(x).to(self.dtype)

    def decode(self, z: Tensor) -> Decoded:
        """Conditional Gaussian of latents (..., K)."""
        mean = self.features(self.generator(z))
        half = torch.full_like(mean[..., 0], self.whitener.half_log_det)
        return Decoded(mean, torch.ones_like(mean), half)

    def coherent(self, z: Tensor) -> Tensor:
        """``g(z)``, shape (..., N)."""
        return self.generator(z)

    def latent_energy(self, z: Tensor) -> Tensor:
        """``||z||^2 / 2``, shape (...)."""
        return 0.5 * z.square().sum(-1)

    def propose(self, features: Tensor, *, draws: Tensor) -> Tensor:
        """Draws from the prior, the first one its mode, shape (n, ..., K)."""
        return torch.cat([torch.zeros_like(draws[:1]), draws[1:]])

    def standardise(self, features: Tensor, decoded: Decoded) -> Tensor:
        """Whitened residual samples, shape (..., N)."""
        return features - decoded.mean

    def latent_scale(self, features: Tensor) -> Tensor:
        """Ones, the prior's own scale, (..., K)."""
        return features.new_ones((*features.shape[:-1], self.n_latent))

    def sample(self, n: int, *, generator: torch.Generator | None = None) -> Tensor:
        """Noise windows in data units, shape (n, N)."""
        z = torch.randn((n, self.n_latent), generator=generator, dtype=self.dtype)
        white = torch.randn(
            (n, self.window), generator=generator, dtype=torch.float64
        ).to(self.device)
        with torch.no_grad():
            mean = self.generator(z.to(self.device))
        return mean + self.whitener.inverse(white) + self.level

    def heldout_nll(self, windows: Tensor) -> Tensor:
        """``-log p`` at the most probable z plus the Laplace volume, nats, (n,)."""
        from sepprior.priors.marginal import laplace_nll

        return laplace_nll(self, windows) + self.window * HALF_LOG_2PI

    def to(self, device: torch.device | str) -> WaveformPrior:
        """The same prior on another device (the generator must follow by itself)."""
        return WaveformPrior(
            self.generator,
            n_latent=self.n_latent,
            range_autocovariance=self.whitener.autocovariance.to(device),
            autocovariance=self.autocovariance.to(device),
            sample_rate=self.sample_rate,
            level=self.level,
            dtype=self.dtype,
            metadata=self.metadata,
        )
