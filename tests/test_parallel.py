"""Two processes train as one."""

import dataclasses
import os
import sys

import numpy as np
import pytest
import torch
import torch.multiprocessing as mp

from sepprior.config import config_from_dict
from sepprior.data import as_recording
from sepprior.errors import SeppriorError
from sepprior.training import train
from sepprior.training.parallel import Ranks

WINDOW = 64


def recipe(model):
    config = config_from_dict({"model": model})
    small = {"window": WINDOW, "width": 2, "critic_width": 2, "latent": 3}
    small |= {"batch": 8, "steps": 3, "tick": 3, "critic_steps": 2}
    if model == "specgan":
        small |= {"warmup_steps": 1, "whitening": "total"}
    return dataclasses.replace(config, **small)


def weights(model):
    """Parameters after three steps."""
    noise = np.random.default_rng(0).standard_normal(100 * WINDOW)
    stream = train(as_recording(noise, sample_rate=1.0), recipe(model), device="cpu")
    with pytest.MonkeyPatch.context() as patch:
        module = sys.modules[train.__module__]
        patch.setattr(module, "validate", lambda *_, **__: {"heldout": {}})
        while True:
            try:
                next(stream)
            except StopIteration as end:
                prior = end.value
                break
    network = prior.network if model == "wavegan" else prior.generator
    return torch.cat([p.flatten() for p in network.parameters()])


def worker(rank, port, model, path):
    os.environ |= {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": "2",
    }
    torch.set_num_threads(1)
    torch.save(weights(model), f"{path}/{rank}.pt")


@pytest.mark.parametrize("model", ["wavegan", "specgan"])
def test_two_processes_are_one_with_the_joint_batch(model, tmp_path):
    port = 20000 + os.getpid() % 20000 + len(model)
    mp.spawn(worker, (port, model, str(tmp_path)), nprocs=2)
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    assert torch.equal(first, second)
    alone = weights(model)
    # Adam divides by the gradient's size: rounding of a step is of its own length.
    moved = 3 * recipe(model).learning_rate
    assert float((first - alone).abs().max()) < 0.02 * moved
    # Negative control: one step of an untrained weight is far larger than that.
    assert float((first - alone).abs().mean()) < 1e-3 * moved


def test_rows_are_dealt_out_and_put_together():
    joint = torch.arange(12.0).view(6, 2)
    parts = [Ranks(rank, 3).rows(joint) for rank in range(3)]
    assert torch.equal(torch.stack(parts, 1).flatten(0, 1), joint)
    assert Ranks(1, 2).share(8) == 4
    with pytest.raises(SeppriorError, match="multiple of 4"):
        Ranks(0, 2).share(6)
