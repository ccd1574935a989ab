"""All of it on a device that is not the CPU, with the CPU's answers."""

import dataclasses
from functools import cache

import numpy as np
import pytest
import torch
from click.testing import CliRunner

import sepprior
from sepprior.cli import main
from sepprior.config import config_from_dict
from sepprior.data import as_recording
from sepprior.fidelity import inspect_prior
from sepprior.inference import calibration
from sepprior.training import train_noise, waveform
from tests.conftest import SAMPLE_RATE, WINDOW, coloured_noise
from tests.second_device import DEVICE, NAME, Remote

SMALL = {"width": 4, "batch": 8, "steps": 2}
CRITIC = {**SMALL, "critic_width": 4}
RECIPES = {
    "gaussian": {},
    "specgan": {**CRITIC, "latent": 4, "warmup_steps": 1},
    "magnitude": {**CRITIC, "latent": 4, "channels": "magnitude"},
    "diffusion": {"width": 8, "batch": 8, "steps": 2},
    "wavegan": CRITIC,
    "gansynth": CRITIC,
    "lstm": {**CRITIC, "width": 8},
}


@pytest.fixture(scope="module", autouse=True)
def quick():
    """Few injections, short inversions: what runs is the same."""
    with pytest.MonkeyPatch.context() as patch:
        effort = dataclasses.replace(
            waveform.EFFORT, starts=2, evaluations=2, iterations=1
        )
        patch.setattr(waveform, "EFFORT", effort)
        patch.setattr(waveform, "GLANCE", effort)
        patch.setattr(calibration, "trials_per_band", lambda window, *, joint: 6)
        yield


def recipe(name, **changes):
    model = "specgan" if name == "magnitude" else name
    table = {"model": model, "window": WINDOW, "seed": 0, **RECIPES[name], **changes}
    return config_from_dict(table)


@pytest.fixture(scope="module")
def noise():
    return as_recording(coloured_noise(45 * WINDOW, seed=1), sample_rate=SAMPLE_RATE)


def test_the_device_is_not_the_cpu():
    x = torch.ones(3, device=NAME)
    assert isinstance(x, Remote) and x.device == DEVICE
    with pytest.raises(RuntimeError, match="same device"):
        _ = x + torch.ones(3)
    with pytest.raises(RuntimeError):
        x.numpy()
    assert (2.0 * x.to("cpu")).sum().item() == 6.0


@pytest.fixture(scope="module")
def trained(noise, tmp_path_factory):
    """Gives the file of a model trained on the device, and both loaded from it."""
    folder = tmp_path_factory.mktemp("trained")

    @cache
    def made(name):
        path = folder / f"{name}.safetensors"
        prior = train_noise(noise, config=recipe(name), device=NAME)
        assert prior.device == DEVICE and "calibration" in prior.metadata
        # The answer is to be that of the prior, not of least squares.
        prior.metadata.pop("heldout")
        sepprior.save_prior(prior, path)
        there, here = (sepprior.load_prior(path, device=d) for d in (NAME, "cpu"))
        return path, there, here

    return made


