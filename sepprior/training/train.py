"""From a recording to a frozen prior: statistics, training, checkpoints."""

from __future__ import annotations

import time
from collections.abc import Generator as Stream
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sepprior.checkpoint import load_tensors, resolve_device, save_prior, save_tensors
from sepprior.config import GaussianConfig, SpecGANConfig, config_to_dict
from sepprior.data import (
    Recording,
    consecutive_windows,
    data_hash,
    iterate_blocks,
    split_recording,
)
from sepprior.errors import SeppriorError
from sepprior.priors import GaussianPrior, Prior, SpecGANPrior
from sepprior.stationary import autocovariance, continuum_autocovariance
from sepprior.training.gan import SpecGANTrainer, build_networks, run
from sepprior.training.noise_model import NoiseModel
from sepprior.training.state import pack, unpack
from sepprior.training.validate import validate
from sepprior.transforms import Whitener

BLOCK = 2**20
"""Samples read at a time; at least 64 windows."""
VALIDATION_WINDOWS = 128
PILOT_STEPS = 400
"""Warm-up steps between two comparisons of the whitening filters."""
CONTINUUM_MATTERS = 0.02
"""Nats per sample the lines must be worth before the continuum is considered."""
SAVE_SECONDS = 20.0

Config = GaussianConfig | SpecGANConfig


def resume_path(output: Path) -> Path:
    """Where the full training state of a prior at `output` is kept."""
    return output.with_name(f"{output.stem}.resume.safetensors")


def train(
    recording: Recording,
    config: Config,
    *,
    device: str = "auto",
    output: str | Path | None = None,
    resume: bool = False,
) -> Stream[dict[str, Any], None, Prior]:
    """Train a noise prior, yielding a record of statistics per tick.

    Closing the generator, or an interrupt, leaves the newest prior at `output` and the
    full training state beside it.

    Args:
        recording: noise only.
        config: the recipe.
        device: "auto", "cpu", "cuda", ...
        output: where to save; None to keep the prior in memory only.
        resume: continue from the training state beside `output`.

    Yields:
        ``step``, ``steps``, ``seconds`` and the losses and errors of the model.

    Returns:
        The frozen prior.

    Raises:
        SeppriorError: too little noise, diverging losses, a training state that does
            not fit.
    """
    place = resolve_device(device)
    path = None if output is None else Path(output)
    training, validation = split_recording(
        recording,
        window=config.window,
        validation_fraction=config.validation_fraction,
    )
    block = max(BLOCK, 64 * config.window)
    try:
        level, covariance = autocovariance(
            iterate_blocks(training, block=block), n_lags=config.window
        )
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
    if isinstance(config, GaussianConfig):
        prior: Prior = GaussianPrior(
            covariance,
            level=level,
            sample_rate=recording.sample_rate,
            metadata=metadata,
        ).to(place)
        prior.metadata |= validate(
            prior, gaussian, training, validation, held, seed=config.seed
        )
        if path is not None:
            save_prior(prior, path)
        yield {"step": 1, "steps": 1, "seconds": 0.0} | prior.metadata["heldout"]
        return prior
    return (
        yield from _train_specgan(
            training, validation, held, config, gaussian, metadata, place, path, resume
        )
    )


def _train_specgan(
    training: Recording,
    validation: Recording,
    held: Tensor,
    config: SpecGANConfig,
    gaussian: GaussianPrior,
    metadata: dict[str, Any],
    device: torch.device,
    path: Path | None,
    resume: bool,
) -> Stream[dict[str, Any], None, Prior]:
    gaussian_nll = float(gaussian.heldout_nll(held).mean()) / config.window
    saved = _load_state(path, config, metadata) if resume else None
    if saved is None:
        whitening, chosen = _choose_whitening(training, held, config, gaussian, device)
    else:
        whitening, chosen = saved["whitening"], saved["whitening_name"]
    metadata["whitening"] = chosen
    model = NoiseModel(
        training,
        config,
        device,
        gaussian.level,
        gaussian.autocovariance,
        whitening,
        torch.Generator().manual_seed(config.seed),
    )
    trainer = SpecGANTrainer(model, build_networks(config, model))
    if saved is not None:
        trainer.networks.load_state(saved["networks"])
        trainer.step = saved["step"]
        model.rng.set_state(saved["rng"])
    last_save = time.monotonic()
    # An interrupt may come in the middle of a step: what is saved then is the state of
    # the last tick, from which a resumed run repeats every step exactly.
    last_tick = _snapshot(trainer, metadata)
    finished = False
    try:
        for record in run(trainer, held, gaussian_nll=gaussian_nll):
            if path is not None:
                last_tick = _snapshot(trainer, metadata)
            yield record
            late = time.monotonic() - last_save > SAVE_SECONDS
            if path is not None and late:
                _save(last_tick, path)
                last_save = time.monotonic()
        finished = True
    finally:
        if path is not None and not finished:
            _save(last_tick, path)
    prior = trainer.frozen(**metadata)
    prior.metadata |= validate(
        prior, gaussian.to(device), training, validation, held, seed=config.seed
    )
    if path is not None:
        _save(_snapshot(trainer, metadata), path)
        save_prior(prior, path)
    return prior


