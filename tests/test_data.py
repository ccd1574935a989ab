"""Recordings and measurements: formats, time columns, splits, windows, errors."""

from __future__ import annotations

import os
import subprocess
import sys
import wave
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scipy.io import wavfile

from sepprior.data import (
    Recording,
    Segment,
    as_recording,
    clock,
    consecutive_windows,
    data_hash,
    iterate_blocks,
    random_crops,
    random_placed_crops,
    read_measurements,
    read_recordings,
    series,
    split_recording,
)
from sepprior.data.series import LazySeries, scaled
from sepprior.errors import SeppriorError

RATE = 250.0
NOISE = np.random.default_rng(7).normal(size=200).round(4)


@pytest.fixture
def small_blocks(monkeypatch):
    """Make every series long: many chunks, and nothing kept in memory."""
    monkeypatch.setattr(series, "IN_MEMORY_SAMPLES", 20)
    monkeypatch.setattr(series, "BLOCK", 16)
    monkeypatch.setattr(clock, "BLOCK", 16)


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def write_csv(path: Path, **columns) -> Path:
    pd.DataFrame(columns).to_csv(path, index=False)
    return path


def samples(recording: Recording) -> np.ndarray:
    return np.concatenate([np.asarray(part.values) for part in recording.segments])


def message_of(function, *args, **options) -> str:
    """Message of the SeppriorError that a call raises; it must be one line."""
    with pytest.raises(SeppriorError) as caught:
        function(*args, **options)
    message = str(caught.value)
    assert "\n" not in message
    return message


def write_format(folder: Path, suffix: str) -> Path:
    """NOISE at RATE in a file of the given format."""
    path = folder / f"noise{suffix}"
    time = np.arange(len(NOISE)) / RATE
    match suffix:
        case ".csv":
            write_csv(path, time=time, value=NOISE)
        case ".txt":
            np.savetxt(path, np.stack([time, NOISE], 1), header="time value")
        case ".tsv":
            pd.DataFrame({"Time": time, "v": NOISE}).to_csv(path, sep="\t", index=False)
        case ".npz":
            np.savez_compressed(path, value=NOISE, fs=RATE, note="any")
        case ".wav":
            wavfile.write(path, int(RATE), NOISE)
        case ".h5":
            with h5py.File(path, "w") as file:
                file.create_dataset("run/noise", data=NOISE, chunks=(50,))
                file["run"].attrs["fs"] = RATE
        case ".parquet":
            table = pa.table({"time": time, "value": NOISE})
            pq.write_table(table, path, row_group_size=70)
        case ".npy":
            np.save(path, NOISE)
    return path


FORMATS = [".csv", ".txt", ".tsv", ".npy", ".npz", ".wav", ".h5", ".parquet"]


@pytest.mark.parametrize("suffix", FORMATS)
def test_every_format_gives_samples_and_rate_back(tmp_path, suffix):
    path = write_format(tmp_path, suffix)
    given_rate = RATE if suffix == ".npy" else None

    recording = read_recordings(path, sample_rate=given_rate)
    (measurement,) = read_measurements([path], sample_rate=given_rate)

    assert recording.sample_rate == measurement.sample_rate == RATE
    assert recording.n_samples == len(NOISE)
    np.testing.assert_array_equal(samples(recording), NOISE)
    np.testing.assert_array_equal(measurement.values, NOISE)
    np.testing.assert_allclose(measurement.time, np.arange(len(NOISE)) / RATE)
    assert measurement.name == "noise"
    assert measurement.source == recording.segments[0].source == str(path)


@pytest.mark.parametrize("suffix", FORMATS)
def test_series_longer_than_memory_read_the_same(tmp_path, suffix, small_blocks):
    path = write_format(tmp_path, suffix)
    recording = read_recordings(path, sample_rate=RATE)
    in_memory = as_recording(NOISE, sample_rate=RATE)

    if suffix != ".npz":  # decompressed in memory, converted lazily
        assert not isinstance(recording.segments[0].values, np.ndarray)
    np.testing.assert_array_equal(samples(recording), NOISE)
    assert data_hash(recording) == data_hash(in_memory)
    crops = [
        random_crops(it, window=30, n=9, generator=np.random.default_rng(3))
        for it in (recording, in_memory)
    ]
    np.testing.assert_array_equal(*crops)
    parts = zip(
        split_recording(recording, window=30),
        split_recording(in_memory, window=30),
        strict=True,
    )
    assert all(data_hash(one) == data_hash(other) for one, other in parts)
    (measurement,) = read_measurements(path, sample_rate=RATE)
    np.testing.assert_array_equal(measurement.values, NOISE)


def test_all_formats_have_one_hash(tmp_path):
    paths = [write_format(tmp_path, suffix) for suffix in FORMATS]
    hashes = {data_hash(read_recordings(path, sample_rate=RATE)) for path in paths}
    assert len(hashes) == 1


def test_hash_tells_recordings_apart():
    def digest(parts, rate=RATE, label=None):
        parts = tuple(Segment(values=part, label=label) for part in parts)
        return data_hash(Recording(parts, rate))

    gap = np.array([1.0, np.nan, 2.0])
    hashes = [
        digest([NOISE]),
        digest([NOISE[:99], NOISE[99:]]),
        digest([NOISE[::-1]]),
        digest([NOISE], rate=251.0),
        digest([NOISE], label="on"),
        digest([gap]),
    ]
    assert len(set(hashes)) == len(hashes)
    assert digest([-gap]) == digest([np.array([-1.0, -np.nan, -2.0])])
    assert digest([np.array([0.0, 1.0])]) == digest([np.array([-0.0, 1.0])])


# --- text files


