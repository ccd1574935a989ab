"""Random changes of training windows, each against what it should keep."""

import dataclasses
import math

import numpy as np
import pytest
import torch

from sepprior.config import WaveGANConfig
from sepprior.data import as_recording
from sepprior.training import augment
from sepprior.training.moments import (
    RunningMoments,
    plane_moments,
    spectrum_moments,
    windows_of,
)


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def windows(n=200, size=101):
    return torch.randn(n, size, generator=rng(1), dtype=torch.float64)


def test_nothing_is_changed_by_default():
    source = rng()
    before = source.get_state()
    x = windows()
    assert augment.augmented(x, WaveGANConfig(), sd=2.0, rng=source) is x
    assert torch.equal(source.get_state(), before)


def test_a_shift_is_a_roll():
    x = windows()
    y = augment.shifted(x, rng())
    torch.testing.assert_close(torch.fft.rfft(y).abs(), torch.fft.rfft(x).abs())
    assert torch.equal(y.sort(1).values, x.sort(1).values)
    assert not torch.equal(x, y)
    one = torch.zeros(2000, 20)
    one[:, 0] = 1.0
    where = augment.shifted(one, rng()).argmax(1)
    counts = torch.bincount(where, minlength=20)
    assert int(counts.min()) > 60  # of 100 expected, 4 standard deviations


def test_noise_adds_its_variance():
    x = windows(400)
    added = augment.with_noise(x, 0.5, rng()) - x
    assert float(added.std()) == pytest.approx(0.5, rel=0.02)
    config = dataclasses.replace(WaveGANConfig(), augment_noise=0.25)
    added = augment.augmented(x, config, sd=2.0, rng=rng()) - x
    assert float(added.std()) == pytest.approx(0.5, rel=0.02)


def test_a_mask_removes_one_band_and_nothing_else():
    x = windows()
    before, after = (torch.fft.rfft(v) for v in (x, augment.masked(x, 0.3, rng())))
    gone = after.abs() < 1e-9
    torch.testing.assert_close(after[~gone], before[~gone])
    for row in gone:
        places = torch.nonzero(row).flatten()
        assert len(places) <= math.ceil(0.3 * after.shape[1])
        assert len(places) == 0 or len(places) == places[-1] - places[0] + 1
    assert 0.1 < float(gone.double().mean()) < 0.2


def test_a_mask_takes_half_its_width_of_the_variance_of_white_noise():
    """1000 windows: standard error 0.3 %."""
    x = windows(1000)
    lost = 1 - float(augment.masked(x, 0.2, rng()).var() / x.var())
    assert lost == pytest.approx(0.1, abs=0.012)


def test_a_stretch_changes_the_frequency_within_its_limits():
    t = torch.arange(2000, dtype=torch.float64)
    x = torch.sin(2 * math.pi * 0.05 * t).expand(200, -1)
    y = augment.stretched(x, 0.1, rng())
    taper = torch.hann_window(2000, dtype=torch.float64)
    peak = torch.fft.rfft(y * taper, 16000).abs().argmax(1) / 16000 / 0.05
    assert 1 / 1.1 - 0.005 < float(peak.min()) < 0.93
    assert 1.07 < float(peak.max()) < 1.1 + 0.005
    torch.testing.assert_close(augment.stretched(x, 0.0, rng()), x)


@pytest.mark.parametrize("frequency", [0.05, 0.2, 0.4])
def test_a_stretched_sinusoid_is_one_of_another_frequency(frequency):
    n, margin = 1000, 66
    t = torch.arange(n + 2 * margin, dtype=torch.float64) - 0.5 * (n + 2 * margin - 1)
    x = torch.cos(2 * math.pi * frequency * t + 1.0).expand(100, -1)
    y = augment.stretched(x, 0.1, rng(), margin=margin)
    drawn = torch.rand((100, 1), generator=rng(), dtype=torch.float64)
    t = 1.1 ** (2 * drawn - 1) * t[margin:-margin]
    error = y - torch.cos(2 * math.pi * frequency * t + 1.0)
    assert float(error.square().mean().sqrt()) < 0.01
    assert float(error.abs().max()) < 0.1


