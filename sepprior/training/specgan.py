"""From a recording to a SpecGAN training run: frame and filter are chosen first."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from sepprior.config import SpecGANConfig
from sepprior.training.contract import CHECKS, Task, Work
from sepprior.training.gan import SpecGANTrainer
from sepprior.training.noise_model import NoiseModel
from sepprior.training.specgan_networks import build_networks
from sepprior.training.whitening import continuum_filter, rest_filter
from sepprior.transforms import frame_length

PILOT_STEPS = 400
"""Warm-up steps between two comparisons of runs."""
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
    runs = [fresh_run(task, config, first, name, frame=f, row=row) for f in frames]
    # What may have to be compared, with the steps that each run may take there.
    open_choices = {"frame": FRAME_STEPS if len(frames) > 1 else 0}
    if not blind and continuum is not None and name != "continuum":
        open_choices["filter"] = FILTER_STEPS
    if not blind and config.latent_row == "auto":
        open_choices["layout"] = ROW_STEPS
    if not blind and config.whitening == "auto":
        open_choices["rest"] = REST_STEPS

    def race(
        runs: list[SpecGANTrainer], choice: str, words: str, *, by: float = 0.0
    ) -> SpecGANTrainer:
        most = open_choices.pop(choice)
        if len(runs) == 1:
            return _race(runs, task.held, most=most, by=by, work=task.work)
        steps = min(most, config.steps)
        left = 2 * sum(min(s, config.steps) for s in (most, *open_choices.values()))
        task.work.enter(f"choosing the {words}", left=left + config.steps + CHECKS)
        won = _race(runs, task.held, most=steps, by=by, work=task.work)
        task.work.tell(_choice(task, won, words))
        return won

    best = race(runs, "frame", "frame")
    if blind:
        return best
    frame = best.model.stft.length
    if "filter" in open_choices:
        assert continuum is not None
        other = fresh_run(task, config, continuum, "continuum", frame=frame, row=row)
        best = race([best, other], "filter", "filter")
    if config.latent_row == "auto" and best.model.stft.n_frames > config.row_latent:
        seen, name = best.model.whitening, best.facts["whitening"]
        other = fresh_run(task, config, seen, name, frame=frame, row=True)
        words = "layout of the latents"
        best = race([best, other], "layout", words, by=ROW_MATTERS)
    open_choices.pop("layout", None)
    if config.whitening == "auto":
        left = rest_filter(best.frozen(), best.model)
        if left is not None:
            row = best.networks.generator.row is not None
            other = fresh_run(task, config, left, "rest", frame=frame, row=row)
            best = race([best, other], "rest", "colour of the rest")
    return best


def _choice(task: Task, run: SpecGANTrainer, words: str) -> str:
    """What has been chosen, and what it gains over the spectrum where that is known."""
    row = run.networks.generator.row is not None
    chosen = {
        "frame": f"frames of {run.model.stft.length} samples",
        "filter": f"whitening by the {run.facts['whitening']} spectrum",
        "layout of the latents": "latents in a row" if row else "latents of all frames",
        "colour of the rest": f"whitening by the {run.facts['whitening']} spectrum",
    }[words]
    if not run.scores:
        return chosen
    score = run.scores[max(run.scores)]
    gain = float(task.gaussian.heldout_nll(task.held).mean()) - score
    return f"{chosen}: {gain / task.gaussian.window:+.3g} nats per sample so far"


def _race(
    runs: list[SpecGANTrainer],
    held: Tensor,
    *,
    most: int,
    by: float = 0.0,
    work: Work | None = None,
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
    work = work or Work()
    for target in range(PILOT_STEPS, steps + PILOT_STEPS, PILOT_STEPS):
        target = min(target, steps)
        for run in runs:
            while run.step < target:
                run.advance()
                work.add()
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
