"""Two processes train as one."""

import dataclasses
import functools
import json
import math
import os
import subprocess
import sys
from contextlib import contextmanager

import numpy as np
import pytest
import torch
import torch.multiprocessing as mp
from click.testing import CliRunner
from torch.optim.optimizer import register_optimizer_step_pre_hook

from sepprior.checkpoint import load_prior
from sepprior.cli import main
from sepprior.config import SpecGANConfig, config_from_dict
from sepprior.data import Recording, Segment, as_recording
from sepprior.data.spectrograms import Spectrograms
from sepprior.errors import SeppriorError
from sepprior.inference import last_level
from sepprior.priors import GeneratorPrior, SpecGANPrior
from sepprior.training import (
    diffusion,
    specgan,
    train,
    train_spectrograms,
    whitening,
)
from sepprior.training.parallel import Ranks
from tests.conftest import finish

WINDOW = 64
LABELLED, SPECTROGRAMS = "wavegan, labelled", "specgan, spectrograms"
MAGNITUDE = "specgan, magnitude"
CASES = (
    "wavegan",
    "specgan",
    MAGNITUDE,
    "diffusion",
    "lstm",
    "gansynth",
    LABELLED,
    SPECTROGRAMS,
)


def recipe(case):
    model = case.split(",")[0]
    config = config_from_dict({"model": model})
    small = {"window": WINDOW, "batch": 8, "steps": 3, "tick": 3}
    if model == "diffusion":
        # A running average that follows at once.
        return dataclasses.replace(config, **small, width=8, ema=0.0, whitening="total")
    small |= {"width": 2, "critic_width": 2, "latent": 3, "critic_steps": 2}
    if case == SPECTROGRAMS:
        small |= {"channels": "magnitude"}
    elif case == MAGNITUDE:
        # Of wgan-gp a gradient can be zero but for rounding, which Adam divides by.
        small |= {"channels": "magnitude", "loss": "rpgan-r1r2"}
    elif model == "specgan":
        small |= {"warmup_steps": 1, "whitening": "total"}
    return dataclasses.replace(config, **small)


@contextmanager
def gradients_seen():
    """Collects the gradients that each step of an optimiser is made from."""
    seen = []

    def look(optimiser, *_):
        parts = [p.grad for group in optimiser.param_groups for p in group["params"]]
        seen.append(torch.cat([g.flatten() for g in parts if g is not None]))

    handle = register_optimizer_step_pre_hook(look)
    try:
        yield seen
    finally:
        handle.remove()


def training(case, config, output=None):
    """A training on white noise, with two labels or as spectrograms if so asked."""
    noise = np.random.default_rng(0).standard_normal(100 * WINDOW)
    options = {"device": "cpu", "output": output}
    if case == SPECTROGRAMS:
        planes = np.abs(noise[:2560]).reshape(40, 8, 8).astype(np.float32)
        return train_spectrograms(Spectrograms(planes, "", ""), config, **options)
    recording = as_recording(noise, sample_rate=1.0)
    if case == LABELLED:
        idle, busy = noise.reshape(2, -1) * [[1.0], [2.0]]
        parts = (Segment(idle, label="idle"), Segment(busy, label="busy"))
        recording = Recording(parts, 1.0)
    return train(recording, config, **options)


@functools.cache
def trained(case, output=None, **settings):
    """Parameters after three steps, and the gradients of each."""
    stream = training(case, dataclasses.replace(recipe(case), **settings), output)
    with gradients_seen() as seen, pytest.MonkeyPatch.context() as patch:
        module = sys.modules[train.__module__]
        patch.setattr(module, "validate", lambda *_, **__: {"heldout": {}})
        patch.setattr(last_level, "TRIALS", 16)
        patch.setattr(diffusion, "INFORMATION_WINDOWS", 16)
        patch.setattr(diffusion, "RISE", 1)  # full steps from the start
        patch.setattr("sepprior.training.range_error.MOST_FIT", 8)
        patch.setattr(GeneratorPrior, "n_candidates", 4)
        while True:
            try:
                next(stream)
            except StopIteration as end:
                prior = end.value
                break
    network = prior.network if hasattr(prior, "network") else prior.generator
    return torch.cat([p.flatten() for p in network.parameters()]), seen


