"""Which spectrum a network's input is whitened by."""

import copy
import dataclasses

import numpy as np
import pytest
import torch

from sepprior.checkpoint import load_prior, save_prior
from sepprior.data import as_recording, consecutive_windows, iterate_blocks
from sepprior.errors import SeppriorError
from sepprior.priors import GaussianPrior
from sepprior.stationary import autocovariance, continuum_autocovariance
from sepprior.training import specgan
from sepprior.training.contract import Task, Work
from sepprior.training.whitening import continuum_filter, rest_filter
from tests.conftest import TINY

WINDOW = 64
RATE = 100.0


def task_of(values, window=WINDOW):
    recording = as_recording(values, sample_rate=RATE)
    level, covariance = autocovariance(
        iterate_blocks(recording, block=2**20), n_lags=window
    )
    gaussian = GaussianPrior(covariance, level=level, sample_rate=RATE)
    held = torch.from_numpy(consecutive_windows(recording, window=window, limit=8))
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
        TINY,
        window=WINDOW,
        whitening="auto",
        latent_row="auto",
        warmup_steps=6,
        steps=8,
    )
    winner = specgan.build_trainer(task, config, state=None)
    assert winner.step in (4, 6)
    name, whitening = winner.facts["whitening"], winner.model.whitening
    total = torch.equal(whitening, task.gaussian.autocovariance)
    assert name == ("total" if total else "continuum")
    row = winner.networks.generator.row is not None
    alone = specgan.fresh_run(task, config, whitening, name, frame=16, row=row)
    for trainer in (winner, alone):
        while trainer.step < config.steps:
            trainer.advance()
    ours, theirs = (t.networks.ema_generator.state_dict() for t in (winner, alone))
    assert all(torch.equal(ours[k], theirs[k]) for k in theirs)


def test_a_race_leaves_a_step_to_report():
    task = task_of(noise(40_000, line=3.0))
    config = dataclasses.replace(TINY, window=WINDOW, whitening="auto", steps=3)
    assert specgan.build_trainer(task, config, state=None).step < config.steps


# -- the race ------------------------------------------------------------------------


class Run:
    """A run whose held-out score after a step is scripted."""

    def __init__(self, score, *, steps=10_000, step=0):
        self.score, self.step, self.warmup = score, step, steps
        self.config = dataclasses.replace(TINY, steps=steps)
        self.scores = {}

    def advance(self):
        self.step += 1

    def frozen(self):
        return self

    def heldout_nll(self, held, *, draws):
        return torch.tensor([self.score(self.step)])


def test_a_race_is_given_up_where_the_one_behind_cannot_catch_up():
    ahead, behind = Run(lambda n: 1.0), Run(lambda n: 9.0 - n / 4000)
    assert specgan._race([behind, ahead], None, most=2000) is ahead
    assert ahead.step == behind.step == 2 * specgan.PILOT_STEPS
    late = Run(lambda n: 9.0 - n / 200)
    assert specgan._race([late, Run(lambda n: 1.0)], None, most=2000) is late
    assert late.step == 2000


def test_a_race_is_given_up_where_the_gap_does_not_close():
    """Both improve; the one behind would have time, but falls back further."""
    clear = specgan.CLEAR * TINY.window

    def raced(gap, pace):
        """Steps until the end, of one `gap` nats behind that learns as `pace` says."""
        ahead, other = Run(lambda n: -n / 100), Run(lambda n: gap - pace * n / 100)
        assert specgan._race([other, ahead], None, most=2000) is ahead
        return other.step

    early = 2 * specgan.PILOT_STEPS
    assert raced(2.0 * clear, 0.95) == early
    assert raced(2.0 * clear, 1.05) > early
    assert raced(0.5 * clear, 0.95) > early


def test_a_race_says_how_far_it_is():
    said = []
    work = Work(lambda work: said.append((work.done, work.left)))
    work.enter("choosing", left=4000)
    runs = [Run(lambda n: 1.0, step=1000), Run(lambda n: 9.0 - n / 245)]
    specgan._race(runs, None, most=2000, work=work)
    assert said[0] == (0.0, 4000.0) and said[-1] == (3000.0, 1000.0)
    assert len(said) == 1 + 3000


def test_who_has_won_a_race_waits_for_the_next_one():
    winner, other = Run(lambda n: 1.0, step=1200), Run(lambda n: 2.0)
    assert specgan._race([winner, other], None, most=1200) is winner
    assert (winner.step, other.step) == (1200, 1200)
    winner, other = Run(lambda n: 1.0, step=800), Run(lambda n: 2.0 - n / 1000)
    assert specgan._race([winner, other], None, most=2000) is other
    assert specgan._race([winner], None, most=2000) is winner


