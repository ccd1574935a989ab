"""On a GPU the same answers as on the CPU; every recipe trains there."""

import numpy as np
import pytest
import torch

import sepprior
from sepprior.config import config_from_dict
from sepprior.training import train_noise
from tests.conftest import SAMPLE_RATE, WINDOW, coloured_noise

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]

DEVICE = "cuda"
FREQUENCY = 0.11 * SAMPLE_RATE
RECIPES = {
    "gaussian": {},
    "specgan": {"steps": 3, "warmup_steps": 2, "width": 4, "critic_width": 4},
    "diffusion": {"steps": 3, "width": 8},
    "lstm": {"steps": 2},
    "wavegan": {"steps": 2, "width": 4, "critic_width": 4},
    "gansynth": {"steps": 2, "width": 4, "critic_width": 4},
}


def recipe(model, **changes):
    table = {"model": model, "window": WINDOW, "seed": 0} | RECIPES[model] | changes
    return config_from_dict(table)


def measurements():
    t = np.arange(WINDOW) / SAMPLE_RATE
    noise = coloured_noise(40 * WINDOW, seed=6).reshape(40, WINDOW)
    return noise + 2.0 * np.sin(2 * np.pi * FREQUENCY * t + 0.4)


@pytest.mark.parametrize("model", RECIPES)
def test_a_prior_of_the_cpu_answers_alike_on_the_gpu(model, recording):
    prior = train_noise(recording, config=recipe(model), device="cpu")
    x = measurements()
    here = sepprior.separate(x, prior)
    there = sepprior.separate(x, prior.to(DEVICE))
    for name, found in here.parameters.items():
        difference = np.abs(found.value - there.parameters[name].value)
        # The optimum is flat to rounding: a small part of an error bar.
        assert np.median(difference / found.stderr) < 0.02
        np.testing.assert_allclose(
            np.median(there.parameters[name].stderr / found.stderr), 1.0, atol=0.02
        )


@pytest.mark.parametrize("model", RECIPES)
def test_a_recipe_trains_on_the_gpu_and_its_prior_is_read_on_a_cpu(
    model, recording, tmp_path
):
    prior = train_noise(recording, config=recipe(model), device=DEVICE)
    assert prior.device.type == torch.device(DEVICE).type
    sepprior.save_prior(prior, tmp_path / "p.safetensors")
    again = sepprior.load_prior(tmp_path / "p.safetensors", device="cpu")
    x = measurements()
    found = sepprior.separate(x, again).parameters["frequency"].value
    assert np.abs(np.median(found) - FREQUENCY) < 0.5 * SAMPLE_RATE / WINDOW


@pytest.mark.parametrize("model", ["specgan", "diffusion", "wavegan", "gansynth"])
def test_mixed_precision_trains(model, recording):
    prior = train_noise(
        recording, config=recipe(model, precision="bfloat16"), device=DEVICE
    )
    assert torch.isfinite(prior.sample(4)).all()


# The compiler warns of its own parts, and of what would be faster.
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("model", ["specgan", "diffusion", "wavegan", "gansynth"])
def test_a_compiled_recipe_trains(model, recording):
    torch._dynamo.reset()
    before = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    changes = {"growth": 0.0} if model == "gansynth" else {}
    config = recipe(model, compile=True, **changes)
    prior = train_noise(recording, config=config, device=DEVICE)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > before
    assert torch.isfinite(prior.sample(4)).all()
