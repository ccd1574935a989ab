"""Recipe of the progressively grown GAN on magnitude and frequency."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from sepprior.config.adversarial import AdversarialConfig
from sepprior.config.checks import check_range


@dataclass(frozen=True)
class GANSynthConfig(AdversarialConfig):
    """GANSynth: log-magnitude and instantaneous frequency (Engel et al. 2019).

    Attributes (besides those of every adversarial network):
        model: Always "gansynth".
        growth: Share of the steps in which the networks grow from the coarsest plane to
            the full one; 0 trains at full size from the start.
        classifier_weight: Weight of the critic's label classifier, where the recording
            has labels.

    Raises:
        SeppriorError: A value is out of its range.
    """

    model: Literal["gansynth"] = "gansynth"
    width: int = 8
    critic_width: int = 8
    steps: int = 2000
    batch: int = 32
    growth: float = 0.6
    classifier_weight: float = 10.0

    def __post_init__(self) -> None:
        """Check types and ranges."""
        super().__post_init__()
        check_range("growth", self.growth, 0.0, 1.0)
        check_range("classifier_weight", self.classifier_weight, 0.0, None)
