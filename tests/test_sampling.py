"""Chains against known targets; R-hat and effective size against known chains."""

import math

import numpy as np
import pytest
import torch
from scipy.signal import lfilter
from scipy.stats import truncnorm

from sepprior.inference.chains import (
    LANGEVIN_STEP,
    LEAPFROGS,
    LONGEST_TRAJECTORY,
    dispersed,
    hamiltonian,
    langevin,
)
from sepprior.inference.sampling import (
    _effective,
    _rhat,
    _split,
    effective_size,
    quantile,
    split_rhat,
    well_sampled,
)

CHAINS = 4


def autoregressive(pole: float, n: int, *, seed: int) -> torch.Tensor:
    """Chains (4, n) of unit variance whose autocorrelation is ``pole^lag``."""
    rng = np.random.default_rng(seed)
    white = rng.standard_normal((CHAINS, n + 200)) * math.sqrt(1 - pole**2)
    return torch.from_numpy(lfilter([1.0], [1.0, -pole], white)[:, 200:].copy())


# -- effective sample size -------------------------------------------------------------


@pytest.mark.statistical
@pytest.mark.parametrize("pole", [0.0, 0.3, 0.6, 0.9])
def test_effective_size_of_an_autoregression(pole):
    """C S (1 - pole) / (1 + pole), within three times its spread of 4 to 8 %."""
    n = 20_000
    expected = CHAINS * n * (1 - pole) / (1 + pole)
    found = float(effective_size(autoregressive(pole, n, seed=1)))
    assert found == pytest.approx(expected, rel=0.12 if pole else 0.2)
    # Negative control: the number of draws is far from it where they are correlated.
    if pole > 0.5:
        assert found < 0.4 * CHAINS * n


def test_effective_size_predicts_the_error_of_a_mean():
    """Variance of the mean over 400 sets of chains times the effective size is 1."""
    sets = [autoregressive(0.6, 400, seed=s) for s in range(400)]
    means = torch.stack([s.mean() for s in sets])
    size = torch.stack([effective_size(s) for s in sets]).mean()
    assert float(means.var() * size) == pytest.approx(1.0, abs=0.3)


def test_published_implementation():
    """ArviZ 0.21, rhat() and ess(method="bulk") and ess(method="tail")."""
    rng = np.random.default_rng(0)
    rng.standard_normal((4, 350))
    white = rng.standard_normal((4, 351))
    chains = lfilter([1.0], [1.0, -0.7], np.c_[np.zeros(4), white[:, 1:]])[:, 100:]
    found = torch.from_numpy(chains.copy())
    assert float(split_rhat(found)) == pytest.approx(1.0308056561, abs=2e-4)
    assert float(effective_size(found)) == pytest.approx(203.1315610, rel=0.01)


def test_alternating_chains_know_a_mean_better():
    chains = autoregressive(-0.5, 4000, seed=3)
    assert float(_effective(chains)) > 2 * chains.numel()


# -- R-hat -----------------------------------------------------------------------------


def test_rhat_of_one_distribution_is_one():
    draws = torch.randn((50, CHAINS, 500), generator=torch.Generator().manual_seed(0))
    assert float(split_rhat(draws.double()).max()) < 1.012


@pytest.mark.parametrize("fault", ["apart", "drift", "spread", "stuck"])
def test_rhat_sees_chains_that_are_not_one_distribution(fault):
    chains = autoregressive(0.2, 400, seed=4)
    if fault == "apart":
        chains[0] += 1.0
    if fault == "drift":
        chains = chains + torch.linspace(-1.0, 1.0, 400)
    if fault == "spread":
        chains[0] *= 3.0
    if fault == "stuck":
        chains = chains[:, :1].expand(-1, 400)
    rhat, size = split_rhat(chains), effective_size(chains)
    assert rhat > 1.05
    assert not well_sampled(rhat[None], size[None])


def test_formula_of_split_rhat():
    """By hand from equations 3 and 4; far from ties, ranks keep the order of means."""
    chains = autoregressive(0.5, 100, seed=5)
    halves = np.concatenate([chains[:, :50], chains[:, 50:]])
    within = halves.var(axis=1, ddof=1).mean()
    between = 50 * halves.mean(axis=1).var(ddof=1)
    expected = math.sqrt((49 / 50 * within + between / 50) / within)
    assert float(_rhat(_split(chains))) == pytest.approx(expected, rel=1e-12)


