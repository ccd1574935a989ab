"""False alarms in noise that is not Gaussian, at the stated rate."""

import json
import math

import numpy as np
import pytest
import torch
from scipy.stats import binom

import sepprior
from sepprior.inference import detection
from sepprior.inference.detection import (
    NullGains,
    gaussian_gains,
    largest_gaussian_gain,
    measure_gains,
)
from sepprior.inference.periodogram import periodogram
from sepprior.inference.record import MaskedWhitener, lay_out
from sepprior.transforms import Whitener

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


def all_at_once(x, kept):
    """The table from one periodogram of all windows; `kept` of them for each band."""
    n = len(x)
    record = lay_out(x, window=N, level=0.0, sample_rate=RATE)
    whitener = MaskedWhitener(Whitener(torch.from_numpy(R)), record.present)
    spectrum = periodogram(record, whitener, fmin=RATE / N, fmax=0.45 * RATE)
    cycles = spectrum.frequency * N / RATE
    rows = []
    for low, high, rest in zip((1, 2.5, 8, 36), (2.5, 8, 36, 99), kept, strict=True):
        inside = (cycles >= low) & (cycles < high)
        gains = np.sort(spectrum.gain[rest][:, inside].numpy(), axis=None)
        count = min(0.5 * n, len(gains) / int(inside.sum()))
        count *= max(1.0, float(cycles[inside].max() - low))
        row = [0.0]
        for k in range(1, int(math.log(count / 20.0) / 0.5) + 1):
            rare = math.exp(-0.5 * k)
            found = gains[round((1.0 - rare) * (len(gains) - 1))] - 0.5 * k
            keep = max(0.0, 1.0 - 1.0 / (rare * count * found**2))
            row.append(max(row[-1] + 1e-6, 0.5 * k + keep * found))
        rows.append(row)
    return rows


def test_windows_a_few_at_a_time_give_the_table_of_all_at_once(monkeypatch):
    x = torch.from_numpy(noise(700, 3, loud=0.1))
    whole = [slice(None)] * 4
    expected = all_at_once(x, whole)
    monkeypatch.setattr(detection, "GRID_AT_ONCE", 8 * N * 64)
    found = measure_gains(x, torch.from_numpy(R), sample_rate=RATE)["gains"]
    assert [len(row) for row in found] == [len(row) for row in expected]
    for row, reference in zip(found, expected, strict=True):
        np.testing.assert_allclose(row, reference, rtol=1e-9)
    # Of the widest band, of 28 cycles, the gains of 400 windows are all that is kept.
    wide = 298
    monkeypatch.setattr(detection, "MOST_GAINS", 400 * wide)
    found = measure_gains(x, torch.from_numpy(R), sample_rate=RATE)["gains"]
    kept = [slice(None), slice(None), np.arange(400) * 700 // 400, slice(None)]
    for row, reference in zip(found, all_at_once(x, kept), strict=True):
        np.testing.assert_allclose(row, reference, rtol=1e-9)
    assert found[2] != pytest.approx(expected[2][: len(found[2])], rel=1e-6)


def test_largest_gain_is_that_of_the_whole_map():
    """Negative control: the largest gain, mapped, is not the largest mapped gain."""
    table = {
        "cycles": [1.0, 2.5, 8.0, 36.0],
        "step": 0.5,
        "gains": [[0, 0.5, 1.1], [0, 0.9, 2.5, 6.0], [0, 0.4, 0.9], [0, 0.5, 1, 2.0]],
    }
    rng = np.random.default_rng(4)
    gain = torch.from_numpy(rng.exponential(size=(50, 400)) - 0.1)
    for start, stop in ((0.5, 43.0), (9.0, 30.0), (5.0, 5.0)):
        cycles = torch.linspace(start, stop, 400, dtype=torch.float64)
        for windows in (1, 7):
            every = gaussian_gains(table, gain, cycles, windows=windows)
            largest = largest_gaussian_gain(table, gain, cycles, windows=windows)
            torch.testing.assert_close(largest, every.amax(-1), rtol=1e-12, atol=0.0)
    cycles = torch.linspace(0.5, 43.0, 400, dtype=torch.float64)
    every = gaussian_gains(table, gain, cycles, windows=1)
    at_largest = every.gather(1, gain.argmax(-1, keepdim=True))[:, 0]
    assert (at_largest < every.amax(-1)).float().mean() > 0.1
    plain = largest_gaussian_gain(None, gain, cycles, windows=1)
    torch.testing.assert_close(plain, gain.amax(-1))


@pytest.mark.statistical
def test_false_alarms_come_at_the_stated_rate():
    """1000 fresh windows: 1 % are alarms, the interval has probability 1 - 1e-3.

    Negative control: judged as Gaussian noise of one level, three times as many are.
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
    del prior.metadata["gains"], prior.metadata["calibration"]["gls"]["level"]
    assert alarms() > 30
