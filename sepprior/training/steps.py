"""What the steps of every training have in common."""

from __future__ import annotations

import math
from typing import TypeAlias

import torch
from torch import nn

from sepprior.config import AdversarialConfig, DiffusionConfig
from sepprior.errors import SeppriorError

Recipe: TypeAlias = AdversarialConfig | DiffusionConfig

BFLOAT16 = "bfloat16"


def mixed_precision(config: Recipe, device: torch.device) -> torch.autocast:
    """Matrix products in bfloat16 where the recipe asks for it."""
    return torch.autocast(
        device.type, dtype=torch.bfloat16, enabled=config.precision == BFLOAT16
    )


def check_finite(record: dict[str, float], step: int, config: Recipe) -> None:
    """Stop a training whose losses are no numbers.

    A penalty is NaN where the loss has none.

    Raises:
        SeppriorError: says what to try.
    """
    bad = [name for name, value in record.items() if not math.isfinite(value)]
    if bad:
        raise SeppriorError(
            f"training diverged at step {step}: {bad[0]} is not finite; train again "
            f"from the start with a lower learning_rate (now {config.learning_rate:g}) "
            "or another seed"
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