def test_who_has_won_a_race_is_compared_by_what_it_scored_there():
    """Not by what it has come to since, and without waiting for as many steps."""
    clear = specgan.CLEAR * TINY.window
    winner = Run(lambda n: 9.0 - n / 100)
    other = Run(lambda n: 9.0 - 2.0 * clear - n / 99)
    assert specgan._race([winner, Run(lambda n: 9.5)], None, most=2000) is winner
    assert winner.step == 800
    assert specgan._race([winner, other], None, most=2000) is other
    assert (winner.step, other.step) == (800, 800)


def test_what_costs_more_must_gain_more():
    """The second run is a tenth of a nat per sample better, from the start."""
    gain = 0.1 * TINY.window
    for by, expected in ((0.09, 1), (0.11, 0)):
        runs = [
            Run(lambda n: 5.0 * TINY.window),
            Run(lambda n: 5.0 * TINY.window - gain),
        ]
        assert specgan._race(runs, None, most=2000, by=by) is runs[expected]


@pytest.mark.parametrize("frame", [0, 64])
def test_the_frame_is_kept_with_the_state(frame, monkeypatch):
    """Two are tried, 32 and 8 samples, unless the recipe says which."""
    monkeypatch.setattr(specgan, "PILOT_STEPS", 2)
    task = task_of(noise(40_000, line=0.0), window=256)
    config = dataclasses.replace(TINY, window=256, frame=frame, steps=8)
    run = specgan.build_trainer(task, config, state=None)
    assert run.model.stft.length in ((8, 32) if frame == 0 else (64,))
    assert run.step == (0 if frame else 4)
    again = specgan.build_trainer(task, config, state=run.state())
    assert again.model.stft.length == run.model.stft.length == run.facts["frame"]
    assert again.advance() == run.advance()


# -- painting along a row ------------------------------------------------------------


