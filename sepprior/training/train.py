"""From a recording to a frozen prior: statistics, training, checkpoints."""

from __future__ import annotations

import contextlib
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from collections.abc import Generator as Stream
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sepprior.checkpoint import load_tensors, resolve_device, save_prior, save_tensors
from sepprior.config import (
    CONFIGS,
    GaussianConfig,
    IterativeConfig,
    NoiseConfig,
    config_from_dict,
    config_to_dict,
)
from sepprior.data import (
    Recording,
    as_recording,
    consecutive_windows,
    data_hash,
    split_recording,
)
from sepprior.errors import SeppriorError, SeppriorWarning, file_path, shown
from sepprior.outputs import check_output_file
from sepprior.priors import GaussianPrior, Prior
from sepprior.torch_state import usual_torch, usual_torch_within
from sepprior.training.contract import CHECKS, Task, Trainer, Work
from sepprior.training.parallel import current_ranks, join_processes
from sepprior.training.registry import build_trainer
from sepprior.training.state import check_continued, pack, resume_path, unpack
from sepprior.training.steps import diverged
from sepprior.training.uncertainty import spectrum_of
from sepprior.training.validate import validate

VALIDATION_WINDOWS = 128
SAVE_SECONDS = 20.0
CHECKING = "scoring held-out noise and calibrating the error bars"
RUNAWAY = 10.0
"""Nats per sample over the stationary Gaussian that only a broken run reaches."""


@usual_torch_within
def train(
    recording: Recording,
    config: NoiseConfig,
    *,
    device: str = "auto",
    output: str | Path | None = None,
    resume: bool = False,
    watch: Callable[[Work], object] | None = None,
) -> Stream[dict[str, Any], None, Prior]:
    """Train a noise prior, yielding a record of statistics per tick.

    Closing the generator, or an interrupt, leaves the newest prior at `output` and the
    full training state beside it. In processes started by ``torchrun`` each takes its
    part of every batch, and the first one writes.

    Args:
        recording: noise only.
        config: the recipe.
        device: "auto", "cpu", "cuda", ...
        output: where to save; None to keep the prior in memory only.
        resume: continue from the training state beside `output`.
        watch: called with how far the training is, whenever that has changed.

    Yields:
        ``step``, ``steps``, ``seconds`` and the losses and errors of the model.

    Returns:
        The frozen prior.

    Raises:
        SeppriorError: too little noise, diverging losses, a training state that does
            not fit.
    """
    if output is not None:
        check_output_file(file_path("output", output), suffixes=[".safetensors"])
    place = resolve_device(join_processes(device))
    # Of several processes the first one writes.
    path = Path(output) if output is not None and not current_ranks().rank else None
    training, validation = split_recording(
        recording,
        window=config.window,
        validation_fraction=config.validation_fraction,
    )
    try:
        level, covariance, _ = spectrum_of(training, config.window)
        gaussian = GaussianPrior(
            covariance, level=level, sample_rate=recording.sample_rate
        )
    except ArithmeticError as error:
        raise SeppriorError(
            f"the recording gives no usable autocovariance ({error}); "
            "record longer noise or use a shorter window"
        ) from error
    held = torch.from_numpy(
        consecutive_windows(validation, window=config.window, limit=VALIDATION_WINDOWS)
    )
    metadata = {
        "config": config_to_dict(config),
        "seed": config.seed,
        "data_hash": data_hash(recording),
        "n_training_samples": training.n_samples,
        "sources": sorted({s.source for s in recording.segments})[:20],
    }
    task = Task(training, validation, held, gaussian, place, metadata, Work(watch))
    if isinstance(config, GaussianConfig):
        prior: Prior = GaussianPrior(
            covariance,
            level=level,
            sample_rate=recording.sample_rate,
            metadata=metadata,
        ).to(place)
        task.work.enter(CHECKING, left=CHECKS)
        prior.metadata |= _validated(prior, task)
        if path is not None:
            _save_last(prior, path)
        yield {"step": 1, "steps": 1, "seconds": 0.0} | prior.metadata["heldout"]
        return prior
    state = (
        _load_state(None if output is None else Path(output), metadata)
        if resume
        else None
    )
    return (yield from _run(task, config, path, state))


def _run(
    task: Task,
    config: IterativeConfig,
    path: Path | None,
    state: dict[str, Any] | None,
) -> Stream[dict[str, Any], None, Prior]:
    """Train to the last step, saving on the way."""
    task.work.enter("preparing", left=config.steps + CHECKS)
    try:
        trainer = build_trainer(task, config, state=state)
    except (AttributeError, IndexError, KeyError, RuntimeError, TypeError) as error:
        if state is None:
            raise
        raise SeppriorError(
            f"the training state beside the prior cannot be used ({shown(error)}): "
            "train from the start"
        ) from error
    task.work.enter("training", left=config.steps - trainer.step + CHECKS)
    last_save = time.monotonic()
    # An interrupt may come in the middle of a step: what is saved then is the state of
    # the last tick, from which a resumed run repeats every step exactly.
    last_tick = _snapshot(trainer, task)
    finished = False
    try:
        for record in _ticks(trainer, task, config):
            if path is not None:
                last_tick = _snapshot(trainer, task)
            yield record
            late = time.monotonic() - last_save > SAVE_SECONDS
            if path is not None and late:
                _save(last_tick, path)
                last_save = time.monotonic()
        task.work.enter(CHECKING, left=CHECKS)
        prior = trainer.finished({**task.metadata, **trainer.facts})
        prior.metadata |= _validated(prior, task)
        finished = True
    finally:
        if path is not None and not finished:
            _save(last_tick, path)
    if path is not None:
        last = _snapshot(trainer, task)
        _save_last(prior, path)
        with contextlib.suppress(OSError):
            save_tensors(last.tensors, last.header, resume_path(path))
    return prior


