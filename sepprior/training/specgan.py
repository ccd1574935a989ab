"""From a recording to a SpecGAN training run: the whitening filter is chosen first."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sepprior.config import SpecGANConfig
from sepprior.training.contract import Task
from sepprior.training.gan import SpecGANTrainer
from sepprior.training.noise_model import NoiseModel
from sepprior.training.specgan_networks import build_networks
from sepprior.training.whitening import continuum_filter

PILOT_STEPS = 400
"""Warm-up steps between two comparisons of the whitening filters."""
RACE_STEPS = 2000
"""Warm-up steps after which the better filter is taken in any case."""


def build_trainer(
    task: Task, config: SpecGANConfig, *, state: dict[str, Any] | None
) -> SpecGANTrainer:
    """A training run, fresh or from a saved state."""
    if state is None:
        whitening, chosen = choose_whitening(task, config)
    else:
        whitening, chosen = state["whitening"], state["whitening_name"]
    model = noise_model(task, config, whitening)
    trainer = SpecGANTrainer(model, build_networks(config, model), whitening=chosen)
    if state is not None:
        trainer.load_state(state)
    return trainer


def noise_model(task: Task, config: SpecGANConfig, whitening: Tensor) -> NoiseModel:
    """The recording seen through a filter, with a random generator of its own."""
    return NoiseModel(
        task.training,
        config,
        task.device,
        task.gaussian.level,
        task.gaussian.autocovariance,
        whitening,
        torch.Generator().manual_seed(config.seed),
    )


def choose_whitening(task: Task, config: SpecGANConfig) -> tuple[Tensor, str]:
    """The stationary filter in front of the network, and its name.

    Whitening by the whole spectrum removes lines as least squares would, each with a
    free amplitude and phase. Whitening by the continuum leaves them to the generator,
    which wins where their phases are locked (a pulse train). Trial runs of the warm-up
    decide by held-out likelihood.
    """
    total = task.gaussian.autocovariance
    if config.channels == "magnitude":
        impulse = torch.zeros_like(total)
        impulse[0] = total[0]
        return impulse, "none"
    continuum = continuum_filter(task, config.whitening)
    if continuum is None:
        return total, "total"
    if config.whitening == "continuum":
        return continuum, "continuum"
    if config.likelihood_weight == 0:
        return total, "total"
    names = ("total", "continuum")
    filters = (total, continuum)
    pilots = []
    for whitening in filters:
        model = noise_model(task, config, whitening)
        pilots.append(SpecGANTrainer(model, build_networks(config, model)))
    best = _race(pilots, task.held)
    return filters[best], names[best]


def _race(pilots: list[SpecGANTrainer], held: Tensor) -> int:
    """Warm two runs up side by side; the index of the better one by held-out noise.

    A coherent generator starts far behind and catches up, so that the race goes on
    while the one behind could still close the gap at its latest pace.
    """
    last: list[float] | None = None
    steps = min(pilots[0].warmup, RACE_STEPS)
    scores = [0.0, 0.0]
    while pilots[0].step < steps:
        for i, pilot in enumerate(pilots):
            for _ in range(min(PILOT_STEPS, steps - pilot.step)):
                pilot.advance()
            scores[i] = float(pilot.frozen().heldout_nll(held, draws=4).mean())
        behind = int(scores[1] > scores[0])
        gap = scores[behind] - scores[1 - behind]
        if last is not None:
            left = (steps - pilots[0].step) / PILOT_STEPS
            if (last[behind] - scores[behind]) * left < gap:
                break
        last = list(scores)
    return int(scores[1] < scores[0])