@pytest.mark.parametrize(
    ("asked", "latent", "rows"),
    [
        ("no", 4, [False]),
        ("yes", 4, [True]),
        ("auto", 4, [False, True]),
        ("auto", 9, [False]),
    ],
)
def test_a_row_is_tried_where_frames_outnumber_latents(
    monkeypatch, asked, latent, rows
):
    """A window of 64 has 9 frames of 16 samples."""
    raced = []

    def race(runs, held, *, most, work, by=0.0):
        raced.extend(run.networks.generator.row is not None for run in runs)
        assert by == (specgan.ROW_MATTERS if raced[-2:] == [False, True] else 0.0)
        return runs[-1]

    monkeypatch.setattr(specgan, "_race", race)
    config = dataclasses.replace(
        TINY, window=WINDOW, frame=16, row_latent=latent, latent_row=asked
    )
    chosen = specgan.build_trainer(task_of(noise(4000, line=0.0)), config, state=None)
    assert sorted(set(raced)) == rows
    assert (chosen.facts.get("latent_row") is True) == rows[-1]
    # What connects everything with everything is narrower beside a row.
    last = chosen.networks.generator.layers[-1]
    assert last.in_channels == (TINY.width // 2 if rows[-1] else TINY.width)
    assert chosen.frozen().n_latent == (latent if rows[-1] else TINY.latent)


@pytest.mark.parametrize("latent", [4, 8])
def test_a_row_is_stored_and_continued(tmp_path, latent):
    """Five columns are painted for 4 latents, nine for 8."""
    config = dataclasses.replace(
        TINY, window=WINDOW, frame=16, row_latent=latent, latent_row="yes", steps=4
    )
    task = task_of(noise(4000, line=0.0))
    run = specgan.build_trainer(task, config, state=None)
    run.advance()
    again = specgan.build_trainer(task, config, state=copy.deepcopy(run.state()))
    for trainer in (run, again):
        trainer.advance()
    prior, other = run.frozen(), again.frozen()
    assert torch.equal(
        prior.sample(3, generator=torch.Generator().manual_seed(0)),
        other.sample(3, generator=torch.Generator().manual_seed(0)),
    )
    assert prior.generator.row.columns == (5 if latent == 4 else 9)
    assert prior.flow is None or prior.flow.row == 6
    save_prior(prior, tmp_path / "row.safetensors")
    stored = load_prior(tmp_path / "row.safetensors")
    windows = torch.from_numpy(noise(2 * WINDOW, line=0.0)).view(2, WINDOW)
    torch.testing.assert_close(stored.heldout_nll(windows), prior.heldout_nll(windows))
    features = prior.features(windows)
    assert torch.equal(stored.posterior(features)[0], prior.posterior(features)[0])


# -- the colour of the rest ----------------------------------------------------------

LEVEL, FLOOR = 1.0, 0.1


def switching(rng, n):
    """Two levels, 30 samples each in the mean, and the same with white noise."""
    levels = LEVEL * np.where(np.cumsum(rng.random(n) < 1 / 30) % 2, 1.0, -1.0)
    return levels + rng.normal(0.0, FLOOR, n)


class Knowing:
    """A prior that finds a share of the levels in what it is shown."""

    def __init__(self, model, share):
        self.model, self.share = model, share
        self.window, self.whitener = model.config.window, model.whitener
        self.stft = model.stft
        self.space = self

    def planes(self, white):
        x = self.whitener.inverse(white)
        levels = self.share * LEVEL * torch.sign(x)
        self.found = self.stft.analyse(self.whitener.forward(levels).float())
        return white

    def encoder(self, planes):
        return planes[:, :2], planes[:, :2]

    def joined(self, z, onehot):
        return z

    def parts_of(self, code):
        return self.found, torch.zeros_like(self.found.real)


def rest_of(values, share):
    task = task_of(values)
    config = dataclasses.replace(TINY, window=WINDOW, frame=8)
    total = task.gaussian.autocovariance
    run = specgan.fresh_run(task, config, total, "total", frame=8, row=False)
    return rest_filter(Knowing(run.model, share), run.model), total


def test_the_rest_has_the_colour_of_what_the_mean_leaves():
    noise = switching(np.random.default_rng(0), 60_000)
    found, _ = rest_of(noise, 1.0)
    assert found is not None
    assert float(found[0]) == pytest.approx(FLOOR**2, rel=0.1)
    assert float(found[1:].abs().max()) < 0.1 * float(found[0])
    # Half of the levels left are levels still, of a quarter of the power.
    half, total = rest_of(noise, 0.5)
    assert half is not None and 0.1 < float(half[0] / total[0]) < 0.5


def test_gaussian_noise_has_no_rest_of_another_colour():
    white = np.random.default_rng(2).standard_normal(60_000)
    coloured = np.convolve(white, 0.9 ** np.arange(64), mode="valid")
    assert rest_of(coloured, 0.0)[0] is None


def test_what_is_rare_counts_little_in_the_rest():
    """Bursts that the mean has not found at all."""
    rng = np.random.default_rng(3)
    quiet = rng.standard_normal(60_000)
    starts = rng.choice(60_000, 600, replace=False)
    loud = quiet + 100.0 * np.bincount(starts, minlength=60_000)
    found, total = rest_of(loud, 0.0)
    assert found is not None and float(total[0]) > 90.0
    assert float(found[0]) < 1.6


def test_a_rest_of_another_colour_is_raced(monkeypatch):
    """The run that is whitened by it goes on where held-out noise prefers it."""
    raced = []

    def race(runs, held, *, most, work, by=0.0):
        raced.append([run.facts["whitening"] for run in runs])
        return runs[-1]

    monkeypatch.setattr(specgan, "_race", race)
    white = torch.zeros(WINDOW, dtype=torch.float64)
    white[0] = FLOOR**2
    task = task_of(switching(np.random.default_rng(1), 6000))
    config = dataclasses.replace(TINY, window=WINDOW, frame=16, latent_row="no")
    monkeypatch.setattr(specgan, "rest_filter", lambda prior, model: white)
    chosen = specgan.build_trainer(task, config, state=None)
    assert raced[-1] == ["total", "rest"] and chosen.facts["whitening"] == "rest"
    again = specgan.build_trainer(task, config, state=copy.deepcopy(chosen.state()))
    assert torch.equal(again.model.whitening, white)
    assert again.advance() == chosen.advance()
    monkeypatch.setattr(specgan, "rest_filter", lambda prior, model: None)
    raced.clear()
    chosen = specgan.build_trainer(task, config, state=None)
    assert ["total", "rest"] not in raced and chosen.facts["whitening"] == "total"
    fixed = dataclasses.replace(config, whitening="total")
    monkeypatch.setattr(specgan, "rest_filter", lambda prior, model: white)
    chosen = specgan.build_trainer(task, fixed, state=None)
    assert chosen.facts["whitening"] == "total"
