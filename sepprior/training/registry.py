"""Which trainer a recipe is trained by."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from sepprior.config import NoiseConfig
from sepprior.training import diffusion, specgan, waveform
from sepprior.training.contract import Task, Trainer

BUILDERS: Mapping[str, Callable[..., Any]] = {
    "specgan": specgan.build_trainer,
    "diffusion": diffusion.build_trainer,
    "wavegan": waveform.build_trainer,
    "lstm": waveform.build_trainer,
    "gansynth": waveform.build_trainer,
}
"""Builders ``(task, config, *, state) -> Trainer`` by the recipe's model.

`state` is None for a fresh run, else what the trainer's `state` returned.
"""


def build_trainer(
    task: Task, config: NoiseConfig, *, state: dict[str, Any] | None
) -> Trainer:
    """The trainer of a recipe, at step 0 or where `state` was taken."""
    return BUILDERS[config.model](task, config, state=state)
