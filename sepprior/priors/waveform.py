"""Any generator of waveforms with a fixed covariance for what it cannot reach."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from sepprior.priors.additive import AdditivePrior
from sepprior.priors.latent import LatentSpace
from sepprior.torch_state import usual_torch
from sepprior.transforms import Whitener


class WaveformPrior(AdditivePrior):
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
        self.whitener = Whitener(range_autocovariance)
        super().__init__(
            space=LatentSpace(n_latent),
            error=self.whitener,
            autocovariance=autocovariance,
            level=level,
            sample_rate=sample_rate,
            dtype=dtype,
            metadata=metadata,
        )

    def coherent(self, z: Tensor) -> Tensor:
        """``g(z)``, shape (..., N)."""
        return self.generator(z)

    def scaled(self, factor: float) -> WaveformPrior:
        """Noise so many times as loud."""
        return WaveformPrior(
            lambda z: factor * self.generator(z),
            n_latent=self.n_latent,
            range_autocovariance=self.whitener.autocovariance * factor**2,
            autocovariance=self.autocovariance * factor**2,
            sample_rate=self.sample_rate,
            level=self.level,
            dtype=self.dtype,
            metadata=self.metadata,
        )

    @usual_torch()
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