def _save_last(prior: Prior, path: Path) -> None:
    """Write the trained prior, to another folder where it cannot be written to its own.

    Raises:
        SeppriorError: neither can be written to. It says where the prior is, if it is
            anywhere.
    """
    try:
        save_prior(prior, path)
        return
    except OSError as error:
        reason = error.strerror or error
    told = f"the prior could not be written to '{path}' ({reason})"
    try:
        folder = Path(tempfile.mkdtemp(prefix="sepprior-"))
        save_prior(prior, folder / path.name)
    except OSError as error:
        raise UnsavedError(f"{told}, nor elsewhere: it is lost", prior) from error
    raise UnsavedError(f"{told}: it is kept as '{folder / path.name}'", prior)


class UnsavedError(SeppriorError):
    """A prior was trained and could not be written where it was to be.

    Attributes:
        prior: the prior.
    """

    def __init__(self, message: str, prior: Prior) -> None:
        super().__init__(message)
        self.prior = prior


def _ticks(
    trainer: Trainer, task: Task, config: IterativeConfig
) -> Iterator[dict[str, Any]]:
    """Advance to the last step, yielding one record per tick."""
    gaussian_nll = float(task.gaussian.heldout_nll(task.held).mean()) / config.window
    began = time.monotonic()
    while trainer.step < config.steps:
        losses = trainer.advance()
        task.work.add()
        if trainer.step % config.tick and trainer.step < config.steps:
            continue
        record: dict[str, Any] = {
            "step": trainer.step,
            "steps": config.steps,
            "seconds": round(time.monotonic() - began, 3),
            **losses,
            **trainer.report(task.held),
        }
        if "heldout_nll" in record:
            record["heldout_nll_gaussian"] = gaussian_nll
            if not record["heldout_nll"] < gaussian_nll + RUNAWAY:
                raise diverged(
                    f"held-out noise costs {record['heldout_nll']:.3g} nats per "
                    f"sample, the stationary Gaussian {gaussian_nll:.3g}",
                    trainer.step,
                    config,
                    trainer.rate_setting,
                )
        yield record


def _validated(prior: Prior, task: Task) -> dict[str, Any]:
    """What the prior is worth on noise it has not seen, as metadata."""
    return validate(
        prior,
        task.gaussian.to(task.device),
        task.training,
        task.validation,
        task.held,
        seed=task.metadata["seed"],
        done=lambda share: task.work.add(share * CHECKS),
    )


@dataclass(frozen=True)
class Snapshot:
    """A copy of a run at one step: the prior so far, and what continues the run."""

    prior: Prior
    tensors: dict[str, Tensor]
    header: dict[str, Any]


def _snapshot(trainer: Trainer, task: Task) -> Snapshot:
    """Copy everything needed to continue exactly.

    Its prior is unfinished even after the last step: it lacks what is measured once.
    """
    tree = trainer.state() | {
        "config": task.metadata["config"],
        "data_hash": task.metadata["data_hash"],
    }
    tensors, plain = pack(tree)
    facts = {**task.metadata, **trainer.facts, "unfinished": True}
    return Snapshot(
        trainer.frozen(facts),
        {name: tensor.detach().clone() for name, tensor in tensors.items()},
        {"training_state": plain},
    )


def _save(snapshot: Snapshot, path: Path) -> None:
    """Write the prior and, beside it, the state to continue from."""
    save_prior(snapshot.prior, path)
    save_tensors(snapshot.tensors, snapshot.header, resume_path(path))


def _load_state(path: Path | None, metadata: Mapping[str, Any]) -> dict[str, Any]:
    if path is None:
        raise SeppriorError("--resume needs the output path of the earlier run")
    where = resume_path(path)
    tensors, header = load_tensors(where)
    if "training_state" not in header:
        raise SeppriorError(f"{where}: holds no training state; train from the start")
    state = unpack(tensors, header["training_state"])
    check_continued(state, metadata, where)
    return state


@usual_torch()
def train_noise(
    recording: Any,
    *,
    sample_rate: float | None = None,
    model: str = "specgan",
    window: int | None = None,
    config: NoiseConfig | None = None,
    device: str = "auto",
    seed: int | None = None,
    output: str | Path | None = None,
) -> Prior:
    """Learn an instrument's noise from recordings without signal.

    Args:
        recording: shape (M,), (n, M), a list of such, or a `Recording`.
        sample_rate: Hz; taken from a `Recording`.
        model: "specgan", "gaussian", "diffusion", "wavegan", "gansynth" or "lstm".
        window: samples of one window (default 300).
        config: a full recipe instead of `model`, `window` and `seed`.
        device: "auto", "cpu", "cuda", ...
        seed: seed of every random choice (default 0).
        output: where to save the prior as well.

    Returns:
        The frozen prior.

    Raises:
        SeppriorError: unknown model, too little noise, diverging losses.
    """
    if config is None:
        table: dict[str, Any] = {"model": model}
        if window is not None:
            table["window"] = window
        if seed is not None:
            table["seed"] = seed
        config = config_from_dict(table)
    elif type(config) not in CONFIGS.values():
        raise SeppriorError(
            f"config={shown(config)}: give a recipe such as "
            "sepprior.SpecGANConfig(window=300)"
        )
    stream = train(
        as_recording(recording, sample_rate=sample_rate),
        config,
        device=device,
        output=output,
    )
    while True:
        try:
            next(stream)
        except StopIteration as end:
            return end.value
        except UnsavedError as error:
            warnings.warn(str(error), SeppriorWarning, stacklevel=2)
            return error.prior


__all__ = ["resume_path", "train", "train_noise"]