def band_levels(x):
    """Power spectral density of white noise (B, N) in bands of 0.1 below 0.4, dB."""
    taper = torch.hann_window(x.shape[1], dtype=x.dtype)
    power = torch.fft.rfft(x * taper).abs().square().mean(0) / taper.square().sum()
    width = x.shape[1] // 10
    bands = power[: 4 * width].view(4, width)
    return 10 * torch.log10(bands[:, 2:].mean(1))


@pytest.mark.statistical
@pytest.mark.parametrize("largest", [0.02, 0.1])
def test_stretched_white_noise_stays_white_up_to_its_edges(largest):
    """10000 windows: standard errors 0.02 dB, 0.1 % and 0.4 % at the edges."""
    n = 120
    config = dataclasses.replace(WaveGANConfig(), window=n, augment_stretch=largest)
    margin = augment.stretch_margin(config)
    x = torch.randn(10000, n + 2 * margin, generator=rng(1), dtype=torch.float64)
    y = augment.augmented(x, config, sd=1.0, rng=rng())
    assert y.shape == (10000, n)
    assert float(band_levels(y).abs().max()) < 0.2
    assert float(y.var()) == pytest.approx(1.0, rel=0.02)
    edges = torch.cat([y[:, :6], y[:, -6:]])
    assert float(edges.var()) == pytest.approx(1.0, rel=0.02)
    # Negative control: read between two samples on a straight line.
    between = torch.rand((10000, 1), generator=rng(2), dtype=torch.float64)
    linear = torch.lerp(x[:, :n], x[:, 1 : n + 1], between)
    assert float(band_levels(linear)[-1]) < -2
    assert float(linear.var()) < 0.75


@pytest.mark.statistical
def test_a_stretch_without_surroundings_reads_the_mirror_image():
    """4000 windows: standard error 0.15 %; only the ends lose variance."""
    x = torch.randn(4000, 300, generator=rng(1), dtype=torch.float64)
    y = augment.stretched(x, 0.1, rng())
    assert float(y.var()) == pytest.approx(1.0, rel=0.01)
    assert float(y[:, 20:-20].var()) == pytest.approx(1.0, rel=0.01)


def test_running_moments_do_not_depend_on_the_cuts():
    x = 1e6 + torch.randn(1000, 3, generator=rng(), dtype=torch.float64)
    found = []
    for cuts in ([1000], [1, 2, 397, 600], [500, 500]):
        moments = RunningMoments()
        for part in x.split(cuts):
            moments.add(part)
        found.append(moments)
        np.testing.assert_allclose(moments.mean, x.mean(0), rtol=1e-12)
        np.testing.assert_allclose(moments.sd, x.std(0, correction=0), rtol=1e-6)
    # Negative control: the textbook one-pass formula fails at this offset in float32.
    naive = (x.float().square().mean(0) - x.float().mean(0).square()).clamp_min(0)
    assert float((naive.sqrt() - 1).abs().max()) > 0.1


def test_plane_moments_are_over_samples_and_frames():
    planes = torch.randn(30, 4, 7, generator=rng()) * torch.arange(1, 5)[:, None]
    mean, sd = plane_moments(iter(planes.split(7)))
    flat = planes.transpose(1, 2).reshape(-1, 4)
    np.testing.assert_allclose(mean[:, 0], flat.mean(0), atol=1e-6)
    np.testing.assert_allclose(sd[:, 0], flat.std(0, correction=0), rtol=1e-5)


def test_a_frequency_without_power_has_a_finite_logarithm():
    x = torch.ones(4, 64, dtype=torch.float64)
    x[:, ::2] = -1.0  # all power at Nyquist
    log_mean, log_sd = spectrum_moments(iter([x]))
    assert torch.isfinite(log_mean).all() and torch.isfinite(log_sd).all()
    assert float(log_mean[0]) == pytest.approx(math.log(1e-12))
    assert float(log_mean[-1]) == pytest.approx(math.log(64.0))


def test_windows_come_in_bounded_chunks(monkeypatch):
    monkeypatch.setattr("sepprior.training.moments.CHUNK_SAMPLES", 320)
    x = np.arange(6400.0)
    parts = list(windows_of(as_recording(x, sample_rate=1.0), window=64))
    assert [len(p) for p in parts] == [5] * 20
    np.testing.assert_array_equal(torch.cat(parts).flatten(), x)
