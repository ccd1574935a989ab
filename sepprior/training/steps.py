"""What the steps of every training have in common."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TypeAlias

import torch
from torch import nn

from sepprior.config import AdversarialConfig, DiffusionConfig
from sepprior.errors import SeppriorError

Recipe: TypeAlias = AdversarialConfig | DiffusionConfig

BFLOAT16 = "bfloat16"
RUNAWAY_DB = 10.0
"""Decibels above the untrained generator's that only a broken run's spectral error
reaches: planes full of the loudest value, in Gaussian noise, are 12 to 15 dB off.
Likewise above the recording's that only a broken run's power reaches: waveforms at
their bound, the recording's peak, are 12 dB too loud in Gaussian noise."""


def mixed_precision(config: Recipe, device: torch.device) -> torch.autocast:
    """Matrix products in bfloat16 where the recipe asks for it."""
    return torch.autocast(
        device.type, dtype=torch.bfloat16, enabled=config.precision == BFLOAT16
    )


@contextmanager
def full_float32() -> Iterator[None]:
    """Convolutions of float32 with all its bits: no TF32, which keeps 10 of 23.

    cuDNN takes TF32 by default. The switch is that of the process, and holds in the
    threads of a backward pass.
    """
    cudnn: Any = torch.backends.cudnn
    place, name, off = getattr(cudnn, "conv", None), "fp32_precision", "ieee"
    if place is None:  # before torch 2.9
        place, name, off = cudnn, "allow_tf32", False
    before = getattr(place, name)
    setattr(place, name, off)
    try:
        yield
    finally:
        setattr(place, name, before)


def diverged(
    what: str, step: int, config: Recipe, setting: str = "learning_rate"
) -> SeppriorError:
    """The error of a training that ran away.

    Args:
        what: what it came to.
        step: by which step.
        config: the recipe.
        setting: the setting that gave the latest step its size.
    """
    return SeppriorError(
        f"training diverged by step {step}: {what}; train again from the start with a "
        f"lower {setting} (now {getattr(config, setting):g}) or another seed"
    )


def check_finite(
    record: dict[str, float],
    step: int,
    config: Recipe,
    setting: str = "learning_rate",
) -> None:
    """Stop a training whose losses are no numbers.

    Raises:
        SeppriorError: as `diverged`, whose arguments these are.
    """
    bad = [name for name, value in record.items() if not math.isfinite(value)]
    if bad:
        raise diverged(f"{bad[0]} is not finite", step, config, setting)


def check_spectrum(
    error: float, untrained: float, step: int, config: AdversarialConfig
) -> None:
    """Stop a training, without a likelihood to judge it by, that ran away.

    Args:
        error: spectral error of what is generated, dB.
        untrained: that of the untrained generator.
        step: steps done.
        config: the recipe.

    Raises:
        SeppriorError: as `diverged`.
    """
    if not error < untrained + RUNAWAY_DB:
        raise diverged(
            f"the mean spectrum of generated noise is {error:.3g} dB from the recorded "
            f"one, {untrained:.3g} dB before training",
            step,
            config,
        )


def check_loudness(power: float, step: int, config: AdversarialConfig) -> None:
    """Stop a training whose waveforms are far louder than the recording.

    Their prior's likelihood does not tell: a generator that explains nothing is left
    out of it.

    Args:
        power: mean square of generated over that of recorded samples.
        step: steps done.
        config: the recipe.

    Raises:
        SeppriorError: as `diverged`.
    """
    if not power < 10 ** (RUNAWAY_DB / 10):
        louder = 10 * math.log10(power) if math.isfinite(power) else power
        raise diverged(
            f"generated noise is {louder:.3g} dB louder than the recorded",
            step,
            config,
        )


def set_rate(optimiser: torch.optim.Optimizer, rate: float) -> None:
    """Give every parameter group the step size `rate`."""
    for group in optimiser.param_groups:
        group["lr"] = rate


def follow(average: nn.Module, module: nn.Module, decay: float) -> None:
    """Move a running average of parameters one step, ``a <- d a + (1 - d) p``."""
    pairs = zip(average.parameters(), module.parameters(), strict=True)
    for mean, new in pairs:
        mean.data.lerp_(new.data, 1.0 - decay)
