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
from typing import Any

import torch
from torch import Tensor, nn

from sepprior import losses
from sepprior.priors import SpecGANPrior
from sepprior.priors.base import conditional_energy
from sepprior.training.adversary import (
    NATS_PER_SQUARE_DB,
    Adversary,
    decayed_rate,
    spectral_term,
)
from sepprior.training.loudness import settle_loudness
from sepprior.training.noise_model import NoiseModel
from sepprior.training.specgan_networks import Networks, freeze
from sepprior.training.steps import (
    check_finite,
    check_spectrum,
    mixed_precision,
    set_rate,
)

KL_RAMP = 1 / 3
"""Share of the warm-up over which the latent's divergence is phased in.

Where it counts fully before anything coherent has been found, the latent is given up
for good (in `telegraph`, some runs with 300 of 6000 steps).
"""
RECONSTRUCTION_SHARE = 2 / 15
"""Share of the warm-up over which the error of the waveform is phased out.

Whitened noise hardly tells a latent which level or which phase it should stand for, and
a scale explains much without: in `telegraph` no coherent part was found in three runs
of four. The waveform itself tells. Noise that has none gives it up again.
"""
RECONSTRUCTION_WEIGHT = 3.0
"""Of the squared error over the variance, against the likelihood per sample."""
CLIP_NORM = 1.0


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
        self.facts: dict[str, Any] = {
            "whitening": whitening,
            "frame": model.stft.length,
        }
        if networks.generator.row is not None:
            self.facts["latent_row"] = True
        if model.labels.names:
            self.facts["labels"] = list(model.labels.names)
        self.config = model.config
        self.prior = freeze(model, networks.generator, networks.encoder)
        for module in (networks.generator, networks.encoder):
            if module is not None:
                module.train().requires_grad_(True)
        self.step = 0
        self.scores: dict[int, float] = {}
        """Held-out nats per window by step, where the run was compared to another."""
        if networks.encoder is None:
            self.untrained_db = self.spectral_error_db(self._latest())
        self.best_score = math.inf
        self.best_generator = copy.deepcopy(networks.ema_generator)
        self.best_encoder = copy.deepcopy(networks.ema_encoder)
        self.adversary = Adversary(
            networks.critic,
            networks.critic_optimiser,
            self.config,
            rng=model.rng,
            ranks=model.ranks,
        )
        learners = nn.ModuleList([networks.generator])
        if networks.encoder is not None:
            learners.append(networks.encoder)
        self._warmup_objective = model.ranks.step(learners, self._bound)
        self._objective = model.ranks.step(learners, self._generator_loss)
        if self.config.compile:
            # The generator alone: compiled code has no second derivative, which the
            # critic's penalty takes.
            self.prior.generator.compile()

    @property
    def warmup(self) -> int:
        """Steps of the first phase."""
        if self.networks.encoder is None:
            return 0
        return min(self.config.warmup_steps, self.config.steps)

    @property
    def rate_setting(self) -> str:
        """Name of the setting that gave the latest step its size."""
        if self.step <= self.warmup:
            return "warmup_learning_rate"
        return "learning_rate"

    def advance(self) -> dict[str, float]:
        """One generator step (and its critic steps); returns its losses."""
        if self.step < self.warmup:
            record = self._warmup_step()
        else:
            record = self._adversarial_step()
        self.step += 1
        decay = min(self.config.ema, (1.0 + self.step) / (10.0 + self.step))
        self.networks.follow(decay)
        check_finite(record, self.step, self.config, self.rate_setting)
        return record

    # -- likelihood ------------------------------------------------------------------

    def _bound(
        self,
        white: Tensor,
        onehot: Tensor | None,
        kl_weight: float,
        reconstruction: float = 0.0,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Negative evidence lower bound per sample, and the mean divergence.

        Args:
            white: whitened windows (B, N).
            onehot: labels (B, L), or None.
            kl_weight: of the latent's divergence.
            reconstruction: weight of the squared error of the decoded mean.
        """
        model, encoder = self.model, self.networks.encoder
        assert encoder is not None
        seen = white.clone()
        half = len(white) // 2
        seen[:half] += model.leftover_signal(half)
        with mixed_precision(self.config, model.device):
            mean, log_sd = (part.float() for part in encoder(self.prior.planes(seen)))
        noise = model.randn(*mean.shape)
        bent = mean + log_sd.exp() * noise
        features = self.prior.flatten(self.prior.stft.analyse(white))
        with mixed_precision(self.config, model.device):
            decoded = self.prior.decode_code(self.prior.space.joined(bent, onehot))
        if self.prior.flow is None:
            kl = losses.gaussian_kl(mean, log_sd)
        else:
            z, volume = self.prior.flow.inverse(bent)
            kl = losses.sampled_kl(noise, log_sd, z, volume)
        energy = conditional_energy(features, decoded) - model.whitener.half_log_det
        bound = (energy + kl_weight * kl).mean() / self.config.window
        if reconstruction:
            mean = self.prior.stft.synthesise(self.prior.unflatten(decoded.mean))
            bound = bound + reconstruction * model.squared_error(white - mean)
        return bound, {"bound": bound.detach(), "divergence": kl.detach().mean()}

    def _warmup_step(self) -> dict[str, float]:
        nets = self.networks
        share = self.step / max(self.warmup, 1)
        last = self.config.learning_rate
        above = self.config.warmup_learning_rate - last
        rate = last + 0.5 * above * (1.0 + math.cos(math.pi * share))
        set_rate(nets.warmup_optimiser, rate)
        white, onehot = self.model.crops()
        coherent = max(0.0, 1.0 - share / RECONSTRUCTION_SHARE)
        kl_weight = min(1.0, share / KL_RAMP) * (1.0 - coherent)
        bound, parts = self._warmup_objective(
            white, onehot, kl_weight, RECONSTRUCTION_WEIGHT * coherent
        )
        nets.warmup_optimiser.zero_grad(set_to_none=True)
        bound.backward()
        nn.utils.clip_grad_norm_(nets.learners(), CLIP_NORM)
        nets.warmup_optimiser.step()
        return {name: float(part) for name, part in parts.items()}

    # -- adversarial -----------------------------------------------------------------

    def _fake(self, onehot: Tensor | None) -> Tensor:
        """Generated whitened windows (B, N), differentiable in the generator."""
        model = self.model
        z = model.randn(model.batch, self.config.latent)
        with mixed_precision(self.config, model.device):
            bent = self.prior.generator.bend(z)
            mean, log_d = self.prior.parts_of(self.prior.space.joined(bent, onehot))
        normal = model.randn(*log_d.shape, 2)
        return self.prior.draw(mean, log_d.float(), normal)

    def _critic_step(self) -> dict[str, float]:
        white, onehot = self.model.crops()
        with torch.no_grad():
            fake = self.prior.planes(self._fake(onehot))
        return self.adversary.step(self.prior.planes(white), fake, onehot)

    def _adversarial_step(self) -> dict[str, float]:
        nets = self.networks
        self._set_rate()
        record: dict[str, float] = {}
        for _ in range(self.config.critic_steps):
            record = self._critic_step()
        nets.critic.requires_grad_(False)
        loss, parts = self._objective()
        nets.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        nets.optimiser.step()
        nets.critic.requires_grad_(True)
        return record | {name: float(part) for name, part in parts.items()}

    def _generator_loss(self) -> tuple[Tensor, dict[str, Tensor]]:
        config, model = self.config, self.model
        white = onehot = None
        if self.networks.encoder is not None or config.loss == "rpgan-r1r2":
            white, onehot = model.crops()
        elif model.labels.names:
            _, onehot = model.crops()
        fake = self._fake(onehot)

        def real() -> Tensor:
            assert white is not None
            return self.prior.planes(white)

        loss = self.adversary.generator_loss(self.prior.planes(fake), real, onehot)
        parts = {"generator_loss": loss.detach()}
        power = losses.periodogram(fake)
        spectral = spectral_term(
            config, power, model.log_mean_power, model.log_sd_power, model.ranks
        )
        if spectral is not None:
            loss = loss + config.spectral_weight * spectral
            parts["spectral_loss"] = spectral.detach()
        if config.amplitude_weight:
            amplitude = model.amplitude_term(fake)
            loss = loss + config.amplitude_weight * amplitude
            parts["amplitude_loss"] = amplitude.detach()
        if self.networks.encoder is not None:
            assert white is not None
            bound, of_bound = self._bound(white, onehot, 1.0)
            loss = loss + config.likelihood_weight * bound
            parts |= of_bound
        return loss, parts

    def _set_rate(self) -> None:
        """Constant, then linear to zero over the last part of the run."""
        rate = decayed_rate(self.config, self.step, self.warmup)
        set_rate(self.networks.optimiser, rate)
        critic_rate = rate * self.config.critic_rate_ratio
        set_rate(self.networks.critic_optimiser, critic_rate)

    # -- what a tick reports -----------------------------------------------------------

    def report(self, held: Tensor) -> dict[str, Any]:
        """Spectral error, and the bound on held-out noise where there is an encoder."""
        prior = self._latest()
        error = self.spectral_error_db(prior)
        record: dict[str, Any] = {
            "phase": "warm-up" if self.step <= self.warmup else "adversarial",
            "spectral_error_db": error,
        }
        score = NATS_PER_SQUARE_DB * error**2
        if prior.encoder is not None:
            nll = prior.heldout_nll(held, draws=2).mean() / self.config.window
            record["heldout_nll"] = float(nll)
            score += float(nll)
        else:
            check_spectrum(error, self.untrained_db, self.step, self.config)
        if self.config.keep == "best" and self.step > self.warmup:
            self._remember(score)
        return record

    def _remember(self, score: float) -> None:
        """Keep the running averages if they are the best so far."""
        if score >= self.best_score:
            return
        self.best_score = score
        nets = self.networks
        self.best_generator = copy.deepcopy(nets.ema_generator)
        self.best_encoder = copy.deepcopy(nets.ema_encoder)

    def _latest(self, metadata: Mapping[str, Any] | None = None) -> SpecGANPrior:
        """The running average as a prior of its own."""
        return freeze(
            self.model,
            copy.deepcopy(self.networks.ema_generator),
            copy.deepcopy(self.networks.ema_encoder),
            metadata,
        )

    def frozen(self, metadata: Mapping[str, Any] | None = None) -> SpecGANPrior:
        """The running average, last or best, as a prior of its own."""
        if self.best_score == math.inf:
            return self._latest(metadata)
        return freeze(
            self.model,
            copy.deepcopy(self.best_generator),
            copy.deepcopy(self.best_encoder),
            metadata,
        )

    def finished(self, metadata: Mapping[str, Any]) -> SpecGANPrior:
        """The running average, with draws as loud as the recording."""
        prior = self.frozen(metadata)
        settle_loudness(prior, self.model, trained=self.step)
        return prior

    def state(self) -> dict[str, Any]:
        """Networks, optimisers, random numbers and the chosen filter."""
        return {
            "networks": self.networks.state(),
            "rng": self.model.rng.get_state(),
            "step": self.step,
            "whitening": self.model.whitening,
            "whitening_name": self.facts["whitening"],
            "frame": self.model.stft.length,
            "latent_row": self.networks.generator.row is not None,
            "best_score": self.best_score,
            "best": {
                name: None if part is None else part.state_dict()
                for name, part in (
                    ("generator", self.best_generator),
                    ("encoder", self.best_encoder),
                )
            },
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Continue from what `state` returned."""
        self.networks.load_state(state["networks"])
        self.step = state["step"]
        self.model.rng.set_state(state["rng"])
        self.best_score = state.get("best_score", math.inf)
        if self.best_score < math.inf:
            self.best_generator.load_state_dict(state["best"]["generator"])
            if self.best_encoder is not None:
                self.best_encoder.load_state_dict(state["best"]["encoder"])

    def spectral_error_db(self, prior: SpecGANPrior) -> float:
        """Rms over frequency of the generated over the recorded mean spectrum, dB."""
        rng = torch.Generator().manual_seed(1)
        z = torch.randn((256, prior.n_latent), generator=rng).to(self.model.device)
        with torch.no_grad():
            fake = prior.sample_white(prior.from_normal(z), generator=rng)
        power = losses.periodogram(fake).mean(0)
        return losses.spectrum_distance_db(power, self.model.log_mean_power.exp())
