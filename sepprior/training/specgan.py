"""From a recording to a SpecGAN training run: frame and filter are chosen first."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from sepprior.config import SpecGANConfig
from sepprior.training.contract import Task, unheard
from sepprior.training.gan import SpecGANTrainer
from sepprior.training.noise_model import NoiseModel
from sepprior.training.specgan_networks import build_networks
from sepprior.training.whitening import continuum_filter, rest_filter
from sepprior.transforms import frame_length

PILOT_STEPS = 400
"""Warm-up steps between two comparisons of runs."""
ANNOUNCED_STEPS = 50
"""Warm-up steps between two announcements of how far a comparison is."""
FRAME_STEPS, FILTER_STEPS, ROW_STEPS, REST_STEPS = 1200, 2000, 2000, 2000
"""Warm-up steps after which the better run is taken in any case."""
ROW_MATTERS = 0.01
"""Nats per sample that latents in a row must gain: separating costs half again."""
CLEAR = 0.05
"""Nats per sample that a run must be behind to be given up while it gets better.

Closer ones change places late: in `bursts` filters 0.006 apart at 1600 steps.
"""
SHORTER = 4
"""The square plane's frame over the shorter one that is tried beside it."""
SHORTEST = 8
"""Samples of the shortest frame."""


def build_trainer(
    task: Task, config: SpecGANConfig, *, state: dict[str, Any] | None
) -> SpecGANTrainer:
    """A training run, fresh or from a saved state."""
    if state is None:
        return best_run(task, config)
    trainer = fresh_run(
        task,
        config,
        state["whitening"],
        state["whitening_name"],
        frame=state.get("frame", 0),
        row=state.get("latent_row", False),
    )
    trainer.load_state(state)
    return trainer


def fresh_run(
    task: Task,
    config: SpecGANConfig,
    whitening: Tensor,
    name: str,
    *,
    frame: int,
    row: bool,
) -> SpecGANTrainer:
    """A run on the recording seen through a filter, with its own randomness.

    Args:
        task: the recording made ready.
        config: the recipe.
        whitening: autocovariance that the filter is made from, (N,), squared data
            units.
        name: of the filter, kept with the prior.
        frame: samples of a spectrogram's frame, 0 for that of a square plane.
        row: latents are also painted and read where they stand in time.
    """
    if row:
        config = replace(config, latent=config.row_latent)
    model = NoiseModel(
        task.training,
        config,
        task.device,
        task.gaussian.level,
        task.gaussian.autocovariance,
        whitening,
        torch.Generator().manual_seed(config.seed),
        frame=frame,
    )
    networks = build_networks(config, model, row=row)
    return SpecGANTrainer(model, networks, whitening=name)


def best_run(task: Task, config: SpecGANConfig) -> SpecGANTrainer:
    """A run with the frame, the stationary filter and the painting that serve it best.

    Long frames tell frequencies apart, short ones instants: bursts and jumps need the
    latter, noise whose lines come and go the former. Whitening by the whole spectrum
    removes lines as least squares would, each with a free amplitude and phase; by the
    continuum it leaves them to the generator, which wins where their phases are locked
    (a pulse train). Latents that are painted where they stand in time say when
    something happens, those that are painted everywhere say what all of the window
    shares. Whitening by what the mean leaves, once there is a mean, suits noise that is
    mostly mean (`rest_filter`). Where one of these is open, two runs begin their
    warm-up, held-out likelihood decides, and the better one goes on; latents in a row,
    which cost more, must be better by `ROW_MATTERS`.
    """
    total = task.gaussian.autocovariance
    if config.channels == "magnitude":
        impulse = torch.zeros_like(total)
        impulse[0] = total[0]
        return fresh_run(task, config, impulse, "none", frame=config.frame, row=False)
    blind = config.likelihood_weight == 0
    row = config.latent_row == "yes" and not blind
    square = frame_length(config.window)
    frames = [config.frame or square]
    short = square // SHORTER
    if not (config.frame or blind) and short >= SHORTEST:
        frames.append(short)
    continuum = continuum_filter(task, config.whitening)
    first, name = total, "total"
    if continuum is not None and config.whitening == "continuum":
        first, name = continuum, "continuum"
    best = _race(
        [fresh_run(task, config, first, name, frame=f, row=row) for f in frames],
        task.held,
        most=FRAME_STEPS,
        announce=_naming(task, "frame"),
    )
    if blind:
        return best
    frame = best.model.stft.length

    def better(
        other: SpecGANTrainer, most: int, choice: str, *, by: float = 0.0
    ) -> SpecGANTrainer:
        announce = _naming(task, choice)
        return _race([best, other], task.held, most=most, by=by, announce=announce)

    if continuum is not None and name != "continuum":
        other = fresh_run(task, config, continuum, "continuum", frame=frame, row=row)
        best = better(other, FILTER_STEPS, "filter")
    if config.latent_row == "auto" and best.model.stft.n_frames > config.row_latent:
        seen, name = best.model.whitening, best.facts["whitening"]
        other = fresh_run(task, config, seen, name, frame=frame, row=True)
        best = better(other, ROW_STEPS, "layout of the latents", by=ROW_MATTERS)
    if config.whitening == "auto":
        left = rest_filter(best.frozen(), best.model)
        if left is not None:
            row = best.networks.generator.row is not None
            other = fresh_run(task, config, left, "rest", frame=frame, row=row)
            best = better(other, REST_STEPS, "colour of the rest")
    return best


def _naming(task: Task, choice: str) -> Callable[[str], object]:
    """What is announced of a choice: its name first."""
    return lambda progress: task.announce(f"choosing the {choice}, {progress}")


def _race(
    runs: list[SpecGANTrainer],
    held: Tensor,
    *,
    most: int,
    by: float = 0.0,
    announce: Callable[[str], object] = unheard,
) -> SpecGANTrainer:
    """Warm two runs up side by side; the better one by held-out noise.

    The second one must be better by `by`, nats per sample. A coherent generator starts
    far behind and catches up, so that the race goes on while the one behind could still
    close the gap at its latest pace, unless the gap is `CLEAR` and does not close. A
    run that has won a race before is compared by what it scored there, and waits while
    the other has fewer steps.
    """
    if len(runs) == 1:
        return runs[0]
    first, config = runs[0], runs[0].config
    # The last step of a run is left to whoever asked for it.
    steps = min(first.warmup, most, config.steps - 1)
    last: list[float] | None = None
    behind = 1
    begun = sum(run.step for run in runs)
    for target in range(PILOT_STEPS, steps + PILOT_STEPS, PILOT_STEPS):
        target = min(target, steps)
        for run in runs:
            while run.step < target:
                run.advance()
                if run.step % ANNOUNCED_STEPS == 0:
                    done = sum(r.step for r in runs) - begun
                    announce(f"{100 * done // (len(runs) * steps - begun)} %")
            if run.step == target:
                nll = run.frozen().heldout_nll(held, draws=4).mean()
                run.scores[target] = float(nll)
        if any(target not in run.scores for run in runs):
            continue
        scores = [run.scores[target] for run in runs]
        scores[1] += by * config.window
        behind = int(scores[1] > scores[0])
        gap = scores[behind] - scores[1 - behind]
        if last is not None:
            left = (steps - target) / PILOT_STEPS
            before = last[behind] - last[1 - behind]
            if gap >= max(before, CLEAR * config.window):
                break
            if (last[behind] - scores[behind]) * left < gap:
                break
        last = scores
    return runs[1 - behind]
