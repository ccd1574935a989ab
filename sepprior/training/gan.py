"""Training of the SpecGAN prior.

Two phases. The *warm-up* fits generator and encoder to the likelihood of the
recordings (the evidence lower bound of Kingma and Welling 2014, with the conditional
Gaussian of the prior), which teaches the generator where the noise is coherent and how
loud the rest is. The *adversarial* phase adds the critic (WGAN with gradient penalty;
Gulrajani et al. 2017, algorithm 1) and the spectral term to the same objective. With
``likelihood_weight = 0``, and always in magnitude mode, there is no warm-up and no
encoder: the textbook WGAN-GP remains.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from sepprior import losses
from sepprior.config import SpecGANConfig
from sepprior.errors import SeppriorError
from sepprior.nets import Critic, Encoder, Generator, PlaneShape
from sepprior.priors import SpecGANPrior
from sepprior.priors.base import conditional_energy
from sepprior.training.noise_model import NoiseModel

WARMUP_LEARNING_RATE = 1e-3
WARMUP_BETAS = (0.9, 0.99)
KL_RAMP = 300
"""Steps over which the latent's divergence is phased in, so that it is not ignored."""
CLIP_NORM = 1.0
FINAL_DECAY = 0.3
"""Share of the adversarial phase over which its learning rate falls to zero."""


