"""Noise louder or quieter than in training: followed, with true error bars."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch

import sepprior
from sepprior import GaussianConfig, SpecGANConfig
from sepprior.benchmark.scenarios import make_trials, noise_record, sinusoid
from sepprior.inference.own_level import Scatter
from sepprior.priors import GaussianPrior, WaveformPrior

BUNDLED = Path(sepprior.__file__).parent / "data_files" / "example_prior.safetensors"
N, RATE = 200, 100.0
T = np.arange(N) / RATE
TRIALS = 150
SPECTRUM = 0.8 ** np.arange(N, dtype=float)
"""Autocovariance of the noise of the tests."""


def gaussian(*, followed=True):
    """A prior that is right, calibrated by theory."""
    one = {"q68": [1.0], "q95": [1.0]}
    table = dict.fromkeys(("amplitude", "frequency", "phase", "bias"), one)
    level = {"level": [0.0, math.sqrt(0.5 / N)]} if followed else {}
    calibration = {"cycles": [10.0], "gls": table | level, "robust": table}
    return GaussianPrior(
        torch.from_numpy(SPECTRUM),
        level=0.0,
        sample_rate=RATE,
        metadata={"calibration": calibration},
    )


def measurements(factor, seed=3):
    rng = np.random.default_rng(seed)
    truth = {
        "amplitude": np.full(TRIALS, 2.0 * factor),
        "frequency": rng.uniform(5.0, 40.0, TRIALS),
        "phase": rng.uniform(-np.pi, np.pi, TRIALS),
        "bias": rng.normal(size=TRIALS),
    }
    noise = gaussian().sample(TRIALS, generator=torch.Generator().manual_seed(seed))
    amplitude, frequency, phase, bias = (v[:, None] for v in truth.values())
    wave = amplitude * np.sin(2 * np.pi * frequency * T + phase) + bias
    return wave + factor * noise.numpy(), truth


def coverage(result, truth, levels=(0.68, 0.95)):
    """Share of the 68 % and 95 % intervals that hold the truth, over all parameters."""
    inside, within = [], []
    for name, true in truth.items():
        found = result.parameters[name]
        error = found.value - true
        if name == "phase":
            error = (error + np.pi) % (2 * np.pi) - np.pi
        inside.append(np.abs(error) < found.stderr)
        low, high = (found.ci95[:, i] - found.value + error for i in (0, 1))
        within.append((low <= 0) & (high >= 0))
    return np.mean(inside), np.mean(within)


@pytest.mark.statistical
@pytest.mark.parametrize("factor", [0.5, 0.8, 1.0, 1.25, 3.0])
def test_error_bars_are_true_at_any_level(factor):
    """600 intervals: five standard errors of a share are .095 and .045."""
    x, truth = measurements(factor)
    result = sepprior.separate(x, gaussian(), fmin=3.0, fmax=45.0)
    one, two = coverage(result, truth)
    assert one == pytest.approx(0.68, abs=0.095)
    assert two == pytest.approx(0.95, abs=0.045)
    level = result.diagnostics["noise_level"]
    assert np.median(level) == pytest.approx(factor, rel=0.03)
    if factor != 1.0:
        told = result.diagnostics["noise_level_followed"]
        assert told.mean() > 0.9
        low, high = (result.diagnostics[f"noise_level_{k}"] for k in ("low", "high"))
        assert ((low < factor) & (factor < high))[told].mean() > 0.85


@pytest.mark.statistical
def test_without_a_level_they_would_be_wrong():
    """The control: what is not followed has the error bars of the training's noise."""
    x, truth = measurements(3.0)
    result = sepprior.separate(x, gaussian(followed=False), fmin=3.0, fmax=45.0)
    assert coverage(result, truth)[1] < 0.6
    assert not result.diagnostics["noise_level_followed"].any()


@pytest.mark.statistical
def test_noise_as_in_training_is_answered_as_without_a_level():
    """A change that is not there is followed in a few of a thousand."""
    x, _ = measurements(1.0)
    with_level = sepprior.separate(x, gaussian(), fmin=3.0, fmax=45.0)
    without = sepprior.separate(x, gaussian(followed=False), fmin=3.0, fmax=45.0)
    same = ~with_level.diagnostics["noise_level_followed"]
    assert same.sum() >= TRIALS - 4
    for name, value in without.parameters.items():
        np.testing.assert_array_equal(
            with_level.parameters[name].stderr[same], value.stderr[same]
        )


def test_an_answer_does_not_depend_on_the_rest_of_the_batch():
    x = np.concatenate([measurements(k)[0][:3] for k in (1.0, 2.0, 0.5)])
    together = sepprior.separate(x, gaussian(), fmin=3.0, fmax=45.0)
    for i in (0, 4, 8):
        alone = sepprior.separate(x[i], gaussian(), fmin=3.0, fmax=45.0)
        for name, found in alone.parameters.items():
            assert found.stderr == pytest.approx(
                float(together.parameters[name].stderr[i]), rel=1e-9
            )
        assert alone.status == together.status[i]


