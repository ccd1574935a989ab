"""Training, storing and using the diffusion prior."""

import dataclasses
import math
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import sepprior
from sepprior.benchmark.chain import forward_backward
from sepprior.benchmark.noise import telegraph
from sepprior.checkpoint import load_prior, save_prior
from sepprior.config import DiffusionConfig, load_config
from sepprior.data import as_recording
from sepprior.errors import SeppriorError
from sepprior.fidelity import inspect_prior
from sepprior.inference import calibration, last_level
from sepprior.nets import Denoiser
from sepprior.nets.denoiser import COARSEST, n_levels
from sepprior.priors import DiffusionPrior, LatentPrior, PlainPrior, Prior, ScorePrior
from sepprior.priors.views import Geometry
from sepprior.stationary import autocovariance
from sepprior.training import diffusion, train
from sepprior.training.scores import measure_scores, pair_products
from sepprior.transforms import Whitener, toeplitz
from tests.conftest import LEVEL, SAMPLE_RATE, WINDOW, coloured_noise, finish, timeless

TINY = DiffusionConfig(window=WINDOW, width=8, steps=20, batch=16, tick=5)


@pytest.fixture(autouse=True)
def few_injections(monkeypatch):
    monkeypatch.setattr(calibration, "trials_per_band", lambda window, *, joint: 40)
    monkeypatch.setattr(last_level, "TRIALS", 40)


@pytest.fixture(scope="module")
def trained(recording):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(calibration, "trials_per_band", lambda window, *, joint: 40)
        patch.setattr(last_level, "TRIALS", 40)
        return finish(train(recording, TINY, device="cpu"))


def jumps(n, *, seed):
    """Two levels with a mean dwell of 12 samples, and a little white noise."""
    rng = np.random.default_rng(seed)
    sign = np.where(rng.random(n) < 1 / 12, -1.0, 1.0).cumprod()
    return sign + 0.1 * rng.standard_normal(n) + LEVEL


# -- the network -----------------------------------------------------------------------


@pytest.mark.parametrize("window", [64, 100, 300, 1000, 16384])
def test_network_takes_any_window(window):
    network = Denoiser(window=window, width=8, views=1)
    out = network(torch.randn(2, 1, window), torch.zeros(2))
    assert out.shape == (2, window)
    assert out.abs().max() == 0.0  # an untrained network corrects nothing
    assert window / 2 ** n_levels(window) <= COARSEST


def test_network_size_at_the_default_width():
    network = Denoiser(window=300, width=48, views=2)
    assert sum(p.numel() for p in network.parameters()) == 581_106


def test_cost_grows_like_the_window():
    """No quadratic part: activations of the coarsest level are the same for all."""
    small, large = (Denoiser(window=w, width=8, views=1) for w in (1024, 16384))
    assert small.position.shape[-1] == large.position.shape[-1] == 64


# -- training --------------------------------------------------------------------------


def test_records_and_metadata(trained):
    records, prior = trained
    assert [r["step"] for r in records] == [5, 10, 15, 20]
    for record in records:
        assert math.isfinite(record["denoising_loss"])
        assert record["heldout_nll"] == pytest.approx(
            record["heldout_nll_gaussian"], abs=0.1
        )
    assert isinstance(prior, ScorePrior) and isinstance(prior, Prior)
    assert not isinstance(prior, LatentPrior)
    assert prior.metadata["whitening"] == "total"
    assert {"heldout", "calibration", "novelty"} <= prior.metadata.keys()
    assert (prior.levels.diff() < 0).all()
    # The log-density of usual noise: by denoising errors, and by the flow.
    usual, flow = prior.metadata["energy"], prior.metadata["heldout"]["heldout_nll"]
    constant = 0.5 * WINDOW * math.log(2.0 * math.pi)
    assert usual["mean"] + constant == pytest.approx(flow * WINDOW, abs=2.0)
    assert 0.8 < usual["sd"] / math.sqrt(0.5 * WINDOW) < 1.25


def test_resumed_training_is_bit_for_bit_the_uninterrupted_one(
    recording, tmp_path, trained
):
    whole = trained[1].network.state_dict()
    path = tmp_path / "prior.safetensors"
    stream = train(recording, TINY, device="cpu", output=path)
    next(stream), next(stream)
    stream.close()
    records, prior = finish(
        train(recording, TINY, device="cpu", output=path, resume=True)
    )
    assert records[0]["step"] == 15
    assert timeless(records) == timeless(trained[0][2:])
    for name, tensor in prior.network.state_dict().items():
        assert torch.equal(tensor, whole[name]), name
    assert torch.equal(prior.information, trained[1].information)


