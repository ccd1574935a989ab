"""Each diagnostic of a separation: fires when it should, and seldom otherwise."""

import importlib.util
import math
from pathlib import Path

import numpy as np
import pytest
import torch

import sepprior
from sepprior.inference import joint
from sepprior.priors import WaveformPrior
from tests.test_joint import RATE, N, linear_prior

ROOT = Path(sepprior.__file__).parent
BUNDLED = ROOT / "data_files" / "example_prior.safetensors"
BAND = {"fmin": 2.0, "fmax": 6.0}
N_TRIALS = 100


@pytest.fixture(scope="module")
def prior():
    return sepprior.load_prior(BUNDLED)


@pytest.fixture(scope="module")
def instrument():
    """The example's noise, made anew: what the bundled prior was trained on."""
    path = ROOT.parent / "examples" / "make_example.py"
    spec = importlib.util.spec_from_file_location("make_example", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    long = module.noise(np.random.default_rng(12345), 3 * 300 * N_TRIALS)
    return long.reshape(-1, 3, 300)[:, 1]


def with_signals(noise, seed=0):
    rng = np.random.default_rng(seed)
    t = np.arange(noise.shape[1]) / 300.0
    f, phase = rng.uniform(2.5, 5.5, (2, len(noise), 1))
    return noise + 1.5 * np.sin(2 * np.pi * f * t + phase)


@pytest.mark.statistical
def test_nothing_is_said_about_signals_in_the_noise_that_was_learned(prior, instrument):
    """100 measurements; each note is allowed what chance gives it in 1 of 10^4 runs.

    At a rate of 1 % at most 6 of 100 (binomial, 5e-5 beyond).
    """
    result = sepprior.separate(with_signals(instrument), prior, **BAND)
    said = [note for status in result.status for note in status.split("; ")]
    counts = {note: said.count(note) for note in set(said) - {"ok"}}
    assert said.count("ok") >= 0.85 * N_TRIALS, counts
    diagnostics = result.diagnostics
    assert diagnostics["out_of_distribution"].sum() <= 6
    assert diagnostics["detected"].all()
    assert not diagnostics["at_bound"].any()
    assert (~diagnostics["converged"]).sum() <= 6
    assert (diagnostics["absorption"] > 0.9).sum() == 0
    assert diagnostics["gls_sufficient"].sum() <= 6
    assert diagnostics["restart_agreement"].mean() > 0.8
    # The whitened residual has unit variance where the prior describes the noise.
    spread = np.sqrt(2.0 / 300)
    assert abs(diagnostics["chi_square"].mean() - 1.0) < 3 * spread


@pytest.mark.statistical
def test_noise_alone_is_called_a_signal_at_the_stated_rate(prior, instrument):
    """100 windows without a signal: at most 6 detections at 1 % (5e-5)."""
    result = sepprior.separate(instrument, prior, **BAND)
    detected = result.diagnostics["detected"]
    assert detected.sum() <= 6
    silent = np.array(["no signal detected" in status for status in result.status])
    assert (silent == ~detected).all()
    p = result.diagnostics["false_alarm_probability"]
    assert (p < 0.2).mean() < 0.2 + 4 * math.sqrt(0.16 / N_TRIALS)


def test_changed_noise_is_told(prior, instrument):
    rng = np.random.default_rng(3)
    noise = instrument[:20] + 0.3 * rng.standard_normal((20, 300))
    result = sepprior.separate(with_signals(noise), prior, **BAND)
    told = ("changed since training", "times as loud as in training")
    assert all(any(words in status for words in told) for status in result.status)


def test_a_search_that_was_cut_short_is_told(prior, instrument, monkeypatch):
    minimise = joint.minimize_batch

    def short(*arguments, **options):
        return minimise(*arguments, **{**options, "max_evaluations": 1})

    monkeypatch.setattr(joint, "minimize_batch", short)
    result = sepprior.separate(with_signals(instrument[:10]), prior, **BAND)
    assert not result.diagnostics["converged"].any()
    assert all("not fully converged" in status for status in result.status)


def test_noise_that_can_be_the_signal_is_told():
    """A generator that makes sinusoids at the signal's own frequency."""
    prior, columns, covariance = linear_prior()
    t = torch.arange(N, dtype=torch.float64) / RATE
    line = torch.stack(
        [torch.cos(2 * math.pi * 3.0 * t), torch.sin(2 * math.pi * 3.0 * t)]
    )

    def prior_with(columns):
        return WaveformPrior(
            lambda z: z @ columns,
            n_latent=len(columns),
            range_autocovariance=0.05 * 0.6 ** torch.arange(N, dtype=torch.float64),
            autocovariance=prior.autocovariance,
            sample_rate=RATE,
        )

    rng = np.random.default_rng(0)
    white = rng.standard_normal((5, N))
    noise = white @ torch.linalg.cholesky(covariance).numpy().T
    x = noise + 2.0 * np.sin(2 * np.pi * 3.0 * t.numpy())
    swallowing = sepprior.separate(
        x, prior_with(torch.cat([columns, 2.0 * line])), fmin=2.0, fmax=4.0
    )
    used = swallowing.diagnostics["method"] != "gls"
    assert used.any()
    assert (swallowing.diagnostics["absorption"][used] > 0.9).all()
    told = ["can look like the signal" in status for status in swallowing.status]
    assert told == used.tolist()
    apart = sepprior.separate(x, prior_with(columns), fmin=2.0, fmax=4.0)
    assert (apart.diagnostics["absorption"] < 0.9).all()


def test_records_of_several_windows_converge():
    """Two of which a single run of the minimiser leaves before the end."""
    prior = sepprior.load_prior(BUNDLED)
    noise = prior.sample(40, generator=torch.Generator().manual_seed(3)).numpy()
    x = noise.reshape(8, 1500)[[1, 5], :1280]
    wave = 2.0 * np.sin(2 * np.pi * 10.0 * np.arange(1280) / 300.0)
    result = sepprior.separate(x + wave, prior, fmin=1.0, fmax=30.0)
    assert result.diagnostics["converged"].all()


def test_a_single_run_would_not_do(monkeypatch):
    """The control to it."""
    monkeypatch.setattr(joint, "MOST_RUNS", 0)
    with pytest.raises(AssertionError):
        test_records_of_several_windows_converge()
