"""What learns in a SpecGAN training, and how it becomes a prior."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from sepprior.config import SpecGANConfig
from sepprior.nets import Critic, Encoder, Flow, Generator, PlaneShape
from sepprior.priors import LatentSpace, SpecGANPrior
from sepprior.training.noise_model import NoiseModel
from sepprior.training.steps import follow

WARMUP_BETAS = (0.9, 0.99)
ROW_COUPLINGS = 6
"""Couplings of the flow along a row of latents, besides those of the recipe."""


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
        follow(self.ema_generator, self.generator, decay)
        if self.encoder is not None and self.ema_encoder is not None:
            follow(self.ema_encoder, self.encoder, decay)

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


def build_networks(
    config: SpecGANConfig, model: NoiseModel, *, row: bool = False
) -> Networks:
    """Fresh networks, initialised from the configuration's seed alone.

    Args:
        config: the recipe.
        model: the recording and its statistics.
        row: paint and read each latent also where it stands in a row over time.
    """
    frames = model.stft.n_frames - (0 if model.complex_mode else 1)
    plane = PlaneShape(model.stft.n_bins - 1, frames)
    channels = 3 if model.complex_mode else 1
    n_labels = len(model.labels.names)
    by_likelihood = model.complex_mode and config.likelihood_weight > 0
    row = row and by_likelihood
    with torch.random.fork_rng(devices=[]):
        # Not torch.manual_seed, which would also seed the GPUs' generators.
        torch.default_generator.manual_seed(config.seed)
        flow = None
        if by_likelihood and config.flow_layers and config.latent > 1:
            flow = Flow(config.latent, config.flow_layers, ROW_COUPLINGS if row else 0)
        generator = Generator(
            plane,
            latent=config.latent + n_labels,
            width=max(1, config.width // 2) if row else config.width,
            channels=channels,
            bounded=not model.complex_mode,
            flow=flow,
            row=config.latent if row else 0,
            # Fewer columns than latents would blur where these stand.
            row_every=1 if 2 * config.latent > frames + 1 else 2,
        )
        critic = Critic(
            plane, width=config.critic_width, channels=channels, outputs=1 + n_labels
        )
        encoder = None
        if by_likelihood:
            encoder = Encoder(
                plane,
                latent=config.latent,
                width=config.width,
                channels=channels,
                row=row,
            )
    if model.complex_mode:
        # Start at the stationary Gaussian model: no mean, unit scale.
        last = [generator.layers[-1]]
        if generator.row is not None:
            last.append(generator.row.out)
        with torch.no_grad():
            for layer in last:
                for parameter, share in zip(
                    layer.parameters(), (0.1, 0.0), strict=True
                ):
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
        torch.optim.Adam(
            learners, config.warmup_learning_rate, betas=WARMUP_BETAS, fused=True
        ),
        torch.optim.Adam(
            learners, config.learning_rate, betas=config.betas, fused=True
        ),
        torch.optim.Adam(
            critic.parameters(), config.learning_rate, betas=config.betas, fused=True
        ),
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
        space=LatentSpace(
            model.config.latent,
            model.config.latent_distribution == "uniform",
            model.labels.names,
            model.labels.shares,
        ),
        metadata=dict(metadata or {}),
    )