def test_seeds_differ(recording):
    one = finish(train(recording, TINY, device="cpu"))[1].network.enter.weight
    other = dataclasses.replace(TINY, seed=1, steps=1)
    two = finish(train(recording, other, device="cpu"))[1].network.enter.weight
    assert not torch.equal(one, two)


def test_gaussian_noise_needs_no_correction(trained):
    """The network's output is small, the information that of a Gaussian."""
    prior = trained[1]
    x = torch.from_numpy(coloured_noise(256 * WINDOW, seed=9)).view(-1, WINDOW)
    w = prior.features(x - prior.level).float()
    noisy = w + 0.5 * torch.randn(w.shape, generator=torch.Generator().manual_seed(0))
    f = prior.correction(noisy, torch.full((len(w),), 0.5))
    assert float(f.square().mean().sqrt()) < 0.1
    assert prior.information[:, 0].sub(1.0).abs().max() < 0.05
    # A lag's mean over some 60 of 2048 windows: six standard errors.
    assert prior.information[:, 1:].abs().max() < 6.0 / math.sqrt(2048 * 30)
    gain = prior.information_gain(torch.tensor([3.0, 11.0, 30.0]))
    assert (gain - 1.0).abs().max() < 0.06


def test_jumps_are_learned_in_a_few_steps():
    """Held-out likelihood, information and samples leave the Gaussian behind."""
    noise = as_recording(jumps(40_000, seed=1), sample_rate=SAMPLE_RATE)
    recipe = dataclasses.replace(TINY, width=16, steps=150, batch=32, tick=150)
    records, prior = finish(train(noise, recipe, device="cpu"))
    assert records[-1]["heldout_nll"] < records[-1]["heldout_nll_gaussian"] - 0.1
    held = prior.metadata["heldout"]
    assert held["gain"] > 0.1
    # The likelihood by the flow and the one from denoising errors are independent.
    x = torch.from_numpy(jumps(16 * WINDOW, seed=2)).view(-1, WINDOW)
    w = prior.features(x - prior.level).float()
    by_errors = -prior.gaussian_energy(w) + prior.gain(w)
    by_flow, error = prior.log_likelihood(x, probes=2)
    by_flow = by_flow + 0.5 * WINDOW * math.log(2.0 * math.pi)
    assert float((by_errors - by_flow).mean().abs()) / WINDOW < 0.2
    assert error.max() / WINDOW < 0.3
    gain = prior.information_gain(torch.tensor([2.0, 5.0]))
    assert gain.min() > 2.0
    sample = prior.sample(64, generator=torch.Generator().manual_seed(3))
    assert sample.shape == (64, WINDOW) and sample.dtype == torch.float64
    assert float(sample.std()) == pytest.approx(1.0, abs=0.1)


@pytest.mark.slow
def test_likelihood_of_switching_noise_is_nearly_the_exact_one():
    """The forward algorithm of the hidden Markov chain is the reference.

    No density describes noise better than its own. By the flow and by the denoising
    errors the trained prior comes close from above; the Gaussian is far away.
    """
    rng = np.random.default_rng(1)
    runs = [telegraph(rng, 4000, 30.0) for _ in range(25)]
    recipe = DiffusionConfig(window=WINDOW)
    _, prior = finish(train(as_recording(runs, sample_rate=30.0), recipe, device="cpu"))
    x = np.stack([telegraph(rng, WINDOW, 30.0) for _ in range(256)])
    exact = torch.from_numpy(forward_backward(x)[0])
    windows = torch.from_numpy(x)
    w = prior.features(windows - prior.level).float()
    constant = 0.5 * WINDOW * math.log(2.0 * math.pi)
    by_flow = prior.heldout_nll(windows)
    by_errors = prior.gaussian_energy(w) - prior.gain(w) + constant
    gaussian = prior.gaussian_energy(w) + constant
    for nll in (by_flow, by_errors, gaussian):
        gap = (nll + exact) / WINDOW
        print(f"{float(gap.mean()):.4f} +- {float(gap.std()) / 16:.4f} nats per sample")
    for nll in (by_flow, by_errors):
        gap = (nll + exact) / WINDOW
        assert -3.0 * float(gap.std()) / 16.0 < float(gap.mean()) < 0.1
    assert float((gaussian + exact).mean()) / WINDOW > 0.6