@pytest.mark.parametrize("separator", [",", ";", "\t", " ", "   ", ", "])
@pytest.mark.parametrize("header", [True, False])
def test_separators_with_and_without_header(tmp_path, separator, header):
    lines = ["# a remark, with a comma", ""]
    lines += [separator.join(["time", "pressure"])] if header else []
    lines += [f"{i / RATE:.3f}{separator}{value}" for i, value in enumerate(NOISE)]
    path = write(tmp_path / "a.txt", "\r\n".join(lines) + "\r\n")
    column, rate = (None, None) if header else (1, RATE)
    recording = read_recordings(path, column=column, sample_rate=rate)
    np.testing.assert_array_equal(samples(recording), NOISE)
    assert recording.sample_rate == RATE


def test_single_column_with_blanks_in_its_header(tmp_path):
    path = write(tmp_path / "a.txt", "rate of turn\n" + "\n".join(map(str, NOISE)))
    recording = read_recordings(path, sample_rate=RATE)
    np.testing.assert_array_equal(samples(recording), NOISE)


def test_decimal_comma_with_semicolons(tmp_path):
    lines = [
        f"{i / RATE:.3f};{value}".replace(".", ",") for i, value in enumerate(NOISE)
    ]
    path = write(tmp_path / "a.csv", "\n".join(["time;value", *lines]))
    recording = read_recordings(path)
    np.testing.assert_array_equal(samples(recording), NOISE)
    assert recording.sample_rate == RATE


def test_byte_order_mark_quotes_and_trailing_separators(tmp_path):
    lines = [f"{i / RATE:.3f},{value}," for i, value in enumerate(NOISE)]
    text = "\ufeff" + "\n".join(['"Time","x",', *lines])
    recording = read_recordings(write(tmp_path / "a.csv", text))
    np.testing.assert_array_equal(samples(recording), NOISE)
    assert recording.sample_rate == RATE


def test_missing_cells_are_gaps(tmp_path):
    lines = [f"{i},{value}" for i, value in enumerate(NOISE)]
    for row, cell in {0: "", 5: "nan", 6: "NA", 7: "NaN"}.items():
        lines[row] = f"{row},{cell}"
    path = write(tmp_path / "a.csv", "\n".join(["time,x", *lines]))
    (measurement,) = read_measurements(path)
    assert np.flatnonzero(np.isnan(measurement.values)).tolist() == [0, 5, 6, 7]
    np.testing.assert_array_equal(measurement.values[8:], NOISE[8:])


def test_a_first_sample_that_is_missing_is_no_header(tmp_path):
    path = write(tmp_path / "a.txt", "\n".join(["nan", *map(str, NOISE)]))
    assert read_recordings(path, sample_rate=RATE).n_samples == len(NOISE) + 1


def test_default_column(tmp_path):
    """`value` goes before `x`; else the only numeric column without another role."""
    other = np.sin(np.arange(len(NOISE)))
    text = ["a"] * len(NOISE)
    for number, columns in enumerate(
        [
            {"x": other, "value": NOISE},
            {"other": other, "Measurement": NOISE},
            {"note": text, "torque": NOISE, "segment": 0 * other},
            {"": np.arange(len(NOISE)), "torque": NOISE},
        ]
    ):
        path = write_csv(tmp_path / f"{number}.csv", **columns)
        recording = read_recordings(path, sample_rate=RATE)
        np.testing.assert_array_equal(samples(recording), NOISE)


def test_column_by_name_number_and_pattern(tmp_path):
    path = write_csv(tmp_path / "a.csv", ch1=NOISE, ch2=-NOISE, other=NOISE + 1)
    for column, expected in {"ch2": -NOISE, "2": NOISE + 1, 0: NOISE}.items():
        recording = read_recordings(path, sample_rate=RATE, column=column)
        np.testing.assert_array_equal(samples(recording), expected)
    both = read_recordings(path, sample_rate=RATE, column="ch*")
    assert [len(part.values) for part in both.segments] == [200, 200]
    one, other = read_measurements(path, sample_rate=RATE, column="ch?")
    assert (one.name, other.name) == ("a-ch1", "a-ch2")
    np.testing.assert_array_equal(other.values, -NOISE)


# --- segments and labels


def segment_table() -> dict[str, object]:
    return {
        "time": np.tile(np.arange(50), 4) / RATE,
        "value": NOISE,
        "segment": np.repeat([3, 4, 5, 6], 50),
        "label": np.repeat(["idle", "run", "idle"], [100, 75, 25]),
    }


def write_segments(folder: Path, suffix: str) -> Path:
    path, table = folder / f"run{suffix}", segment_table()
    if suffix == ".csv":
        return write_csv(path, **table)
    if suffix == ".parquet":
        pq.write_table(pa.table(table), path)
    elif suffix == ".npz":
        np.savez(path, **table)
    else:
        with h5py.File(path, "w") as file:
            for name, values in table.items():
                values = values.astype("S") if name == "label" else values
                file.create_dataset(f"a/{name}", data=values)
    return path


@pytest.mark.parametrize("suffix", [".csv", ".parquet", ".npz", ".h5"])
def test_segments_and_labels(tmp_path, suffix, request):
    for chunked in (False, True):
        if chunked:
            request.getfixturevalue("small_blocks")
        path = write_segments(tmp_path, suffix)
        recording = read_recordings(path)
        assert recording.sample_rate == RATE
        found = [(len(part.values), part.label) for part in recording.segments]
        expected = [(50, "idle"), (50, "idle"), (50, "run"), (25, "run"), (25, "idle")]
        assert found == expected
        assert [part.start for part in recording.segments] == [0, 0, 0, 0, 0.1]
        measurements = read_measurements(path)
        assert [item.name for item in measurements] == [
            f"run-{number}" for number in (3, 4, 5, 6)
        ]
        assert all(len(item.values) == 50 for item in measurements)


def test_label_argument_names_segments_without_one(tmp_path):
    path = write_csv(tmp_path / "a.csv", x=NOISE, label=["on"] * 100 + [None] * 100)
    recording = read_recordings(path, sample_rate=RATE, label="off")
    assert [part.label for part in recording.segments] == ["on", "off"]


