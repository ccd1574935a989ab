"""The textbook objective as a prior: squared error to the generator's waveform."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sepprior.errors import SeppriorError
from sepprior.priors.base import (
    Decoded,
    LatentPrior,
    Prior,
    sample_count,
    unit_curvature,
    unit_scale,
)
from sepprior.torch_state import usual_torch


class PlainPrior:
    """``||x - s(theta) - m(z)||^2 / (2 r_0)`` with no scale and no density of z.

    The usual latent optimisation (Bora et al. 2017 without its penalty), kept as a
    baseline. What the generator cannot reach is pushed into the signal.

    Args:
        prior: the prior whose mean waveform m(z) is used.
    """

    name = "plain"
    learned = True
    n_candidates = 64
    dtype = torch.float64

    def __init__(self, prior: LatentPrior) -> None:
        self.prior = prior
        self.window, self.sample_rate = prior.window, prior.sample_rate
        self.n_latent, self.level = prior.n_latent, prior.level
        self.autocovariance, self.device = prior.autocovariance, prior.device
        self.metadata: dict[str, Any] = {}
        self._sd = float(prior.autocovariance[0]) ** 0.5

    @staticmethod
    def of(prior: Prior) -> PlainPrior:
        """The plain objective with a prior that must have a latent.

        Raises:
            SeppriorError: it has none.
        """
        if not isinstance(prior, LatentPrior):
            raise SeppriorError(
                f"objective 'plain' needs a prior with a latent, a {prior.name} prior "
                "has none; use its as_latent(), or the objective 'joint'"
            )
        return PlainPrior(prior)

    def features(self, x: Tensor) -> Tensor:
        """Samples over the noise's standard deviation, (..., N)."""
        return x.double() / self._sd

    def decode(self, z: Tensor) -> Decoded:
        """The mean waveform with unit precision everywhere."""
        mean = self.features(self.coherent(z))
        return Decoded(mean, torch.ones_like(mean), torch.zeros_like(mean[..., 0]))

    def coherent(self, z: Tensor) -> Tensor:
        """The wrapped prior's mean waveform, (..., N)."""
        return self.prior.coherent(z.to(self.prior.dtype)).double()

    def latent_energy(self, z: Tensor) -> Tensor:
        """Zeros: every z is as good as another, (...)."""
        return torch.zeros(z.shape[:-1], dtype=self.dtype, device=self.device)

    def from_normal(self, draws: Tensor) -> Tensor:
        """The wrapped prior's latents, (..., K)."""
        return self.prior.from_normal(draws.to(self.prior.dtype)).to(self.dtype)

    def propose(self, features: Tensor, *, draws: Tensor) -> Tensor:
        """Draws from the latent's distribution, (n, ..., K)."""
        return self.from_normal(draws)

    def standardise(self, features: Tensor, decoded: Decoded) -> Tensor:
        """Residual over the noise's standard deviation, (..., N)."""
        return features - decoded.mean

    def latent_scale(self, features: Tensor) -> Tensor:
        """Ones, (..., K)."""
        return unit_scale(features, self.n_latent)

    def latent_curvature(self, z: Tensor) -> Tensor:
        """Identities, (B, K, K)."""
        return unit_curvature(z)

    @usual_torch()
    def sample(self, n: int, *, generator: torch.Generator | None = None) -> Tensor:
        """Noise of the wrapped prior, (n, N)."""
        n = sample_count(n, self.window)
        return self.prior.sample(n, generator=generator)

    def heldout_nll(self, windows: Tensor) -> Tensor:
        """The wrapped prior's, (n,): the plain objective is no density."""
        return self.prior.heldout_nll(windows)

    @usual_torch()
    def to(self, device: torch.device | str) -> PlainPrior:
        """The same on another device."""
        return PlainPrior(self.prior.to(device))
