"""The end of a SpecGAN training: draws as loud as what was recorded."""

import copy
import sys
from pathlib import Path

import pytest
import torch

import sepprior
from sepprior.config import load_config
from sepprior.data import as_recording
from sepprior.losses import loudness_distance
from sepprior.training import loudness
from sepprior.training.loudness import settle_loudness, too_loud
from sepprior.training.noise_model import NoiseModel

ROOT = Path(__file__).resolve().parents[1]
TRAINED = 1200
"""Steps of training after which the flow is fitted for eighty."""


@pytest.fixture(scope="module")
def bundled():
    return sepprior.load_prior(
        ROOT / "sepprior" / "data_files" / "example_prior.safetensors"
    )


@pytest.fixture(scope="module")
def model(bundled):
    sys.path.insert(0, str(ROOT / "examples"))
    try:
        from make_example import RATE, recording
    finally:
        sys.path.remove(str(ROOT / "examples"))
    return NoiseModel(
        as_recording(recording(seconds=100), sample_rate=RATE),
        load_config(ROOT / "configs" / "example.toml"),
        torch.device("cpu"),
        bundled.level,
        bundled.autocovariance,
        bundled.whitening,
        torch.Generator().manual_seed(0),
        frame=bundled.stft.length,
    )


def widened(prior, by):
    """The prior with half of the flow's last outputs spread by exp(by)."""
    prior = copy.deepcopy(prior)
    last = prior.flow.layers[-1].net[-1]
    with torch.no_grad():
        last.bias[: len(last.bias) // 2] += by
    return prior


def drawn(prior, n=4000):
    normal = torch.randn(
        (n, prior.flow.size), generator=torch.Generator().manual_seed(5)
    )
    with torch.no_grad():
        return prior.loudness(prior.space.joined(prior.flow(normal), None))


def encoded(prior, model, n=2000):
    rng = torch.Generator().manual_seed(6)
    with torch.no_grad():
        return loudness._encode(prior, model, n, rng).loudness.sort().values


def weights(prior):
    return torch.cat([p.flatten() for p in prior.flow.parameters()])


def test_loudness_is_the_mean_square_of_draws(bundled):
    rng = torch.Generator().manual_seed(0)
    z = bundled.from_normal(torch.randn((20, bundled.n_latent), generator=rng))
    with torch.no_grad():
        white = bundled.sample_white(z.repeat_interleave(200, 0), generator=rng)
        stated = bundled.loudness(bundled.space.code(z))
    power = white.square().mean(-1).view(20, 200).mean(-1)
    assert (power.log() - stated).abs().max() < 0.15
    assert (power.log() - stated).abs().mean() < 0.05


def test_distance_by_hand():
    reference = torch.tensor([0.0, 1.0, 2.0, 3.0])
    # The quartiles' middles 1/4 and 3/4 of the reference are its items 1 and 3.
    assert loudness_distance(torch.tensor([5.0, 1.0]), reference) == pytest.approx(2.0)
    assert loudness_distance(reference.flip(0), reference) == 0.0


def test_too_loud_is_more_than_chance_and_hangs_on_no_single_window():
    encoded = torch.arange(10_000.0)
    chance = torch.arange(10_000.0).roll(17)
    assert not too_loud(chance, encoded)
    # One of 400 beyond all of them; one of 1000 is still left alone.
    assert too_loud(torch.where(chance % 400 == 0, 10_001.0, chance), encoded)
    assert not too_loud(torch.where(chance % 1000 == 0, 10_001.0, chance), encoded)
    # One recorded window as loud as the loudest draws hides them from the first share.
    outlier = torch.cat([encoded[:-1], torch.tensor([1e6])])
    loud = torch.where(chance % 150 == 0, 10_001.0, chance)
    assert not (loud > outlier[-1]).any() and too_loud(loud, outlier)


def test_draws_that_are_too_loud_are_tamed(bundled, model):
    wide = widened(bundled, 0.5)
    reference = encoded(wide, model)
    settled = copy.deepcopy(wide)
    settle_loudness(settled, model, trained=TRAINED)
    before, after = (
        float(loudness_distance(drawn(p), reference)) for p in (wide, settled)
    )
    louder = [
        float((drawn(p) > reference[-1]).double().mean()) for p in (wide, settled)
    ]
    print(
        f"distance {before:.3f} to {after:.3f}, louder {louder[0]:.3f} {louder[1]:.3f}"
    )
    assert after < 0.25 * before
    assert louder[1] < 0.3 * louder[0]
    # Everything but the flow is as it was.
    z = torch.zeros(1, bundled.n_latent)
    assert torch.equal(settled.decode(z).mean, bundled.decode(z).mean)


def test_same_seed_same_flow_and_the_run_keeps_its_random_numbers(bundled, model):
    state = model.rng.get_state()
    one, two = (widened(bundled, 0.5) for _ in range(2))
    settle_loudness(one, model, trained=45)
    settle_loudness(two, model, trained=45)
    assert torch.equal(weights(one), weights(two))
    assert not torch.equal(weights(one), weights(widened(bundled, 0.5)))
    assert torch.equal(state, model.rng.get_state())


def test_what_is_not_too_loud_is_left_alone(bundled, model):
    quiet = widened(bundled, -0.5)
    before = weights(quiet).clone()
    settle_loudness(quiet, model, trained=TRAINED)
    assert torch.equal(weights(quiet), before)


def test_a_training_of_few_steps_is_not_settled(bundled, model):
    wide = widened(bundled, 0.5)
    before = weights(wide).clone()
    settle_loudness(wide, model, trained=14)
    assert torch.equal(weights(wide), before)
