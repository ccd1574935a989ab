"""Recipe of the diffusion model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from sepprior.config.checks import (
    MAX_WINDOW,
    MIN_WINDOW_SPECGAN,
    check_common,
    check_fraction,
    check_range,
    check_types,
)
from sepprior.errors import SeppriorError


@dataclass(frozen=True)
class DiffusionConfig:
    """A denoiser of the whitened noise at all noise levels: a score prior.

    Attributes:
        model: Always "diffusion".
        window: Samples of one noise window, 64 to 65536.
        width: Channels of the network at half resolution; the levels below have twice
            as many. A multiple of 8.
        steps: Steps of the whole training.
        batch: Noise windows per step.
        learning_rate: Step size of AdamW at its highest; it falls to zero on a cosine.
        ema: Decay per step of the network's running average, used after training.
        lowest_level: Lowest noise level trained for, in standard deviations of the
            whitened noise.
        whitening: Spectrum the noise is divided by before the network sees it: "total",
            "continuum" (narrow lines left in), or "auto" (continuum where lines
            matter).
        precision: "bfloat16" computes the network in mixed precision.
        compile: Compile the network with torch.compile.
        validation_fraction: Share of the recording held out, in contiguous blocks.
        tick: Steps between two records of statistics.
        seed: Seed of every random choice.

    Raises:
        SeppriorError: A value is out of its range.
    """

    model: Literal["diffusion"] = "diffusion"
    window: int = 300
    width: int = 48
    steps: int = 2500
    batch: int = 64
    learning_rate: float = 1.5e-3
    ema: float = 0.998
    lowest_level: float = 0.03
    whitening: Literal["auto", "total", "continuum"] = "auto"
    precision: Literal["float32", "bfloat16"] = "float32"
    compile: bool = False
    validation_fraction: float = 0.1
    tick: int = 100
    seed: int = 0

    def __post_init__(self) -> None:
        """Check types and ranges."""
        check_types(self)
        check_range("window", self.window, MIN_WINDOW_SPECGAN, MAX_WINDOW)
        check_range("width", self.width, 8, 1024)
        if self.width % 8:
            raise SeppriorError(f"width = {self.width}: expected a multiple of 8")
        check_range("steps", self.steps, 1, None)
        check_range("batch", self.batch, 2, 65536)
        check_range("tick", self.tick, 1, None)
        check_fraction("learning_rate", self.learning_rate, zero=False)
        check_fraction("ema", self.ema, zero=True)
        check_range("lowest_level", self.lowest_level, 1e-3, 0.5)
        check_common(self.validation_fraction, self.seed)
