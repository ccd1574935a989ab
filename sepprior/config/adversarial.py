"""Settings that every generative adversarial network has."""

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

Loss = Literal["wgan-gp", "wgan", "dcgan", "lsgan", "rpgan-r1r2"]
Spectral = Literal["batch-mean", "per-sample", "none"]


@dataclass(frozen=True)
class AdversarialConfig:
    """A generator and a critic, trained against each other.

    Attributes:
        model: Name of the model.
        window: Samples of one noise window, 64 to 65536.
        latent: Number of latents, the length of z.
        latent_distribution: Distribution of each latent: "normal", or "uniform" on
            [-1, 1].
        width: Channels of the generator's widest-resolution layer; deeper layers have
            multiples.
        critic_width: The same of the critic, whose steps take most of the time.
        steps: Generator steps of the whole training.
        batch: Noise windows per step.
        loss: Adversarial loss: "wgan-gp", "wgan" (weights clipped), "dcgan" (cross
            entropy), "lsgan", or "rpgan-r1r2" (relativistic pairs, zero-centred
            penalties).
        critic_steps: Critic steps per generator step.
        gradient_penalty: Weight of the gradient penalties of "wgan-gp" and
            "rpgan-r1r2".
        weight_clip: Largest weight of a "wgan" critic, where its layers scale weights
            after the scaling.
        label_smoothing: What "dcgan" takes off the critic's target for real noise.
        learning_rate: Step size of Adam, for generator and critic.
        critic_rate_ratio: Step size of the critic over the generator's.
        final_decay: Share of the adversarial steps, at the end, over which the step
            size falls to zero; 0 keeps it constant.
        betas: Adam's decay rates of the first and second moment.
        ema: Decay per step of the generator's running average, used after training.
        spectral: Spectral term of the generator: "batch-mean" compares the logarithm of
            the batch-mean spectrum and the scatter of single spectra, "per-sample" is
            the published form (biased), "none" leaves it out.
        spectral_weight: Weight of the spectral term.
        augment_shift: Roll training windows by a random number of samples.
        augment_noise: White noise added to training windows, in standard deviations of
            the recording.
        augment_mask: Widest band of frequencies set to zero in a training window, as a
            share of all; white noise loses half as much of its variance.
        augment_stretch: Largest relative change of the time scale of a training window,
            which moves every frequency by as much.
        precision: "bfloat16" computes the networks in mixed precision (penalties stay
            in float32).
        compile: Compile the generator with torch.compile, one that grows when it has
            its full size.
        keep: Which running average becomes the prior: the "last", or that of the "best"
            tick by held-out likelihood and spectral error of the prior (by the latter
            alone where there is no likelihood); of a specgan only ticks of the
            adversarial phase are considered.
        validation_fraction: Share of the recording held out, in contiguous blocks.
        tick: Steps between two records of statistics.
        seed: Seed of every random choice.

    Raises:
        SeppriorError: A value is out of its range.
    """

    model: str
    window: int = 300
    latent: int = 32
    latent_distribution: Literal["normal", "uniform"] = "normal"
    width: int = 32
    critic_width: int = 16
    steps: int = 2600
    batch: int = 64
    loss: Loss = "wgan-gp"
    critic_steps: int = 5
    gradient_penalty: float = 10.0
    weight_clip: float = 0.01
    label_smoothing: float = 0.0
    learning_rate: float = 2e-4
    critic_rate_ratio: float = 1.0
    final_decay: float = 0.3
    betas: tuple[float, float] = (0.5, 0.9)
    ema: float = 0.999
    spectral: Spectral = "batch-mean"
    spectral_weight: float = 1.0
    augment_shift: bool = False
    augment_noise: float = 0.0
    augment_mask: float = 0.0
    augment_stretch: float = 0.0
    precision: Literal["float32", "bfloat16"] = "float32"
    compile: bool = False
    keep: Literal["last", "best"] = "last"
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
        check_range("tick", self.tick, 1, None)
        for name in ("gradient_penalty", "spectral_weight", "augment_noise"):
            check_range(name, getattr(self, name), 0.0, None)
        for name in ("learning_rate", "weight_clip"):
            check_fraction(name, getattr(self, name), zero=False)
        check_range("critic_rate_ratio", self.critic_rate_ratio, 1e-3, 1e3)
        check_range("final_decay", self.final_decay, 0.0, 1.0)
        check_range("label_smoothing", self.label_smoothing, 0.0, 0.5)
        check_range("augment_mask", self.augment_mask, 0.0, 0.5)
        check_range("augment_stretch", self.augment_stretch, 0.0, 0.5)
        for beta in self.betas:
            check_fraction("betas", beta, zero=True)
        check_fraction("ema", self.ema, zero=True)
        check_common(self.validation_fraction, self.seed)