@pytest.mark.parametrize("name", RECIPES)
def test_a_model_trains_and_separates(name, trained):
    _, there, here = trained(name)
    assert here.device.type == "cpu" and there.device == DEVICE
    x = coloured_noise(WINDOW, seed=5) + 3 * np.sin(0.7 * np.arange(WINDOW) + 1)
    one, other = sepprior.separate(x, here), sepprior.separate(x, there)
    assert one.status == other.status
    for key, found in one.parameters.items():
        again = other.parameters[key]
        assert abs(again.value - found.value) < 0.02 * found.stderr
        assert again.stderr == pytest.approx(found.stderr, rel=0.02)
    drawn = there.sample(2, generator=torch.Generator().manual_seed(0)).cpu()
    same = here.sample(2, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(drawn, same, rtol=1e-3, atol=1e-4)


def measurement(length=WINDOW):
    t = np.arange(length) / SAMPLE_RATE
    return 3 * np.sin(2 * np.pi * 12.3 * t + 0.4) + coloured_noise(length, seed=6)


def agree(there, here):
    assert there.status == here.status
    for name, found in here.parameters.items():
        again = there.parameters[name]
        np.testing.assert_allclose(again.value, found.value, rtol=1e-3, err_msg=name)
        np.testing.assert_allclose(again.stderr, found.stderr, rtol=1e-2, err_msg=name)


def wave(t, amplitude=1.0, frequency=12.0, level=0.0):
    return amplitude * torch.sin(2 * torch.pi * frequency * t) + level


FORMS = {
    "one": {},
    "two": {"components": 2},
    "auto": {"components": "auto"},
    "harmonics": {"signal": "harmonics", "components": 2},
    "damped": {"signal": "damped"},
    "chirp": {"signal": "chirp"},
    "function": {"signal": wave},
    "expected": {"expected": {"frequency": (12.0, 1.0)}},
    "fixed": {"fixed": {"phase": 0.4}},
    "guess": {"guess": {"frequency": 12.0}},
    "gaps": {"gap": slice(20, 26)},
    "bootstrap": {"method": "bootstrap", "draws": 40},
    "mcmc": {"method": "mcmc", "draws": 40},
}


@pytest.mark.parametrize("form", FORMS)
def test_every_signal_and_method(form, gaussian_prior):
    options = dict(FORMS[form])
    x = measurement()
    x[options.pop("gap", slice(0))] = np.nan
    priors = (gaussian_prior.to(NAME), gaussian_prior)
    agree(*(sepprior.separate(x, prior, **options) for prior in priors))


WAYS = {
    "bootstrap": ("specgan", {"method": "bootstrap", "draws": 40}),
    "mcmc": ("specgan", {"method": "mcmc", "draws": 40}),
    "plain": ("wavegan", {"objective": "plain"}),
    "gaps": ("specgan", {"gap": slice(20, 26)}),
    "long": ("specgan", {"length": 3 * WINDOW}),
    "function": ("specgan", {"signal": wave, "bounds": {"frequency": (5.0, 20.0)}}),
    "langevin": ("diffusion", {"method": "langevin", "draws": 40}),
}


@pytest.mark.parametrize("way", WAYS)
def test_every_way_to_use_a_learned_prior(way, trained):
    name, options = WAYS[way]
    options = dict(options)
    _, there, here = trained(name)
    x = measurement(options.pop("length", WINDOW))
    x[options.pop("gap", slice(0))] = np.nan
    agree(*(sepprior.separate(x, prior, **options) for prior in (there, here)))


def test_a_learned_prior_follows_a_long_recording(trained):
    _, there, here = trained("specgan")
    x = measurement(4 * WINDOW)
    one, other = (sepprior.track(x, prior).table for prior in (there, here))
    np.testing.assert_allclose(one["frequency"], other["frequency"], rtol=1e-3)


def test_every_command_takes_the_device(trained, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    t = np.arange(45 * WINDOW) / SAMPLE_RATE
    for name, x in (("noise", coloured_noise(len(t), seed=1)), ("run", measurement())):
        table = np.column_stack([t[: len(x)], x])
        np.savetxt(f"{name}.csv", table, delimiter=",", header="time,x", comments="")
    path = str(trained("specgan")[0])
    on = ["--device", NAME]
    for command in (
        ["train-noise", "noise.csv", "--model", "gaussian", "--window", str(WINDOW)],
        ["inspect", path, "noise.csv"],
        ["sample", path, "-n", "3"],
        ["separate", "run.csv", "--prior", path, "--no-plot"],
        [
            "separate",
            "noise.csv",
            "--prior",
            path,
            "--window",
            str(WINDOW),
            "--no-plot",
        ],
        ["separate", "run.csv", "--prior", path, "--table", "rows"],
    ):
        done = CliRunner().invoke(main, [*command, *on])
        assert done.exit_code == 0, (command, done.output, done.exception)


def test_a_long_recording_is_followed(gaussian_prior):
    x = measurement(6 * WINDOW)
    priors = (gaussian_prior.to(NAME), gaussian_prior)
    there, here = (sepprior.track(x, prior).table for prior in priors)
    np.testing.assert_allclose(there["frequency"], here["frequency"], rtol=1e-6)


def test_a_prior_is_inspected(gaussian_prior):
    real = coloured_noise(20 * WINDOW, seed=9).reshape(20, WINDOW)
    priors = (gaussian_prior.to(NAME), gaussian_prior)
    there, here = (inspect_prior(prior, real) for prior in priors)
    assert there.nll == pytest.approx(here.nll)
    assert there.nll_gain == pytest.approx(here.nll_gain, abs=1e-6)