def test_rows_without_a_segment_belong_together(tmp_path):
    names = pd.array([0] * 60 + [None] * 60 + [2] * 80, dtype="Int64")
    table = pd.DataFrame({"x": NOISE, "segment": names})
    table.to_csv(tmp_path / "a.csv", index=False)
    table.to_parquet(tmp_path / "a.parquet")
    np.savez(
        tmp_path / "a.npz", x=NOISE, segment=names.to_numpy(float, na_value=np.nan)
    )
    for suffix in (".csv", ".parquet", ".npz"):
        recording = read_recordings(tmp_path / f"a{suffix}", sample_rate=RATE)
        assert [len(part.values) for part in recording.segments] == [60, 60, 80]
    names = [item.name for item in read_measurements(tmp_path / "a.npz")]
    assert names == ["a-0", "a-1", "a-2"]


def test_repeated_segment_names_give_numbered_measurements(tmp_path):
    names = np.repeat(["a", "b", "a"], [60, 60, 80])
    path = write_csv(tmp_path / "run.csv", x=NOISE, segment=names)
    assert [item.name for item in read_measurements(path)] == [
        "run-0",
        "run-1",
        "run-2",
    ]


def test_measurements_of_one_name_are_told_apart(tmp_path):
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        np.save(tmp_path / folder / "run.npy", NOISE)
    paths = [tmp_path / "a", tmp_path / "b" / "run.npy"]
    assert [item.name for item in read_measurements(paths)] == ["run", "run-2"]


def test_unknown_sample_rate_counts_time_in_samples(tmp_path):
    np.save(tmp_path / "a.npy", NOISE)
    (unknown,) = read_measurements(tmp_path / "a.npy")
    assert unknown.sample_rate is None
    np.testing.assert_array_equal(unknown.time, np.arange(len(NOISE)))
    (known,) = read_measurements(tmp_path / "a.npy", sample_rate=RATE)
    np.testing.assert_allclose(known.time, np.arange(len(NOISE)) / RATE)


def test_folders_are_read_in_order(tmp_path):
    write(tmp_path / "notes.md", "not data")
    write(tmp_path / ".hidden.csv", "not data")
    for number, name in enumerate(["b.csv", "a.CSV"]):
        write_csv(tmp_path / name, x=NOISE + number)
    recording = read_recordings(tmp_path, sample_rate=RATE)
    assert [Path(part.source).name for part in recording.segments] == ["a.CSV", "b.csv"]


# --- arrays


def test_rows_of_an_array_are_recordings(tmp_path, request):
    rows = NOISE.reshape(4, 50).astype(np.float32)
    np.save(tmp_path / "a.npy", rows)
    np.savez(tmp_path / "b.npz", x=rows)
    with h5py.File(tmp_path / "c.h5", "w") as file:
        file["x"] = rows
    for chunked in (False, True):
        if chunked:
            request.getfixturevalue("small_blocks")
        for name in ("a.npy", "b.npz", "c.h5"):
            recording = read_recordings(tmp_path / name, sample_rate=RATE)
            assert len(recording.segments) == 4
            np.testing.assert_array_equal(recording.segments[2].values, rows[2])
            names = [item.name for item in read_measurements(tmp_path / name)]
            assert names == [f"{name[0]}-{row}" for row in range(4)]


def test_integers_stay_counts(tmp_path):
    counts = np.random.default_rng(0).integers(-900, 900, size=(64, 2))
    wavfile.write(tmp_path / "a.wav", 8000, counts.astype(np.int16))
    recording = read_recordings(tmp_path / "a.wav", column=1)
    assert recording.sample_rate == 8000
    np.testing.assert_array_equal(samples(recording), counts[:, 1])

    with wave.open(str(tmp_path / "b.wav"), "wb") as file:
        file.setparams((1, 3, 8000, 0, "NONE", ""))
        packed = counts[:, 0].astype("<i4").view(np.uint8).reshape(-1, 4)[:, :3]
        file.writeframes(packed.tobytes())
    np.testing.assert_array_equal(
        samples(read_recordings(tmp_path / "b.wav")), counts[:, 0]
    )


def test_npz_arrays_by_pattern(tmp_path):
    path = tmp_path / "set.npz"
    np.savez(path, train_0=NOISE, train_1=NOISE[:50], test_0=NOISE, rate=RATE)
    recording = read_recordings(path, column="train_*")
    assert [len(part.values) for part in recording.segments] == [200, 50]
    names = [item.name for item in read_measurements(path, column="t*")]
    assert names == ["set-train_0", "set-train_1", "set-test_0"]


