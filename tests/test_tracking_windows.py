"""Cutting a recording into windows, and fitting them batch by batch."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sepprior.data import open_measurements, read_measurements
from sepprior.data.series import IN_MEMORY_SAMPLES
from sepprior.errors import SeppriorError
from sepprior.separation import separate
from sepprior.tracking import (
    FitOptions,
    count_windows,
    fit_recording,
    fit_windows,
    iterate_windows,
)
from tests.conftest import SAMPLE_RATE, WINDOW, coloured_noise


@settings(deadline=None, max_examples=50)
@given(
    length=st.integers(1, 400),
    window=st.integers(16, 90),
    share=st.floats(0.01, 1.0),
    batch=st.integers(1, 7),
)
def test_windows_cover_every_sample_in_place(length, window, share, batch):
    hop = max(1, int(share * window))
    values = np.arange(length, dtype=float)
    batches = list(iterate_windows(values, window=window, hop=hop, batch=batch))
    x = np.concatenate([b.x for b in batches])
    first = np.concatenate([b.first for b in batches])
    number = np.concatenate([b.number for b in batches])
    assert len(x) == count_windows(length, window=window, hop=hop)
    np.testing.assert_array_equal(number, np.arange(len(x)))
    np.testing.assert_array_equal(first, number * hop)
    # the values are their own places: every window holds what it should, NaN beyond
    places = first[:, None] + np.arange(window)
    np.testing.assert_array_equal(x, np.where(places < length, places, np.nan))
    np.testing.assert_array_equal(np.unique(x[np.isfinite(x)]), values)
    # one window fewer would not reach the end
    assert len(x) == 1 or first[-2] + window < length


def test_windows_continue_where_they_were_left():
    values = np.random.default_rng(0).standard_normal(1000)
    whole = list(iterate_windows(values, window=64, hop=20, batch=4))
    rest = list(iterate_windows(values, window=64, hop=20, batch=4, begin=8))
    for a, b in zip(whole[2:], rest, strict=True):
        np.testing.assert_array_equal(a.x, b.x)
        np.testing.assert_array_equal(a.number, b.number)


@pytest.mark.parametrize(("window", "hop"), [(15, 5), (64, 0), (64, 65)])
def test_unusable_grids_are_refused(window, hop):
    with pytest.raises(SeppriorError, match="expected"):
        next(iterate_windows(np.zeros(100), window=window, hop=hop, batch=2))


class Watched:
    """A series that records how much of it is read at once."""

    def __init__(self, length):
        self.length, self.longest = length, 0

    def __len__(self):
        return self.length

    def __getitem__(self, key):
        first, last, _ = key.indices(self.length)
        self.longest = max(self.longest, last - first)
        return np.arange(first, last, dtype=float)


def test_only_one_batch_is_read_at_a_time():
    values = Watched(10**7)
    total = sum(len(b) for b in iterate_windows(values, window=300, hop=150, batch=256))
    assert total == count_windows(10**7, window=300, hop=150) == 66666
    assert values.longest == 255 * 150 + 300


def sinusoid(n, *, frequency=12.3, amplitude=3.0):
    return amplitude * np.sin(2 * np.pi * frequency * np.arange(n) / SAMPLE_RATE + 0.4)


def long_measurement(n, *, seed=5):
    return coloured_noise(n, seed=seed) + sinusoid(n)


def fit_all(values, prior, *, window=WINDOW, hop=WINDOW // 2, **options):
    parts = list(
        fit_recording(
            values,
            prior,
            window=window,
            hop=hop,
            sample_rate=SAMPLE_RATE,
            start=7.0,
            options=FitOptions(**options),
        )
    )
    return pd.concat([part.table for part in parts], ignore_index=True), parts


@pytest.mark.parametrize("name", ["gaussian_prior", "specgan_prior"])
def test_rows_are_those_of_separate(name, request):
    prior = request.getfixturevalue(name)
    x = long_measurement(5 * WINDOW)
    table, (part,) = fit_all(x, prior, hop=WINDOW, fmin=5, fmax=40, seed=3)
    alone = separate(x.reshape(5, WINDOW), prior, fmin=5, fmax=40, seed=3)
    expected = alone.to_frame()
    pd.testing.assert_frame_equal(table[list(expected)], expected)
    np.testing.assert_array_equal(part.signal, alone.signal)
    np.testing.assert_array_equal(part.residual, alone.residual)
    np.testing.assert_allclose(table["start"], 7 + WINDOW / SAMPLE_RATE * np.arange(5))
    np.testing.assert_allclose(
        table["centre"] - table["start"], (WINDOW - 1) / 2 / SAMPLE_RATE
    )
    assert (table["samples"] == WINDOW).all()
    assert (abs(table["frequency"] - 12.3) < 5 * table["frequency_stderr"]).all()


def test_gaps_and_dead_stretches_have_rows_of_the_same_types(gaussian_prior):
    x = long_measurement(6 * WINDOW + 5)
    x[WINDOW + 10 : WINDOW + 20] = np.nan  # a gap inside window 1
    x[2 * WINDOW : 3 * WINDOW] = np.nan  # no sample in window 2
    x[4 * WINDOW : 5 * WINDOW] = 1.25  # a dead sensor in window 4
    table, (part,) = fit_all(x, gaussian_prior, hop=WINDOW, fmin=5, fmax=40)
    usual, _ = fit_all(long_measurement(300), gaussian_prior, fmin=5, fmax=40)
    assert list(table) == list(usual)
    assert (table.dtypes == usual.dtypes).all()
    assert list(table["samples"]) == [64, 54, 0, 64, 64, 64, 5]
    np.testing.assert_array_equal(part.fitted, [1, 1, 0, 1, 0, 1, 0])
    np.testing.assert_array_equal(np.isfinite(table["frequency"]), part.fitted)
    assert table["status"][2] == "not fitted: 0 samples present, at least 16 needed"
    assert table["status"][4] == "not fitted: constant at 1.25"
    assert table["status"][6] == "not fitted: 5 samples present, at least 16 needed"
    assert not table["detected"][2] and table["method"][2] == "none"
    # what surrounds the gap is fitted as separate does it
    alone = separate(x[WINDOW : 2 * WINDOW], gaussian_prior, fmin=5, fmax=40)
    assert table["frequency"][1] == pytest.approx(
        alone.parameters["frequency"].value, rel=1e-9
    )
    assert np.isnan(part.residual[1, 10:20]).all()
    assert np.isfinite(part.signal[1]).all()


def test_a_batch_without_a_fit_has_the_same_columns(gaussian_prior):
    x = np.full((2, WINDOW), np.nan)
    (windows,) = iterate_windows(x.ravel(), window=WINDOW, hop=WINDOW, batch=9)
    none = fit_windows(windows, gaussian_prior, sample_rate=SAMPLE_RATE)
    some, _ = fit_all(long_measurement(300), gaussian_prior)
    assert list(none.table) == list(some)
    assert (none.table.dtypes == some.dtypes).all()
    assert not none.fitted.any()


def test_answers_do_not_depend_on_where_the_work_began(gaussian_prior):
    x = long_measurement(40 * WINDOW)
    whole, _ = fit_all(x, gaussian_prior)
    parts = fit_recording(
        x,
        gaussian_prior,
        window=WINDOW,
        hop=WINDOW // 2,
        sample_rate=SAMPLE_RATE,
        start=7.0,
        begin=40,
    )
    rest = pd.concat([part.table for part in parts], ignore_index=True)
    pd.testing.assert_frame_equal(
        whole[40:].reset_index(drop=True), rest, rtol=1e-9, atol=1e-9
    )


def test_number_of_components_must_be_known(gaussian_prior):
    with pytest.raises(SeppriorError, match=r"components='auto'.*number of sinusoids"):
        fit_all(long_measurement(200), gaussian_prior, components="auto")


# -- files -----------------------------------------------------------------------------


def test_long_files_are_opened_without_being_loaded(tmp_path):
    n = IN_MEMORY_SAMPLES + 1000
    rng = np.random.default_rng(1)
    np.save(tmp_path / "a.npy", rng.standard_normal(n).astype(np.float32))
    (stream,) = open_measurements(tmp_path / "a.npy", sample_rate=SAMPLE_RATE)
    assert len(stream.values) == n
    assert not isinstance(stream.values, np.ndarray)
    np.testing.assert_array_equal(
        stream.values[n - 10 : n + 10], np.load(tmp_path / "a.npy")[-10:]
    )


def test_gaps_in_time_are_filled_slice_by_slice(tmp_path):
    rng = np.random.default_rng(2)
    keep = np.ones(500, dtype=bool)
    keep[[40, 41, 42, 130, 131, 300]] = False
    time = 3 + np.arange(500) / SAMPLE_RATE
    x = np.where(keep, rng.standard_normal(500), np.nan)
    pd.DataFrame({"time": time, "value": x})[keep].to_csv(tmp_path / "a.csv")
    (stream,) = open_measurements(tmp_path / "a.csv", column="value")
    (measurement,) = read_measurements(tmp_path / "a.csv", column="value")
    np.testing.assert_allclose(measurement.values, x)
    assert len(stream.values) == 500
    for first in range(0, 500, 7):
        for last in (first, first + 1, first + 50, 500, 700):
            np.testing.assert_allclose(stream.values[first:last], x[first:last])
    assert stream.start == measurement.time[0] == pytest.approx(3.0)


def test_intervals_hold_the_truth(gaussian_prior):
    table, _ = fit_all(long_measurement(60 * WINDOW), gaussian_prior, fmin=5, fmax=40)
    for name, truth in (("amplitude", 3.0), ("frequency", 12.3)):
        inside = (table[f"{name}_low"] < truth) & (truth < table[f"{name}_high"])
        # 60 windows' worth of information at 95 %: fewer than 88 % has p < 0.01
        assert inside.mean() > 0.88
        assert abs(table[name] - truth).median() < 2 * table[f"{name}_stderr"].median()
    # the noise's own level belongs to the noise: 4 standard errors of its mean, 0.04
    assert table["bias"].mean() == pytest.approx(0.0, abs=0.16)
