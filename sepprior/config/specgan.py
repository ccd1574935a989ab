"""Recipe of the spectrogram GAN."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from sepprior.config.checks import (
    MAX_WINDOW,
    MIN_WINDOW_SPECGAN,
    check_common,
    check_fraction,
    check_range,
    check_types,
)


@dataclass(frozen=True)
class SpecGANConfig:
    """A generative adversarial network on the normalised spectrogram of the noise.

    Attributes:
        model: Always "specgan".
        window: Samples of one noise window, 64 to 65536.
        channels: "complex" decodes z into a complex mean and a log-scale per
            time-frequency bin; "magnitude" is the published single log-magnitude.
        latent: Number of latents, the length of z.
        latent_distribution: Distribution of each latent: "normal", or "uniform" on
            [-1, 1].
        width: Channels of the generator's widest-resolution layer; deeper layers have
            multiples. Also the encoder's.
        critic_width: The same of the critic, whose steps take most of the time.
        steps: Generator steps of the whole training.
        batch: Noise windows per step.
        critic_steps: Critic steps per generator step.
        gradient_penalty: Weight of the critic's gradient penalty.
        learning_rate: Step size of Adam, for generator and critic.
        betas: Adam's decay rates of the first and second moment.
        ema: Decay per step of the generator's running average, used after training.
        spectral: Spectral term of the generator: "batch-mean" compares the logarithm of
            the batch-mean spectrum, "per-sample" is the published form (biased),
            "none" leaves it out.
        spectral_weight: Weight of the spectral term.
        likelihood_weight: Weight of the conditional Gaussian's likelihood.
        warmup_steps: Steps at the start that train without the critic.
        whitening: Spectrum the noise is divided by before the network sees it: "total",
            "continuum" (narrow lines left in), or "auto".
        validation_fraction: Share of the recording held out, in contiguous blocks.
        tick: Steps between two records of statistics.
        seed: Seed of every random choice.

    Raises:
        SeppriorError: A value is out of its range.
    """

    model: Literal["specgan"] = "specgan"
    window: int = 300
    channels: Literal["complex", "magnitude"] = "complex"
    latent: int = 32
    latent_distribution: Literal["normal", "uniform"] = "normal"
    width: int = 32
    critic_width: int = 16
    steps: int = 2600
    batch: int = 64
    critic_steps: int = 5
    gradient_penalty: float = 10.0
    learning_rate: float = 2e-4
    betas: tuple[float, float] = (0.5, 0.9)
    ema: float = 0.999
    spectral: Literal["batch-mean", "per-sample", "none"] = "batch-mean"
    spectral_weight: float = 1.0
    likelihood_weight: float = 10.0
    warmup_steps: int = 2000
    whitening: Literal["auto", "total", "continuum"] = "auto"
    validation_fraction: float = 0.1
    tick: int = 100
    seed: int = 0

    def __post_init__(self) -> None:
        """Check types and ranges."""
        check_types(self)
        check_range("window", self.window, MIN_WINDOW_SPECGAN, MAX_WINDOW)
        check_range("latent", self.latent, 1, 4096)
        for name in ("width", "critic_width"):
            check_range(name, getattr(self, name), 1, 1024)
        check_range("steps", self.steps, 1, None)
        check_range("batch", self.batch, 2, 65536)
        check_range("critic_steps", self.critic_steps, 1, 100)
        check_range("warmup_steps", self.warmup_steps, 0, None)
        check_range("tick", self.tick, 1, None)
        for name in ("gradient_penalty", "spectral_weight", "likelihood_weight"):
            check_range(name, getattr(self, name), 0.0, None)
        check_fraction("learning_rate", self.learning_rate, zero=False)
        for beta in self.betas:
            check_fraction("betas", beta, zero=True)
        check_fraction("ema", self.ema, zero=True)
        check_common(self.validation_fraction, self.seed)
