"""The flow, the likelihoods and the denoising gain against densities in closed form."""

import math

import numpy as np
import pytest
import torch
from scipy.stats import kurtosis

from sepprior.diffusion import (
    Smoothing,
    denoising_gain,
    flat_draws,
    follow_flow,
    geometric,
    log_density,
)
from sepprior.transforms import toeplitz

N = 12
GAP = 0.9
"""Half distance of the modes of an independent two-mode noise of unit variance."""
MODE_VARIANCE = 1.0 - GAP**2


def white() -> Smoothing:
    return Smoothing.of(None, window=N, dtype=torch.float64)


def lined() -> tuple[Smoothing, torch.Tensor]:
    """White noise and a strong line of random phase."""
    t = torch.arange(N, dtype=torch.float64)
    covariance = torch.eye(N, dtype=torch.float64) + 40.0 * torch.cos(
        0.9 * (t[:, None] - t)
    )
    return Smoothing.of(covariance, window=N, dtype=torch.float64), covariance


def zero(y: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
    return 0.0 * y


def modes_log_density(y: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
    """Log-density of each sample at level sigma, without the factor of 2 pi."""
    v = MODE_VARIANCE + sigma**2
    each = [-0.5 * (y - m) ** 2 / v for m in (-GAP, GAP)]
    return torch.logaddexp(*each) - math.log(2.0) - 0.5 * torch.log(v)


def modes(y: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
    """The exact correction F of two-mode noise (C = 1)."""
    s = sigma[:, None]
    v = MODE_VARIANCE + s**2
    score = (GAP * torch.tanh(GAP * y / v) - y) / v
    total = 1.0 + s**2
    return (score + y / total) * s * total.sqrt()


def draw_modes(n: int, seed: int) -> torch.Tensor:
    rng = torch.Generator().manual_seed(seed)
    sign = 2.0 * torch.randint(0, 2, (n, N), generator=rng).double() - 1.0
    noise = torch.randn((n, N), generator=rng, dtype=torch.float64)
    return GAP * sign + math.sqrt(MODE_VARIANCE) * noise


def probes(n: int, count: int) -> torch.Tensor:
    rng = torch.Generator().manual_seed(9)
    return 2.0 * torch.randint(0, 2, (count, n, N), generator=rng).double() - 1.0


def test_score_with_a_zero_network_is_that_of_the_gaussian():
    smoothing, covariance = lined()
    y = torch.randn(5, N, dtype=torch.float64)
    level = torch.tensor([0.1, 0.5, 1.0, 3.0, 10.0], dtype=torch.float64)
    score = smoothing.score(y, level, torch.zeros_like(y))
    for row, sigma, found in zip(y, level, score, strict=True):
        total = covariance + sigma**2 * torch.eye(N, dtype=torch.float64)
        torch.testing.assert_close(found, -torch.linalg.solve(total, row))


def test_target_is_the_error_of_the_linear_denoiser_at_unit_scale():
    smoothing, covariance = lined()
    rng = torch.Generator().manual_seed(0)
    n, sigma = 40_000, 0.7
    root = torch.linalg.cholesky(covariance)
    w = torch.randn((n, N), generator=rng, dtype=torch.float64) @ root.mT
    y = w + sigma * torch.randn((n, N), generator=rng, dtype=torch.float64)
    target = smoothing.target(w, y, torch.full((n,), sigma, dtype=torch.float64))
    # Six standard errors of 144 estimates: false in 1 of 10^6 keys.
    error = 6.0 * math.sqrt(2.0 / n)
    assert (target.mT @ target / n - torch.eye(N)).abs().max() < error
    across = target.mT @ smoothing.standardise(y, torch.tensor([sigma]).double()) / n
    assert across.abs().max() < error


def test_denoised_value_follows_from_score_and_target():
    """Tweedie: y + sigma^2 score = C S^-1 y + sigma C^1/2 S^-1/2 F."""
    smoothing, _ = lined()
    rng = torch.Generator().manual_seed(1)
    w = torch.randn((4, N), generator=rng, dtype=torch.float64)
    y = w + torch.randn((4, N), generator=rng, dtype=torch.float64)
    level = torch.full((4,), 1.3, dtype=torch.float64)
    perfect = smoothing.target(w, y, level)
    score = smoothing.score(y, level, perfect)
    torch.testing.assert_close(y + 1.3**2 * score, w)


@pytest.mark.parametrize("make", [lambda: (white(), torch.eye(N).double()), lined])
def test_flow_likelihood_of_gaussian_noise_is_exact(make):
    smoothing, covariance = make()
    y = 2.0 * torch.randn(6, N, dtype=torch.float64)
    levels = geometric(0.05, 30.0, 4)
    found, error = log_density(smoothing, zero, y, levels, probes=probes(6, 2))
    total = covariance + 0.05**2 * torch.eye(N, dtype=torch.float64)
    exact = torch.distributions.MultivariateNormal(
        torch.zeros(N, dtype=torch.float64), total
    ).log_prob(y)
    torch.testing.assert_close(found - 0.5 * N * math.log(2.0 * math.pi), exact)
    assert error.abs().max() == 0.0


def test_flow_likelihood_of_two_mode_noise():
    y = draw_modes(32, seed=2)
    levels = geometric(0.02, 20.0, 60)
    found, error = log_density(white(), modes, y, levels, probes=probes(32, 4))
    exact = modes_log_density(y, torch.tensor(0.02)).sum(-1)
    assert (found - exact).abs().max() / N < 2e-3
    # Independent samples have a diagonal divergence: the random trace is exact.
    assert error.max() < 1e-9
    gaussian = -0.5 * y.square().sum(-1)
    assert (gaussian - exact).abs().mean() / N > 0.1


def test_denoising_gain_is_the_log_likelihood_ratio():
    w = draw_modes(32, seed=3)
    draws = torch.randn(
        (64, N), generator=torch.Generator().manual_seed(4), dtype=torch.float64
    )
    levels = geometric(20.0, 0.02, 40)
    found = denoising_gain(white(), modes, w, levels, draws=draws)
    exact = modes_log_density(w, torch.tensor(0.0)).sum(-1) + 0.5 * w.square().sum(-1)
    # The finite number of draws leaves some tenths of a nat.
    assert (found - exact).abs().mean() < 0.35
    assert np.corrcoef(found, exact)[0, 1] > 0.95
    reverse = denoising_gain(white(), modes, w, levels.flip(0), draws=draws)
    torch.testing.assert_close(found, reverse)
    none = denoising_gain(white(), zero, w, levels, draws=draws)
    assert none.abs().max() < 1e-9


def test_flow_maps_normal_latents_to_the_noise_and_back():
    z = torch.randn(
        (4000, N), generator=torch.Generator().manual_seed(5), dtype=torch.float64
    )
    levels = geometric(20.0, 0.02, 40)
    v = follow_flow(white(), modes, z, levels)
    w = white().restore(v, torch.full((len(v),), 0.02, dtype=torch.float64))
    expected = kurtosis(draw_modes(4000, seed=6).flatten())
    # Two-mode noise has far fewer tails than the latents it came from.
    assert kurtosis(w.flatten()) == pytest.approx(expected, abs=0.03)
    assert abs(kurtosis(z.flatten())) < 0.1
    assert float(w.var()) == pytest.approx(1.0, abs=0.03)
    back = follow_flow(white(), modes, v, levels.flip(0))
    assert (back - z).abs().max() < 0.02


def test_flow_stands_still_for_gaussian_noise():
    smoothing, _ = lined()
    z = torch.randn(3, N, dtype=torch.float64)
    torch.testing.assert_close(
        follow_flow(smoothing, zero, z, geometric(30.0, 0.05, 3)), z
    )


def test_eigenvectors_of_the_identity_change_nothing():
    plain = white()
    dense = Smoothing.of(
        toeplitz(torch.eye(N, dtype=torch.float64)[0]), window=N, dtype=torch.float64
    )
    w, y = torch.randn(2, 3, N, dtype=torch.float64).unbind(0)
    level = torch.tensor([0.2, 1.0, 4.0], dtype=torch.float64)
    for one, two in (
        (plain.target(w, y, level), dense.target(w, y, level)),
        (plain.score(y, level, w), dense.score(y, level, w)),
        (plain.gaussian_energy(y, level), dense.gaussian_energy(y, level)),
    ):
        torch.testing.assert_close(one, two)


def test_draws_of_flat_power_leave_less_to_chance():
    """Log-likelihood from one draw, its mean over windows against the exact one."""
    rng = torch.Generator().manual_seed(5)
    flat = flat_draws(20, 65, generator=rng).double()
    torch.testing.assert_close(flat.square().mean(-1), torch.ones(20).double())
    power = torch.fft.rfft(flat).abs().square() / 65
    torch.testing.assert_close(power, torch.ones_like(power), rtol=1e-5, atol=0)
    assert float(flat.mean(0).abs().max()) < 1.2  # five standard errors

    w = draw_modes(64, seed=6)
    exact = modes_log_density(w, torch.tensor(0.0)).sum(-1) + 0.5 * w.square().sum(-1)
    levels = geometric(20.0, 0.02, 40)
    errors = {}
    normal = torch.randn((20, N), generator=rng, dtype=torch.float64)
    for name, draws in {
        "flat": flat_draws(20, N, generator=rng).double(),
        "normal": normal,
    }.items():
        one_by_one = [
            denoising_gain(white(), modes, w, levels, draws=e[None]) for e in draws
        ]
        offset = torch.stack([(g - exact).mean() for g in one_by_one])
        errors[name] = float(offset.square().mean().sqrt())
    assert errors["flat"] < 0.5 * errors["normal"], errors
