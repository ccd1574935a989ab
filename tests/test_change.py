"""The likeliest cause of a change: another unit, form, level or band."""

import numpy as np
import pytest
from scipy.signal import butter, sosfilt

import sepprior
from sepprior.formatting import without_numbers
from sepprior.inference import calibration
from tests.conftest import SAMPLE_RATE, coloured_noise

LENGTH, N_TRIALS = 200, 20
BAND = {"fmin": 8.0, "fmax": 20.0}
T = np.arange(LENGTH) / SAMPLE_RATE


@pytest.fixture(scope="module")
def prior():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(calibration, "trials_per_band", lambda window, *, joint: 40)
        return sepprior.train_noise(
            coloured_noise(12_800, seed=1),
            sample_rate=SAMPLE_RATE,
            window=100,
            model="gaussian",
        )


def noise(seed=0):
    rng = np.random.default_rng(seed)
    return np.stack(
        [coloured_noise(LENGTH, seed=rng.integers(2**31)) for _ in range(N_TRIALS)]
    )


def wave(f=12.3):
    return 4.0 * np.sin(2 * np.pi * f * T + 0.4)


def lines(f):
    return 6.0 * np.sin(2 * np.pi * f * T + np.arange(N_TRIALS)[:, None])


def rumble(low, high, size):
    sos = butter(4, (low, high), "band", fs=SAMPLE_RATE, output="sos")
    rng = np.random.default_rng(5)
    return size * sosfilt(sos, rng.standard_normal((N_TRIALS, 3 * LENGTH)))[:, -LENGTH:]


CASES = {
    "millivolts": (lambda: 1e3 * (noise() + wave()), "unit", "1e+03 times as loud"),
    "microvolts": (lambda: 1e-3 * (noise() + wave()), "unit", "0.001 times as loud"),
    "gain": (lambda: 10 * (noise() + wave()), "unit", "times as loud"),
    "louder": (lambda: 3 * noise() + wave(), "level", "the error bars account for it"),
    "quieter": (lambda: 0.4 * noise() + wave(), "level", "0.4"),
    "ramp": (lambda: noise() + 3 * wave() * (0.3 + T), "form", "try damped"),
    "harmonics": (lambda: noise() + wave() + wave(24.6), "form", "harmonics"),
    "rumble": (
        lambda: noise() + wave() + rumble(31, 37, 6.0),
        "band",
        "times as loud at 25",
    ),
    "line": (lambda: noise() + wave() + lines(45.0), "band", "times as loud at"),
}


@pytest.mark.parametrize("case", CASES)
def test_the_likeliest_cause_is_named(case, prior):
    made, cause, words = CASES[case]
    result = sepprior.separate(made(), prior, **BAND)
    told = result.diagnostics["out_of_distribution"]
    if cause == "level":
        told = result.diagnostics["noise_level_followed"]
        assert result.diagnostics["out_of_distribution"].mean() < 0.1
    assert told.mean() > 0.9
    named = result.diagnostics["noise_change"][told]
    assert (named == cause).mean() > 0.8, list(named)
    assert any(words in status for status in result.status), result.status[0]


def test_unchanged_noise_has_no_cause(prior):
    result = sepprior.separate(noise() + wave(), prior, **BAND)
    diagnostics = result.diagnostics
    assert (diagnostics["noise_change"] == "").sum() >= N_TRIALS - 2
    fine = ~diagnostics["out_of_distribution"]
    assert np.isnan(diagnostics["noise_change_ratio"][fine]).all()
    np.testing.assert_allclose(diagnostics["noise_level"], 1.0, atol=0.3)
    one = result.select(int(np.flatnonzero(fine)[0]))
    assert one.to_dict()["diagnostics"]["noise_change"] == ""
    assert "cause" not in one.report(verbose=True)


def test_facts_are_plain(prior):
    one = sepprior.separate((3 * noise() + wave())[0], prior, **BAND)
    facts = one.to_dict()["diagnostics"]
    assert facts["noise_change"] == "level"
    assert facts["noise_change_low"] == 0.0
    assert facts["noise_change_high"] == SAMPLE_RATE / 2
    assert facts["noise_change_ratio"] == pytest.approx(3.0, rel=0.2)
    assert "likeliest cause of the change: level" in one.report(verbose=True)


def test_statuses_are_counted_without_their_numbers():
    one = "the noise has changed since training (3.1 times as loud): record"
    assert without_numbers(one) == "the noise has changed since training: record"
    kept = "another unit (mV for V)"
    assert without_numbers(kept) == kept