def test_hdf5_rate_beside_the_dataset_and_path_as_column(tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["one/x"], file["two/y"], file["two/sample_rate"] = NOISE, -NOISE, RATE
    recording = read_recordings(tmp_path / "a.h5", column="/two/y")
    assert recording.sample_rate == RATE
    np.testing.assert_array_equal(samples(recording), -NOISE)


def test_as_recording_takes_arrays_tensors_lists_and_recordings():
    rows = NOISE.reshape(2, 100)
    for values, count in [
        (NOISE, 1),
        (rows, 2),
        (NOISE.tolist(), 1),
        (torch.tensor(NOISE), 1),
        (torch.tensor(rows, dtype=torch.bfloat16, requires_grad=True), 2),
        ([NOISE[:40], rows], 3),
        (pd.Series(NOISE), 1),
    ]:
        recording = as_recording(values, sample_rate=RATE)
        assert (len(recording.segments), recording.sample_rate) == (count, RATE)
        assert all(np.asarray(it.values).dtype == float for it in recording.segments)
    assert as_recording(recording, sample_rate=None) is recording
    assert "is 99 Hz" in message_of(as_recording, recording, sample_rate=99.0)


# --- time columns


def test_rounded_times_give_the_exact_rate(tmp_path):
    """No single step of times printed to 6 decimals tells 3198 Hz (0.1 % off)."""
    time = (np.arange(len(NOISE)) / 3198).round(6)
    assert abs(1 / np.median(np.diff(time)) / 3198 - 1) > 5e-4
    path = write_csv(tmp_path / "a.csv", time=time + 12.5, x=NOISE)
    (measurement,) = read_measurements(path)
    assert measurement.sample_rate == 3198
    expected = 12.5 + np.arange(len(NOISE)) / 3198
    np.testing.assert_allclose(measurement.time, expected, rtol=0, atol=1e-12)


@given(
    rate=st.floats(0.1, 1e6),
    origin=st.sampled_from([0.0, -3.0, 1e3, 1.7e9]),
    digits=st.integers(1, 4),
    n=st.integers(100, 400),
)
@settings(max_examples=60, deadline=None)
def test_rate_of_rounded_times_is_recovered(rate, origin, digits, n):
    """Times rounded to a tenth of a step or finer, far from zero or not."""
    exact = origin + np.arange(n) / rate
    quantum = max(10.0**-digits / rate, 2 * np.spacing(origin))
    time = np.round((exact - origin) / quantum) * quantum + origin
    if quantum > 0.1 / rate:
        return
    found = clock.fit_clock(
        time, [series.Run(0, n)], what="x", where=series.sample_number
    )
    # the slope of rounded times errs by less than their rounding over the whole span
    assert abs(found.sample_rate / rate - 1) < 2 * quantum * rate / n + 1e-9
    assert len(found.pieces) == 1


@given(
    gaps=st.dictionaries(st.integers(20, 380), st.integers(1, 200), max_size=5),
    jitter=st.floats(0, 0.1),
    seed=st.integers(0, 100),
)
@settings(max_examples=60, deadline=None)
def test_missing_samples_are_counted_through_jitter(gaps, jitter, seed):
    positions = np.arange(400)
    for row, missing in gaps.items():
        positions[row:] += missing
    shaken = positions + np.random.default_rng(seed).uniform(-jitter, jitter, size=400)
    found = clock.fit_clock(
        shaken / RATE, [series.Run(0, 400)], what="x", where=series.sample_number
    )
    assert [piece.start for piece in found.pieces] == [0, *sorted(gaps)]
    pairs = zip(found.pieces[:-1], found.pieces[1:], strict=True)
    counted = [clock.missing_samples(*pair, found.step) for pair in pairs]
    assert [round(it) for it in counted] == [gaps[row] for row in sorted(gaps)]


@pytest.mark.parametrize("separate", [False, True])
def test_gap_in_time_is_nan_in_a_measurement_and_a_segment_in_a_recording(
    tmp_path, separate, request
):
    if separate:
        request.getfixturevalue("small_blocks")
    keep = np.ones(len(NOISE), dtype=bool)
    keep[[40, 41, 42, 120]] = False
    time = (np.arange(len(NOISE)) / 3198).round(6)
    path = write_csv(tmp_path / "a.csv", t=time[keep], x=NOISE[keep])
    (measurement,) = read_measurements(path)
    np.testing.assert_array_equal(measurement.values, np.where(keep, NOISE, np.nan))
    recording = read_recordings(path)
    assert [len(part.values) for part in recording.segments] == [40, 77, 79]
    starts = [part.start for part in recording.segments]
    np.testing.assert_allclose(starts, np.array([0, 43, 121]) / 3198, atol=1e-6)


def test_times_coarser_than_a_step_still_tell_the_rate(tmp_path):
    """400 Hz with the clock printed in whole milliseconds, and in hundredths."""
    values = np.random.default_rng(1).normal(size=20000)
    for digits in (3, 2):
        time = (np.arange(20000) / 400).round(digits)
        path = write_csv(tmp_path / "a.csv", time=time, x=values)
        recording = read_recordings(path)
        assert len(recording.segments) == 1
        assert recording.sample_rate == pytest.approx(400, rel=1e-5)


def test_given_rate_goes_before_the_time_column_if_they_agree(tmp_path):
    path = write_csv(tmp_path / "a.csv", time=np.arange(200) / 250.1, x=NOISE)
    (measurement,) = read_measurements(path, sample_rate=250)
    assert measurement.sample_rate == 250
    assert "250 Hz but the time column" not in message_of(
        read_recordings, path, sample_rate=251
    )


TIME = np.arange(len(NOISE)) / RATE


@pytest.mark.parametrize(
    ("time", "parts"),
    [
        (TIME**1.3, ["not uniform", "samples off"]),
        (np.sort(np.random.default_rng(0).uniform(size=200)), ["not uniform"]),
        (np.where(TIME > 0.4, TIME - 0.4, TIME), ["does not increase at line 103"]),
        (np.r_[TIME[:50], TIME[49:-1]], ["does not increase at line 52", "repeats"]),
        (np.where(TIME == 0.4, np.nan, TIME), ["missing or infinite at line 102"]),
        (TIME * 0, ["does not tell the sample rate"]),
        (TIME.round(1), ["too coarsely", "line 3"]),
    ],
    ids=["drift", "random", "restart", "repeat", "nan", "zero", "coarse"],
)
def test_times_that_are_not_uniform_are_refused(tmp_path, time, parts):
    path = write_csv(tmp_path / "a.csv", time=time, x=NOISE)
    for read in (read_recordings, read_measurements):
        message = message_of(read, path)
        assert all(part in message for part in [str(path), *parts])


def test_gap_that_does_not_fit_the_measurement_is_refused(tmp_path):
    for shift, part in [(3.4 / RATE, "3.40 samples are missing"), (1e4, "only 200")]:
        time = np.where(np.arange(200) < 77, TIME, TIME + shift)
        path = write_csv(tmp_path / "a.csv", time=time, x=NOISE)
        assert part in message_of(read_measurements, path)
        lengths = [len(it.values) for it in read_recordings(path).segments]
        assert lengths == [77, 123]


# --- errors


def bad_values(**places) -> np.ndarray:
    values = NOISE.copy()
    for place, value in places.items():
        values[int(place[1:])] = value
    return values


@pytest.mark.parametrize("read", [read_recordings, read_measurements])
@pytest.mark.parametrize(
    ("values", "part"),
    [
        (bad_values(_30=np.inf, _31=-np.inf), "2 infinite values, the first at sample"),
        (bad_values(_17=np.inf), "1 infinite value, the first at sample 17"),
        (np.full(40, np.nan), "every value is missing"),
        (
            np.r_[NOISE[:15], np.full(40, np.nan)],
            "not missing: 15; expected at least 16",
        ),
        (np.full(40, 2.5), "is constant, every value is 2.5"),
        (np.r_[np.nan, np.full(40, 3)], "is constant"),
        (NOISE * 1j, "complex"),
        (np.array(["a"] * 40), "holds <U1"),
        (NOISE > 0, "holds bool"),
        (np.empty(0), "is empty"),
        (NOISE.reshape(2, 10, 10), "3 dimensions"),
        (NOISE.reshape(100, 2), "transpose"),
    ],
)
def test_unusable_values_are_refused(tmp_path, read, values, part):
    np.save(tmp_path / "bad.npy", values)
    message = message_of(read, tmp_path / "bad.npy", sample_rate=RATE)
    assert part in message
    assert message.startswith(str(tmp_path / "bad.npy"))


@pytest.mark.parametrize(
    "values", [NOISE[:15], NOISE * 0, NOISE * 1j, np.ones((2, 2, 2))]
)
def test_unusable_arrays_are_refused(values):
    assert message_of(as_recording, values, sample_rate=RATE)


def test_array_needs_a_rate_and_rows_of_one_length():
    assert "sample_rate=" in message_of(as_recording, NOISE, sample_rate=None)
    assert "-1" in message_of(as_recording, NOISE, sample_rate=-1)
    assert "empty" in message_of(as_recording, [], sample_rate=1.0)
    ragged = [[[1.0, 2.0], [1.0]]]
    assert "differ in length" in message_of(as_recording, ragged, sample_rate=1.0)


@pytest.mark.parametrize("chunked", [False, True])
def test_text_where_a_number_belongs(tmp_path, chunked, request):
    if chunked:
        request.getfixturevalue("small_blocks")
    lines = [f"{i / RATE},{value}" for i, value in enumerate(NOISE)]
    lines[120] = "0.48,broken"
    path = write(tmp_path / "a.csv", "\n".join(["# remark", "", "time,x", *lines]))
    message = message_of(read_recordings, path)
    assert f"{path}: 'broken' at line 124, column 'x'; expected a number" in message
    lines[33] = f"12:00:00,{NOISE[33]}"
    path = write(tmp_path / "a.csv", "\n".join(["time,x", *lines]))
    message = message_of(read_recordings, path)
    assert "'12:00:00' at line 35, column 'time'; expected seconds" in message


def test_infinite_value_in_text_names_its_line(tmp_path):
    path = write_csv(tmp_path / "a.csv", x=bad_values(_30=np.inf))
    for read in (read_recordings, read_measurements):
        assert "at line 32" in message_of(read, path, sample_rate=RATE)


def test_infinite_value_in_a_segment_names_its_line(tmp_path):
    table = segment_table() | {"value": bad_values(_60=np.inf)}
    message = message_of(read_measurements, write_csv(tmp_path / "a.csv", **table))
    assert "segment 4: holds 1 infinite value, the first at line 62" in message


def test_irregular_tables(tmp_path):
    lines = [f"{i},{value}".replace(".", ",") for i, value in enumerate(NOISE)]
    path = write(tmp_path / "a.csv", "\n".join(["time,x", *lines]))
    message = message_of(read_recordings, path)
    assert "has 2 columns in its first line but 3 in" in message
    assert "decimal comma" in message
    path = write(tmp_path / "b.csv", "\n".join(["x", *map(str, NOISE), '"1.0']))
    message = message_of(read_recordings, path, sample_rate=RATE)
    assert "is not a regular table (EOF inside string" in message


def test_missing_empty_and_unknown_files(tmp_path):
    assert "no such file" in message_of(read_recordings, tmp_path / "nowhere.csv")
    for suffix in FORMATS:
        path = write(tmp_path / f"empty{suffix}", "")
        assert f"{path}: is empty" in message_of(read_recordings, path)
        path.unlink()
    for text in ("# only a remark\n\n", "x\n"):
        path = write(tmp_path / "a.csv", text)
        message = message_of(read_recordings, path, column="x", sample_rate=1)
        assert "is empty" in message or "has no table of numbers" in message
        path.unlink()
    path = write(tmp_path / "a.docx", "x")
    assert "suffix '.docx'; expected .csv" in message_of(read_recordings, path)
    assert "no file of a known format" in message_of(read_recordings, tmp_path)
    assert "no files" in message_of(read_recordings, [])
    assert "no files" in message_of(read_measurements, [])


@pytest.mark.parametrize("suffix", FORMATS[3:])
@pytest.mark.parametrize("length", [7, 150])
def test_damaged_files(tmp_path, suffix, length):
    path = write_format(tmp_path, suffix)
    path.write_bytes(path.read_bytes()[:length])
    message = message_of(read_recordings, path, sample_rate=RATE)
    assert message.startswith(f"{path}: cannot be read as")


def test_binary_file_named_csv(tmp_path):
    path = tmp_path / "a.csv"
    path.write_bytes(b"time,x\n1,2\n" + bytes(range(256)))
    assert "is not plain text" in message_of(read_recordings, path)


def test_wrong_column_suggests_the_nearest(tmp_path):
    path = write_csv(tmp_path / "a.csv", time=TIME, torque=NOISE, force=NOISE)
    message = message_of(read_recordings, path, column="torqe")
    assert "no column 'torqe'; it has time, torque, force" in message
    assert message.endswith("did you mean 'torque'?")
    message = message_of(read_measurements, path, column="Force")
    assert message.endswith("did you mean 'force'?")
    assert "no column '3'" in message_of(read_recordings, path, column=3)
    assert "no column 'z*'" in message_of(read_recordings, path, column="z*")
    message = message_of(read_recordings, path)
    assert "several columns could hold the samples: torque, force" in message
    assert "--column" in message


def test_ambiguous_arrays_are_listed(tmp_path):
    np.savez(tmp_path / "a.npz", one=NOISE, two=NOISE, few=[1, 2], fs=RATE)
    message = message_of(read_recordings, tmp_path / "a.npz")
    assert "several arrays could hold the samples: one, two;" in message
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["g/one"], file["g/two"] = NOISE, NOISE
    message = message_of(read_recordings, tmp_path / "a.h5")
    assert "several datasets could hold the samples: g/one, g/two;" in message
    wavfile.write(tmp_path / "a.wav", 250, np.stack([NOISE, NOISE], 1))
    message = message_of(read_recordings, tmp_path / "a.wav")
    assert "several channels could hold the samples: 0, 1;" in message
    np.save(tmp_path / "a.npy", NOISE)
    message = message_of(read_recordings, tmp_path / "a.npy", column="x")
    assert "has no columns" in message
    np.savez(tmp_path / "b.npz", note="text", fs=RATE)
    assert "no array with numeric" in message_of(read_recordings, tmp_path / "b.npz")
    path = tmp_path / "c.parquet"
    pq.write_table(pa.table({"x": ["a"] * 40}), path)
    assert "no column with numeric" in message_of(read_recordings, path)
    message = message_of(read_recordings, path, column="x")
    assert "column 'x' holds string; expected real numbers" in message


def test_sample_rate_unknown_wrong_or_contradictory(tmp_path):
    one = write_csv(tmp_path / "one.csv", time=TIME, x=NOISE)
    two = write_csv(tmp_path / "two.csv", time=2 * TIME, x=NOISE)
    none = write_csv(tmp_path / "none.csv", x=NOISE)
    assert "--sample-rate HZ" in message_of(read_recordings, none)
    message = message_of(read_recordings, [one, two])
    assert f"{two}: has a sample rate of 125 Hz, but {one} has 250 Hz" in message
    message = message_of(read_recordings, one, sample_rate=1000)
    assert "is 1000 Hz but the time column gives 250 Hz" in message
    assert "positive number" in message_of(read_measurements, none, sample_rate=0)
    np.savez(tmp_path / "a.npz", x=NOISE, time=TIME, fs=300.0)
    message = message_of(read_measurements, tmp_path / "a.npz")
    assert "stated in the file is 300 Hz but the time column gives 250 Hz" in message
    np.savez(tmp_path / "b.npz", x=NOISE, fs=-1.0)
    assert "states a sample rate of -1" in message_of(
        read_measurements, tmp_path / "b.npz"
    )


@pytest.mark.parametrize(
    ("suffix", "package"), [(".h5", "h5py"), (".parquet", "pyarrow")]
)
def test_absent_optional_package(tmp_path, monkeypatch, suffix, package):
    path = write_format(tmp_path, suffix)
    monkeypatch.setitem(sys.modules, package, None)
    assert f"pip install {package}" in message_of(read_recordings, path)


def test_importing_needs_numpy_only():
    heavy = ["torch", "pandas", "scipy", "h5py", "pyarrow"]
    code = f"import sys, sepprior.data; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


# --- splits and windows


def ramp(lengths, labels=None, gaps=()) -> Recording:
    """Segments of consecutive whole numbers, 1000 apart: a crop tells its place."""
    labels = labels or [None] * len(lengths)
    parts: list[Segment] = []
    for number, (length, label) in enumerate(zip(lengths, labels, strict=True)):
        values = 1000.0 * number + np.arange(length)
        values[[row for segment, row in gaps if segment == number and row < length]] = (
            np.nan
        )
        parts.append(Segment(values=values, label=label))
    return Recording(tuple(parts), RATE)


def valid_starts(recording: Recording, window: int) -> set[float]:
    """First samples of all windows, found by trying every one."""
    return {
        float(part.values[start])
        for part in recording.segments
        for start in range(len(part.values) - window + 1)
        if np.isfinite(part.values[start : start + window]).all()
    }


RAMPS = st.builds(
    ramp,
    st.lists(st.integers(1, 60), min_size=1, max_size=6),
    gaps=st.lists(st.tuples(st.integers(0, 5), st.integers(0, 59)), max_size=8),
)


@given(recording=RAMPS, window=st.integers(1, 20), seed=st.integers(0, 2**32))
@settings(max_examples=80, deadline=None)
def test_crops_never_join_segments_or_hold_gaps(recording, window, seed):
    allowed = valid_starts(recording, window)
    generators = [np.random.default_rng(seed), torch.Generator().manual_seed(seed)]
    for generator in generators:
        if not allowed:
            options = {"window": window, "n": 1, "generator": generator}
            assert "no window of" in message_of(random_crops, recording, **options)
            continue
        crops = random_crops(recording, window=window, n=50, generator=generator)
        assert crops.shape == (50, window) and crops.dtype == np.float64
        assert np.array_equal(np.diff(crops), np.ones((50, window - 1)))
        assert set(crops[:, 0]) <= allowed


@pytest.mark.statistical
@pytest.mark.parametrize("kind", ["numpy", "torch"])
def test_crops_are_uniform_over_all_starts(kind):
    """Chi-square over 49 starts, p = 0.001."""
    recording = ramp([25, 9, 60, 3], gaps=[(2, 30)])
    starts = sorted(valid_starts(recording, 10))
    generator = (
        np.random.default_rng(5)
        if kind == "numpy"
        else torch.Generator().manual_seed(5)
    )
    crops = random_crops(recording, window=10, n=20000, generator=generator)
    found, counts = np.unique(crops[:, 0], return_counts=True)
    assert found.tolist() == starts
    expected = 20000 / len(starts)
    chi_square = float(((counts - expected) ** 2 / expected).sum())
    assert chi_square < len(starts) - 1 + 3.09 * np.sqrt(2 * (len(starts) - 1)) + 4


def test_crops_with_a_margin_are_mirrored_at_gaps_and_ends():
    stretches = [np.arange(*ends) for ends in ((0, 10), (20, 31), (40, 90))]
    gap = np.full(3, np.nan)
    values = [np.concatenate([stretches[0], gap, stretches[1]]), stretches[2]]
    recording = as_recording(values, sample_rate=1.0)
    options = {"window": 8, "n": 300}
    crops, segments = random_placed_crops(
        recording, **options, generator=np.random.default_rng(1), margin=6
    )
    assert crops.shape == (300, 20)
    plain, same = random_placed_crops(
        recording, **options, generator=np.random.default_rng(1)
    )
    assert np.array_equal(crops[:, 6:-6], plain) and np.array_equal(segments, same)
    for crop in crops:
        (stretch,) = [s for s in stretches if crop[6] in s]
        padded = np.pad(stretch, 6, mode="reflect")
        start = int(crop[6] - stretch[0])
        np.testing.assert_array_equal(crop, padded[start : start + 20])


def test_crops_repeat_with_the_seed():
    recording = ramp([200])
    for make in (np.random.default_rng, lambda s: torch.Generator().manual_seed(s)):
        draws = [
            random_crops(recording, window=9, n=5, generator=make(seed))
            for seed in (1, 1, 2)
        ]
        assert np.array_equal(draws[0], draws[1])
        assert not np.array_equal(draws[0], draws[2])


@given(
    recording=RAMPS,
    window=st.integers(1, 20),
    hop=st.integers(1, 25),
    limit=st.integers(1, 30),
)
@settings(max_examples=80, deadline=None)
def test_consecutive_windows(recording, window, hop, limit):
    allowed = valid_starts(recording, window)
    if not allowed:
        assert "no window of" in message_of(
            consecutive_windows, recording, window=window
        )
        return
    windows = consecutive_windows(recording, window=window, hop=hop)
    expected = []
    for part in recording.segments:
        row = 0
        while row <= len(part.values) - window:
            fits = np.isfinite(part.values[row : row + window])
            if fits.all():
                expected.append(part.values[row])
                # the next hop, unless a gap lies between
                after = part.values[row : row + hop]
                bad = np.flatnonzero(~np.isfinite(after))
                row += int(bad[0]) + 1 if len(bad) else hop
            else:
                row += int(np.flatnonzero(~fits)[0]) + 1
    assert windows[:, 0].tolist() == expected
    assert np.array_equal(np.diff(windows), np.ones((len(windows), window - 1)))
    fewer = consecutive_windows(recording, window=window, hop=hop, limit=limit)
    assert len(fewer) == min(limit, len(windows))
    assert np.array_equal(fewer[0], windows[0])


@given(
    lengths=st.lists(st.integers(1, 300), min_size=1, max_size=12),
    window=st.integers(2, 40),
    fraction=st.floats(0.02, 0.9),
    gaps=st.lists(st.tuples(st.integers(0, 11), st.integers(0, 299)), max_size=8),
)
@settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
def test_split_keeps_every_sample_once_and_in_blocks(lengths, window, fraction, gaps):
    recording = ramp(lengths, gaps=gaps)
    stretches = recording.spans[:, 2] // window
    try:
        train, valid = split_recording(
            recording, window=window, validation_fraction=fraction
        )
    except SeppriorError as error:
        assert "too short" in str(error)
        assert stretches.sum() < 2
        return
    whole = samples(train).tolist() + samples(valid).tolist()
    np.testing.assert_array_equal(whole, samples(recording))  # in order: one block
    assert valid_starts(train, window) and valid_starts(valid, window)


def test_split_takes_the_fraction_from_the_end():
    train, valid = split_recording(ramp([1000]), window=50)
    assert (train.n_samples, valid.n_samples) == (900, 100)
    assert valid.segments[0].start == 900 / RATE
    assert valid.segments[0].values[0] == 900


def test_split_holds_out_whole_segments_of_equal_length():
    train, valid = split_recording(ramp([60] * 20), window=50)
    assert [len(part.values) for part in valid.segments] == [60, 60]
    assert len(train.segments) == 18


def test_split_has_every_label_in_both_parts():
    recording = ramp([500, 400, 300], labels=["a", "b", "a"])
    train, valid = split_recording(recording, window=30)
    for part in (train, valid):
        assert {segment.label for segment in part.segments} == {"a", "b"}
    # a label too short to split is trained on
    train, valid = split_recording(ramp([500, 50], labels=["a", "b"]), window=30)
    assert [segment.label for segment in valid.segments] == ["a"]


def test_split_and_window_options_out_of_range():
    recording = ramp([100])
    assert "too short" in message_of(split_recording, recording, window=51)
    assert split_recording(recording, window=50)[1].n_samples == 50
    for fraction in (0, 1, np.nan):
        message = message_of(
            split_recording, recording, window=5, validation_fraction=fraction
        )
        assert f"validation_fraction is {fraction}" in message
    assert "window is 0" in message_of(consecutive_windows, recording, window=0)
    assert "hop is 0" in message_of(consecutive_windows, recording, window=5, hop=0)
    assert "limit is 0" in message_of(consecutive_windows, recording, window=5, limit=0)
    with pytest.raises(SeppriorError, match="block is 0"):
        next(iterate_blocks(recording, block=0))


def test_blocks_cover_segments_without_crossing_them():
    recording = ramp([70, 10, 33], gaps=[(0, 5)])
    blocks = list(iterate_blocks(recording, block=32))
    assert [len(block) for block in blocks] == [32, 32, 6, 10, 32, 1]
    np.testing.assert_array_equal(np.concatenate(blocks), samples(recording))


def test_lazy_series_slices_like_an_array(small_blocks):
    counts = np.arange(100, dtype=np.int16)
    values = as_recording(counts, sample_rate=1.0).segments[0].values
    assert not isinstance(values, np.ndarray)
    for key in (slice(None), slice(3, 9), slice(-5, None), slice(9, 3), slice(90, 200)):
        np.testing.assert_array_equal(values[key], counts[key])
    assert values[2:4].dtype == np.float64
    with pytest.raises(IndexError, match="step 1"):
        values[::2]


# --- real instruments


@pytest.mark.skipif(
    not os.environ.get("SEPPRIOR_DATA"), reason="SEPPRIOR_DATA names no folder"
)
def test_real_recordings():
    folder = Path(os.environ["SEPPRIOR_DATA"])
    gyro = read_recordings(folder / "gyro_x_train.csv")
    assert (gyro.sample_rate, len(gyro.segments), gyro.n_samples) == (3198, 37, 61570)
    assert len(read_measurements(folder / "gyro_x_measure_noiseonly.csv")) == 12
    ligo = read_recordings(folder / "ligo_h1.npz", column="train_*")
    assert (ligo.sample_rate, ligo.n_samples) == (1024, 61440)
    counter = folder / "tic53230a_train.csv"
    assert "--sample-rate" in message_of(read_recordings, counter)
    assert read_recordings(counter, sample_rate=1).n_samples == 45000
    assert "train, measure_noiseonly" in message_of(
        read_recordings, folder / "seis_sts2.npz"
    )


# --- names and units of the time column -----------------------------------------------


@pytest.mark.parametrize(
    ("name", "factor"),
    [
        ("Time (s)", 1.0),
        ("Zeit [ms]", 1e3),
        ("t_us", 1e6),
        ("time/ns", 1e9),
        ("Elapsed Time (min)", 1 / 60),
        ("seconds", 1.0),
        ("Time Stamp (h)", 1 / 3600),
        ("timeUs", 1e6),
    ],
)
@pytest.mark.parametrize("kind", ["csv", "npz", "h5", "parquet"])
def test_the_unit_of_a_time_column_is_in_its_name(tmp_path, name, factor, kind):
    time = 2.0 + TIME
    columns = {name: time * factor, "voltage": NOISE}
    path = tmp_path / f"a.{kind}"
    if kind == "npz":
        np.savez(path, **{k.replace("/", "_"): v for k, v in columns.items()})
    elif kind == "h5":
        with h5py.File(path, "w") as file:
            for key, value in columns.items():
                file[key.replace("/", "_")] = value
    elif kind == "parquet":
        pd.DataFrame(columns).to_parquet(path)
    else:
        pd.DataFrame(columns).to_csv(path, index=False)
    (measurement,) = read_measurements([path])
    assert measurement.sample_rate == pytest.approx(RATE)
    assert measurement.start == pytest.approx(2.0)
    np.testing.assert_allclose(measurement.values, NOISE)


@pytest.mark.parametrize("decimal", [".", ","])
def test_a_second_line_of_units_is_no_data(tmp_path, decimal):
    path = tmp_path / "scope.csv"
    lines = ["Time;Channel A", "(ms);(mV)", ""]
    for t, x in zip(TIME, NOISE, strict=True):
        lines.append(f"{1e3 * t:.3f};{x:.4f}".replace(".", decimal))
    path.write_text("\n".join(lines))
    (measurement,) = read_measurements([path])
    assert measurement.sample_rate == pytest.approx(RATE)
    np.testing.assert_allclose(measurement.values, NOISE)
    lines[10] = lines[10].replace("1", "one")
    path.write_text("\n".join(lines))
    with pytest.raises(SeppriorError, match="line 11"):
        read_measurements([path])


@pytest.mark.parametrize("name", ["ts", "x", "timer", "temperature", "t1"])
def test_other_names_are_asked_about_where_they_rise_steadily(tmp_path, name):
    path = tmp_path / "a.csv"
    pd.DataFrame({name: TIME, "voltage": NOISE}).to_csv(path, index=False)
    for column in (None, "voltage"):
        message = message_of(read_measurements, path, column=column)
        assert f"say --time-column '{name}'" in message
    (found,) = read_measurements(path, time_column=name)
    assert found.sample_rate == RATE
    (found,) = read_measurements(path, column="voltage", time_column="none")
    assert found.sample_rate is None
    pd.DataFrame({name: NOISE, "voltage": NOISE}).to_csv(path, index=False)
    if name != "x":
        assert "several columns" in message_of(read_measurements, path)


def test_the_unit_is_that_of_the_times_that_are_read(tmp_path):
    """Times of another length belong to something else, and so does their unit."""
    path = tmp_path / "a.npz"
    np.savez(path, t_us=np.arange(3.0), t_ms=1e3 * TIME, voltage=NOISE)
    (measurement,) = read_measurements([path], column="voltage")
    assert measurement.sample_rate == pytest.approx(RATE)


def test_a_long_time_column_is_scaled_as_it_is_read(monkeypatch):
    monkeypatch.setattr("sepprior.data.series.IN_MEMORY_SAMPLES", 10)
    times = np.arange(100.0)
    lazy = scaled(times, 1e-3)
    assert isinstance(lazy, LazySeries)
    np.testing.assert_array_equal(lazy[5:9], times[5:9] * 1e-3)
    np.testing.assert_array_equal(lazy.part(50, 60)[2:4], times[52:54] * 1e-3)
    assert scaled(times, 1.0) is times
