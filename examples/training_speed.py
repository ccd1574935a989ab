"""How fast a recipe trains: steps per second, memory, achieved operations per second.

Times whole adversarial steps (all critic steps and the generator's) of a GAN recipe, in
plain float32 first, then in bfloat16, then compiled as well, all in one run on the same
made-up noise. The operations of a step, forward and backward, are counted once, in
plain float32: products of matrices and convolutions, a multiplication and an addition
each. Memory is the most that the GPU held; on a CPU by how much the peak of the process
rose, 0 where an earlier variant had taken more.

    python examples/training_speed.py --config configs/specgan-full.toml --device cuda
    python examples/training_speed.py --config configs/specgan-small.toml --device cpu
"""

from __future__ import annotations

import dataclasses
import resource
import time
from pathlib import Path

import click
import numpy as np
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from sepprior import Recording
from sepprior.config import load_config
from sepprior.config.adversarial import AdversarialConfig
from sepprior.data import as_recording
from sepprior.priors import GaussianPrior
from sepprior.training import train_noise
from sepprior.training.contract import Task, Trainer
from sepprior.training.registry import build_trainer

VARIANTS = (("float32", False), ("bfloat16", False), ("bfloat16", True))
WINDOWS, HELD = 200, 8


def made_up(window: int) -> Recording:
    """Noise of one colour, for as many windows as a training needs."""
    white = np.random.default_rng(0).standard_normal(WINDOWS * window)
    return as_recording(np.convolve(white, [1.0, 0.5], "same"), sample_rate=1.0)


def trainer_of(
    recording: Recording, config: AdversarialConfig, device: torch.device
) -> Trainer:
    """A run of a recipe, past its choices and its warm-up."""
    gaussian = train_noise(recording, model="gaussian", window=config.window)
    assert isinstance(gaussian, GaussianPrior)
    x = recording.segments[0].values[: HELD * config.window]
    held = torch.from_numpy(x).view(HELD, config.window)
    task = Task(recording, recording, held, gaussian.to(device), device, {})
    return build_trainer(task, config, state=None)


def settled(
    config: AdversarialConfig, precision: str, compiled: bool
) -> AdversarialConfig:
    """The recipe without what is tried first, in a precision."""
    free = {"warmup_steps": 0, "latent_row": "no", "whitening": "total"}
    names = {field.name for field in dataclasses.fields(config)}
    changes = {name: value for name, value in free.items() if name in names}
    if config.model == "gansynth":
        changes["growth"] = 0.0
    return dataclasses.replace(config, precision=precision, compile=compiled, **changes)


class Operations(TorchDispatchMode):
    """Counts what products and convolutions take, second derivatives included."""

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        """Call a function of torch, and count what it took."""
        out = func(*args, **(kwargs or {}))
        counted = flop_registry.get(func.overloadpacket)
        if counted is not None:
            self.total += counted(*args, **(kwargs or {}), out_val=out)
        return out


def wait(device: torch.device) -> None:
    """Until everything that was asked for is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def memory(device: torch.device) -> float:
    """The most that was in use so far, GB."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e9
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6


def step_time(trainer: Trainer, steps: int, device: torch.device) -> float:
    """Seconds of a step, after one that compiles and fills the caches."""
    trainer.advance()
    wait(device)
    start = time.perf_counter()
    for _ in range(steps):
        trainer.advance()
    wait(device)
    return (time.perf_counter() - start) / steps


@click.command(help=__doc__.split("\n\n", maxsplit=1)[0])
@click.option("--config", type=Path, default=Path("configs/specgan-full.toml"))
@click.option("--device", default="cpu", show_default=True)
@click.option("--steps", type=click.IntRange(min=1), default=20, show_default=True)
@click.option("--batch", type=click.IntRange(min=1), help="[default: the recipe's]")
@click.option("--no-compile", is_flag=True, help="Leave out the compiled variant.")
def main(
    config: Path, device: str, steps: int, batch: int | None, no_compile: bool
) -> None:
    """Time every variant and print a table."""
    recipe, place = load_config(config), torch.device(device)
    if not isinstance(recipe, AdversarialConfig):
        raise click.BadParameter(f"{config} is no recipe of a GAN")
    recipe = dataclasses.replace(recipe, batch=batch or recipe.batch)
    recording = made_up(recipe.window)
    plain = trainer_of(recording, settled(recipe, "float32", False), place)
    with Operations() as counted:
        plain.advance()
    operations = counted.total
    print(
        f"{config.name}: batch {recipe.batch}, {recipe.critic_steps} critic steps, "
        f"{operations / 1e9:.4g} Gflop a step"
    )
    print("precision  compiled  ms a step  steps/s  TFLOP/s      GB  over float32")
    del plain
    first = 0.0
    for precision, compiled in VARIANTS:
        if compiled and no_compile:
            continue
        if place.type == "cuda":
            torch.cuda.reset_peak_memory_stats(place)
        before = 0.0 if place.type == "cuda" else memory(place)
        trainer = trainer_of(recording, settled(recipe, precision, compiled), place)
        each = step_time(trainer, steps, place)
        first = first or each
        print(
            f"{precision:9s}  {'yes' if compiled else 'no':8s}  {1e3 * each:9.1f}"
            f"  {1 / each:7.2f}  {operations / each / 1e12:7.3f}"
            f"  {memory(place) - before:6.2f}  {first / each:12.2f}",
            flush=True,
        )
        del trainer


if __name__ == "__main__":
    main()
