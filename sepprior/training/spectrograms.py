"""Training of the magnitude SpecGAN on spectrograms instead of recordings.

The published method (Donahue et al. 2019): log-magnitudes normalised per frequency,
clipped at three standard deviations, and an adversarial loss. The spectral term of the
recipe compares the power per frequency, over samples and frames, with the recorded one.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Generator as Stream
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sepprior import losses
from sepprior.checkpoint import load_tensors, resolve_device, save_tensors
from sepprior.checkpoint.spectrogram import save_spectrogram_gan
from sepprior.config import SpecGANConfig, config_to_dict
from sepprior.data.spectrograms import Spectrograms
from sepprior.errors import SeppriorError
from sepprior.nets import Critic, Generator, PlaneShape
from sepprior.priors import LatentSpace
from sepprior.priors.planes import MAGNITUDE_FLOOR
from sepprior.priors.spectrogram import SpectrogramGAN, magnitudes, planes_of
from sepprior.torch_state import usual_torch_within
from sepprior.training.adversary import Adversary, decayed_rate, spectral_term
from sepprior.training.moments import plane_moments, power_moments
from sepprior.training.parallel import current_ranks, join_processes
from sepprior.training.state import check_continued, pack, resume_path, unpack
from sepprior.training.steps import (
    check_finite,
    check_spectrum,
    follow,
    mixed_precision,
    set_rate,
)

CHUNK_VALUES = 2**22
"""Values of the spectrograms that are read at a time."""
JUDGED = 64
"""Spectrograms that are generated to report the error of the mean spectrum."""
SAVE_SECONDS = 20.0


class SpectrogramTrainer:
    """One training run, a step at a time.

    Args:
        data: the spectrograms; the last ones are held out.
        config: the recipe.
        device: where to compute.
    """

    def __init__(
        self, data: Spectrograms, config: SpecGANConfig, device: torch.device
    ) -> None:
        self.data, self.config, self.device = data, config, device
        self.rng = torch.Generator().manual_seed(config.seed)
        self.step = 0
        self.space = LatentSpace(config.latent, config.latent_distribution == "uniform")
        held = round(config.validation_fraction * len(data))
        self.training = max(1, len(data) - held)
        most = max(1, CHUNK_VALUES // data.size**2)

        def chunks(start: int, stop: int) -> Iterator[Tensor]:
            return map(torch.from_numpy, data.chunks(start, stop, most=most))

        mean, sd = plane_moments(
            torch.log(x + MAGNITUDE_FLOOR) for x in chunks(0, self.training)
        )
        self.log_mean, self.log_sd = mean.to(device), sd.to(device)
        powers = map(losses.plane_power, chunks(0, self.training))
        log_mean, log_sd = power_moments(powers)
        self.power = log_mean.exp()
        self.log_mean_power = log_mean.to(device)
        self.log_sd_power = log_sd.to(device)
        self.floor_db: float | None = None
        if self.training < len(data):
            unseen = _mean_power(chunks(self.training, len(data)))
            self.floor_db = losses.spectrum_distance_db(unseen, self.power)
        self._build()
        self.untrained_db = self.spectral_error_db()

    def _build(self) -> None:
        config, plane = self.config, PlaneShape(self.data.size, self.data.size)
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(config.seed)
            generator = Generator(
                plane,
                latent=config.latent,
                width=config.width,
                channels=1,
                bounded=True,
            )
            critic = Critic(plane, width=config.critic_width, channels=1)
        self.generator = generator.to(self.device)
        self.critic = critic.to(self.device)
        self.average = copy.deepcopy(self.generator).requires_grad_(False)
        self.ranks = current_ranks()
        self.ranks.share(config.batch)  # an error where it cannot be
        rates = {"lr": config.learning_rate, "betas": config.betas, "fused": True}
        self.optimiser = torch.optim.Adam(self.generator.parameters(), **rates)
        self.critic_optimiser = torch.optim.Adam(self.critic.parameters(), **rates)
        self.adversary = Adversary(
            self.critic, self.critic_optimiser, config, rng=self.rng, ranks=self.ranks
        )
        self._objective = self.ranks.step(self.generator, self._generator_loss)

    def _real(self) -> Tensor:
        """Planes of random spectrograms, (B, 1, F, F)."""
        count = (self.config.batch,)
        joint = torch.randint(self.training, count, generator=self.rng)
        rows = self.ranks.rows(joint)
        values = torch.from_numpy(np.array(self.data.values[rows.numpy()]))
        return planes_of(values.to(self.device), self.log_mean, self.log_sd)

    def _fake(self) -> Tensor:
        """Generated planes (B, 1, F, F), differentiable in the generator."""
        shape = (self.config.batch, self.config.latent)
        z = self.ranks.rows(torch.randn(shape, generator=self.rng)).to(self.device)
        with mixed_precision(self.config, self.device):
            return self.generator(self.space.code(z)).float()

    def advance(self) -> dict[str, float]:
        """One generator step and its critic steps; returns its losses."""
        config = self.config
        rate = decayed_rate(config, self.step, 0)
        set_rate(self.optimiser, rate)
        set_rate(self.critic_optimiser, rate * config.critic_rate_ratio)
        record: dict[str, float] = {}
        for _ in range(config.critic_steps):
            with torch.no_grad():
                fake = self._fake()
            record = self.adversary.step(self._real(), fake, None)
        self.critic.requires_grad_(False)
        loss, parts = self._objective()
        record |= {name: float(part) for name, part in parts.items()}
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        self.optimiser.step()
        self.critic.requires_grad_(True)
        self.step += 1
        decay = min(config.ema, (1.0 + self.step) / (10.0 + self.step))
        follow(self.average, self.generator, decay)
        check_finite(record, self.step, config)
        return record

    def _generator_loss(self) -> tuple[Tensor, dict[str, Tensor]]:
        fake = self._fake()
        loss = self.adversary.generator_loss(fake, self._real, None)
        parts = {"generator_loss": loss.detach()}
        power = losses.plane_power(magnitudes(fake, self.log_mean, self.log_sd))
        spectral = spectral_term(
            self.config, power, self.log_mean_power, self.log_sd_power, self.ranks
        )
        if spectral is not None:
            loss = loss + self.config.spectral_weight * spectral
            parts["spectral_loss"] = spectral.detach()
        return loss, parts

    def spectral_error_db(self) -> float:
        """Rms over frequency of the generated over the recorded mean power, dB."""
        rng = torch.Generator().manual_seed(1)
        fake = self.frozen({}).sample(JUDGED, generator=rng)
        return losses.spectrum_distance_db(_mean_power([fake]).cpu(), self.power)

    def frozen(self, metadata: dict[str, Any]) -> SpectrogramGAN:
        """The running average, sharing nothing with the run."""
        return SpectrogramGAN(
            copy.deepcopy(self.average),
            self.space,
            log_mean=self.log_mean,
            log_sd=self.log_sd,
            metadata=metadata,
        )

    def _parts(self) -> dict[str, Any]:
        names = ("generator", "critic", "average", "optimiser", "critic_optimiser")
        return {name: getattr(self, name) for name in names}

    def state(self) -> dict[str, Any]:
        """Everything needed to continue exactly."""
        parts = {name: part.state_dict() for name, part in self._parts().items()}
        return {"parts": parts, "rng": self.rng.get_state(), "step": self.step}

    def load_state(self, state: dict[str, Any]) -> None:
        """Continue from what `state` returned."""
        for name, part in self._parts().items():
            part.load_state_dict(state["parts"][name])
        self.rng.set_state(state["rng"])
        self.step = state["step"]


def _mean_power(batches: Iterable[Tensor]) -> Tensor:
    """Mean of ``|X|^2`` per frequency over batches (n, F, F) and frames, (F,)."""
    return power_moments(map(losses.plane_power, batches))[0].exp()


@usual_torch_within
def train_spectrograms(
    data: Spectrograms,
    config: SpecGANConfig,
    *,
    device: str = "auto",
    output: str | Path | None = None,
    resume: bool = False,
) -> Stream[dict[str, Any], None, SpectrogramGAN]:
    """Train a generator of spectrograms, yielding a record of statistics per tick.

    Closing the stream, or an interrupt, leaves the newest generator at `output` and the
    full training state beside it. In processes started by ``torchrun`` each takes its
    part of every batch, and the first one writes.

    Args:
        data: what to learn.
        config: a recipe of the magnitude SpecGAN; its window and what acts on
            waveforms (`amplitude_weight`) are not used.
        device: "auto", "cpu", "cuda", ...
        output: where to save; None to keep the generator in memory only.
        resume: continue from the training state beside `output`.

    Yields:
        ``step``, ``steps``, ``seconds``, the losses and ``spectral_error_db``.

    Returns:
        The generator.

    Raises:
        SeppriorError: a setting that means nothing for spectrograms, diverging losses,
            a training state that does not fit.
    """
    _check(config)
    place = resolve_device(join_processes(device))
    trainer = SpectrogramTrainer(data, config, place)
    return _run(trainer, None if output is None else Path(output), resume=resume)


def _run(
    trainer: SpectrogramTrainer, path: Path | None, *, resume: bool
) -> Stream[dict[str, Any], None, SpectrogramGAN]:
    """Train to the last step, saving on the way."""
    data, config = trainer.data, trainer.config
    facts = {
        "config": config_to_dict(config),
        "seed": config.seed,
        "data_hash": data.digest,
        "spectrograms": len(data),
        "spectral_floor_db": trainer.floor_db,
    }
    if resume:
        trainer.load_state(_earlier(path, facts))
    if trainer.ranks.rank:
        path = None  # of several processes the first one writes
    began = saved = time.monotonic()
    last = _snapshot(trainer, facts)
    try:
        while trainer.step < config.steps:
            record: dict[str, Any] = dict(trainer.advance())
            if trainer.step % config.tick and trainer.step < config.steps:
                continue
            error = trainer.spectral_error_db()
            check_spectrum(error, trainer.untrained_db, trainer.step, config)
            last = _snapshot(trainer, facts)
            yield {
                "step": trainer.step,
                "steps": config.steps,
                "seconds": round(time.monotonic() - began, 3),
                **record,
                "spectral_error_db": error,
                "spectral_floor_db": trainer.floor_db,
            }
            if path is not None and time.monotonic() - saved > SAVE_SECONDS:
                _save(last, path)
                saved = time.monotonic()
    finally:
        # Also after an interrupt in a step: what is saved is the state of a tick.
        if path is not None:
            _save(last, path)
    return last[0]


def _check(config: SpecGANConfig) -> None:
    """Refuse settings that act on waveforms, or have no meaning here."""
    if config.channels != "magnitude":
        raise SeppriorError(
            f"channels is {config.channels!r}: spectrograms are learned with channels "
            '= "magnitude"'
        )
    default = SpecGANConfig()
    for name in (
        "augment_shift",
        "augment_noise",
        "augment_mask",
        "augment_stretch",
        "compile",
        "keep",
    ):
        if getattr(config, name) != getattr(default, name):
            raise SeppriorError(
                f"{name} is not available for spectrograms: leave it out of the recipe"
            )


Snapshot = tuple[SpectrogramGAN, dict[str, Tensor], dict[str, Any]]


def _snapshot(trainer: SpectrogramTrainer, facts: dict[str, Any]) -> Snapshot:
    """A copy of a run: the generator so far, and what continues the run."""
    tree = trainer.state() | {
        "config": facts["config"],
        "data_hash": facts["data_hash"],
    }
    tensors, plain = pack(tree)
    copied = {name: tensor.detach().clone() for name, tensor in tensors.items()}
    more = {"unfinished": True} if trainer.step < trainer.config.steps else {}
    return trainer.frozen(facts | more), copied, {"training_state": plain}


def _save(snapshot: Snapshot, path: Path) -> None:
    model, tensors, header = snapshot
    save_spectrogram_gan(model, path)
    save_tensors(tensors, header, resume_path(path))


def _earlier(path: Path | None, facts: dict[str, Any]) -> dict[str, Any]:
    """The state of the run that is continued."""
    if path is None:
        raise SeppriorError("--resume needs the output path of the earlier run")
    where = resume_path(path)
    tensors, header = load_tensors(where)
    state = unpack(tensors, header.get("training_state", {"value": {}}))
    if "parts" not in state:
        raise SeppriorError(
            f"{where}: holds no training on spectrograms; train from the start"
        )
    check_continued(state, facts, where)
    return state