def test_another_unit_is_no_level():
    x, _ = measurements(1.0)
    result = sepprior.separate(1000 * x[:5], gaussian(), fmin=3.0, fmax=45.0)
    assert not result.diagnostics["noise_level_followed"].any()


@pytest.mark.statistical
def test_a_learned_prior_follows_the_level():
    """Of its own noise: the level, and 95 % intervals in 12 trials (3 at most miss)."""
    prior = sepprior.load_prior(BUNDLED)
    rng = np.random.default_rng(2)
    noise = prior.sample(12, generator=torch.Generator().manual_seed(1)).numpy()
    f = rng.uniform(3.0, 40.0, (12, 1))
    wave = 5.0 * np.sin(2 * np.pi * f * np.arange(300) / 300.0)
    x = prior.level + 2.5 * (noise - prior.level) + wave
    result = sepprior.separate(x, prior, fmin=2.0, fmax=45.0)
    assert result.diagnostics["noise_level_followed"].mean() > 0.9
    assert np.median(result.diagnostics["noise_level"]) == pytest.approx(2.5, rel=0.15)
    low, high = result.parameters["frequency"].ci95.T
    assert ((low < f[:, 0]) & (f[:, 0] < high)).sum() >= 9
    assert "the error bars account for it" in result.status[0]
    assert (result.diagnostics["method"] == "specgan").mean() > 0.8


def test_scaled_noise_has_a_scaled_density(specgan_prior):
    """``p_s(s n) = p(n) / s^N`` for every prior that can be scaled."""
    waveform = WaveformPrior(
        lambda z: z @ torch.ones(2, N, dtype=torch.float64),
        n_latent=2,
        range_autocovariance=torch.from_numpy(SPECTRUM),
        autocovariance=torch.from_numpy(SPECTRUM),
        sample_rate=RATE,
    )
    for prior in (gaussian(), waveform, specgan_prior, sepprior.load_prior(BUNDLED)):
        rng = torch.Generator().manual_seed(0)
        windows = prior.sample(3, generator=rng)
        louder = prior.level + 3.0 * (windows - prior.level)
        expected = prior.heldout_nll(windows) + prior.window * math.log(3.0)
        found = prior.scaled(3.0).heldout_nll(louder)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-3)
        again = prior.scaled(3.0).sample(3, generator=rng.manual_seed(0))
        torch.testing.assert_close(again, louder, rtol=1e-5, atol=1e-5)


def test_the_scatter_of_the_level_falls_with_the_length():
    drift, chance = 0.2, math.sqrt(0.5 / 100)
    long = Scatter.of(math.hypot(drift, chance), 400, 100)
    assert long.of_residual == pytest.approx(math.hypot(drift, chance / 2))
    white = Scatter.of(chance, 400, 100)
    assert white.of_residual == white.of_level == pytest.approx(chance / 2)
    # A latent takes in half of a level: less is seen of it, and it is known worse.
    taken = Scatter.of(chance * math.sqrt(0.5), 100, 100)
    assert taken.of_level == pytest.approx(chance * math.sqrt(2.0))


LEVELS = (0.5, 0.8, 1.0, 1.25, 2.0, 3.0)


@pytest.mark.slow
@pytest.mark.statistical
@pytest.mark.parametrize(
    ("scenario", "model"),
    [("white", "gaussian"), ("pink", "gaussian"), ("bursts", "specgan")],
)
def test_intervals_hold_at_any_level(scenario, model):
    """400 trials at 10 s: the binomial error of a share is .023 and .011."""
    config = GaussianConfig(window=300)
    if model == "specgan":
        config = SpecGANConfig(
            window=300,
            latent_row="no",
            whitening="total",
            frame=16,
            steps=1700,
            warmup_steps=1500,
        )
    noise = noise_record(scenario, 10.0, 1000, seed=0)
    prior = sepprior.train_noise(noise, sample_rate=30.0, config=config, device="cpu")
    trials = make_trials(scenario, 10.0, 400, seed=7)
    band = {"fmin": trials.fmin, "fmax": trials.fmax}
    for factor in LEVELS:
        # As far above the noise as it is in the benchmark.
        truth = trials.truth | {"amplitude": factor * trials.truth["amplitude"]}
        x = sinusoid(trials.time, truth) + factor * trials.noise
        result = sepprior.separate(x, prior, **band)
        followed = result.diagnostics["noise_level_followed"].mean()
        print(f"\n{scenario} {model} x{factor}: followed {followed:.3f}", end="")
        for name in truth:
            one, two = coverage(result, {name: truth[name]})
            print(f", {name} {one:.2f} {two:.2f}", end="")
            assert 0.60 <= one <= 0.76
            assert 0.90 <= two <= 0.98