def test_information_of_white_scores():
    _, covariance = autocovariance(
        iter([coloured_noise(50_000, seed=4) - LEVEL]), n_lags=WINDOW
    )
    levels = torch.tensor([1.0, 0.25], dtype=torch.float64)
    prior = DiffusionPrior(
        Denoiser(window=WINDOW, width=8, views=2),
        whitening=covariance,
        autocovariance=covariance,
        level=0.0,
        sample_rate=SAMPLE_RATE,
        levels=levels,
        information=torch.zeros(2, WINDOW),
        scatter=torch.zeros(2, WINDOW),
        lowest=0.03,
    )
    rng = torch.Generator().manual_seed(0)
    white = torch.randn((4000, WINDOW), generator=rng)
    found = measure_scores(prior, white, levels, rng)
    for products in (found.smoothed, found.clean):
        assert (products[:, 0] - 1.0).abs().max() < 0.02
        assert products[:, 1:].abs().max() < 0.02
    # Negative control: noise twice as loud as the filter was made for.
    loud = measure_scores(prior, 2.0 * white, levels, rng)
    assert loud.smoothed[1, 0] > 3.0 and loud.clean[1, 0] > 3.0


def test_products_of_pairs_of_samples():
    """Stationary scores keep their Toeplitz form, others are taken as they are."""
    _, covariance = autocovariance(
        iter([coloured_noise(50_000, seed=4) - LEVEL]), n_lags=WINDOW
    )
    level = torch.tensor([0.25], dtype=torch.float64)
    prior = DiffusionPrior(
        Denoiser(window=WINDOW, width=8, views=2),
        whitening=covariance,
        autocovariance=covariance,
        level=0.0,
        sample_rate=SAMPLE_RATE,
        levels=level,
        information=torch.zeros(1, WINDOW),
        scatter=torch.zeros(1, WINDOW),
        lowest=0.03,
    )
    rng = torch.Generator().manual_seed(0)
    white = torch.randn((2000, WINDOW), generator=rng)
    eye = torch.eye(WINDOW)
    for found in pair_products(prior, white, 0.25, rng):
        # What chance does to 2000 windows, a matrix far from this, is taken off.
        assert torch.linalg.matrix_norm(found - eye, 2) < 0.15
    chance = white.mT @ white / len(white)
    assert torch.linalg.matrix_norm(chance - eye, 2) > 0.3


def test_the_full_recipe_trains(monkeypatch):
    """The network's full size, two windows; what is measured at the end is left out."""
    monkeypatch.setattr(diffusion, "REPORT_WINDOWS", 1)
    monkeypatch.setattr(diffusion, "REPORT_LEVELS", 2)
    trainer = diffusion.DiffusionTrainer
    monkeypatch.setattr(trainer, "finished", trainer.frozen)
    monkeypatch.setattr(sys.modules[train.__module__], "validate", lambda *_, **__: {})
    folder = Path(__file__).parent.parent / "configs"
    config = load_config(folder / "diffusion-full.toml")
    small = {"batch": 2, "steps": 1, "precision": "float32", "compile": False}
    config = dataclasses.replace(config, **small)
    noise = coloured_noise(12 * config.window, seed=0)
    stream = train(as_recording(noise, sample_rate=16000.0), config, device="cpu")
    (record,), prior = finish(stream)
    assert record["denoising_loss"] == pytest.approx(1.0, abs=0.2)
    assert prior.window == 16384
    assert sum(p.numel() for p in prior.network.parameters()) > 6_000_000


# -- storing and using -----------------------------------------------------------------


def test_a_stored_prior_is_the_same_prior(trained, tmp_path):
    prior = trained[1]
    save_prior(prior, tmp_path / "p.safetensors")
    again = load_prior(tmp_path / "p.safetensors", device="cpu")
    noisy = torch.randn(3, WINDOW)
    assert torch.equal(again.score(noisy, 0.3), prior.score(noisy, 0.3))
    assert torch.equal(again.information, prior.information)
    assert prior.products is None and again.products is None
    assert torch.equal(again.levels, prior.levels)
    assert again.metadata == prior.metadata


def test_products_of_pairs_of_samples_are_used_at_the_last_level_and_stored(tmp_path):
    pairs = torch.randn(2, WINDOW, WINDOW, generator=torch.Generator().manual_seed(0))
    flat = torch.zeros(WINDOW, dtype=torch.float64)
    flat[0] = 0.5
    row = torch.zeros(2, WINDOW)
    row[:, 0] = 3.0
    prior = DiffusionPrior(
        Denoiser(window=WINDOW, width=8, views=2),
        whitening=flat,
        autocovariance=flat,
        level=0.0,
        sample_rate=SAMPLE_RATE,
        levels=torch.tensor([1.0, 0.5], dtype=torch.float64),
        information=row,
        scatter=row,
        lowest=0.03,
        products=pairs @ pairs.mT,
    )
    save_prior(prior, tmp_path / "p.safetensors")
    again = load_prior(tmp_path / "p.safetensors", device="cpu")
    for each in (prior, again):
        # White noise: C = 1 and S = 1 + sigma^2.
        eye = torch.eye(WINDOW, dtype=torch.float64)
        assert torch.allclose(each.information_matrix(0), 3.0 / 2.0 * eye)
        products = (pairs @ pairs.mT).double()
        assert torch.allclose(each.information_matrix(1), products[0] / 1.25)
        assert torch.allclose(each.scatter_matrix(1), products[1] / 1.25**2)


