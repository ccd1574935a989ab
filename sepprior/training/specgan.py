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
        return best_whitened(task, config)
    trainer = whitened(task, config, state["whitening"], state["whitening_name"])
    trainer.load_state(state)
    return trainer


def whitened(
    task: Task, config: SpecGANConfig, whitening: Tensor, name: str
) -> SpecGANTrainer:
    """A fresh run on the recording seen through a filter, with its own randomness."""
    model = NoiseModel(
        task.training,
        config,
        task.device,
        task.gaussian.level,
        task.gaussian.autocovariance,
        whitening,
        torch.Generator().manual_seed(config.seed),
    )
    return SpecGANTrainer(model, build_networks(config, model), whitening=name)


def best_whitened(task: Task, config: SpecGANConfig) -> SpecGANTrainer:
    """A run with the stationary filter that serves it best in front of the network.

    Whitening by the whole spectrum removes lines as least squares would, each with a
    free amplitude and phase. Whitening by the continuum leaves them to the generator,
    which wins where their phases are locked (a pulse train). Where that is open, two
    runs begin their warm-up, held-out likelihood decides, and the better one goes on.
    """
    total = task.gaussian.autocovariance
    if config.channels == "magnitude":
        impulse = torch.zeros_like(total)
        impulse[0] = total[0]
        return whitened(task, config, impulse, "none")
    continuum = continuum_filter(task, config.whitening)
    if continuum is not None and config.whitening == "continuum":
        return whitened(task, config, continuum, "continuum")
    plain = whitened(task, config, total, "total")
    if continuum is None or config.likelihood_weight == 0:
        return plain
    return _race([plain, whitened(task, config, continuum, "continuum")], task.held)


def _race(pilots: list[SpecGANTrainer], held: Tensor) -> SpecGANTrainer:
    """Warm two runs up side by side; the better one by held-out noise.

    A coherent generator starts far behind and catches up, so that the race goes on
    while the one behind could still close the gap at its latest pace.
    """
    last: list[float] | None = None
    # The last step of a run is left to whoever asked for it.
    steps = min(pilots[0].warmup, RACE_STEPS, pilots[0].config.steps - 1)
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
    return pilots[int(scores[1] < scores[0])]
