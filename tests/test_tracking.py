"""Tracks: waveforms joined from windows, the phase across them, the whole command."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import signal as scipy_signal

import sepprior
from sepprior.errors import SeppriorError
from sepprior.tracking import iterate_windows
from sepprior.tracking.phase import probability_of_count, step_variance, unwrap, wrap
from sepprior.tracking.spectrogram import SpectrogramBuilder
from sepprior.tracking.stitch import OverlapAdd, taper
from tests.conftest import SAMPLE_RATE, WINDOW, coloured_noise

# -- joining windows -------------------------------------------------------------------


def join(waveforms, *, window, hop, length, batch, fitted=None):
    """All windows (K, B, N) through `OverlapAdd` in batches."""
    joined = OverlapAdd(
        window=window, hop=hop, length=length, n_waveforms=len(waveforms)
    )
    count = waveforms.shape[1]
    fitted = np.ones(count, dtype=bool) if fitted is None else fitted
    parts = [
        joined.add(waveforms[:, k : k + batch], fitted[k : k + batch])
        for k in range(0, count, batch)
    ]
    return np.concatenate([*parts, joined.finish()], axis=1)


def windows_of(x, *, window, hop):
    (batch,) = iterate_windows(x, window=window, hop=hop, batch=10**6)
    return np.nan_to_num(batch.x)


@settings(deadline=None, max_examples=50)
@given(
    length=st.integers(1, 300),
    window=st.integers(16, 60),
    share=st.floats(0.02, 1.0),
    batch=st.integers(1, 9),
)
def test_what_all_windows_agree_on_is_returned_exactly(length, window, share, batch):
    hop = max(1, int(share * window))
    t = np.arange(length)
    waves = np.stack([np.ones(length), np.sin(0.3 * t + 1.0)])
    cut = np.stack([windows_of(wave, window=window, hop=hop) for wave in waves])
    joined = join(cut, window=window, hop=hop, length=length, batch=batch)
    # the first wave is one everywhere: so is the sum of the weights
    np.testing.assert_allclose(joined, waves, rtol=0, atol=4e-16 * (2 + window / hop))


def test_weights_are_those_of_the_formula():
    window, hop, length, count = 16, 6, 40, 5
    rng = np.random.default_rng(0)
    values = rng.standard_normal((1, count, window))
    joined = join(values, window=window, hop=hop, length=length, batch=2)
    expected = np.zeros(length)
    for n in range(length):
        inside = [k for k in range(count) if 0 <= n - k * hop < window]
        h = [np.sin(np.pi * (n - k * hop + 0.5) / window) ** 2 for k in inside]
        s = [values[0, k, n - k * hop] for k in inside]
        expected[n] = np.dot(h, s) / np.sum(h)
    np.testing.assert_allclose(joined[0], expected, rtol=1e-12)
    # at half overlap of an even window the tapers need no division
    np.testing.assert_allclose(taper(16)[:8] + taper(16)[8:], 1.0, rtol=1e-15)


def test_windows_without_a_fit_do_not_count():
    window, hop = 20, 10
    x = np.sin(0.4 * np.arange(100))
    cut = windows_of(x, window=window, hop=hop)[None]
    fitted = np.ones(cut.shape[1], dtype=bool)
    fitted[[3, 4, 5]] = False  # samples 40 to 60 are in no other window
    cut[:, ~fitted] = np.nan
    joined = join(cut, window=window, hop=hop, length=100, batch=4, fitted=fitted)[0]
    np.testing.assert_array_equal(np.isnan(joined), (np.arange(100) // 20) == 2)
    np.testing.assert_allclose(joined[:40], x[:40], atol=1e-15)


def test_a_jump_between_windows_is_faded_over():
    # two windows that disagree by 1: the joined wave has no step as large as 1 / 8
    values = np.stack([np.zeros(32), np.ones(32)])[None]
    joined = join(values, window=32, hop=16, length=48, batch=2)[0]
    assert np.abs(np.diff(joined)).max() < 1 / 8
    side_by_side = join(values, window=32, hop=32, length=64, batch=2)[0]
    assert np.abs(np.diff(side_by_side)).max() == 1


# -- the phase -------------------------------------------------------------------------


def least_squares_track(phase, *, window, hop, sigma, rng):
    """Phase and frequency of a straight line through noisy phases, window by window.

    What least squares reads off a strong line in white noise: the noise turns each
    sample's phase by an independent amount.
    """
    noisy = phase + sigma * rng.standard_normal(phase.shape)
    tau = np.arange(window) - (window - 1) / 2
    first = np.arange(0, phase.shape[-1] - window + 1, hop)
    cut = np.stack([noisy[..., k : k + window] for k in first], -2)
    return cut.mean(-1), cut @ tau / np.sum(tau**2) / (2 * np.pi)


@pytest.mark.statistical
@pytest.mark.parametrize("hop", [10, 30, 60, 100, 140])
def test_variance_of_a_step_is_that_of_simulated_fits(hop):
    # 8000 trials: the relative standard error of a variance is 1.6 %
    window, sigma, trials = 100, 0.3, 8000
    rng = np.random.default_rng(hop)
    phase = np.zeros((trials, window + hop))
    psi, f = least_squares_track(phase, window=window, hop=hop, sigma=sigma, rng=rng)
    step = psi[:, 1] - psi[:, 0] - np.pi * hop * (f[:, 0] + f[:, 1])
    tau = np.arange(window) - (window - 1) / 2
    sp = np.full(2, sigma / np.sqrt(window))
    sf = np.full(2, sigma / np.sqrt(np.sum(tau**2)) / (2 * np.pi))
    options = {"shift": np.array([hop / window])}
    expected = step_variance(np.array([float(hop)]), sf, sp, **options)
    assert np.var(step) == pytest.approx(expected[0], rel=0.08)
    # negative control: taken as independent the errors of overlapping fits are others
    independent = step_variance(np.array([float(hop)]), sf, sp, shift=np.ones(1))
    if hop < 60:
        assert np.var(step) < 0.7 * independent[0]


@pytest.mark.statistical
def test_probability_of_the_count_is_how_often_it_is_right():
    # frequencies so uncertain that the count is often wrong; 40000 steps
    rng = np.random.default_rng(4)
    for sd in (0.8, 1.5, 2.5, 6.0):
        error = sd * rng.standard_normal(40000)
        remainder = wrap(error)
        right = np.abs(error) <= np.pi
        p = probability_of_count(remainder, np.full(40000, sd**2))
        assert p.mean() == pytest.approx(right.mean(), abs=0.01)
        for low, high in ((0, 0.5), (0.5, 0.9), (0.9, 0.99)):
            chosen = (p >= low) & (p < high)
            if chosen.sum() > 1000:  # 5 standard errors of a frequency
                assert p[chosen].mean() == pytest.approx(right[chosen].mean(), abs=0.08)
    assert probability_of_count(np.array([0.0]), np.array([0.0])) > 1 - 1e-9
    # uncertainty without end: all of the 41 counts compared are alike
    assert probability_of_count(np.array([0.1]), np.array([1e9])) < 0.03
    # a remainder of 1 where 0.1 +- 0.05 is expected: the step tells nothing
    far = probability_of_count(np.array([0.05, 0.1, 1.0]), np.full(3, 0.05**2))
    assert far[0] > 0.999 and far[1] > 0.999 and far[2] < 0.01


def track_phase(*, hop=50, sigma=0.05, wander=0.0, missing=(), lost=(), by=0.1, seed=0):
    """A synthetic line, its fits, and what `unwrap` makes of them."""
    window, n = 100, 10_000
    rng = np.random.default_rng(seed)
    frequency = 0.02 + wander * np.cumsum(rng.standard_normal(n))
    phase = 2 * np.pi * np.cumsum(frequency)
    psi, f = least_squares_track(phase, window=window, hop=hop, sigma=sigma, rng=rng)
    centre = 5.0 + (window - 1) / 2 + hop * np.arange(len(psi))
    truth = np.interp(centre - 5.0, np.arange(n), phase)
    tau = np.arange(window) - (window - 1) / 2
    usable = np.ones(len(psi), dtype=bool)
    usable[list(missing)] = False
    f[list(lost)] += by
    result = unwrap(
        centre,
        f,
        np.full(len(f), sigma / np.sqrt(np.sum(tau**2)) / (2 * np.pi)),
        wrap(psi),
        np.full(len(f), sigma / np.sqrt(window)),
        usable=usable,
        duration=window,
        epoch=5.0,
    )
    return result, truth - 2 * np.pi * result.reference * (centre - 5.0), usable


def test_phase_of_a_wandering_line_is_followed():
    result, truth, _ = track_phase(wander=1e-5)
    assert np.ptp(truth) > 2 * np.pi  # it does wander by more than a cycle
    error = result.value - truth
    assert np.abs(error - np.round(error[0] / 2 / np.pi) * 2 * np.pi).max() < 0.1
    assert np.isnan(result.probability[0]) and result.certain[1:].all()


def test_a_long_gap_makes_the_count_uncertain_and_a_short_one_does_not():
    result, truth, usable = track_phase(sigma=0.3, missing=(20, 21, *range(60, 160)))
    assert np.isnan(result.value[~usable]).all()
    assert np.isnan(result.probability[~usable]).all()
    assert result.certain[22]
    assert not result.certain[160] and result.probability[160] < 0.9
    assert result.certain[161:].all()
    # whole cycles apart, the phase is right on both sides
    error = (result.value - truth)[usable]
    assert np.abs(wrap(error)).max() < 5 * 0.03


def test_a_window_with_a_lost_frequency_is_left_out():
    result, truth, _ = track_phase(lost=(0, 60, 61, 198))
    np.testing.assert_array_equal(
        np.flatnonzero(np.isnan(result.value)), [0, 60, 61, 198]
    )
    error = result.value - truth
    error -= np.round(np.nanmedian(error) / 2 / np.pi) * 2 * np.pi
    assert np.nanmax(np.abs(error)) < 5 * 0.005
    assert result.certain[62]
    # what is no further off than the resolution is kept, and the step is distrusted
    near, _, _ = track_phase(lost=(60,), by=0.004)
    assert np.isfinite(near.value[60]) and not near.certain[60]


def test_wander_makes_the_count_less_certain():
    calm, _, _ = track_phase(hop=100, missing=range(40, 50))
    restless, _, _ = track_phase(hop=100, missing=range(40, 50), wander=5e-5)
    assert calm.probability[50] > 0.99 > restless.probability[50]


def test_nothing_detected_has_no_phase():
    result, _, _ = track_phase(missing=range(199))
    assert np.isnan(result.value).all() and np.isnan(result.reference)
    assert not result.certain.any()


# -- the spectrogram -------------------------------------------------------------------


@pytest.mark.parametrize("block", [17, 64, 5000])
def test_spectrogram_is_that_of_scipy(block):
    x = np.random.default_rng(1).standard_normal(5000)
    builder = SpectrogramBuilder(length=5000, frame=64, sample_rate=50.0, start=3.0)
    for first in range(0, 5000, block):
        builder.add(x[first : first + block])
    found = builder.finish()
    f, t, density = scipy_signal.spectrogram(
        x,
        50.0,
        window=np.hanning(66)[1:-1],
        nperseg=64,
        noverlap=32,
        detrend="constant",
    )
    np.testing.assert_allclose(found.frequency, f)
    np.testing.assert_allclose(found.density, density, rtol=1e-9)
    middles = 0.5 * (found.edges[1:] + found.edges[:-1])
    np.testing.assert_allclose(middles[1:-1], t[1:-1] + 3.0, atol=0.02)
    assert found.edges[0] == 3.0 and found.edges[-1] == pytest.approx(103.0)


def test_long_spectrogram_has_few_columns_and_keeps_the_power():
    x = np.random.default_rng(2).standard_normal(200_000)
    x[100_000:] *= 3.0
    x[50_000:60_000] = np.nan
    builder = SpectrogramBuilder(length=len(x), frame=128, sample_rate=1.0, start=0)
    builder.add(x)
    found = builder.finish()
    assert found.density.shape == (65, 400)
    middles = 0.5 * (found.edges[1:] + found.edges[:-1])
    mean = found.density[1:-1].mean(0)
    gap = (middles > 50_500) & (middles < 59_500)
    assert np.isnan(mean[gap]).all()
    # white noise of variance v has a one-sided density of 2 v per Hz at 1 Hz
    early, late = (middles < 49_000), (middles > 101_000)
    assert mean[early].mean() == pytest.approx(2.0, rel=0.02)
    assert mean[late].mean() == pytest.approx(18.0, rel=0.02)


# -- tracks ----------------------------------------------------------------------------


def wandering(n, *, amplitude=4.0, seed=0):
    """A sinusoid whose frequency and amplitude wander; truth per sample."""
    t = np.arange(n) / SAMPLE_RATE
    frequency = 12.0 + 0.25 * np.sin(2 * np.pi * t / 97.0)
    strength = amplitude * (1 + 0.2 * np.cos(2 * np.pi * t / 61.0))
    phase = 2 * np.pi * np.cumsum(frequency) / SAMPLE_RATE + 0.3
    return strength * np.sin(phase), frequency, strength, phase


@pytest.fixture(scope="module")
def followed(gaussian_prior):
    clean, frequency, strength, phase = wandering(12_800)
    x = coloured_noise(len(clean), seed=8) + clean
    track = sepprior.track(x, gaussian_prior, fmin=5, fmax=30, start=100.0)
    return track, x, clean, frequency, strength, phase


@pytest.mark.statistical
def test_truth_lies_in_the_stated_intervals(followed):
    # 399 windows at half overlap, about 200 independent ones: 3 standard errors of a
    # coverage of 95 % are 4.6 %, of 68 % 10 %
    track, _, _, frequency, strength, _ = followed
    table = track.table
    centre = np.round((table["centre"] - 100.0) * SAMPLE_RATE).astype(int)
    for name, truth in (("frequency", frequency), ("amplitude", strength)):
        value, error = table[name], table[f"{name}_stderr"]
        inside = (table[f"{name}_low"] < truth[centre]) & (
            truth[centre] < table[f"{name}_high"]
        )
        assert 0.90 < inside.mean() <= 1.0
        assert 0.57 < (abs(value - truth[centre]) < error).mean() < 0.79
        # negative control: intervals of half the length do not hold
        assert (abs(value - truth[centre]) < 0.5 * 1.96 * error).mean() < 0.85


def test_waveform_is_complete_and_better_than_single_windows(followed, gaussian_prior):
    track, x, clean, *_ = followed
    np.testing.assert_array_equal(track.measurement, x)
    np.testing.assert_allclose(track.signal + track.noise, x, rtol=0, atol=1e-12)
    assert track.time[0] == 100.0 and len(track.time) == len(x)
    assert np.isfinite(track.signal).all()
    level = gaussian_prior.level
    np.testing.assert_allclose(track.residual, track.noise - level, atol=1e-9)
    alone = sepprior.track(x, gaussian_prior, hop=WINDOW, fmin=5, fmax=30)
    assert np.std(track.signal - clean) < 0.9 * np.std(alone.signal - clean)


@pytest.mark.statistical
def test_phase_follows_the_truth(followed):
    # 399 errors of a standard error each, 4.5 of them have p < 0.003
    track, _, _, _, _, phase = followed
    table = track.table
    (reference,) = track.reference_frequency
    since = table["centre"] - 100.0
    samples = np.arange(len(phase)) / SAMPLE_RATE
    truth = np.interp(since, samples, phase) - 2 * np.pi * reference * since
    error = table["unwrapped_phase"] - truth
    error -= np.round(error.median() / (2 * np.pi)) * 2 * np.pi
    # the phase of an arch of a wandering line is not quite that at its middle
    assert np.abs(error / table["centre_phase_stderr"]).max() < 4.5
    assert table["cycle_certain"][1:].all()


def test_report_and_summary(followed):
    track = followed[0]
    text = track.report()
    assert "399 windows of 64 samples (0.64 s), one every 32 (0.32 s)" in text
    assert "a signal is detected in 399 of 399 windows" in text
    assert "certain in all 398 steps" in text
    summary = json.loads(json.dumps(track.summary()))
    assert summary["windows"] == 399 and summary["uncertain_steps"] == {"phase": 0}
    assert summary["median"]["frequency"] == pytest.approx(12.0, abs=0.1)
    assert sum(summary["status"].values()) == 399
    assert "399 windows" in repr(track) and len(track) == 399


def test_two_lines_keep_their_order(gaussian_prior):
    # the lower line starts weaker and ends stronger: the order of finding changes
    n = 4000
    t = np.arange(n) / SAMPLE_RATE
    rise = np.linspace(3, 9, n)
    x = coloured_noise(n, seed=4) + rise * np.sin(2 * np.pi * 11 * t)
    x += rise[::-1] * np.sin(2 * np.pi * 31 * t + 1)
    track = sepprior.track(x, gaussian_prior, components=2, fmin=5, fmax=45)
    table = track.table
    for name in ("frequency", "gls_frequency", "robust_frequency"):
        np.testing.assert_allclose(table[f"{name}_1"], 11, atol=0.5)
        np.testing.assert_allclose(table[f"{name}_2"], 31, atol=0.5)
    assert (np.diff(table["amplitude_1"].rolling(20).mean().dropna()) > -0.2).all()
    assert table["amplitude_1"].iloc[-1] > table["amplitude_2"].iloc[-1] + 3
    assert (table["frequency_2_low"] < 31.3).all()
    np.testing.assert_allclose(track.reference_frequency, [11, 31], atol=0.05)
    assert [line.end for line in track.lines] == ["_1", "_2"]


def test_recording_of_noise_has_no_phase(gaussian_prior, tmp_path):
    x = coloured_noise(40 * WINDOW, seed=6)
    track = sepprior.track(x, gaussian_prior, fmin=5, fmax=30, hop=WINDOW)
    assert track.detected.sum() <= 3  # 1 % of 40; more has p < 0.001
    assert "no window with a detected signal" in track.report() or track.detected.any()
    track.plot(tmp_path / "noise.png")
    assert (tmp_path / "noise.png").stat().st_size > 10_000


def test_short_and_gapped_recordings(gaussian_prior, tmp_path):
    clean, *_ = wandering(1000)
    x = coloured_noise(1000, seed=3) + clean
    short = sepprior.track(x[:40], gaussian_prior, fmin=5, fmax=30)
    assert len(short) == 1 and short.table["samples"][0] == 40
    assert np.isfinite(short.signal).all()
    x[300:700] = np.nan
    track = sepprior.track(x, gaussian_prior, fmin=5, fmax=30)
    assert np.isnan(track.signal[400:600]).all()
    assert (
        np.isfinite(track.signal[:300]).all() and np.isfinite(track.signal[700:]).all()
    )
    assert not np.isfinite(track.noise[300:700]).any()
    for number, result in enumerate((short, track)):
        result.plot(tmp_path / f"{number}.png")
        assert (tmp_path / f"{number}.png").stat().st_size > 10_000


@pytest.mark.parametrize(
    ("x", "options", "message"),
    [
        (np.zeros((2, 100)), {}, "one recording"),
        (np.ones(100), {}, "constant"),
        (np.append(np.arange(100.0), np.inf), {}, "infinite"),
        (np.arange(100.0), {"hop": 65}, "samples between the windows would be lost"),
        (np.arange(100.0), {"window": 8}, "at least 16"),
        (np.arange(100.0), {"sample_rate": 50.0}, "resample"),
        (np.arange(100.0), {"fmin": 60.0}, "cannot be searched"),
        (np.array(["a"] * 100), {}, "real numbers"),
    ],
)
def test_what_cannot_be_tracked_is_refused(gaussian_prior, x, options, message):
    with pytest.raises(SeppriorError, match=message):
        sepprior.track(x, gaussian_prior, **options)