def raced():
    """Choices of a short run where all is open, its words, all scores, and weights."""
    window = 160  # the square plane's frame is 32, the shorter one 8
    said: list[str] = []
    scores: list[float] = []
    heldout_nll = SpecGANPrior.heldout_nll

    def scored(self, windows, **options):
        found = heldout_nll(self, windows, **options)
        scores.append(float(found.mean()))
        return found

    config = dataclasses.replace(
        config_from_dict({"model": "specgan"}),
        window=window,
        batch=8,
        width=2,
        critic_width=2,
        latent=3,
        row_latent=4,
        critic_steps=1,
        warmup_steps=5,
        steps=6,
        tick=6,
    )
    line = 3.0 * np.sin(0.25 * np.pi * np.arange(100 * window))
    noise = np.random.default_rng(0).standard_normal(len(line)) + line
    with pytest.MonkeyPatch.context() as patch:
        module = sys.modules[train.__module__]
        patch.setattr(module, "validate", lambda *_, **__: {"heldout": {}})
        patch.setattr(specgan, "PILOT_STEPS", 2)
        patch.setattr(specgan, "ROW_MATTERS", 0.0)
        patch.setattr(whitening, "REST_MATTERS", -math.inf)
        patch.setattr(SpecGANPrior, "heldout_nll", scored)
        recording = as_recording(noise, sample_rate=1.0)

        def watch(work):
            if work.stage.startswith("choosing the "):
                said.append(work.stage)

        _, prior = finish(train(recording, config, device="cpu", watch=watch))
    facts = {k: prior.metadata.get(k) for k in ("whitening", "frame", "latent_row")}
    assert isinstance(prior, SpecGANPrior)
    weights = torch.cat([p.flatten() for p in prior.generator.parameters()])
    return facts, said, scores, weights


def worker(rank, port, path):
    os.environ |= {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": "2",
    }
    torch.set_num_threads(1)
    for case in CASES:
        found = trained(case, output=f"{path}/{case}{rank}.safetensors")
        torch.save(found, f"{path}/{case}{rank}.pt")
    torch.save(raced(), f"{path}/raced{rank}.pt")


@pytest.fixture(scope="module")
def trained_by_two(tmp_path_factory):
    """Folder with the weights that each of two processes ends with."""
    path = tmp_path_factory.mktemp("ranks")
    mp.spawn(worker, (20000 + os.getpid() % 20000, str(path)), nprocs=2)
    return path


@pytest.mark.parametrize("case", CASES)
def test_two_processes_are_one_with_the_joint_batch(case, trained_by_two):
    first, second = (
        torch.load(trained_by_two / f"{case}{rank}.pt")[0] for rank in range(2)
    )
    assert torch.equal(first, second)
    written = [trained_by_two / f"{case}{rank}.safetensors" for rank in range(2)]
    assert [path.exists() for path in written] == [True, False]
    alone, _ = trained(case)
    # Adam divides by the gradient's size: rounding of a step is of its own length.
    moved = 3 * recipe(case).learning_rate
    assert float((first - alone).abs().max()) < 0.02 * moved
    assert float((first - alone).abs().mean()) < 1e-3 * moved
    # Negative control: with half the batch, as one process sees it, the steps differ.
    half, _ = trained(case, batch=4)
    assert float((half - alone).abs().mean()) > 0.02 * moved


@pytest.mark.parametrize("case", CASES)
def test_their_gradients_are_those_of_the_joint_batch_to_rounding(case, trained_by_two):
    _, together = torch.load(trained_by_two / f"{case}0.pt")
    _, alone = trained(case)
    assert len(together) == len(alone) >= 3
    assert max(map(apart, together, alone)) < 1e-5
    # Negative control: with half the batch they differ from the first step on.
    _, half = trained(case, batch=4)
    assert apart(half[0], alone[0]) > 0.05


