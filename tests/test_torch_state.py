"""The same answers whatever state of torch the caller has set; usable devices."""

import dataclasses
from contextlib import contextmanager, nullcontext

import numpy as np
import pytest
import torch

import sepprior
from sepprior.checkpoint import resolve_device
from sepprior.config import SpecGANConfig
from sepprior.errors import SeppriorError
from sepprior.fidelity import inspect_prior
from sepprior.torch_state import usual_torch
from tests.conftest import SAMPLE_RATE, WINDOW, coloured_noise


@contextmanager
def default_dtype(dtype):
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


STATES = {
    "no_grad": torch.no_grad,
    "inference_mode": torch.inference_mode,
    "set_grad_enabled": lambda: torch.set_grad_enabled(False),
    "float64": lambda: default_dtype(torch.float64),
    "bfloat16": lambda: default_dtype(torch.bfloat16),
    "device": lambda: torch.device("meta"),
    "autocast": lambda: torch.autocast("cpu", dtype=torch.bfloat16),
    "float16": lambda: default_dtype(torch.float16),
}
TINY = SpecGANConfig(
    window=WINDOW, width=2, critic_width=2, latent=2, latent_row="no", frame=16,
    flow_layers=1, whitening="total", steps=2, warmup_steps=1, batch=4,
)  # fmt: skip


def measurement(length=WINDOW):
    t = np.arange(length) / SAMPLE_RATE
    return 3.0 * np.sin(2 * np.pi * 12.3 * t + 0.4) + coloured_noise(length, seed=6)


def answers(prior, path):
    """Numbers from each of the functions that a user calls."""
    generator = torch.Generator().manual_seed(1)
    again = sepprior.load_prior(path, device="cpu")
    real = coloured_noise(20 * WINDOW, seed=9).reshape(20, WINDOW)
    found = sepprior.separate(measurement(), again)
    tracked = sepprior.track(measurement(3 * WINDOW), prior).table
    return {
        "frequency": found.parameters["frequency"].value,
        "stderr": found.parameters["frequency"].stderr,
        "sample": float(prior.sample(2, generator=generator).double().sum()),
        "tracked": tracked["frequency"].to_numpy(),
        "nll": inspect_prior(again, real).nll,
    }


@pytest.fixture(scope="module")
def usual(specgan_prior, tmp_path_factory):
    path = tmp_path_factory.mktemp("state") / "p.safetensors"
    sepprior.save_prior(specgan_prior, path)
    return path, answers(specgan_prior, path)


@pytest.mark.parametrize("state", STATES)
def test_a_prior_answers_alike_under_any_state(state, specgan_prior, usual):
    path, expected = usual
    with STATES[state]():
        before = torch.get_default_dtype(), torch.is_grad_enabled()
        found = answers(specgan_prior, path)
        assert (torch.get_default_dtype(), torch.is_grad_enabled()) == before
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-6, err_msg=name)


@pytest.mark.parametrize("state", ["inference_mode", "float64", "device"])
def test_a_prior_is_trained_alike_under_any_state(state, monkeypatch):
    from sepprior.inference import calibration
    from sepprior.training import train_noise

    monkeypatch.setattr(calibration, "trials_per_band", lambda window, *, joint: 8)
    noise = coloured_noise(60 * WINDOW, seed=1)

    def drawn():
        prior = train_noise(noise, sample_rate=SAMPLE_RATE, config=TINY, device="cpu")
        draws = prior.sample(2, generator=torch.Generator().manual_seed(1))
        return draws.tolist()

    expected = drawn()
    with STATES[state]():
        found = drawn()
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_a_stream_of_training_leaves_the_state_of_its_caller(monkeypatch):
    """The state changes between two items, and training knows nothing of it."""
    from sepprior.data import as_recording
    from sepprior.inference import calibration
    from sepprior.training import train

    monkeypatch.setattr(calibration, "trials_per_band", lambda window, *, joint: 8)
    noise = as_recording(coloured_noise(60 * WINDOW, seed=1), sample_rate=SAMPLE_RATE)
    config = dataclasses.replace(TINY, steps=3, tick=1)

    def losses(states):
        stream = train(noise, config, device="cpu")
        for state in states:
            with state():
                before = torch.get_default_dtype(), torch.is_grad_enabled()
                record = next(stream)
                now = torch.get_default_dtype(), torch.is_grad_enabled()
                assert now == before
                yield {k: v for k, v in record.items() if k != "seconds"}
        stream.close()

    usual = list(losses([nullcontext] * 2))
    assert usual == list(losses([torch.inference_mode, STATES["float64"]]))
    assert torch.get_default_dtype() == torch.float32


def test_the_state_is_restored_after_an_error():
    with torch.no_grad(), pytest.raises(ValueError, match="here"), usual_torch():
        assert torch.is_grad_enabled()
        torch.set_default_dtype(torch.float64)
        raise ValueError("here")
    assert torch.is_grad_enabled() and torch.get_default_dtype() == torch.float32


@pytest.mark.parametrize("device", ["meta", "abacus", "cuda:99"])
def test_a_device_that_cannot_compute_is_refused_in_one_line(device):
    with pytest.raises(SeppriorError, match="usable here: 'auto', 'cpu'") as caught:
        resolve_device(device)
    assert "\n" not in str(caught.value) and device in str(caught.value)
