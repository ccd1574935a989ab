"""Recipe of the one-dimensional convolutional GAN."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from sepprior.config.adversarial import AdversarialConfig
from sepprior.config.checks import check_range


@dataclass(frozen=True)
class WaveGANConfig(AdversarialConfig):
    """WaveGAN: waveforms by transposed convolutions (Donahue et al. 2019).

    Attributes (besides those of every adversarial network):
        model: Always "wavegan".
        phase_shuffle: Samples by which each of the critic's maps is shifted at random,
            at most (2 as published); 0 for none, so that the critic knows the phase of
            what repeats in every window.
        range_noise: Gaussian noise added to what the generator makes before the critic
            sees it, whose spectrum is learned too: its share of the recorded continuum
            at the start; 0 for none (as published).
        post_filter: Taps of a learned filter behind the generator, even or odd; 0 for
            none (512 as published).

    Raises:
        SeppriorError: A value is out of its range.
    """

    model: Literal["wavegan"] = "wavegan"
    learning_rate: float = 1e-3
    phase_shuffle: int = 0
    range_noise: float = 0.8
    post_filter: int = 0

    def __post_init__(self) -> None:
        """Check types and ranges."""
        super().__post_init__()
        check_range("phase_shuffle", self.phase_shuffle, 0, 8)
        check_range("range_noise", self.range_noise, 0.0, 10.0)
        check_range("post_filter", self.post_filter, 0, self.window)