def test_separation_with_a_barely_trained_prior(trained, recording):
    """In Gaussian noise the answer is that of least squares, one way or the other."""
    prior = trained[1]
    t = np.arange(WINDOW) / SAMPLE_RATE
    noise = coloured_noise(2 * WINDOW, seed=3).reshape(2, WINDOW)
    x = noise + 3.0 * np.sin(2 * np.pi * 9.0 * t + 1.0)
    x[1, 10:20] = np.nan
    result = sepprior.separate(x, prior)
    frequency = result.parameters["frequency"]
    gls = result.baselines["gls"]["frequency"]
    assert np.all(np.abs(frequency.value - gls.value) < 0.5 * gls.stderr)
    assert np.all(np.abs(frequency.value - 9.0) < 5 * frequency.stderr)


def test_plain_objective_asks_for_a_latent(trained):
    x = coloured_noise(WINDOW, seed=5)
    with pytest.raises(SeppriorError, match=r"plain.*latent.*as_latent"):
        sepprior.separate(x, trained[1], objective="plain")
    latent = trained[1].as_latent()
    assert isinstance(latent, LatentPrior)
    assert PlainPrior.of(latent).n_latent == WINDOW


def test_latent_form_is_the_same_density(trained):
    """Decoding the encoded window gives it back."""
    prior = trained[1]
    x = torch.from_numpy(coloured_noise(4 * WINDOW, seed=6)).view(4, WINDOW)
    w = prior.features(x - prior.level)
    z = prior.encode_flow(w)
    back = prior.decode_flow(z) + prior.level
    assert (back - x).abs().max() < 0.05 * float(x.std())
    latent = prior.as_latent()
    torch.testing.assert_close(latent.coherent(z), prior.decode_flow(z))


def test_settings_are_checked():
    with pytest.raises(SeppriorError, match="multiple of 8"):
        DiffusionConfig(width=20)
    with pytest.raises(SeppriorError, match="lowest_level"):
        DiffusionConfig(lowest_level=0.9)


def test_inspection_shows_the_information(trained, tmp_path):
    prior = trained[1]
    windows = coloured_noise(40 * WINDOW, seed=8).reshape(-1, WINDOW)
    found = inspect_prior(prior, windows)
    assert "information about a sinusoid over GLS: median 1" in found.report()
    table = found.to_dict()
    assert len(table["information_gain"]) == len(table["information_frequency"])
    found.plot(tmp_path / "card.png")
    assert (tmp_path / "card.png").stat().st_size > 10_000


def test_an_estimate_that_is_not_positive_does_no_harm():
    """A steep spectrum, estimated with an error that makes it negative somewhere.

    Whitened without its resonance, the noise still has unit error under the linear
    denoiser: the network starts at a loss of about one, and its output is small.
    """
    lag = torch.arange(WINDOW, dtype=torch.float64)
    frequency = (torch.arange(8 * WINDOW + 1) / (16 * WINDOW)).double()
    spectrum = 1e-6 + 1.0 / (1.0 + ((frequency - 0.03) / 0.004).square()).square()
    angle = 2.0 * math.pi * frequency * lag[:, None]
    true = (spectrum * angle.cos()).mean(-1)
    estimate = true.clone()
    estimate[0] -= 3e-6
    assert torch.linalg.eigvalsh(toeplitz(estimate))[0] < 0.0
    continuum = ((spectrum.clamp_max(1e-2)) * angle.cos()).mean(-1)
    whitener = Whitener(continuum)
    geometry = Geometry.of(whitener, estimate)
    rng = torch.Generator().manual_seed(0)
    white = torch.randn((400, WINDOW), generator=rng, dtype=torch.float64)
    w = whitener.forward(Whitener(true).inverse(white)).float()
    for level in (1.0, 0.1):
        sigma = torch.full((len(w),), level)
        noisy = w + level * torch.randn(w.shape, generator=rng)
        error = geometry.smoothing.target(w, noisy, sigma)
        assert 0.5 < float(error.square().mean()) < 1.5