def test_batches_and_parameters_that_do_not_vary():
    chains = torch.stack([autoregressive(0.3, 200, seed=s) for s in range(6)])
    batch = chains.view(3, 2, CHAINS, 200)
    torch.testing.assert_close(
        effective_size(batch).flatten(), torch.stack([*map(effective_size, chains)])
    )
    torch.testing.assert_close(
        split_rhat(batch).flatten(), torch.stack([*map(split_rhat, chains)])
    )
    batch[:, 1] = 2.5
    assert effective_size(batch)[:, 1].isnan().all()
    assert well_sampled(split_rhat(batch), effective_size(batch)).all()


def test_quantiles_agree_with_numpy():
    values = torch.randn((3, 101), generator=torch.Generator().manual_seed(0)).double()
    for level in (0.0, 0.025, 0.5, 0.8, 1.0):
        expected = np.quantile(values.numpy(), level, axis=-1)
        np.testing.assert_allclose(quantile(values, level), expected, rtol=1e-12)


# -- chains ----------------------------------------------------------------------------


def normal_potential(scale: torch.Tensor):
    def potential(u):
        return 0.5 * (u / scale).square().sum(-1), u / scale.square()

    return potential


def started(n_targets: int, size: int, *, seed: int = 0):
    rng = torch.Generator().manual_seed(seed)
    like = torch.zeros(1, dtype=torch.float64)
    return dispersed((n_targets, CHAINS, size), like=like, rng=rng), rng


def moments(draws):
    """Mean and variance (P,) of the draws of one target, each with standard error."""
    by_name = draws.permute(2, 0, 1)
    size = effective_size(by_name)
    flat = draws.flatten(0, 1)
    return flat.mean(0), flat.var(0), size


@pytest.mark.statistical
def test_hamiltonian_draws_a_normal_of_another_scale():
    """Mean and variance within 4.5 standard errors each: 8 tests, 6e-5 in all."""
    scale = torch.tensor([0.3, 0.8, 1.0, 1.6], dtype=torch.float64)
    start, rng = started(2, 4)
    draws = hamiltonian(
        normal_potential(scale), start, n_draws=1000, kept=lambda u: u, rng=rng
    )
    assert draws.shape == (2, CHAINS, 1000, 4)
    # All targets have the same random numbers: equal targets have equal chains.
    torch.testing.assert_close(draws[0], draws[1])
    mean, variance, size = moments(draws[0])
    assert (size > 500).all()
    assert (mean.abs() < 4.5 * scale / size.sqrt()).all()
    ratio = variance / scale.square()
    assert ((ratio - 1).abs() < 4.5 * (2 / size).sqrt()).all()
    # Negative control: unit variances would be noticed.
    assert ((variance - 1).abs() > 4.5 * (2 / size).sqrt()).sum() >= 2


def test_the_step_is_adapted():
    """A target a tenth as wide gets shorter steps, and is drawn nevertheless."""
    narrow = torch.full((3,), 0.1, dtype=torch.float64)
    asked = []

    def potential(u):
        asked.append(u.detach())
        return normal_potential(narrow)(u)

    start, rng = started(1, 3)
    draws = hamiltonian(potential, start, n_draws=400, kept=lambda u: u, rng=rng)
    moves = (asked[-1] - asked[-2]).norm(dim=-1)
    assert moves.max() < LONGEST_TRAJECTORY / LEAPFROGS
    assert draws[0].std().item() == pytest.approx(0.1, rel=0.15)


@pytest.mark.statistical
def test_hamiltonian_respects_bounds():
    """A normal cut at 0.5: mean within 4.5 standard errors of scipy's."""

    def potential(u):
        energy = 0.5 * u.square().sum(-1)
        return energy.masked_fill(u[..., 0] < 0.5, torch.inf), u

    start, rng = started(1, 1)
    start = start.abs() + 0.5
    draws = hamiltonian(potential, start, n_draws=2000, kept=lambda u: u, rng=rng)
    exact = truncnorm(0.5, math.inf)
    mean, _, size = moments(draws[0])
    assert draws.min() >= 0.5
    assert abs(float(mean) - exact.mean()) < 4.5 * exact.std() / float(size.sqrt())
    assert abs(float(mean)) > 0.5  # a normal that is not cut


