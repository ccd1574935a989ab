"""Terms of the training objectives: adversarial, spectral and likelihood.

Pure functions of tensors. B samples in a batch, N samples in a window, F frequencies.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, softplus

PENALTY_EPSILON = 1e-12
POWER_FLOOR = 1e-12
"""Added to powers in logarithms: of noise of unit variance, or magnitudes from 1e-6."""


def wgan_critic_loss(real: Tensor, fake: Tensor) -> Tensor:
    """``E[C(fake)] - E[C(real)]``: minus the estimated Wasserstein-1 distance.

    Arjovsky et al. 2017, equation 2. Scores of shape (B, 1); returns a scalar.
    """
    return fake.mean() - real.mean()


def wgan_generator_loss(fake: Tensor) -> Tensor:
    """``-E[C(fake)]`` (Arjovsky et al. 2017). Scores (B, 1); returns a scalar."""
    return -fake.mean()


def gradient_penalty(
    critic: Callable[[Tensor], Tensor], real: Tensor, fake: Tensor, mix: Tensor
) -> Tensor:
    """``E[(||grad C(x)||_2 - 1)^2]`` between real and generated samples.

    Gulrajani et al. 2017, equation 3. The norm is per sample over all other
    dimensions, in float32, with a small constant under the root so that its own
    gradient exists at zero.

    Args:
        critic: scores (B, 1) of inputs (B, ...).
        real: shape (B, ...).
        fake: shape (B, ...).
        mix: shape (B,), uniform on (0, 1).

    Returns:
        Scalar.
    """
    weight = mix.view(-1, *([1] * (real.dim() - 1)))
    between = (weight * real + (1.0 - weight) * fake).detach().requires_grad_()
    score = critic(between)
    (gradient,) = torch.autograd.grad(score.sum(), between, create_graph=True)
    square = gradient.float().flatten(1).square().sum(1)
    return (torch.sqrt(square + PENALTY_EPSILON) - 1.0).square().mean()


def zero_centred_penalty(critic: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """``E ||grad C(x)||^2 / 2``: R1 on real samples, R2 on generated ones.

    Mescheder et al. 2018, equation 9; both together as in Huang et al. 2024. In
    float32, per sample over all dimensions but the first.

    Args:
        critic: scores (B, 1) of inputs (B, ...).
        x: shape (B, ...).

    Returns:
        Scalar.
    """
    x = x.detach().requires_grad_()
    (gradient,) = torch.autograd.grad(critic(x).sum(), x, create_graph=True)
    return 0.5 * gradient.float().flatten(1).square().sum(1).mean()


def clip_weights(weights: Iterable[tuple[Tensor, float]], limit: float) -> None:
    """Put every weight into ``[-limit, limit]`` (Arjovsky et al. 2017, algorithm 1).

    Args:
        weights: parameters, each with the factor it is multiplied by in use.
        limit: largest magnitude of the product.
    """
    with torch.no_grad():
        for parameter, factor in weights:
            parameter.clamp_(-limit / factor, limit / factor)


def dcgan_critic_loss(real: Tensor, fake: Tensor, *, smoothing: float = 0.0) -> Tensor:
    """``-(1 - s) E log D(real) - s E log(1 - D(real)) - E log(1 - D(fake))``.

    The cross entropy of Goodfellow et al. 2014, equation 1, with one-sided label
    smoothing s (Salimans et al. 2016, section 3.4). D is the logistic of the score.

    Args:
        real: scores (B, 1).
        fake: scores (B, 1).
        smoothing: what is taken off the target of real samples.

    Returns:
        Scalar, nats.
    """
    on_real = (1.0 - smoothing) * softplus(-real) + smoothing * softplus(real)
    return on_real.mean() + softplus(fake).mean()


def dcgan_generator_loss(fake: Tensor) -> Tensor:
    """``-E log D(fake)``, the form that does not saturate. Scores (B, 1); nats."""
    return softplus(-fake).mean()


def lsgan_critic_loss(real: Tensor, fake: Tensor) -> Tensor:
    """``E (C(real) - 1)^2 / 2 + E C(fake)^2 / 2`` (Mao et al. 2017, equation 9).

    Of scores (B, 1) each; a scalar without units.
    """
    return 0.5 * (real - 1.0).square().mean() + 0.5 * fake.square().mean()


def lsgan_generator_loss(fake: Tensor) -> Tensor:
    """``E (C(fake) - 1)^2 / 2`` (Mao et al. 2017, equation 9), of scores (B, 1)."""
    return 0.5 * (fake - 1.0).square().mean()


def relativistic_loss(ahead: Tensor, behind: Tensor) -> Tensor:
    """``E log(1 + exp(behind - ahead))`` over pairs of scores (B, 1), nats.

    The relativistic pairing loss (Huang et al. 2024, equation 2): the critic wants
    each real score ahead of its generated partner's, the generator the reverse.
    """
    return softplus(behind - ahead).mean()


def label_loss(logits: Tensor, onehot: Tensor) -> Tensor:
    """Cross entropy of an auxiliary classifier (Odena et al. 2017), nats.

    Args:
        logits: shape (B, L).
        onehot: true labels, shape (B, L).
    """
    return cross_entropy(logits, onehot.argmax(-1))


def periodogram(x: Tensor) -> Tensor:
    """``|FFT x|^2 / N`` without zero frequency, (B, N) to (B, F)."""
    return torch.fft.rfft(x, norm="ortho").abs().square()[..., 1:]


def plane_power(magnitudes: Tensor) -> Tensor:
    """``|X|^2`` of spectrograms, a row for each frame, (B, F, T) to (B T, F)."""
    return magnitudes.square().transpose(1, 2).flatten(0, 1)


def spectral_batch_loss(
    power: Tensor, log_mean_real: Tensor, log_sd_real: Tensor
) -> Tensor:
    """Match of the batch-mean spectrum and of its spread.

    ``mean_f |log mean_M P_G - log E P| + mean_f |sd_M log P_G - sd log P|``. The
    logarithm of a mean over M draws is biased by only ``-1/(2M)`` nat, and the second
    term (1.28 nat, 5.57 dB, for Gaussian noise) keeps the spectrum from freezing.

    Args:
        power: of generated noise, (M, F): the `periodogram` of each window, or the
            `plane_power` of each frame.
        log_mean_real: log of the mean power of the recordings, (F,), nats.
        log_sd_real: standard deviation of their log-power, (F,), nats.

    Returns:
        Scalar, nats.
    """
    level = (torch.log(power.mean(0) + POWER_FLOOR) - log_mean_real).abs().mean()
    spread = (torch.log(power + POWER_FLOOR).std(0) - log_sd_real).abs().mean()
    return level + spread


def spectral_per_sample_loss(power: Tensor, log_mean_real: Tensor) -> Tensor:
    """The published form: ``E || log P_G - log E P_real ||_1`` per sample.

    It is biased. For Gaussian noise ``E log P = log E P - 0.577`` and the mean absolute
    deviation of ``log P`` from ``log E P`` is 1.016 nat, so that real noise scores
    1.016 and one fixed deterministic spectrum scores zero.

    Args:
        power: of generated noise, (M, F), as for `spectral_batch_loss`.
        log_mean_real: log of the mean power of the recordings, (F,), nats.

    Returns:
        Scalar, nats.
    """
    return (torch.log(power + POWER_FLOOR) - log_mean_real).abs().mean()


def amplitude_loss(samples: Tensor, quantiles: Tensor) -> Tensor:
    """Distance of the distribution of samples from that of the recording.

    ``mean |x_(i) - q_i| + mean (x_(i) - q_i)^2``, with the samples in order: the
    Wasserstein-1 and the squared Wasserstein-2 distance (Peyre and Cuturi 2019, remark
    2.28). The first minds the bulk of the samples, the second rare large ones.

    Args:
        samples: M generated samples, any shape.
        quantiles: the recording's at probabilities ``(i + 1/2) / M``, ascending, (M,).

    Returns:
        Scalar, in units of the samples.
    """
    difference = samples.flatten().sort().values - quantiles
    return difference.abs().mean() + difference.square().mean()


def loudness_distance(drawn: Tensor, encoded: Tensor) -> Tensor:
    """Squared Wasserstein-2 distance of the loudness of draws from a reference.

    Args:
        drawn: log mean squares of the draws, (M,), nats.
        encoded: of the reference, ascending, (R,), nats.

    Returns:
        Scalar, nats^2 (Peyre and Cuturi 2019, remark 2.28).
    """
    quantile = (torch.arange(len(drawn), device=drawn.device) + 0.5) / len(drawn)
    reference = encoded[(quantile * len(encoded)).long()]
    return (drawn.sort().values - reference).square().mean()


def spectrum_distance_db(power: Tensor, reference: Tensor) -> float:
    """Root mean square over frequency of the ratio of two mean spectra (F,), dB.

    Frequencies are first averaged into at most 128 groups: the estimates' own scatter
    would dominate otherwise.
    """
    width = max(1, len(power) // 64)
    groups = len(power) // width
    folded = [
        p[: groups * width].view(groups, width).mean(1) for p in (power, reference)
    ]
    ratio = 10.0 * torch.log10(folded[0] / folded[1])
    return float(ratio.square().mean().sqrt())


def gaussian_kl(mean: Tensor, log_sd: Tensor) -> Tensor:
    """``KL(N(mean, sd^2) || N(0, 1))`` summed over the latent, (B, K) to (B,), nats.

    Kingma and Welling 2014, appendix B.
    """
    variance = (2.0 * log_sd).exp()
    return 0.5 * (mean.square() + variance - 2.0 * log_sd - 1.0).sum(-1)


def sampled_kl(noise: Tensor, log_sd: Tensor, z: Tensor, volume: Tensor) -> Tensor:
    """``log q - log p`` at one draw of q, where a flow makes p, (B,), nats.

    The draw is ``mean + sd * noise`` and ``q = N(mean, sd^2)``; the flow takes it to z,
    which is normal under p (Rezende and Mohamed 2015, equation 15).

    Args:
        noise: standard normal, (B, K).
        log_sd: of q, (B, K).
        z: what the flow makes of the draw, (B, K).
        volume: ``log |det|`` of the flow's derivative there, (B,).
    """
    return 0.5 * (z.square() - noise.square()).sum(-1) - log_sd.sum(-1) - volume
