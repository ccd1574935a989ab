"""Recipe of the stationary Gaussian prior."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from sepprior.config.checks import (
    MAX_WINDOW,
    MIN_WINDOW,
    check_common,
    check_range,
    check_types,
)


@dataclass(frozen=True)
class GaussianConfig:
    """Stationary Gaussian noise: the autocovariance of the recordings, no training.

    Attributes:
        model: Always "gaussian".
        window: Samples of one noise window, 16 to 65536.
        validation_fraction: Share of the recording held out, in contiguous blocks.
        seed: Seed of every random choice.

    Raises:
        SeppriorError: A value is out of its range.
    """

    model: Literal["gaussian"] = "gaussian"
    window: int = 300
    validation_fraction: float = 0.1
    seed: int = 0

    def __post_init__(self) -> None:
        """Check types and ranges."""
        check_types(self)
        check_range("window", self.window, MIN_WINDOW, MAX_WINDOW)
        check_common(self.validation_fraction, self.seed)
