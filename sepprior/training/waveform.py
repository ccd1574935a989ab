"""Training of the generators of waveforms: `wavegan`, `lstm`, `gansynth`.

A generator and a critic against each other (any loss of `sepprior.losses`), the
spectral term on the generated waveforms, and at the end the covariance of what the
generator cannot reach, fitted to held-out noise. Noise of such a kind is added, and
learned, in training already: what is judged is what the prior will be.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from sepprior import losses
from sepprior.config import GANSynthConfig, WaveformConfig
from sepprior.data import iterate_blocks
from sepprior.nets import (
    GANSynthCritic,
    GANSynthGenerator,
    RangeNoise,
    WaveformGenerator,
)
from sepprior.priors import GeneratorPrior, LatentSpace, Reach, unit_ratio
from sepprior.priors.base import HALF_LOG_2PI
from sepprior.priors.marginal import laplace_nll
from sepprior.training.adversary import (
    NATS_PER_SQUARE_DB,
    Adversary,
    decayed_rate,
    spectral_term,
)
from sepprior.training.augment import augmented, stretch_margin
from sepprior.training.contract import Task, block_size
from sepprior.training.labels import Labels, labelled_crops
from sepprior.training.moments import plane_moments, spectrum_moments, windows_of
from sepprior.training.parallel import current_ranks
from sepprior.training.range_error import (
    FIT_SAMPLES,
    Effort,
    first_guesses,
    fit_range_error,
    measured_range_error,
)
from sepprior.training.steps import (
    check_finite,
    check_loudness,
    follow,
    mixed_precision,
    set_rate,
)
from sepprior.training.waveform_networks import build_networks

EFFORT = Effort()
"""Effort of the fit at the end."""
GLANCE = Effort(starts=8, evaluations=10, iterations=2)
"""Effort of the likelihood that each tick reports."""
GLANCE_WINDOWS = 8
SPECTRUM_DRAWS = 256
DRAWS_AT_ONCE = 64


def build_trainer(
    task: Task, config: WaveformConfig, *, state: dict[str, Any] | None
) -> WaveformTrainer:
    """A training run of a generator of waveforms, fresh or from a saved state."""
    trainer = WaveformTrainer(task, config)
    if state is not None:
        trainer.load_state(state)
    return trainer


class WaveformTrainer:
    """One training run, a step at a time.

    Args:
        task: the recording.
        config: the recipe.
    """

    rate_setting = "learning_rate"

    def __init__(self, task: Task, config: WaveformConfig) -> None:
        self.task, self.config, self.step = task, config, 0
        self.ranks = current_ranks()
        self.batch = self.ranks.share(config.batch)
        self.rng = torch.Generator().manual_seed(config.seed)
        self.level = task.gaussian.level
        self.sd = float(task.gaussian.autocovariance[0]) ** 0.5
        self.labels = Labels.of(task.training)
        self.space = LatentSpace(
            config.latent,
            config.latent_distribution == "uniform",
            self.labels.names,
            self.labels.shares,
        )
        generator, critic = build_networks(
            config,
            n_labels=len(self.labels.names),
            peak=self._peak(),
            ranks=self.ranks,
        )
        if isinstance(generator, GANSynthGenerator):
            plane = generator.plane
            mean, sd = plane_moments(plane.log_magnitude(x) for x in self._windows())
            plane.fit(mean, sd)
        moments = spectrum_moments(self._windows())
        self.log_mean_power, self.log_sd_power = (m.to(task.device) for m in moments)
        self.noise: RangeNoise | None = None
        if not isinstance(config, GANSynthConfig) and config.range_noise:
            self.noise = RangeNoise(
                moments[0].exp(), window=config.window, share=config.range_noise
            ).to(task.device)
        self.generator = generator.to(task.device)
        self.critic = critic.to(task.device)
        self.ema = copy.deepcopy(self.generator).requires_grad_(False)
        self.best: WaveformGenerator | None = None
        self.best_score = math.inf
        self.best_fit = Reach(1.0, unit_ratio(config.window))
        self._glanced: tuple[int, tuple[GeneratorPrior, float]] | None = None
        if config.keep == "best":
            self.best = copy.deepcopy(self.ema)
        trained = nn.ModuleList([self.generator])
        if self.noise is not None:
            trained.append(self.noise)
        self.optimiser = torch.optim.Adam(
            trained.parameters(),
            config.learning_rate,
            betas=config.betas,
            fused=True,
        )
        self.critic_optimiser = torch.optim.Adam(
            self.critic.parameters(),
            config.learning_rate,
            betas=config.betas,
            fused=True,
        )
        self.adversary = Adversary(
            self.critic,
            self.critic_optimiser,
            config,
            rng=self.rng,
            ranks=self.ranks,
            classifier_weight=(
                config.classifier_weight if isinstance(config, GANSynthConfig) else None
            ),
        )
        self._objective = self.ranks.step(
            trained,
            self._generator_loss,
            partial=isinstance(generator, GANSynthGenerator),
        )
        self._compiled = None
        if config.compile:
            # The generator alone: compiled code has no second derivative, which the
            # critic's penalty takes.
            self._compiled = torch.compile(self.generator.fake)

    @property
    def facts(self) -> dict[str, Any]:
        """The labels the generator is conditioned on, if any."""
        return {"labels": list(self.labels.names)} if self.labels.names else {}

    # -- data --------------------------------------------------------------------------

    def _windows(self):
        """Windows of the training part in units of its standard deviation."""
        parts = windows_of(self.task.training, window=self.config.window)
        return (((x - self.level) / self.sd).float() for x in parts)

    def _peak(self) -> float:
        """Largest sample of the training part in standard deviations."""
        peak = 1.0
        size = block_size(self.config.window)
        for block in iterate_blocks(self.task.training, block=size):
            x = torch.from_numpy(block - self.level).abs()
            x = x[torch.isfinite(x)]
            if len(x):
                peak = max(peak, float(x.max()) / self.sd)
        return peak

    def crops(self) -> tuple[Tensor, Tensor | None]:
        """Random training windows (B, N) in standard deviations, and labels (B, L)."""
        x, onehot = labelled_crops(
            self.task.training,
            self.labels,
            window=self.config.window,
            n=self.config.batch,
            rng=self.rng,
            margin=stretch_margin(self.config),
        )
        x = augmented((x - self.level) / self.sd, self.config, sd=1.0, rng=self.rng)
        x = self.ranks.rows(x).float().to(self.task.device)
        if onehot is not None:
            onehot = self.ranks.rows(onehot).to(self.task.device)
        return x, onehot

    def codes(self, onehot: Tensor | None) -> Tensor:
        """Random inputs of the generator (B, K + L) with the given labels."""
        shape = (self.config.batch, self.config.latent)
        z = self.ranks.rows(torch.randn(shape, generator=self.rng))
        return self.space.joined(z.to(self.task.device), onehot)

    def _fake(self, code: Tensor) -> tuple[Tensor, Tensor]:
        """Generated waveforms (B, N), range noise included, as the critic sees them."""
        # While a generator grows, every step of it would be compiled anew.
        if self._compiled is None or not self.generator.settled:
            waveform, view = self.generator.fake(code)
        else:
            waveform, view = self._compiled(code)
        if self.noise is None:
            return waveform, view
        shape = (self.config.batch, 2 * self.config.window)
        white = self.ranks.rows(torch.randn(shape, generator=self.rng))
        waveform = waveform + self.noise(white.to(self.task.device))
        return waveform, self.generator.view(waveform)

    # -- steps -------------------------------------------------------------------------

    def advance(self) -> dict[str, float]:
        """One generator step and its critic steps; returns their losses."""
        config = self.config
        rate = decayed_rate(config, self.step, 0)
        set_rate(self.optimiser, rate)
        set_rate(self.critic_optimiser, rate * config.critic_rate_ratio)
        self._grow()
        record: dict[str, float] = {}
        for _ in range(config.critic_steps):
            record = self._critic_step()
        record |= self._generator_step()
        self.step += 1
        decay = min(config.ema, (1.0 + self.step) / (10.0 + self.step))
        follow(self.ema, self.generator, decay)
        check_finite(record, self.step, config)
        return record

    def _grow(self) -> None:
        progress = self.step / self.config.steps
        for network in (self.generator, self.critic, self.ema):
            if isinstance(network, WaveformGenerator | GANSynthCritic):
                network.grow(progress)

    def _critic_step(self) -> dict[str, float]:
        real, onehot = self.crops()
        with torch.no_grad(), mixed_precision(self.config, self.task.device):
            _, fake = self._fake(self.codes(onehot))
        return self.adversary.step(self.generator.view(real), fake.float(), onehot)

    def _generator_step(self) -> dict[str, float]:
        self.critic.requires_grad_(False)
        real, onehot = self.crops()
        loss, parts = self._objective(real, onehot, self.codes(onehot))
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        self.optimiser.step()
        self.critic.requires_grad_(True)
        return {name: float(part) for name, part in parts.items()}

    def _generator_loss(
        self, real: Tensor, onehot: Tensor | None, code: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        with mixed_precision(self.config, self.task.device):
            waveform, fake = self._fake(code)
        waveform, fake = waveform.float(), fake.float()
        loss = self.adversary.generator_loss(
            fake, lambda: self.generator.view(real), onehot
        )
        parts = {"generator_loss": loss.detach()}
        power = losses.periodogram(waveform)
        spectral = spectral_term(
            self.config, power, self.log_mean_power, self.log_sd_power, self.ranks
        )
        if spectral is not None:
            loss = loss + self.config.spectral_weight * spectral
            parts["spectral_loss"] = spectral.detach()
        return loss, parts

    # -- what a tick reports -----------------------------------------------------------

    def report(self, held: Tensor) -> dict[str, Any]:
        """Spectral error of the generator, quick held-out likelihood of the prior.

        The best tick, which is remembered, is that of the best prior: likelihood and
        spectral error of the generator with its gain and range error together.
        """
        fake = self._drawn()
        check_loudness(float(fake.square().mean()), self.step, self.config)
        glance, nll = self._glance(held)
        if self.best is not None:
            score = nll + NATS_PER_SQUARE_DB * self.prior_error_db(glance) ** 2
            if score < self.best_score:
                self.best_score = score
                self.best.load_state_dict(self.ema.state_dict())
                self.best_fit = glance.reach.to("cpu")
        return {"spectral_error_db": self._distance_db(fake), "heldout_nll": nll}

    def _quick_nll(self, prior: GeneratorPrior, windows: Tensor) -> float:
        """``-log p`` of held-out windows, nats per sample."""
        nll = laplace_nll(
            prior,
            windows,
            n_starts=GLANCE.starts,
            max_evaluations=GLANCE.evaluations,
        )
        return float(nll.mean()) / self.config.window + HALF_LOG_2PI

    def _glance(self, held: Tensor) -> tuple[GeneratorPrior, float]:
        """The running average with the better of two quick fits, and its likelihood."""
        if self._glanced is None or self._glanced[0] != self.step:
            prior = self._prior(copy.deepcopy(self.ema), {})
            few = held[: max(2, min(GLANCE_WINDOWS, FIT_SAMPLES // self.config.window))]
            fits = []
            for start in first_guesses(prior):
                fit = fit_range_error(start, few, effort=GLANCE)
                fits.append((fit, self._quick_nll(fit, few)))
            self._glanced = (self.step, min(fits, key=lambda pair: pair[1]))
        return self._glanced[1]

    def _drawn(self) -> Tensor:
        """Waveforms of the running average, recorded standard deviations, (n, N)."""
        rng = torch.Generator().manual_seed(1)
        shape = (SPECTRUM_DRAWS, self.space.n_latent)
        z = torch.randn(shape, generator=rng).to(self.task.device)
        with torch.no_grad():
            parts = self.space.code(z).split(DRAWS_AT_ONCE)
            fake = torch.cat([self.ema(part) for part in parts])
            if self.noise is not None:
                white = torch.randn(len(fake), 2 * self.config.window, generator=rng)
                fake = fake + self.noise(white.to(self.task.device))
        return fake

    def prior_error_db(self, prior: GeneratorPrior) -> float:
        """Spectral error of noise drawn from a prior, range error included."""
        rng = torch.Generator().manual_seed(1)
        parts = range(SPECTRUM_DRAWS // DRAWS_AT_ONCE)
        drawn = torch.cat([prior.sample(DRAWS_AT_ONCE, generator=rng) for _ in parts])
        return self._distance_db((drawn - self.level) / self.sd)

    def _distance_db(self, fake: Tensor) -> float:
        """Rms over frequency of generated over the recorded mean spectrum, dB."""
        power = losses.periodogram(fake).mean(0)
        return losses.spectrum_distance_db(power, self.log_mean_power.exp())

    # -- the prior ---------------------------------------------------------------------

    def _prior(
        self, network: WaveformGenerator, metadata: Mapping[str, Any]
    ) -> GeneratorPrior:
        device = self.task.device
        gaussian = self.task.gaussian
        return GeneratorPrior(
            self.config.model,
            network,
            space=self.space,
            reach=self._first_reach().to(device),
            autocovariance=gaussian.autocovariance.to(device),
            level=gaussian.level,
            sample_rate=gaussian.sample_rate,
            metadata=dict(metadata),
        )

    def _first_reach(self) -> Reach:
        """The range error as trained, from which its fit starts."""
        if self.noise is None:
            return Reach(1.0, unit_ratio(self.config.window))
        return Reach(1.0, self.noise.autocovariance(), absolute=True)

    def _best(self) -> WaveformGenerator | None:
        """The running average of the best tick, where the recipe wants it."""
        return self.best if self.best_score < math.inf else None

    def frozen(self, metadata: Mapping[str, Any]) -> GeneratorPrior:
        """The running average with the range error of a quick fit."""
        best = self._best()
        if best is None:
            glance, _ = self._glance(self.task.held)
            network, reach = glance.network, glance.reach
        else:
            network, reach = best, self.best_fit.to(self.task.device)
        return self._prior(copy.deepcopy(network), metadata).with_reach(reach)

    def finished(self, metadata: Mapping[str, Any]) -> GeneratorPrior:
        """The running average with the range error of held-out inversions."""
        prior = self._prior(copy.deepcopy(self._best() or self.ema), metadata)
        return measured_range_error(prior, self.task.validation, effort=EFFORT)

    # -- continuing --------------------------------------------------------------------

    def _parts(self) -> dict[str, Any]:
        parts: dict[str, Any] = {
            "generator": self.generator,
            "critic": self.critic,
            "ema": self.ema,
            "optimiser": self.optimiser,
            "critic_optimiser": self.critic_optimiser,
        }
        if self.best is not None:
            parts["best"] = self.best
        if self.noise is not None:
            parts["noise"] = self.noise
        return parts

    def state(self) -> dict[str, Any]:
        """Networks, optimisers and random numbers."""
        return {
            "networks": {k: part.state_dict() for k, part in self._parts().items()},
            "rng": self.rng.get_state(),
            "step": self.step,
            "best_score": self.best_score,
            "best_fit": tuple(vars(self.best_fit).values()),
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Continue from what `state` returned."""
        for name, part in self._parts().items():
            part.load_state_dict(state["networks"][name])
        self.rng.set_state(state["rng"])
        self.step = state["step"]
        self.best_score = state["best_score"]
        self.best_fit = Reach(*state["best_fit"])
