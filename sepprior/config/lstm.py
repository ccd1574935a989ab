"""Recipe of the recurrent GAN."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from sepprior.config.adversarial import AdversarialConfig
from sepprior.config.checks import check_range


@dataclass(frozen=True)
class LSTMConfig(AdversarialConfig):
    """A recurrent generator that turns a few latents into a waveform.

    The critic is convolutional.

    Attributes (besides those of every adversarial network):
        model: Always "lstm".
        layers: Recurrent layers; each has `width` cells.

    Raises:
        SeppriorError: A value is out of its range.
    """

    model: Literal["lstm"] = "lstm"
    latent: int = 3
    width: int = 64
    layers: int = 1

    def __post_init__(self) -> None:
        """Check types and ranges."""
        super().__post_init__()
        check_range("layers", self.layers, 1, 8)