def test_two_processes_choose_alike(trained_by_two):
    """Races of frames, filters and layouts end in both as they do in one process."""
    first, second = (torch.load(trained_by_two / f"raced{rank}.pt") for rank in (0, 1))
    facts, said, scores, weights = raced()
    assert first[:2] == second[:2] == (facts, said)
    assert first[2] == second[2] == pytest.approx(scores, rel=1e-5)
    assert torch.equal(first[3], second[3])
    assert apart(first[3], weights) < 1e-4
    races = {text.removeprefix("choosing the ") for text in said}
    assert races == {"frame", "filter", "layout of the latents", "colour of the rest"}
    # Negative control: it is not what a run without races would have.
    assert (facts["frame"], facts["latent_row"]) == (8, True)


COMMAND_RECIPE = """\
model = "specgan"
window = 64
width = 2
critic_width = 2
latent = 3
latent_row = "no"
whitening = "total"
batch = 8
warmup_steps = 1
steps = 3
tick = 1
critic_steps = 2
"""


def test_torchrun_of_the_command_line(tmp_path, monkeypatch):
    """Two processes of the program write one prior, that of one process to rounding."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny.toml").write_text(COMMAND_RECIPE)
    # Too short for its error bars to be calibrated, which takes long.
    noise = np.random.default_rng(0).standard_normal(30 * WINDOW)
    table = np.column_stack([np.arange(len(noise)) / 10.0, noise])
    np.savetxt("x.csv", table, delimiter=",", header="time,value", comments="")
    program = ["train-noise", "x.csv", "--config", "tiny.toml", "--device", "cpu", "-o"]
    run = ["torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = [sys.executable, "-m", *run, "-m", "sepprior", *program]
    done = subprocess.run(
        [*command, "two/p.safetensors"],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("two/p.safetensors (specgan)") == 1
    assert done.stderr.count("training a specgan prior on 1920 samples") == 1
    assert "arning" not in done.stderr
    result = CliRunner().invoke(main, [*program, "one/p.safetensors"])
    assert result.exit_code == 0, result.stderr
    names = ["p.jsonl", "p.png", "p.resume.safetensors", "p.safetensors"]
    logs, priors = [], []
    for folder in ("one", "two"):
        assert sorted(path.name for path in (tmp_path / folder).iterdir()) == names
        lines = (tmp_path / folder / "p.jsonl").read_text().splitlines()
        logs.append([json.loads(line) for line in lines])
        priors.append(load_prior(f"{folder}/p.safetensors", device="cpu"))
    assert [record["step"] for record in logs[1]] == [1, 2, 3]
    for alone, together in zip(*logs, strict=True):
        assert alone.keys() == together.keys()
        for name in ("heldout_nll", "spectral_error_db"):
            assert together[name] == pytest.approx(alone[name], rel=1e-4)
    weights = [
        torch.cat([p.flatten() for p in prior.generator.parameters()])
        for prior in priors
    ]
    moved = 3 * SpecGANConfig().warmup_learning_rate
    assert float((weights[0] - weights[1]).abs().max()) < 0.02 * moved
    assert float((weights[0] - weights[1]).abs().mean()) < 1e-3 * moved


def apart(first, second):
    return float((first - second).norm() / second.norm())


def test_rows_are_dealt_out_and_put_together():
    joint = torch.arange(12.0).view(6, 2)
    parts = [Ranks(rank, 3).rows(joint) for rank in range(3)]
    assert torch.equal(torch.stack(parts, 1).flatten(0, 1), joint)
    assert Ranks(1, 2).share(8) == 4
    with pytest.raises(SeppriorError, match="multiple of 4"):
        Ranks(0, 2).share(6)
