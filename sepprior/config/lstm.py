"""Recipe of the recurrent GAN."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from sepprior.config.adversarial import AdversarialConfig
from sepprior.config.checks import check_range
from sepprior.errors import SeppriorError


@dataclass(frozen=True)
class LSTMConfig(AdversarialConfig):
    """A recurrent generator that turns a few latents into a waveform.

    The critic is convolutional.

    Attributes (besides those of every adversarial network):
        model: Always "lstm".
        layers: Recurrent layers; each has `width` cells.
        range_noise: Gaussian noise added to what the generator makes before the critic
            sees it, whose spectrum is learned too: its share of the recorded continuum
            at the start; 0 for none (as published).
        compile: Always false: the recurrence runs in a fused kernel.

    Raises:
        SeppriorError: A value is out of its range.
    """

    model: Literal["lstm"] = "lstm"
    latent: int = 3
    width: int = 64
    layers: int = 1
    learning_rate: float = 2e-3
    range_noise: float = 0.8

    def __post_init__(self) -> None:
        """Check types and ranges."""
        super().__post_init__()
        if self.compile:
            raise SeppriorError(
                "compile = true: the recurrence runs in a fused kernel, which is not "
                "compiled; leave it out"
            )
        check_range("range_noise", self.range_noise, 0.0, 10.0)
        check_range("layers", self.layers, 1, 8)
