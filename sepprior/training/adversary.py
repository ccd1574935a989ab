"""The critic's side of a training: its losses, penalties and optimiser step."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from sepprior import losses
from sepprior.config import AdversarialConfig
from sepprior.nets import GANSynthCritic, WaveGANCritic, weights_in_use
from sepprior.training.parallel import Ranks
from sepprior.training.steps import full_float32, mixed_precision

NATS_PER_SQUARE_DB = (math.log(10.0) / 10.0) ** 2 / 4.0
"""Divergence per sample of Gaussian noises with spectra 1 dB apart (Whittle 1953)."""


class Adversary:
    """A critic and the adversarial loss of a recipe.

    The critic gives a score and, where the recording has labels, one number more per
    label. By default these are the label's own contribution to the score (projection
    discriminator; Miyato and Koyama 2018); with a classifier weight they are the logits
    of an auxiliary classifier (Odena et al. 2017).

    Args:
        critic: planes or waveforms (B, C, ...) to numbers (B, 1 + L).
        optimiser: of its parameters.
        config: the recipe.
        rng: for the mixing and the phase shuffle.
        ranks: this process among those of the training.
        classifier_weight: weight of the auxiliary classifier, None for a projection.
    """

    def __init__(
        self,
        critic: nn.Module,
        optimiser: torch.optim.Optimizer,
        config: AdversarialConfig,
        *,
        rng: torch.Generator,
        ranks: Ranks,
        classifier_weight: float | None = None,
    ) -> None:
        self.critic, self.optimiser, self.config = critic, optimiser, config
        self.rng, self.ranks = rng, ranks
        self.classifier_weight = classifier_weight
        growing = isinstance(critic, GANSynthCritic)
        self._objective = ranks.step(critic, self._critic_loss, partial=growing)

    # -- scores ------------------------------------------------------------------------

    def judge(self, view: Tensor, onehot: Tensor | None) -> tuple[Tensor, Tensor]:
        """Scores (B, 1) and the numbers per label (B, L), float32.

        Args:
            view: what the critic sees, (B, C, ...).
            onehot: labels (B, L), or None.
        """
        if isinstance(self.critic, WaveGANCritic):
            numbers = self.critic(view, self.critic.draw_shifts(self.rng)).float()
        else:
            numbers = self.critic(view).float()
        score, each = numbers[:, :1], numbers[:, 1:]
        if onehot is not None and self.classifier_weight is None:
            score = score + (each * onehot).sum(1, keepdim=True)
        return score, each

    def _score(self, onehot: Tensor | None) -> Callable[[Tensor], Tensor]:
        return lambda view: self.judge(view, onehot)[0]

    # -- the critic's step -------------------------------------------------------------

    def step(
        self, real: Tensor, fake: Tensor, onehot: Tensor | None
    ) -> dict[str, float]:
        """One step of the critic.

        Args:
            real: recorded noise as the critic sees it, (B, C, ...).
            fake: generated noise, the same shape, without gradient.
            onehot: labels of both, (B, L), or None.

        Returns:
            ``critic_distance`` (minus the adversarial loss) and, for losses that have
            one, ``gradient_penalty``.
        """
        joint = torch.rand(self.ranks.world * len(real), generator=self.rng)
        mix = self.ranks.rows(joint).to(real.device)
        loss, parts = self._objective(real, fake, onehot, mix)
        self.optimiser.zero_grad(set_to_none=True)
        with full_float32():
            loss.backward()
        self.optimiser.step()
        if self.config.loss == "wgan":
            losses.clip_weights(weights_in_use(self.critic), self.config.weight_clip)
        return {name: float(part) for name, part in parts.items()}

    def _critic_loss(
        self, real: Tensor, fake: Tensor, onehot: Tensor | None, mix: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        config = self.config
        with mixed_precision(config, real.device):
            on_real, label_real = self.judge(real, onehot)
            on_fake, label_fake = self.judge(fake, onehot)
        adversarial = self._adversarial(on_real, on_fake)
        loss, parts = adversarial, {"critic_distance": -adversarial.detach()}
        if onehot is not None and self.classifier_weight is not None:
            labels = losses.label_loss(label_real, onehot)
            labels = labels + losses.label_loss(label_fake, onehot)
            loss = loss + self.classifier_weight * labels
        score = self._score(onehot)
        # Penalties stay in float32: their gradient is a second derivative.
        with full_float32():
            if config.loss == "wgan-gp":
                penalty = losses.gradient_penalty(score, real, fake, mix)
            elif config.loss == "rpgan-r1r2":
                penalty = losses.zero_centred_penalty(score, real)
                penalty = penalty + losses.zero_centred_penalty(score, fake)
            else:
                return loss, parts
        parts["gradient_penalty"] = penalty.detach()
        return loss + config.gradient_penalty * penalty, parts

    def _adversarial(self, real: Tensor, fake: Tensor) -> Tensor:
        match self.config.loss:
            case "dcgan":
                smoothing = self.config.label_smoothing
                return losses.dcgan_critic_loss(real, fake, smoothing=smoothing)
            case "lsgan":
                return losses.lsgan_critic_loss(real, fake)
            case "rpgan-r1r2":
                return losses.relativistic_loss(real, fake)
            case _:
                return losses.wgan_critic_loss(real, fake)

    # -- the generator's loss ----------------------------------------------------------

    def generator_loss(
        self, fake: Tensor, real: Callable[[], Tensor], onehot: Tensor | None
    ) -> Tensor:
        """What the generator minimises.

        Args:
            fake: generated noise as the critic sees it, differentiable.
            real: gives recorded noise of the same labels; called by relativistic
                losses only.
            onehot: labels (B, L), or None.
        """
        with mixed_precision(self.config, fake.device):
            on_fake, each = self.judge(fake, onehot)
        match self.config.loss:
            case "dcgan":
                loss = losses.dcgan_generator_loss(on_fake)
            case "lsgan":
                loss = losses.lsgan_generator_loss(on_fake)
            case "rpgan-r1r2":
                with torch.no_grad():
                    on_real, _ = self.judge(real(), onehot)
                loss = losses.relativistic_loss(on_fake, on_real)
            case _:
                loss = losses.wgan_generator_loss(on_fake)
        if onehot is not None and self.classifier_weight is not None:
            loss = loss + self.classifier_weight * losses.label_loss(each, onehot)
        return loss


def spectral_term(
    config: AdversarialConfig,
    power: Tensor,
    log_mean_power: Tensor,
    log_sd_power: Tensor,
    ranks: Ranks,
) -> Tensor | None:
    """The spectral loss of generated noise, None where the recipe has none.

    Args:
        config: the recipe.
        power: a row for each window or frame, (M, F).
        log_mean_power: of the recording, (F,), nats.
        log_sd_power: standard deviation of the recording's log-power, (F,), nats.
        ranks: this process among those of the training.
    """
    match config.spectral:
        case "batch-mean":
            joint = ranks.joint(power)
            return losses.spectral_batch_loss(joint, log_mean_power, log_sd_power)
        case "per-sample":
            return losses.spectral_per_sample_loss(power, log_mean_power)
        case _:
            return None


def decayed_rate(config: AdversarialConfig, step: int, first: int) -> float:
    """Step size: constant, then linear to zero over the last part of the run.

    Args:
        config: the recipe.
        step: steps done.
        first: step at which the adversarial phase began.
    """
    span = config.final_decay * max(config.steps - first, 1)
    if not span:
        return config.learning_rate
    return config.learning_rate * min(1.0, (config.steps - step) / span)
