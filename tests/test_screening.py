"""Numbers that are no readings become NaN; everything else stays as it is."""

import json
import warnings

import numpy as np
import pytest
from click.testing import CliRunner

from sepprior import read_measurements, separate, track
from sepprior.checkpoint import save_prior
from sepprior.cli import main
from sepprior.data import as_recording, screening
from sepprior.data.screening import screened
from sepprior.data.series import sample_number
from sepprior.errors import SeppriorWarning

RNG = np.random.default_rng(3)
N = 4000
X = RNG.standard_normal(N)
T = np.arange(N)
COUNTS = np.round(300 * X)
SINE = 1000 * np.sin(2 * np.pi * T / 200)


def with_values(base, places, value):
    result = np.array(base, dtype=np.float64)
    result[places] = value
    return result


def screen(values):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found, notes = screened(values, what="x", where=sample_number)
    return np.asarray(found[0 : len(found)]), notes


BAD = np.array([17, 900, 901, 3999])
HELD = np.arange(1000, 1020)


@pytest.mark.parametrize("block", [2**18, 97])
@pytest.mark.parametrize("unit", [1.0, 1e-18])
@pytest.mark.parametrize(
    ("values", "bad"),
    [
        (with_values(X, BAD, 9.9e37), BAD),
        (with_values(X + 1e6, BAD, [1e300, -1e308, 9.97e36, -3.4e38]), BAD),
        (with_values(X, T % 3 == 0, 9.91e37), np.flatnonzero(T % 3 == 0)),
        (with_values(X, HELD, X[999]), [999, *HELD]),
        (with_values(X, slice(500, 2000), X[7]), np.arange(500, 2000)),
        (with_values(np.minimum(X, 2), slice(3000, 4000), 2), np.arange(3000, 4000)),
        (with_values(COUNTS, HELD, COUNTS[999]), [999, *HELD]),
    ],
)
def test_overloads_and_stuck_readings_are_left_out(
    values, bad, unit, block, monkeypatch
):
    monkeypatch.setattr(screening, "BLOCK", block)
    values = np.where(np.abs(values) > 1e30, values, values * unit)
    found, notes = screen(values)
    np.testing.assert_array_equal(np.flatnonzero(np.isnan(found)), np.sort(bad))
    kept = ~np.isnan(found)
    np.testing.assert_array_equal(found[kept], values[kept])
    assert notes


@pytest.mark.parametrize("code", [-9999, -999.25, 9999.99, 1e20, np.float32(999.9)])
@pytest.mark.parametrize("base", [X, COUNTS / 10, X + 20])
def test_codes_that_stand_apart_are_left_out(base, code):
    found, notes = screen(with_values(base, BAD, code))
    np.testing.assert_array_equal(np.flatnonzero(np.isnan(found)), BAD)
    said = "out of range (1e+20)" if code == 1e20 else f"that say {code:.9g}"
    assert notes[0].startswith(f"4 samples {said}: no readings")


@pytest.mark.parametrize(
    "values",
    [
        X,
        1e18 * X,
        X + 1e8,
        X.astype(np.float16),
        COUNTS,
        np.round(X),  # a converter of few levels
        np.round(0.3 * X),
        np.sign(X),
        np.round(SINE),  # without noise
        np.round(SINE / 300),
        np.where(T % 100 < 50, 1.0, -1.0),  # square waves
        np.where(T % 100 < 50, 1.0, -1.0) + 0.1 * X,
        np.where(T % 400 < 100, 0.0, X),  # a chopper
        np.repeat(X[::20], 20),  # sampled and held
        np.where(np.abs(X) < 1.5, 0.0, X),  # sparse pulses
        with_values(X, BAD, [50, 1e3, -1e6, 1e9]),  # glitches of any size
        with_values(X, BAD, 5e3),
        with_values(3000 * X, BAD, -9999),  # a code within the data
        with_values(1e4 * np.sign(X) + X, BAD, 9999),
        with_values(X, 5, 99),
        np.cumsum(X),
        X**9,  # heavy tails
        RNG.standard_cauchy(N),
        np.exp(5 * X),
        np.round(X * np.exp(3 * np.sin(T / 300))),  # bursts over a quiet converter
    ],
)
def test_everything_else_stays(values):
    found, notes = screen(values)
    np.testing.assert_array_equal(found, values)
    assert not notes


def test_clipped_signal_is_told_and_stays():
    rectified = np.where(T % 400 < 200, 0.0, np.abs(X))
    for values in (np.clip(X, -1, 9), np.clip(SINE + X, -9e9, 900), rectified):
        found, (note,) = screen(values)
        np.testing.assert_array_equal(found, values)
        assert "clipped at" in note


def test_every_door_counts_what_is_left_out(gaussian_prior, tmp_path):
    loaded, prior = gaussian_prior, tmp_path / "prior.safetensors"
    save_prior(loaded, prior)
    spoiled = with_values(X[:400], [50, 51, 350], 9.9e37)
    gapped = with_values(X[:400], [50, 51, 350], np.nan)
    expected = separate(gapped, loaded)
    with pytest.warns(SeppriorWarning, match=r"^x: 3 samples out of range \(9.9e"):
        found = separate(spoiled, loaded)
    assert found.parameters["bias"].value == expected.parameters["bias"].value
    with pytest.warns(SeppriorWarning, match="3 samples"):
        tracked = track(spoiled, loaded)
    assert np.isnan(tracked.waveform.measurement).sum() == 3
    with pytest.warns(SeppriorWarning, match="^recording 1: 3 samples"):
        recording = as_recording([X, spoiled], sample_rate=1e3)
    assert np.isnan(recording.segments[1].values).sum() == 3

    path = tmp_path / "a.npz"
    np.savez(path, x=spoiled, fs=loaded.sample_rate)
    with pytest.warns(SeppriorWarning, match=r"a\.npz, array 'x': 3 samples"):
        (measurement,) = read_measurements(path)
    assert "3 samples out of range" in measurement.notes[0]
    options = ["--prior", str(prior), "-o", str(tmp_path / "out")]
    run = CliRunner().invoke(
        main, ["separate", str(path), *options, "--no-plot", "--json"]
    )
    assert "3 samples out of range (9.9e+37)" in run.stderr
    told = json.loads(run.stdout)["measurement"]
    assert told["missing"] == 3
    assert "3 samples" in told["notes"][0]
    table = ["--table", str(tmp_path / "table"), *options[:2]]
    run = CliRunner().invoke(main, ["separate", str(path), *table])
    assert run.exit_code == 0
    assert "3 samples out of range" in run.stderr
