"""Generator and critic of the recipes `wavegan`, `lstm` and `gansynth`."""

from __future__ import annotations

import torch
from torch import nn

from sepprior.config import GANSynthConfig, LSTMConfig, WaveformConfig
from sepprior.nets import (
    GANSynthCritic,
    GANSynthGenerator,
    LSTMGenerator,
    WaveformGenerator,
    WaveGANCritic,
    WaveGANGenerator,
)
from sepprior.training.parallel import Ranks


def build_networks(
    config: WaveformConfig, *, n_labels: int, peak: float, ranks: Ranks
) -> tuple[WaveformGenerator, nn.Module]:
    """Generator and critic of a recipe, initialised from its seed alone.

    Args:
        config: the recipe.
        n_labels: L, 0 without labels.
        peak: largest sample of the recording, in standard deviations.
        ranks: this process among those of the training.
    """
    code, outputs, window = config.latent + n_labels, 1 + n_labels, config.window
    with torch.random.fork_rng(devices=[]):
        # Not torch.manual_seed, which would also seed the GPUs' generators.
        torch.default_generator.manual_seed(config.seed)
        if isinstance(config, GANSynthConfig):
            generator: WaveformGenerator = GANSynthGenerator(
                window=window, code=code, width=config.width, growth=config.growth
            )
            critic: nn.Module = GANSynthCritic(
                window=window,
                width=config.critic_width,
                outputs=outputs,
                growth=config.growth,
                joint=ranks.joint,
            )
            return generator, critic
        if isinstance(config, LSTMConfig):
            generator = LSTMGenerator(
                window=window, code=code, width=config.width, layers=config.layers
            )
            shuffle = 0
        else:
            generator = WaveGANGenerator(
                window=window,
                code=code,
                width=config.width,
                peak=peak,
                post_filter=config.post_filter,
            )
            shuffle = config.phase_shuffle
        critic = WaveGANCritic(
            window=window,
            width=config.critic_width,
            outputs=outputs,
            phase_shuffle=shuffle,
        )
        return generator, critic