@dataclass
class Networks:
    """Everything that learns, and its optimisers."""

    generator: Generator
    encoder: Encoder | None
    critic: Critic
    ema_generator: Generator
    ema_encoder: Encoder | None
    warmup_optimiser: torch.optim.Optimizer
    optimiser: torch.optim.Optimizer
    critic_optimiser: torch.optim.Optimizer

    def learners(self) -> list[nn.Parameter]:
        """Parameters of generator and encoder."""
        extra = [] if self.encoder is None else list(self.encoder.parameters())
        return [*self.generator.parameters(), *extra]

    def follow(self, decay: float) -> None:
        """Move the running averages one step."""
        pairs: list[tuple[nn.Module, nn.Module | None]] = [
            (self.ema_generator, self.generator)
        ]
        if self.ema_encoder is not None:
            pairs.append((self.ema_encoder, self.encoder))
        for average, module in pairs:
            if module is None:
                continue
            pairs_of = zip(average.parameters(), module.parameters(), strict=True)
            for mean, new in pairs_of:
                mean.data.lerp_(new.data, 1.0 - decay)

    def state(self) -> dict[str, Any]:
        """Nested state of every part."""
        return {
            name: part.state_dict()
            for name, part in vars(self).items()
            if part is not None
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Restore what `state` returned."""
        for name, part in vars(self).items():
            if part is not None:
                part.load_state_dict(state[name])


def build_networks(config: SpecGANConfig, model: NoiseModel) -> Networks:
    """Fresh networks, initialised from the configuration's seed alone."""
    frames = model.stft.n_frames - (0 if model.complex_mode else 1)
    plane = PlaneShape(model.stft.n_bins - 1, frames)
    channels = 3 if model.complex_mode else 1
    with torch.random.fork_rng(devices=[]):
        # Not torch.manual_seed, which would also seed the GPUs' generators.
        torch.default_generator.manual_seed(config.seed)
        generator = Generator(
            plane,
            latent=config.latent,
            width=config.width,
            channels=channels,
            bounded=not model.complex_mode,
        )
        critic = Critic(plane, width=config.critic_width, channels=channels)
        encoder = None
        if model.complex_mode and config.likelihood_weight > 0:
            encoder = Encoder(
                plane, latent=config.latent, width=config.width, channels=channels
            )
    if model.complex_mode:
        # Start at the stationary Gaussian model: no mean, unit scale.
        last = generator.layers[-1]
        with torch.no_grad():
            for parameter, share in zip(last.parameters(), (0.1, 0.0), strict=True):
                parameter.mul_(share)
    generator, critic = generator.to(model.device), critic.to(model.device)
    learners = list(generator.parameters())
    if encoder is not None:
        encoder = encoder.to(model.device)
        learners += list(encoder.parameters())
    return Networks(
        generator,
        encoder,
        critic,
        copy.deepcopy(generator).requires_grad_(False),
        None if encoder is None else copy.deepcopy(encoder).requires_grad_(False),
        torch.optim.Adam(learners, WARMUP_LEARNING_RATE, betas=WARMUP_BETAS),
        torch.optim.Adam(learners, config.learning_rate, betas=config.betas),
        torch.optim.Adam(critic.parameters(), config.learning_rate, betas=config.betas),
    )


def freeze(
    model: NoiseModel,
    generator: Generator,
    encoder: Encoder | None,
    metadata: Mapping[str, Any] | None = None,
) -> SpecGANPrior:
    """The networks as a prior (sharing their weights)."""
    return SpecGANPrior(
        generator,
        encoder,
        statistics=model.statistics,
        whitening=model.whitening.to(model.device),
        autocovariance=model.autocovariance.to(model.device),
        level=model.level,
        sample_rate=model.recording.sample_rate,
        frame=model.stft.length,
        uniform_latent=model.config.latent_distribution == "uniform",
        metadata=dict(metadata or {}),
    )


class SpecGANTrainer:
    """One training run, a step at a time.

    Args:
        model: the recording and its statistics.
        networks: what learns.
        whitening: name of the model's filter.
    """

    def __init__(
        self, model: NoiseModel, networks: Networks, *, whitening: str = "total"
    ) -> None:
        self.model, self.networks = model, networks
        self.facts = {"whitening": whitening}
        self.config = model.config
        self.prior = freeze(model, networks.generator, networks.encoder)
        for module in (networks.generator, networks.encoder):
            if module is not None:
                module.train().requires_grad_(True)
        self.step = 0

    @property
    def warmup(self) -> int:
        """Steps of the first phase."""
        if self.networks.encoder is None:
            return 0
        return min(self.config.warmup_steps, self.config.steps)

    def advance(self) -> dict[str, float]:
        """One generator step (and its critic steps); returns its losses."""
        if self.step < self.warmup:
            record = self._warmup_step()
        else:
            record = self._adversarial_step()
        self.step += 1
        decay = min(self.config.ema, (1.0 + self.step) / (10.0 + self.step))
        self.networks.follow(decay)
        bad = [k for k, v in record.items() if not math.isfinite(v)]
        if bad:
            raise SeppriorError(
                f"training diverged at step {self.step}: {bad[0]} is not finite; train "
                "again from the start with a lower learning_rate "
                f"(now {self.config.learning_rate:g}) or another seed"
            )
        return record

    # -- likelihood ------------------------------------------------------------------

    def _bound(self, white: Tensor, kl_weight: float) -> tuple[Tensor, Tensor]:
        """Negative evidence lower bound per sample, and the mean divergence."""
        model, encoder = self.model, self.networks.encoder
        assert encoder is not None
        seen = white.clone()
        half = len(white) // 2
        seen[:half] += model.leftover_signal(half)
        mean, log_sd = encoder(self.prior.planes(seen))
        z = mean + log_sd.exp() * model.randn(*mean.shape)
        features = self.prior.flatten(self.prior.stft.analyse(white))
        decoded = self.prior.decode(z)
        kl = losses.gaussian_kl(mean, log_sd)
        energy = conditional_energy(features, decoded) - model.whitener.half_log_det
        bound = (energy + kl_weight * kl).mean() / self.config.window
        return bound, kl.mean()

    def _warmup_step(self) -> dict[str, float]:
        nets = self.networks
        share = self.step / max(self.warmup, 1)
        rate = self.config.learning_rate + 0.5 * (
            WARMUP_LEARNING_RATE - self.config.learning_rate
        ) * (1.0 + math.cos(math.pi * share))
        for group in nets.warmup_optimiser.param_groups:
            group["lr"] = rate
        bound, kl = self._bound(
            self.model.crops(self.config.batch), min(1.0, self.step / KL_RAMP)
        )
        nets.warmup_optimiser.zero_grad(set_to_none=True)
        bound.backward()
        nn.utils.clip_grad_norm_(nets.learners(), CLIP_NORM)
        nets.warmup_optimiser.step()
        return {"bound": bound.item(), "divergence": kl.item()}

    # -- adversarial -----------------------------------------------------------------

    def _fake(self) -> Tensor:
        """Generated whitened windows (B, N), differentiable in the generator."""
        z = self.model.randn(self.config.batch, self.config.latent)
        mean, log_d = self.prior.plane_parts(z)
        return self.prior.draw(mean, log_d, generator=self.model.rng)

    def _critic_step(self) -> tuple[float, float]:
        model, critic = self.model, self.networks.critic
        real = self.prior.planes(model.crops(self.config.batch))
        with torch.no_grad():
            fake = self.prior.planes(self._fake())
        mix = torch.rand(len(real), generator=model.rng).to(model.device)
        adversarial = losses.wgan_critic_loss(critic(real), critic(fake))
        penalty = losses.gradient_penalty(critic, real, fake, mix)
        loss = adversarial + self.config.gradient_penalty * penalty
        self.networks.critic_optimiser.zero_grad(set_to_none=True)
        loss.backward()
        self.networks.critic_optimiser.step()
        return -adversarial.item(), penalty.item()

    def _adversarial_step(self) -> dict[str, float]:
        config, nets, model = self.config, self.networks, self.model
        self._set_rate()
        distance = penalty = math.nan
        for _ in range(config.critic_steps):
            distance, penalty = self._critic_step()
        nets.critic.requires_grad_(False)
        fake = self._fake()
        loss = losses.wgan_generator_loss(nets.critic(self.prior.planes(fake)))
        record = {"critic_distance": distance, "gradient_penalty": penalty}
        if config.spectral != "none":
            if config.spectral == "batch-mean":
                spectral = losses.spectral_batch_loss(
                    fake, model.log_mean_power, model.log_sd_power
                )
            else:
                spectral = losses.spectral_per_sample_loss(fake, model.log_mean_power)
            loss = loss + config.spectral_weight * spectral
            record["spectral_loss"] = spectral.item()
        if nets.encoder is not None:
            bound, kl = self._bound(model.crops(config.batch), 1.0)
            loss = loss + config.likelihood_weight * bound
            record |= {"bound": bound.item(), "divergence": kl.item()}
        nets.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        nets.optimiser.step()
        nets.critic.requires_grad_(True)
        return record

    def _set_rate(self) -> None:
        """Constant, then linear to zero over the last part of the run."""
        span = max(self.config.steps - self.warmup, 1)
        left = (self.config.steps - self.step) / (FINAL_DECAY * span)
        rate = self.config.learning_rate * min(1.0, left)
        for optimiser in (self.networks.optimiser, self.networks.critic_optimiser):
            for group in optimiser.param_groups:
                group["lr"] = rate

    # -- what a tick reports -----------------------------------------------------------

    def report(self, held: Tensor) -> dict[str, Any]:
        """Spectral error, and the bound on held-out noise where there is an encoder."""
        prior = self.frozen()
        record: dict[str, Any] = {
            "phase": "warm-up" if self.step <= self.warmup else "adversarial",
            "spectral_error_db": self.spectral_error_db(prior),
        }
        if prior.encoder is not None:
            nll = prior.heldout_nll(held, draws=2).mean() / self.config.window
            record["heldout_nll"] = float(nll)
        return record

    def frozen(self, metadata: Mapping[str, Any] | None = None) -> SpecGANPrior:
        """The running average as a prior of its own."""
        return freeze(
            self.model,
            copy.deepcopy(self.networks.ema_generator),
            copy.deepcopy(self.networks.ema_encoder),
            metadata,
        )

    def finished(self, metadata: Mapping[str, Any]) -> SpecGANPrior:
        """The running average: nothing is left to measure."""
        return self.frozen(metadata)

    def state(self) -> dict[str, Any]:
        """Networks, optimisers, random numbers and the chosen filter."""
        return {
            "networks": self.networks.state(),
            "rng": self.model.rng.get_state(),
            "step": self.step,
            "whitening": self.model.whitening,
            "whitening_name": self.facts["whitening"],
        }

    def spectral_error_db(self, prior: SpecGANPrior) -> float:
        """Rms over frequency of the generated over the recorded mean spectrum, dB."""
        rng = torch.Generator().manual_seed(1)
        z = torch.randn((256, prior.n_latent), generator=rng).to(self.model.device)
        with torch.no_grad():
            fake = prior.sample_white(z, generator=rng)
        power = losses.periodogram(fake).mean(0)
        # Bins are averaged eightfold: the estimate's own scatter is 10 % otherwise.
        real = self.model.log_mean_power.exp()
        width = max(1, len(power) // 64)
        shape = (len(power) // width, width)
        fold = [p[: shape[0] * width].view(shape).mean(1) for p in (power, real)]
        ratio = 10.0 * torch.log10(fold[0] / fold[1])
        return float(ratio.square().mean().sqrt())
