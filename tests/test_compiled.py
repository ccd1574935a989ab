"""Compiled and mixed-precision training: the same run, to rounding."""

import dataclasses
import functools
import sys

import numpy as np
import pytest
import torch
from torch._dynamo import lookup_backend

from sepprior.config import config_from_dict
from sepprior.data import as_recording
from sepprior.inference import last_level
from sepprior.training import diffusion, train

WINDOW = 64
STEPS = 3


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Leave out what is measured at the end; full steps from the start."""
    module = sys.modules[train.__module__]
    monkeypatch.setattr(module, "validate", lambda *_, **__: {"heldout": {}})
    monkeypatch.setattr(last_level, "TRIALS", 16)
    monkeypatch.setattr(diffusion, "INFORMATION_WINDOWS", 16)
    monkeypatch.setattr(diffusion, "RISE", 1)


def stream(model, settings, **options):
    noise = np.random.default_rng(0).standard_normal(60 * WINDOW)
    model, _, channels = model.partition(", ")
    small = {"window": WINDOW, "batch": 8, "steps": STEPS, "tick": 1, "width": 8}
    if model == "diffusion":
        small |= {"ema": 0.0, "whitening": "total"}
    else:
        small |= {"critic_width": 2, "latent": 3, "critic_steps": 1}
    if model == "specgan":
        small |= {"warmup_steps": 1, "whitening": "total"}
        small |= {"channels": channels or "complex"}
    config = dataclasses.replace(
        config_from_dict({"model": model}), **(small | settings)
    )
    return train(as_recording(noise, sample_rate=1.0), config, device="cpu", **options)


def ended(training):
    """Parameters and losses at the end."""
    records = []
    while True:
        try:
            records.append(next(training))
        except StopIteration as end:
            prior = end.value
            break
    network = prior.network if hasattr(prior, "network") else prior.generator
    assert all(p.dtype == torch.float32 for p in network.parameters())
    return torch.cat([p.flatten() for p in network.parameters()]), records


def run(model, **settings):
    return ended(stream(model, settings))


# The tracer looks at the .grad of every tensor it meets.
@pytest.mark.filterwarnings("ignore:The .grad attribute:UserWarning")
@pytest.mark.parametrize(
    "model", ["wavegan", "specgan", "specgan, magnitude", "diffusion", "gansynth"]
)
def test_a_compiled_run_is_the_plain_one(model, monkeypatch):
    plain, records = run(model)
    graphs = []

    def backend(graph, inputs):
        """Forward and backward traced as for any compiler, and run as they are."""
        graphs.append(graph)
        return lookup_backend("aot_eager")(graph, inputs)

    torch._dynamo.reset()
    compiler = functools.partial(torch.compile, backend=backend)
    monkeypatch.setattr(torch, "compile", compiler)
    compiled, again = run(model, compile=True)
    torch._dynamo.reset()
    assert graphs
    recipe = config_from_dict({"model": model.split(",")[0]})
    moved = STEPS * recipe.learning_rate
    assert float((compiled - plain).abs().mean()) < 1e-3 * moved
    for now, then in zip(again, records, strict=True):
        for name in now.keys() & {"denoising_loss", "critic_distance", "bound"}:
            assert now[name] == pytest.approx(then[name], rel=1e-3, abs=1e-5)


def test_a_generator_that_grows_is_compiled_at_its_full_size_alone(monkeypatch):
    """Each value of the fade would be compiled anew, and all be given up in the end."""
    seen = []

    def compiler(function):
        def compiled(code):
            seen.append(float(function.__self__.grown))
            return function(code)

        return compiled

    monkeypatch.setattr(torch, "compile", compiler)
    steps = {"steps": 10, "tick": 10, "growth": 0.6}
    whole, _ = run("gansynth", **steps, compile=True)
    # Planes of 8 rows are full size; four steps of critic and generator are left then.
    assert seen == 8 * [1.0]
    plain, _ = run("gansynth", **steps)
    assert torch.equal(whole, plain)


def test_mixed_precision_of_the_denoiser():
    """Close to the plain run, and not the same."""
    plain, records = run("diffusion")
    mixed, rounded = run("diffusion", precision="bfloat16")
    difference = float((mixed - plain).abs().mean())
    assert 1e-5 < difference / (STEPS * 1.5e-3) < 0.1
    for now, then in zip(rounded, records, strict=True):
        assert now["denoising_loss"] == pytest.approx(then["denoising_loss"], rel=0.02)


def test_mixed_precision_resumes_exactly(tmp_path):
    settings = {"precision": "bfloat16", "ema": 0.5}
    whole, _ = run("diffusion", **settings)
    output = tmp_path / "prior.safetensors"
    begun = stream("diffusion", settings, output=output)
    assert next(begun)["step"] == 1
    begun.close()
    again, records = ended(stream("diffusion", settings, output=output, resume=True))
    assert [r["step"] for r in records] == [2, 3]
    assert torch.equal(again, whole)
