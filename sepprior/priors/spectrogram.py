"""A generator of magnitude spectrograms: what is learned from spectrograms alone."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sepprior.nets import Generator
from sepprior.priors.latent import LatentSpace
from sepprior.priors.planes import MAGNITUDE_FLOOR
from sepprior.torch_state import usual_torch


class SpectrogramGAN:
    """Magnitudes by a SpecGAN generator (Donahue et al. 2019).

    The plane it generates is ``(log(|X| + 1e-6) - mean_f) / (3 sd_f)``, clipped to
    [-1, 1]; `sample` undoes that. It is no prior of waveforms: neither their sample
    rate nor the scale of the transform is known, so that it cannot separate.

    Args:
        generator: latents to planes (B, 1, F, F).
        space: the latent variable.
        log_mean: mean of ``log(|X| + 1e-6)`` per frequency, (F, 1).
        log_sd: its standard deviation, (F, 1).
        metadata: JSON-able facts.
    """

    name = "spectrogram"

    def __init__(
        self,
        generator: Generator,
        space: LatentSpace,
        *,
        log_mean: Tensor,
        log_sd: Tensor,
        metadata: dict[str, Any] | None = None,
    ) -> None:
        self.generator = generator.eval().requires_grad_(False)
        self.space = space
        self.log_mean, self.log_sd = log_mean, log_sd
        self.metadata = dict(metadata or {})

    @usual_torch()
    def sample(self, n: int, *, generator: torch.Generator | None = None) -> Tensor:
        """`n` spectrograms of magnitudes, (n, F, F), float32."""
        z = torch.randn((n, self.space.size), generator=generator)
        with torch.no_grad():
            planes = self.generator(self.space.code(z.to(self.log_mean.device)))
        return magnitudes(planes, self.log_mean, self.log_sd)


def planes_of(values: Tensor, log_mean: Tensor, log_sd: Tensor) -> Tensor:
    """Normalised planes (B, 1, F, F) of magnitudes (B, F, F)."""
    logs = torch.log(values + MAGNITUDE_FLOOR)
    return ((logs - log_mean) / (3.0 * log_sd)).clamp(-1.0, 1.0).unsqueeze(1)


def magnitudes(planes: Tensor, log_mean: Tensor, log_sd: Tensor) -> Tensor:
    """The inverse of `planes_of`, but for what was clipped."""
    logs = 3.0 * planes.squeeze(1).float() * log_sd + log_mean
    return (torch.exp(logs) - MAGNITUDE_FLOOR).clamp_min(0.0)
