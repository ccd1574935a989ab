"""A SpecGAN prior with one of its parts taken away, to see what the part earns."""

from __future__ import annotations

import copy

import torch
from torch import Tensor

from sepprior.priors.specgan import SpecGANPrior

UNTRAINED_SEED = 0


class FlatSpecGAN(SpecGANPrior):
    """A SpecGAN prior that finds every z as likely as another."""

    def latent_energy(self, z: Tensor) -> Tensor:
        """Zeros, (...)."""
        return torch.zeros(z.shape[:-1], dtype=z.dtype, device=z.device)


def flat(prior: SpecGANPrior) -> SpecGANPrior:
    """Without the density of the latent; its curvature is kept for error bars."""
    return _rebuilt(prior, FlatSpecGAN)


def without_encoder(prior: SpecGANPrior) -> SpecGANPrior:
    """With latents proposed at random, as many as priors without an encoder try."""
    bare = _rebuilt(prior)
    bare.encoder = None
    return bare


def untrained(prior: SpecGANPrior) -> SpecGANPrior:
    """With networks as they are before training; what was measured on it is kept."""
    fresh = _rebuilt(prior)
    with torch.random.fork_rng():
        torch.manual_seed(UNTRAINED_SEED)
        for network in (fresh.generator, fresh.encoder):
            for layer in [] if network is None else network.modules():
                reset = getattr(layer, "reset_parameters", None)
                if reset is not None:
                    reset()
    return fresh


def _rebuilt(
    prior: SpecGANPrior, kind: type[SpecGANPrior] = SpecGANPrior
) -> SpecGANPrior:
    return kind(
        copy.deepcopy(prior.generator),
        copy.deepcopy(prior.encoder),
        statistics=prior.statistics,
        whitening=prior.whitening,
        autocovariance=prior.autocovariance,
        level=prior.level,
        sample_rate=prior.sample_rate,
        frame=prior.stft.length,
        space=prior.space,
        metadata=prior.metadata,
    )
