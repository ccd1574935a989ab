"""Recipe of the spectrogram GAN."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from sepprior.config.adversarial import AdversarialConfig
from sepprior.config.checks import check_fraction, check_range
from sepprior.errors import SeppriorError


@dataclass(frozen=True)
class SpecGANConfig(AdversarialConfig):
    """A generative adversarial network on the normalised spectrogram of the noise.

    Attributes (besides those of every adversarial network):
        model: Always "specgan".
        channels: "complex" decodes z into a complex mean and a log-scale per
            time-frequency bin; "magnitude" is the published single log-magnitude.
        frame: Samples of a spectrogram's frame, a power of two from 8: short frames
            tell instants apart, long ones frequencies. The published one is 256, for
            16384 samples; 0 tries that of a square plane and a quarter of it (the
            square one alone in magnitude mode and without a likelihood).
        amplitude_weight: Weight of the distance between the distributions of generated
            and recorded samples; without effect on spectrograms, which have none.
        likelihood_weight: Weight of the conditional Gaussian's likelihood.
        warmup_steps: Steps at the start that train without the critic.
        warmup_learning_rate: Step size of Adam at the start, which falls to
            `learning_rate` over the warm-up.
        flow_layers: Couplings of the invertible map that bends a normal z into the
            latents the generator paints from; 0 leaves it out.
        latent_row: Paint (and read) each latent also where it stands in a row over
            time, by the same weights everywhere; the generator's layers that connect
            all latents with all frames then have half of `width`, and z has
            `row_latent` elements. "yes", "no", or "auto": tried where the spectrogram
            has more frames than that, and kept where it gains 0.01 nat per sample of
            held-out noise. Without `likelihood_weight` there is none.
        row_latent: Length of z where it stands in a row.
        whitening: Spectrum the noise is divided by before the network sees it: "total",
            "continuum" (narrow lines left in), or "auto", which also tries that of what
            the decoded mean leaves.

    Raises:
        SeppriorError: A value is out of its range.
    """

    model: Literal["specgan"] = "specgan"
    steps: int = 6300
    ema: float = 0.99
    spectral_weight: float = 10.0
    channels: Literal["complex", "magnitude"] = "complex"
    frame: int = 0
    amplitude_weight: float = 30.0
    likelihood_weight: float = 100.0
    warmup_steps: int = 6000
    warmup_learning_rate: float = 2e-3
    flow_layers: int = 8
    latent_row: Literal["auto", "yes", "no"] = "auto"
    row_latent: int = 64
    whitening: Literal["auto", "total", "continuum"] = "auto"

    def __post_init__(self) -> None:
        """Check types and ranges."""
        super().__post_init__()
        check_range("warmup_steps", self.warmup_steps, 0, None)
        check_frame(self.frame, self.window)
        check_fraction("warmup_learning_rate", self.warmup_learning_rate, zero=False)
        check_range("flow_layers", self.flow_layers, 0, 64)
        check_range("row_latent", self.row_latent, 2, 4096)
        check_range("amplitude_weight", self.amplitude_weight, 0.0, None)
        check_range("likelihood_weight", self.likelihood_weight, 0.0, None)


def check_frame(frame: int, window: int) -> None:
    """Refuse a frame that is no power of two, or longer than half a window."""
    if frame and (frame < 8 or frame > window // 2 or frame & (frame - 1)):
        raise SeppriorError(
            f"frame = {frame}: expected 0 or a power of two from 8 to {window // 2}, "
            "half the window"
        )
