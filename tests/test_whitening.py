"""Which spectrum a network's input is whitened by."""

import dataclasses

import numpy as np
import pytest
import torch

from sepprior.data import as_recording, consecutive_windows, iterate_blocks
from sepprior.errors import SeppriorError
from sepprior.priors import GaussianPrior
from sepprior.stationary import autocovariance, continuum_autocovariance
from sepprior.training import specgan
from sepprior.training.contract import Task
from sepprior.training.whitening import continuum_filter
from tests.conftest import TINY

WINDOW = 64
RATE = 100.0


def task_of(values):
    recording = as_recording(values, sample_rate=RATE)
    level, covariance = autocovariance(
        iterate_blocks(recording, block=2**20), n_lags=WINDOW
    )
    gaussian = GaussianPrior(covariance, level=level, sample_rate=RATE)
    held = torch.from_numpy(consecutive_windows(recording, window=WINDOW, limit=8))
    return Task(recording, recording, held, gaussian, torch.device("cpu"), {})


def noise(n, *, line):
    t = np.arange(n) / RATE
    white = np.random.default_rng(0).standard_normal(n)
    return white + line * np.sin(2 * np.pi * 12.5 * t)


def test_lines_that_matter_are_left_in():
    quiet, loud = (task_of(noise(40_000, line=a)) for a in (0.0, 3.0))
    assert continuum_filter(quiet, "auto") is None
    assert continuum_filter(loud, "total") is None
    kept = continuum_filter(loud, "auto")
    assert kept is not None
    # White noise of unit variance is what remains of it; all of it is five and a half.
    assert float(loud.gaussian.autocovariance[0]) == pytest.approx(5.5, abs=0.1)
    assert float(kept[0]) == pytest.approx(1.0, abs=0.1)
    asked = continuum_filter(quiet, "continuum")
    blocks = iterate_blocks(quiet.training, block=2**20)
    expected = continuum_autocovariance(
        blocks, n_lags=WINDOW, mean=quiet.gaussian.level
    )
    assert asked is not None and expected is not None
    assert torch.equal(asked, expected)


def test_a_short_recording_has_no_continuum():
    task = task_of(noise(15 * WINDOW, line=3.0))
    assert continuum_filter(task, "auto") is None
    with pytest.raises(SeppriorError, match="no stretch of 1024 samples") as error:
        continuum_filter(task, "continuum")
    assert "\n" not in str(error.value)


def test_the_winner_of_the_race_goes_on_as_if_it_had_run_alone(monkeypatch):
    """To the last bit, so that what a race decides costs only the loser's steps."""
    monkeypatch.setattr(specgan, "PILOT_STEPS", 2)
    task = task_of(noise(40_000, line=3.0))
    config = dataclasses.replace(
        TINY, window=WINDOW, whitening="auto", warmup_steps=6, steps=8
    )
    winner = specgan.build_trainer(task, config, state=None)
    assert winner.step in (4, 6)
    name, whitening = winner.facts["whitening"], winner.model.whitening
    total = torch.equal(whitening, task.gaussian.autocovariance)
    assert name == ("total" if total else "continuum")
    alone = specgan.fresh_run(task, config, whitening, name, frame=16)
    for trainer in (winner, alone):
        while trainer.step < config.steps:
            trainer.advance()
    ours, theirs = (t.networks.ema_generator.state_dict() for t in (winner, alone))
    assert all(torch.equal(ours[k], theirs[k]) for k in theirs)


def test_a_race_leaves_a_step_to_report():
    task = task_of(noise(40_000, line=3.0))
    config = dataclasses.replace(TINY, window=WINDOW, whitening="auto", steps=3)
    assert specgan.build_trainer(task, config, state=None).step < config.steps
