"""Training objectives against hand-computed values and exact expectations."""

import math

import numpy as np
import pytest
import torch
from scipy.integrate import quad
from scipy.special import digamma, exp1
from torch.distributions import Normal, kl_divergence

from sepprior import losses

EULER = 0.5772156649015329
LOG_SD = math.pi / math.sqrt(6)
"""Standard deviation of the logarithm of an exponential variate, nats."""


def random(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def penalty_of(*args):
    return float(losses.gradient_penalty(*args).detach())


# --- adversarial ----------------------------------------------------------------------


def test_wgan_losses_by_hand():
    real = torch.tensor([[1.0], [3.0]])
    fake = torch.tensor([[0.5], [-1.5]])
    assert float(losses.wgan_critic_loss(real, fake)) == -2.5
    assert float(losses.wgan_critic_loss(fake, real)) == 2.5
    assert float(losses.wgan_generator_loss(fake)) == 0.5


@pytest.mark.parametrize("shape", [(5, 7), (5, 2, 3, 4)])
def test_the_penalty_of_a_linear_critic_is_known(shape):
    weight = random(*shape[1:], seed=1)
    real, fake = random(*shape, seed=2), random(*shape, seed=3)
    mix = torch.rand(shape[0], generator=torch.Generator().manual_seed(4)).double()

    def critic(x):
        return (x * weight).flatten(1).sum(1, keepdim=True)

    found = penalty_of(critic, real, fake, mix)
    norm = float(weight.square().sum().sqrt())
    assert found == pytest.approx((norm - 1) ** 2, rel=1e-5)
    # The norm over the last dimension only, or over the whole batch, is another number.
    if len(shape) > 2:
        last = float((weight.square().sum(-1).sqrt() - 1).square().mean())
        assert abs(found - last) > 0.1
    assert abs(found - (math.sqrt(shape[0]) * norm - 1) ** 2) > 0.1


def test_the_penalty_is_taken_between_the_samples():
    # C(x) = ||x||^2 / 2 has the gradient x itself.
    real = torch.tensor([[3.0, 4.0], [0.0, 2.0]])
    fake = torch.tensor([[0.0, 0.0], [6.0, 0.0]])
    mix = torch.tensor([0.8, 0.25])

    def critic(x):
        return 0.5 * x.square().sum(1, keepdim=True)

    # Between: (2.4, 3.2), norm 4; and (4.5, 0.5), norm sqrt(20.5).
    expected = (9 + (math.sqrt(20.5) - 1) ** 2) / 2
    found = penalty_of(critic, real, fake, mix)
    assert found == pytest.approx(expected, rel=1e-6)
    swapped = penalty_of(critic, fake, real, mix)
    assert abs(swapped - expected) > 0.1


def test_the_penalty_has_the_gradient_of_finite_differences():
    real, fake = random(6, 3, seed=1), random(6, 3, seed=2)
    mix = torch.full((6,), 0.3, dtype=torch.float64)

    def penalty(scale):
        # The gradient is scale cos(x); in float32 steps of 1e-2 are exact enough.
        return losses.gradient_penalty(
            lambda x: scale * x.sin().sum(1, keepdim=True), real, fake, mix
        )

    scale = torch.tensor(1.5, dtype=torch.float64, requires_grad=True)
    (found,) = torch.autograd.grad(penalty(scale), scale)
    up, down = (float(penalty(scale + h).detach()) for h in (0.01, -0.01))
    assert float(found) == pytest.approx((up - down) / 0.02, rel=1e-3)


def test_a_flat_critic_has_penalty_one_and_a_finite_gradient():
    bias = torch.zeros(1, requires_grad=True)

    def critic(x):
        return (bias * x).sum(1, keepdim=True)

    penalty = losses.gradient_penalty(
        critic, torch.randn(4, 3), torch.randn(4, 3), torch.rand(4)
    )
    (gradient,) = torch.autograd.grad(penalty, bias)
    assert float(penalty.detach()) == pytest.approx(1.0, abs=1e-4)
    assert torch.isfinite(gradient).all()


def test_the_penalty_norm_is_float32_and_trains_only_the_critic():
    real, fake = torch.randn(4, 3), torch.randn(4, 3, requires_grad=True)
    layer = torch.nn.Linear(3, 1).bfloat16()

    def critic(x):
        return layer(x.bfloat16())

    penalty = losses.gradient_penalty(critic, real, fake, torch.rand(4))
    assert penalty.dtype == torch.float32
    penalty.backward()
    assert fake.grad is None
    assert layer.weight.grad is not None


@pytest.mark.parametrize("shape", [(2, 2), (2, 1, 2, 1)])
def test_the_zero_centred_penalty_by_hand(shape):
    weight = torch.tensor([3.0, 4.0])

    def linear(x):
        return x.flatten(1) @ weight[:, None] + 7.0

    def square(x):
        # The gradient is x itself.
        return 0.5 * x.flatten(1).square().sum(1, keepdim=True)

    x = torch.tensor([[1.0, -2.0], [0.0, 2.0]]).view(shape)
    assert float(losses.zero_centred_penalty(linear, x).detach()) == (9 + 16) / 2
    found = float(losses.zero_centred_penalty(square, x).detach())
    assert found == ((1 + 4) / 2 + 4 / 2) / 2
    # It trains the critic: the derivative of |w|^2 / 2 is w.
    weight.requires_grad_()
    penalty = losses.zero_centred_penalty(linear, x)
    (gradient,) = torch.autograd.grad(penalty, weight)
    assert torch.equal(gradient, weight.detach())


def test_the_cross_entropies_by_hand():
    # D is 1/2 and 3/4 on the real samples, 1/4 and 1/2 on the generated ones.
    real = torch.tensor([[0.0], [math.log(3)]])
    fake = torch.tensor([[-math.log(3)], [0.0]])
    on_fake = -(math.log(3 / 4) + math.log(1 / 2)) / 2
    expected = -(math.log(1 / 2) + math.log(3 / 4)) / 2 + on_fake
    found = float(losses.dcgan_critic_loss(real, fake))
    assert found == pytest.approx(expected, rel=1e-6)
    # One-sided: only the target of the real samples is 0.9 instead of 1.
    first = -0.9 * math.log(1 / 2) - 0.1 * math.log(1 / 2)
    second = -0.9 * math.log(3 / 4) - 0.1 * math.log(1 / 4)
    found = float(losses.dcgan_critic_loss(real, fake, smoothing=0.1))
    assert found == pytest.approx((first + second) / 2 + on_fake, rel=1e-6)
    found = float(losses.dcgan_generator_loss(fake))
    assert found == pytest.approx(-(math.log(1 / 4) + math.log(1 / 2)) / 2, rel=1e-6)


def test_the_least_squares_losses_by_hand():
    real = torch.tensor([[1.0], [4.0]])
    fake = torch.tensor([[-1.0], [3.0]])
    # Real samples are to score 1, generated ones 0; the generator wants 1 for its own.
    expected = (0 + 9) / 4 + (1 + 9) / 4
    assert float(losses.lsgan_critic_loss(real, fake)) == expected
    assert float(losses.lsgan_generator_loss(fake)) == (4 + 4) / 4


def test_the_relativistic_loss_by_hand():
    ahead = torch.tensor([[1.0], [math.log(3) - 2.0]])
    behind = torch.tensor([[1.0], [-2.0]])
    # Differences of 0 and log 3, pair by pair.
    expected = (math.log(2) + math.log(1 + 1 / 3)) / 2
    found = float(losses.relativistic_loss(ahead, behind))
    assert found == pytest.approx(expected, rel=1e-6)
    reverse = (math.log(2) + math.log(1 + 3)) / 2
    found = float(losses.relativistic_loss(behind, ahead))
    assert found == pytest.approx(reverse, rel=1e-6)


def test_the_label_loss_by_hand():
    # Probabilities 1/4, 3/4 and 2/3, 1/3; the true labels are the second, the first.
    logits = torch.tensor([[0.0, math.log(3)], [5.0 + math.log(2), 5.0]])
    onehot = torch.tensor([[0.0, 1.0], [1.0, 0.0]])
    expected = -(math.log(3 / 4) + math.log(2 / 3)) / 2
    found = float(losses.label_loss(logits, onehot))
    assert found == pytest.approx(expected, rel=1e-6)
    expected = -(math.log(1 / 4) + math.log(1 / 3)) / 2
    found = float(losses.label_loss(logits, onehot.flip(1)))
    assert found == pytest.approx(expected, rel=1e-6)


# --- spectra --------------------------------------------------------------------------


def test_the_periodogram_is_that_of_numpy():
    x = random(3, 50)
    reference = np.abs(np.fft.rfft(x.numpy())[:, 1:]) ** 2 / 50
    np.testing.assert_allclose(losses.periodogram(x), reference, rtol=1e-12)
    assert float(losses.periodogram(torch.ones(1, 50)).max()) < 1e-10


def coloured(n_draws, n, seed):
    """Circular Gaussian noise whose periodogram is exactly exponential.

    N odd: no Nyquist bin. Returns the windows and the log of the expected periodogram.
    """
    spectrum = torch.linspace(4.0, 0.25, n // 2 + 1, dtype=torch.float64)
    white = torch.fft.rfft(random(n_draws, n, seed=seed), norm="ortho")
    return (
        torch.fft.irfft(white * spectrum.sqrt(), n, norm="ortho"),
        spectrum[1:].log(),
    )


def batch_loss(x, log_mean, log_sd):
    return losses.spectral_batch_loss(losses.periodogram(x), log_mean, log_sd)


def per_sample_loss(x, log_mean):
    return losses.spectral_per_sample_loss(losses.periodogram(x), log_mean)


@pytest.mark.statistical
def test_the_batch_spectrum_is_biased_by_half_a_nat_over_the_batch():
    """256 batches, 150 bins: standard error 0.0006 nat; the band is 4 sigma."""
    batch = 64
    x, log_mean = coloured(256 * batch, 301, seed=5)
    power = losses.periodogram(x).view(256, batch, -1)
    bias = float((power.mean(1).log() - log_mean).mean())
    exact = digamma(batch) - math.log(batch)
    assert exact == pytest.approx(-1 / (2 * batch), rel=0.01)
    assert bias == pytest.approx(exact, abs=0.0026)
    # The logarithm of single draws is biased by Euler's constant, 74 times as much.
    assert float((power.log() - log_mean).mean()) == pytest.approx(-EULER, abs=0.01)


@pytest.mark.statistical
def test_the_batch_loss_vanishes_for_the_right_noise_and_only_for_it():
    """B = 4096: both terms have a mean of sqrt(2 / pi / B) (1 + 1.05) < 0.03 nat."""
    x, log_mean = coloured(4096, 301, seed=6)
    log_sd = torch.full_like(log_mean, LOG_SD)
    right = float(batch_loss(x, log_mean, log_sd))
    assert right < 0.04
    # Twice the power, and a spectrum without randomness, score what they should.
    louder = float(batch_loss(math.sqrt(2) * x, log_mean, log_sd))
    assert louder == pytest.approx(math.log(2) + right, abs=0.04)
    frozen = deterministic(log_mean, 301).expand(64, -1)
    assert float(batch_loss(frozen, log_mean, log_sd)) == pytest.approx(
        LOG_SD, abs=1e-6
    )


def deterministic(log_mean, n):
    amplitude = torch.cat([log_mean.new_zeros(1), (0.5 * log_mean).exp()])
    return torch.fft.irfft(amplitude.to(torch.complex128), n, norm="ortho")[None]


@pytest.mark.statistical
def test_the_published_loss_rewards_removing_the_randomness():
    """2000 windows of 150 bins: standard error 0.0015 nat; the band is 6 sigma."""
    x, log_mean = coloured(2000, 301, seed=7)
    exact, _ = quad(lambda p: abs(math.log(p)) * math.exp(-p), 0, 50, points=[1.0])
    assert exact == pytest.approx(EULER + 2 * exp1(1.0), abs=1e-6)
    assert exact == pytest.approx(1.016, abs=5e-4)
    real = float(per_sample_loss(x, log_mean))
    assert real == pytest.approx(exact, abs=0.01)
    fixed = per_sample_loss(deterministic(log_mean, 301), log_mean)
    assert float(fixed) == pytest.approx(0.0, abs=1e-6)


def test_the_spectral_losses_of_planes_by_hand():
    # Two samples, two frequencies, two frames. Log powers of the first frequency are
    # 0 and 2, and 2 and 4; the second has the power 9 throughout.
    first = torch.tensor([[0.0, 1.0], [1.0, 2.0]]).exp()
    planes = torch.stack([first, torch.full_like(first, 3.0)], 1)
    power = losses.plane_power(planes)
    assert power.shape == (4, 2) and (power[:, 1] == 9).all()
    mean = (1 + 2 * math.exp(2) + math.exp(4)) / 4
    level = (math.log(mean) + (2 * math.log(3) - 1)) / 2
    # Squared deviations of 4, 0, 0, 4 from the mean 2, over one less than four.
    spread = (math.sqrt(8 / 3) - 1 + 0.5) / 2
    found = losses.spectral_batch_loss(
        power, torch.tensor([0.0, 1.0]), torch.tensor([1.0, 0.5])
    )
    assert float(found) == pytest.approx(level + spread, rel=1e-6)
    # From the level 1: 1, 1, 1 and 3.
    expected = ((1 + 1 + 1 + 3) / 4 + 2 * math.log(3)) / 2
    found = losses.spectral_per_sample_loss(power, torch.tensor([1.0, 0.0]))
    assert float(found) == pytest.approx(expected, rel=1e-6)


def test_the_amplitude_loss_by_hand():
    quantiles = torch.tensor([-1.0, 0.0, 1.0, 2.0])
    # In order -1, 0, 1.5, 4: the differences are 0, 0, 0.5 and 2.
    samples = torch.tensor([[4.0, -1.0], [1.5, 0.0]])
    loss = float(losses.amplitude_loss(samples, quantiles))
    assert loss == pytest.approx(2.5 / 4 + 4.25 / 4)
    assert float(losses.amplitude_loss(quantiles.flip(0), quantiles)) == 0.0


@pytest.mark.statistical
def test_the_amplitude_loss_tells_distributions_of_one_variance_apart():
    """Normal and Laplace samples of unit variance; floor for 20000 samples 0.01."""
    n = 20000
    p = (torch.arange(n, dtype=torch.float64) + 0.5) / n
    normal = torch.special.ndtri(p)
    same = float(losses.amplitude_loss(random(n, 1, seed=1), normal))
    assert same < 0.05
    side = torch.where(p < 0.5, p, 1 - p)
    laplace = -torch.sign(p - 0.5) * torch.log(2 * side) / math.sqrt(2)
    assert float(losses.amplitude_loss(laplace, normal)) > 0.15


@pytest.mark.parametrize("loudness", [0.0, 1e-6, 1.0])
def test_spectral_losses_and_their_gradients_are_finite_even_in_silence(loudness):
    log_mean = coloured(1, 301, seed=8)[1].float()
    log_sd = torch.full_like(log_mean, LOG_SD)
    x = (loudness * random(8, 301)).float().requires_grad_()
    for loss in (
        batch_loss(x, log_mean, log_sd),
        per_sample_loss(x, log_mean),
    ):
        (gradient,) = torch.autograd.grad(loss, x)
        assert torch.isfinite(loss) and torch.isfinite(gradient).all()
        # Power has no slope at zero; next to it, it has.
        assert (float(gradient.abs().max()) > 0) == (loudness > 0)


# --- likelihood -----------------------------------------------------------------------


def test_the_kl_divergence_by_hand_and_against_torch():
    mean = torch.tensor([[0.0, 0.0], [1.0, -2.0]])
    log_sd = torch.tensor([[0.0, 0.0], [math.log(2.0), 0.0]])
    found = losses.gaussian_kl(mean, log_sd)
    # (1 + 4 - 2 log 2 - 1) / 2 + 4 / 2
    np.testing.assert_allclose(found, [0.0, 4.0 - math.log(2.0)], rtol=1e-6)
    mean, log_sd = random(5, 4), random(5, 4, seed=1)
    reference = kl_divergence(Normal(mean, log_sd.exp()), Normal(0.0, 1.0)).sum(-1)
    torch.testing.assert_close(losses.gaussian_kl(mean, log_sd), reference)
    reverse = kl_divergence(Normal(0.0, 1.0), Normal(mean, log_sd.exp())).sum(-1)
    assert float((losses.gaussian_kl(mean, log_sd) - reverse).abs().min()) > 1e-3


def test_the_sampled_divergence_is_its_average_over_a_flow():
    """Against the closed form, for a flow that scales and shifts."""
    rng = torch.Generator().manual_seed(0)
    mean, log_sd = random(1, 4), 0.3 * random(1, 4, seed=1)
    scale, shift = torch.tensor([2.0, 0.5, 1.0, 3.0]), torch.tensor([0.0, 1.0, 0.0, -1])
    noise = torch.randn((200_000, 4), generator=rng)
    draw = mean + log_sd.exp() * noise
    z, volume = (draw - shift) / scale, -scale.log().sum().expand(len(draw))
    found = losses.sampled_kl(noise, log_sd.expand(len(draw), 4), z, volume)
    reference = kl_divergence(Normal(mean, log_sd.exp()), Normal(shift, scale)).sum()
    spread = 4.0 * float(found.std()) / math.sqrt(len(found))
    assert abs(float(found.mean() - reference)) < spread < 0.1
    # Negative control: the volume left out.
    wrong = losses.sampled_kl(noise, log_sd.expand(len(draw), 4), z, 0.0 * volume)
    assert abs(float(wrong.mean() - reference)) > 0.5