@pytest.mark.parametrize("fault", ["two modes", "too short"])
def test_chains_that_did_not_mix_are_flagged(fault):
    def two_modes(u):
        a, b = 0.5 * (u - 6.0).square(), 0.5 * (u + 6.0).square()
        energy = -torch.logaddexp(-a, -b)
        slope = u - 6.0 * torch.tanh(6.0 * u)
        return energy.sum(-1), slope

    start, rng = started(1, 1)
    if fault == "two modes":
        start = start + torch.tensor([6.0, 6.0, -6.0, -6.0]).double()[:, None]
        draws = hamiltonian(two_modes, start, n_draws=500, kept=lambda u: u, rng=rng)
    else:
        draws = hamiltonian(
            normal_potential(torch.full((1,), 30.0, dtype=torch.float64)),
            20.0 * start,
            n_draws=60,
            kept=lambda u: u,
            rng=rng,
            warm_up=0,
        )
    by_name = draws.permute(0, 3, 1, 2)
    rhat, size = split_rhat(by_name), effective_size(by_name)
    assert not well_sampled(rhat, size).any()
    assert rhat > 1.2


@pytest.mark.statistical
def test_langevin_is_exact_for_a_normal_at_its_long_step():
    """Variance within 4.5 standard errors, for coordinates of different curvature.

    The first one has a hundred times the curvature that steps of this length could
    stand without a mass of its own.
    """
    scale = torch.tensor([0.03, 1.0, 1.5], dtype=torch.float64)
    start, rng = started(1, 3)
    keywords = {"n_draws": 4000, "kept": lambda u: u, "rng": rng}
    draws = langevin(
        lambda u, done: u / scale.square(),
        start,
        inside=lambda u: torch.ones_like(u[..., 0], dtype=torch.bool),
        **keywords,
    )
    mean, variance, size = moments(draws[0])
    assert (mean.abs() < 4.5 * scale / size.sqrt()).all()
    error = (variance / scale.square() - 1).abs()
    assert (error < 4.5 * (2 / size).sqrt()).all()
    # Negative control: Euler steps of the same length have a variance
    # 1 / (1 - h / 4) too large (overdamped, step h of a unit normal).
    u = torch.zeros(CHAINS, dtype=torch.float64)
    euler = []
    for _ in range(8000):
        white = torch.randn(CHAINS, generator=rng, dtype=torch.float64)
        u = u - 0.5 * LANGEVIN_STEP * u + math.sqrt(LANGEVIN_STEP) * white
        euler.append(u)
    spread = torch.stack(euler, -1)
    error = abs(float(spread.var()) - 1.0)
    assert error > 4.5 * math.sqrt(2 / float(effective_size(spread)))


def test_langevin_for_a_target_that_is_not_normal():
    """``u^2 / 2 + u^4 / 20``: the step's error of the variance is below 4 %."""
    grid = torch.linspace(-6, 6, 4001, dtype=torch.float64)
    density = (-(0.5 * grid**2 + grid**4 / 20)).exp()
    exact = float((density * grid**2).sum() / density.sum())
    start, rng = started(1, 1)
    draws = langevin(
        lambda u, done: u + u**3 / 5,
        start,
        n_draws=8000,
        kept=lambda u: u,
        inside=lambda u: torch.ones_like(u[..., 0], dtype=torch.bool),
        rng=rng,
    )
    assert float(draws.var()) == pytest.approx(exact, rel=0.04)
    assert exact < 0.8


def test_langevin_survives_steep_walls_and_stays_in_bounds():
    start, rng = started(1, 2)
    draws = langevin(
        lambda u, done: u + 1e6 * u**3,
        start.abs(),
        n_draws=300,
        kept=lambda u: u,
        inside=lambda u: (u > 0).all(-1),
        rng=rng,
    )
    assert draws.isfinite().all()
    assert draws.min() > 0
    assert draws.max() < 20
