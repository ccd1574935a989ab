"""Two processes train as one."""

import dataclasses
import functools
import os
import sys
from contextlib import contextmanager

import numpy as np
import pytest
import torch
import torch.multiprocessing as mp
from torch.optim.optimizer import register_optimizer_step_pre_hook

from sepprior.config import config_from_dict
from sepprior.data import Recording, Segment, as_recording
from sepprior.data.spectrograms import Spectrograms
from sepprior.errors import SeppriorError
from sepprior.inference import last_level
from sepprior.priors import GeneratorPrior
from sepprior.training import diffusion, train, train_spectrograms
from sepprior.training.parallel import Ranks

WINDOW = 64
LABELLED, SPECTROGRAMS = "wavegan, labelled", "specgan, spectrograms"
CASES = (
    "wavegan",
    "specgan",
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


def apart(first, second):
    return float((first - second).norm() / second.norm())


def test_rows_are_dealt_out_and_put_together():
    joint = torch.arange(12.0).view(6, 2)
    parts = [Ranks(rank, 3).rows(joint) for rank in range(3)]
    assert torch.equal(torch.stack(parts, 1).flatten(0, 1), joint)
    assert Ranks(1, 2).share(8) == 4
    with pytest.raises(SeppriorError, match="multiple of 4"):
        Ranks(0, 2).share(6)
