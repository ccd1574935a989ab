"""Recipe of the spectrogram GAN."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from sepprior.config.adversarial import AdversarialConfig
from sepprior.config.checks import check_range


@dataclass(frozen=True)
class SpecGANConfig(AdversarialConfig):
    """A generative adversarial network on the normalised spectrogram of the noise.

    Attributes (besides those of every adversarial network):
        model: Always "specgan".
        channels: "complex" decodes z into a complex mean and a log-scale per
            time-frequency bin; "magnitude" is the published single log-magnitude.
        likelihood_weight: Weight of the conditional Gaussian's likelihood.
        warmup_steps: Steps at the start that train without the critic.
        whitening: Spectrum the noise is divided by before the network sees it: "total",
            "continuum" (narrow lines left in), or "auto".

    Raises:
        SeppriorError: A value is out of its range.
    """

    model: Literal["specgan"] = "specgan"
    steps: int = 6600
    channels: Literal["complex", "magnitude"] = "complex"
    likelihood_weight: float = 100.0
    warmup_steps: int = 6000
    whitening: Literal["auto", "total", "continuum"] = "auto"

    def __post_init__(self) -> None:
        """Check types and ranges."""
        super().__post_init__()
        check_range("warmup_steps", self.warmup_steps, 0, None)
        check_range("likelihood_weight", self.likelihood_weight, 0.0, None)
