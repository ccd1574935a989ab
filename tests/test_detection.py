"""False alarms in noise that is not Gaussian, at the stated rate."""

import json
import math

import numpy as np
import pytest
import torch
from scipy.stats import binom

import sepprior
from sepprior.inference.detection import NullGains, gaussian_gains, measure_gains

N, RATE = 96, 48.0
R = 0.8 ** np.arange(N)


def noise(n, seed, *, loud=0.0):
    """Windows (n, N) of AR(1) noise; a share `loud` of them is three times as loud."""
    rng = np.random.default_rng(seed)
    factor = np.linalg.cholesky(R[np.abs(np.subtract.outer(range(N), range(N)))])
    x = rng.standard_normal((n, N)) @ factor.T
    return x * np.where(rng.random((n, 1)) < loud, 3.0, 1.0)


def measured(n, seed, *, loud=0.0):
    scale = 1.0 + 8.0 * loud
    x = torch.from_numpy(noise(n, seed, loud=loud))
    return measure_gains(x, torch.from_numpy(scale * R), sample_rate=RATE)


def test_gains_in_gaussian_noise_stay_as_they_are():
    table = measured(3000, 0)
    assert json.loads(json.dumps(table)) == table
    for row in table["gains"]:
        expected = table["step"] * np.arange(len(row))
        assert len(row) > 8
        np.testing.assert_allclose(row, expected, atol=0.35)
        assert (np.abs(row - expected) < 0.02).mean() > 0.4


def test_gains_in_noise_of_unsteady_level_are_the_larger_the_rarer():
    """A mixture of two exponential distributions, whose quantiles are known."""
    loud = 0.1
    table = measured(6000, 1, loud=loud)
    scale = 1.0 + 8.0 * loud
    for row in table["gains"]:
        for k in (4, 8, 12):
            rare = math.exp(-table["step"] * k)
            low, high = 0.0, 100.0
            for _ in range(60):
                g = 0.5 * (low + high)
                share = (1 - loud) * math.exp(-g * scale)
                share += loud * math.exp(-g * scale / 9.0)
                low, high = (g, high) if share > rare else (low, g)
            if k < len(row):
                assert row[k] == pytest.approx(g, rel=0.15, abs=0.15)
    # Between the quantiles and beyond them the map goes on, and never falls.
    gain = torch.linspace(0.0, 40.0, 200, dtype=torch.float64)[None].mT
    cycles = torch.tensor([5.0], dtype=torch.float64)
    mapped = gaussian_gains(table, gain, cycles, windows=1)
    assert (mapped.diff(dim=0) > 0.0).all() and mapped[-1] < 0.5 * gain[-1]
    diluted = gaussian_gains(table, gain, cycles, windows=4)
    torch.testing.assert_close(4.0 * (diluted - gain), mapped - gain)
    assert gaussian_gains(None, gain, cycles, windows=1) is gain
    # A threshold is a gain that is mapped back to what Gaussian noise exceeds as often.
    plain = NullGains(20.0).threshold(0.01)
    there = NullGains(20.0, recorded=table, cycles=(3.0, 7.0)).threshold(0.01)
    assert there > 1.3 * plain
    back = gaussian_gains(table, torch.tensor([[there]]).double(), cycles, windows=1)
    assert float(back) == pytest.approx(plain, rel=1e-3)


@pytest.mark.statistical
def test_false_alarms_come_at_the_stated_rate():
    """1000 fresh windows: 1 % are alarms, the interval has probability 1 - 1e-3.

    Negative control: judged as Gaussian noise, three times as many are.
    """
    record = [noise(20, 100 + s, loud=0.1).reshape(-1) for s in range(60)]
    prior = sepprior.train_noise(
        record, sample_rate=RATE, config=sepprior.GaussianConfig(window=N)
    )
    fresh = noise(1000, 7, loud=0.1)

    def alarms():
        found = sepprior.separate(fresh, prior, fmin=2.0, fmax=10.0)
        return int((found.diagnostics["false_alarm_probability"] < 0.01).sum())

    few, many = binom(1000, 0.01).interval(0.999)
    assert few <= alarms() <= many
    del prior.metadata["gains"]
    assert alarms() > 30
