"""How close to the Cramer-Rao bound each form of signal is estimated in pink noise.

The bound is ``sqrt(diag((J^T C^-1 J)^-1))`` with the true covariance C of the noise and
J the Jacobian, by automatic differentiation, of the plain formula of the signal; the
prior is Gaussian and knows C. The table is printed by

    pytest -m slow -s tests/test_acceptance.py
"""

import math

import numpy as np
import pytest
import torch
from scipy.linalg import block_diag, cholesky, solve_triangular, toeplitz

import sepprior
from sepprior.benchmark.bounds import pink_autocovariance
from sepprior.benchmark.noise import PINK_SD
from sepprior.priors import GaussianPrior

N, RATE = 300, 30.0
LIMIT = 1.1
LAGS = pink_autocovariance(np.arange(N), RATE, sd=PINK_SD)


def sine(t, amplitude, frequency, phase, rate=0.0, decay=0.0):
    angle = 2 * math.pi * (frequency * t + rate * t**2 / 2) + phase
    return amplitude * torch.exp(-decay * t) * torch.sin(angle)


def one(t, p):
    return sine(t, p[0], p[1], p[2]) + p[3]


def two(t, p):
    return sine(t, *p[0:3]) + sine(t, *p[3:6]) + p[6]


def three(t, p):
    return sine(t, *p[0:3]) + sine(t, *p[3:6]) + sine(t, *p[6:9]) + p[9]


def harmonics(t, p):
    total = p[7] + sine(t, p[1], p[0], p[2])
    return total + sine(t, p[3], 2 * p[0], p[4]) + sine(t, p[5], 3 * p[0], p[6])


def chirp(t, p):
    return sine(t, p[0], p[1], p[2], rate=p[3]) + p[4]


def damped(t, p):
    return sine(t, p[0], p[1], p[2], decay=p[3]) + p[4]


# formula, options, parameters of the first trial (phases are drawn), windows, gaps
CASES = {
    "K = 2": (two, {"components": 2}, (1, 1.3, 0, 0.7, 2.9, 0, 0.2), 1, 0.0),
    "K = 3": (
        three,
        {"components": 3},
        (1, 1.3, 0, 0.7, 2.9, 0, 0.5, 4.4, 0, 0.2),
        1,
        0.0,
    ),
    "harmonics": (
        harmonics,
        {"signal": "harmonics", "components": 3},
        (1.3, 1, 0, 0.5, 0, 0.3, 0, 0.2),
        1,
        0.0,
    ),
    "chirp": (chirp, {"signal": "chirp"}, (1, 1.3, 0, 0.15, 0.2), 1, 0.0),
    "damped": (damped, {"signal": "damped"}, (2, 1.3, 0, 0.2, 0.2), 1, 0.0),
    "30 % gaps": (one, {}, (1, 1.3, 0, 0.2), 1, 0.3),
    "10 windows": (one, {}, (0.4, 1.3, 0, 0.2), 10, 0.0),
}


def bound(formula, p, keep, factor):
    """The Cramer-Rao bound on every parameter (P,), on the samples `keep`."""
    t = torch.arange(len(keep), dtype=torch.float64) / RATE
    jacobian = torch.autograd.functional.jacobian(lambda x: formula(t, x), p).numpy()
    white = solve_triangular(factor, jacobian[keep], lower=True)
    return np.sqrt(np.diag(np.linalg.inv(white.T @ white)))


def measure(case, trials, *, seed):
    """RMS error over the bound of every parameter, (P,), and its names."""
    formula, options, first, windows, gaps = CASES[case]
    rng = np.random.default_rng(seed)
    prior = GaussianPrior(torch.from_numpy(LAGS), level=0.0, sample_rate=RATE)
    n = windows * N
    t = torch.arange(n, dtype=torch.float64) / RATE
    # Windows are independent of each other for the prior; here for the noise as well,
    # so that the bound is that of the model which is fitted.
    covariance = block_diag(*[toeplitz(LAGS)] * windows)
    factor = cholesky(covariance, lower=True)
    names = list(sepprior.separate(rng.normal(size=n), prior, **options).parameters)
    phases = [i for i, name in enumerate(names) if name.startswith("phase")]
    truth = np.tile(np.array(first, dtype=float), (trials, 1))
    truth[:, phases] = rng.uniform(-np.pi, np.pi, (trials, len(phases)))
    signal = np.stack([formula(t, torch.from_numpy(p)).numpy() for p in truth])
    x = signal + rng.standard_normal((trials, n)) @ factor.T
    missing = rng.random(n) < gaps
    x[:, missing] = np.nan
    keep = ~missing
    lower = cholesky(covariance[np.ix_(keep, keep)], lower=True)
    limits = np.stack([bound(formula, torch.from_numpy(p), keep, lower) for p in truth])
    result = sepprior.separate(x, prior, fmax=6.0, **options)
    found = np.stack([p.value for p in result.parameters.values()], 1)
    if formula in (two, three):  # components in the order of their frequencies
        columns = np.argsort(found[:, 1:-1:3], axis=1)
        parts = found[:, :-1].reshape(trials, -1, 3)
        parts = np.take_along_axis(parts, columns[:, :, None], axis=1)
        found[:, :-1] = parts.reshape(trials, -1)
    error = found - truth
    error[:, phases] = np.angle(np.exp(1j * error[:, phases]))
    return np.sqrt(np.mean((error / limits) ** 2, 0)), names


def band(trials):
    """An RMS of unit variates: four standard errors above one (one in 30 000)."""
    return 1.0 + 4.0 / math.sqrt(2 * trials)


@pytest.mark.slow
@pytest.mark.statistical
@pytest.mark.parametrize("case", CASES)
def test_every_signal_reaches_the_bound(case):
    trials = 400
    ratio, names = measure(case, trials, seed=2024)
    row = "  ".join(f"{n} {r:.2f}" for n, r in zip(names, ratio, strict=True))
    print(f"\n{case:11s} {row}")
    assert ratio.max() < LIMIT
    assert ratio.min() > 2.0 - band(trials)


@pytest.mark.statistical
@pytest.mark.parametrize("case", ["harmonics", "damped", "30 % gaps"])
def test_a_few_trials_stay_near_the_bound(case):
    """Each parameter's RMS of 60 trials within four standard errors of its bound."""
    ratio, _ = measure(case, 60, seed=7)
    assert ratio.max() < band(60)
    assert ratio.min() > 2.0 - band(60)


def test_the_bound_is_that_of_the_covariance():
    """For a constant it is the error of the weighted mean, not of the plain one."""
    covariance = toeplitz(LAGS)
    factor = cholesky(covariance, lower=True)
    keep = np.ones(N, dtype=bool)
    p = torch.tensor([0.3], dtype=torch.float64)
    found = bound(lambda t, x: x[0] * torch.ones_like(t), p, keep, factor)[0]
    weighted = 1.0 / math.sqrt(np.linalg.inv(covariance).sum())
    assert found == pytest.approx(weighted, rel=1e-8)
    assert math.sqrt(LAGS[0] / N) < 0.5 * found