def _choose_whitening(
    training: Recording,
    held: Tensor,
    config: SpecGANConfig,
    gaussian: GaussianPrior,
    device: torch.device,
) -> tuple[Tensor, str]:
    """The stationary filter in front of the network, and its name.

    Whitening by the whole spectrum removes lines as least squares would, each with a
    free amplitude and phase. Whitening by the continuum leaves them to the generator,
    which wins where their phases are locked (a pulse train). Trial runs of the warm-up
    decide by held-out likelihood.
    """
    total = gaussian.autocovariance
    if config.channels == "magnitude":
        impulse = torch.zeros_like(total)
        impulse[0] = total[0]
        return impulse, "none"
    if config.whitening == "total":
        return total, "total"
    block = max(BLOCK, 64 * config.window)
    continuum = continuum_autocovariance(
        iterate_blocks(training, block=block), n_lags=config.window, mean=gaussian.level
    )
    if continuum is None:
        if config.whitening == "continuum":
            raise SeppriorError(
                f"the recording has no stretch of {16 * config.window} samples to tell "
                "lines from continuum; record longer noise or set whitening = 'total'"
            )
        return total, "total"
    if config.whitening == "continuum":
        return continuum, "continuum"
    worth = Whitener(total).half_log_det - Whitener(continuum).half_log_det
    if worth / config.window < CONTINUUM_MATTERS or config.likelihood_weight == 0:
        return total, "total"
    names = ("total", "continuum")
    filters = (total, continuum)
    pilots = []
    for whitening in filters:
        rng = torch.Generator().manual_seed(config.seed)
        model = NoiseModel(
            training, config, device, gaussian.level, total, whitening, rng
        )
        pilots.append(SpecGANTrainer(model, build_networks(config, model)))
    best = _race(pilots, held)
    return filters[best], names[best]


def _race(pilots: list[SpecGANTrainer], held: Tensor) -> int:
    """Warm two runs up side by side; the index of the better one by held-out noise.

    A coherent generator starts far behind and catches up, so that the race goes on
    while the one behind could still close the gap at its latest pace.
    """
    last: list[float] | None = None
    steps = pilots[0].warmup
    scores = [0.0, 0.0]
    while pilots[0].step < steps:
        for i, pilot in enumerate(pilots):
            for _ in range(min(PILOT_STEPS, steps - pilot.step)):
                pilot.advance()
            scores[i] = float(pilot.frozen().heldout_nll(held, draws=4).mean())
        behind = int(scores[1] > scores[0])
        gap = scores[behind] - scores[1 - behind]
        if last is not None:
            left = (steps - pilots[0].step) / PILOT_STEPS
            if (last[behind] - scores[behind]) * left < gap:
                break
        last = list(scores)
    return int(scores[1] < scores[0])


@dataclass(frozen=True)
class Snapshot:
    """A copy of a run at one step: the prior so far, and what continues the run."""

    prior: SpecGANPrior
    tensors: dict[str, Tensor]
    header: dict[str, Any]


def _snapshot(trainer: SpecGANTrainer, metadata: dict[str, Any]) -> Snapshot:
    """Copy everything needed to continue exactly."""
    tree = {
        "networks": trainer.networks.state(),
        "rng": trainer.model.rng.get_state(),
        "step": trainer.step,
        "whitening": trainer.model.whitening,
        "whitening_name": metadata["whitening"],
        "config": metadata["config"],
        "data_hash": metadata["data_hash"],
    }
    tensors, plain = pack(tree)
    unfinished = trainer.step < trainer.config.steps
    facts = metadata | ({"unfinished": True} if unfinished else {})
    return Snapshot(
        trainer.frozen(**facts),
        {name: tensor.detach().clone() for name, tensor in tensors.items()},
        {"training_state": plain},
    )


def _save(snapshot: Snapshot, path: Path) -> None:
    """Write the prior and, beside it, the state to continue from."""
    save_prior(snapshot.prior, path)
    save_tensors(snapshot.tensors, snapshot.header, resume_path(path))


def _load_state(
    path: Path | None, config: SpecGANConfig, metadata: dict[str, Any]
) -> dict[str, Any]:
    if path is None:
        raise SeppriorError("--resume needs the output path of the earlier run")
    where = resume_path(path)
    tensors, header = load_tensors(where)
    if "training_state" not in header:
        raise SeppriorError(f"{where}: holds no training state; train from the start")
    state = unpack(tensors, header["training_state"])
    if state["data_hash"] != metadata["data_hash"]:
        raise SeppriorError(
            f"{where}: belongs to other recordings; give the same noise files or train "
            "from the start"
        )
    now = config_to_dict(config)
    changed = sorted(k for k in now if state["config"].get(k) != now[k])
    if set(changed) - {"steps", "tick"}:
        raise SeppriorError(
            f"{where}: was trained with another {changed[0]} "
            f"({state['config'].get(changed[0])!r}, now {now[changed[0]]!r}); "
            "give the same settings or train from the start"
        )
    return state


def train_noise(
    recording: Any,
    *,
    sample_rate: float | None = None,
    model: str = "specgan",
    window: int | None = None,
    config: Config | None = None,
    device: str = "auto",
    seed: int | None = None,
    output: str | Path | None = None,
) -> Prior:
    """Learn an instrument's noise from recordings without signal.

    Args:
        recording: shape (M,), (n, M), a list of such, or a `Recording`.
        sample_rate: Hz; taken from a `Recording`.
        model: "specgan" or "gaussian".
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
    from sepprior.config import config_from_dict
    from sepprior.data import as_recording

    if config is None:
        table: dict[str, Any] = {"model": model}
        if window is not None:
            table["window"] = window
        if seed is not None:
            table["seed"] = seed
        config = config_from_dict(table)
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


__all__ = ["resume_path", "train", "train_noise"]
