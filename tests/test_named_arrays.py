"""NPZ, HDF5, Zarr, MAT, TDMS and sound: what a file says about its arrays is used."""

import struct

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import scipy.io
import soundfile
from nptdms import ChannelObject, TdmsWriter

from sepprior.data import read_measurements, read_recordings
from sepprior.errors import SeppriorError
from tests.test_stores import write_zarr

RATE, N = 500.0, 200
X = np.random.default_rng(2).standard_normal(N)
T = np.arange(N) / RATE
HOLES = np.arange(N) % 40 == 7
GAPPED = np.where(HOLES, np.nan, X)
COUNTS = np.round(1000 * X).astype(np.int32)


def records():
    table = np.zeros(N, dtype=[("time_ms", "i4"), ("value", "f8")])
    table["time_ms"], table["value"] = np.round(1e3 * T), X
    return table


def hdf5(attributes=(), root=(), **sets):
    def write(path):
        with h5py.File(path, "w") as file:
            file.attrs.update(dict(root))
            for name, data in sets.items():
                file[name] = data
                file[name].attrs.update(dict(attributes))

    return write


def zarr(attributes=(), **sets):
    def write(path):
        group = write_zarr(path, **sets)
        for name in sets:
            group[name].attrs.update(dict(attributes))

    return write


def npz(**sets):
    return lambda path: np.savez(path, **sets)


def npy(data):
    return lambda path: np.save(path, data)


def mat(**sets):
    return lambda path: scipy.io.savemat(path, sets)


def tdms(**properties):
    def write(path):
        channel = ChannelObject("group", "channel", X, properties=properties)
        with TdmsWriter(path) as file:
            file.write_segment([channel])

    return write


def sound(subtype, data):
    return lambda path: soundfile.write(path, data, int(RATE), subtype=subtype)


def wav(riff, size, *, tail=b"", keep=None):
    body = COUNTS.astype("<i2").tobytes()
    form = struct.pack("<4sIHHIIHH", b"fmt ", 16, 1, 1, 500, 1000, 2, 16)

    def write(path):
        data = b"data" + struct.pack("<I", size) + body[:keep] + tail
        path.write_bytes(b"RIFF" + struct.pack("<I", riff) + b"WAVE" + form + data)

    return write


FILL = {"_FillValue": 9.96921e36, "fs": RATE}
SCALED = {"scale_factor": 1e-3, "add_offset": 2.0, "missing_value": -32768, "fs": RATE}
STORED = np.where(HOLES, -32768, COUNTS)


@pytest.mark.parametrize(
    ("name", "write", "expected"),
    [
        ("a.h5", hdf5(FILL, v=np.where(HOLES, 9.96921e36, X)), GAPPED),
        ("a.h5", hdf5(FILL, v=np.where(HOLES, 9.96921e36, X).astype("f4")), GAPPED),
        ("a.nc", hdf5(SCALED, v=STORED), 1e-3 * np.where(HOLES, np.nan, COUNTS) + 2),
        ("a.zarr", zarr(SCALED, v=STORED), 1e-3 * np.where(HOLES, np.nan, COUNTS) + 2),
        ("a.h5", hdf5({"valid_range": [-1e6, 1e6]}, {"sfreq": RATE},
                      v=np.where(HOLES, 1e7, X)), GAPPED),
        ("a.h5", hdf5(time=T[None], x=X[None]), X),
        ("a.h5", hdf5(time=T[:, None], x=X[:, None]), X),
        ("a.h5", hdf5({"units": "milliseconds since 0"}, time=1e3 * T, x=X), X),
        ("a.h5", hdf5({"dt": 1 / RATE}, x=X), X),
        ("a.h5", hdf5({"SamplingRate": b"0.5 kHz"}, x=X), X),
        ("a.h5", hdf5({}, {"Sampling Frequency (Hz)": RATE}, x=X), X),
        ("a.h5", hdf5(x=X, Fs=[[RATE]]), X),
        ("a.h5", hdf5(table=records()), X),
        ("a.npz", npz(x=X, dt=1 / RATE), X),
        ("a.npz", npz(x=X, dt_ms=1e3 / RATE), X),
        ("a.npz", npz(x=X[None], time=T[:, None]), X),
        ("a.npz", npz(data=records()), X),
        ("a.npy", npy(records()), X),
        ("a.npy", npy(np.column_stack([T, X])), X),
        ("a.npy", npy(np.stack([T, X])), X),
        ("a.mat", mat(x=X, Fs=RATE), X),
        ("a.mat", mat(run={"y": X[:, None], "t": T[:, None]}), X),
        ("a.mat", hdf5(x=X[None], t=T[None]), X),
        ("a.tdms", tdms(wf_increment=1 / RATE), X),
        ("a.flac", sound("PCM_16", COUNTS.astype(np.int16)), COUNTS),
        ("a.flac", sound("PCM_24", COUNTS << 8), COUNTS),
        ("a.w64", sound("DOUBLE", X), X),
        ("a.wav", wav(0, 0), COUNTS),
        ("a.wav", wav(0xFFFFFFFF, 0xFFFFFFFF), COUNTS),
        ("a.wav", wav(36, 2 * N), COUNTS),
        ("a.wav", wav(0x7FFFFFFF, 0x7FFFFFDB), COUNTS),
    ],
)  # fmt: skip
def test_arrays_are_read_as_their_file_says(tmp_path, name, write, expected):
    write(tmp_path / name)
    (found,) = read_measurements(tmp_path / name)
    assert found.sample_rate == pytest.approx(RATE)
    np.testing.assert_allclose(found.values, expected, rtol=1e-6, atol=1e-9)


def rubbish(path):
    path.write_bytes(bytes(200))


def declares(shape):
    def write(path):
        with path.open("wb") as file:
            head = {"descr": "<f8", "fortran_order": False, "shape": shape}
            np.lib.format.write_array_header_1_0(file, head)
            file.write(X.tobytes())

    return write


@pytest.mark.parametrize(
    ("name", "write", "message"),
    [
        ("a.npy", declares((10**13,)), "declares an array of shape .* 1600 bytes"),
        ("a.npy", npy(X.astype(object)), "pickled Python objects"),
        ("a.npz", npz(x=X.astype(object), fs=RATE), "pickled Python objects"),
        ("a.npz", npz(), "is empty; expected a array|expected an? array"),
        ("a.npy", npy(np.zeros((N, 2)) + X[:, None]), "transpose it"),
        ("a.h5", hdf5(u=X, w=X), "several datasets could hold the samples: u, w"),
        ("a.h5", hdf5(x=X.reshape(2, 2, 50)), r"x \(float64, \(2, 2, 50\)\)"),
        ("a.h5", hdf5({"fs": np.nan}, x=X), "'fs' states a sample rate of nan"),
        ("a.npz", npz(x=X, dt=0), "'dt' states a time between samples of 0"),
        ("a.npz", npz(x=X, dt=1 / RATE, fs=2 * RATE), "'dt' .* 500 Hz, but 'fs'"),
        ("a.wav", wav(2 * N + 36, 2 * N, keep=100), "was cut short"),
        ("a.mat", rubbish, "cannot be read as MAT"),
        ("a.tdms", rubbish, "cannot be read as TDMS"),
        ("a.flac", rubbish, "cannot be read as sound"),
    ],
)  # fmt: skip
def test_arrays_that_cannot_be_read_get_one_line(tmp_path, name, write, message):
    write(tmp_path / name)
    with pytest.raises(SeppriorError, match=message) as error:
        read_recordings(tmp_path / name, sample_rate=None)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 500


@pytest.mark.parametrize("name", ["a.flac", "a.tdms"])
def test_readers_that_are_not_installed_are_named(tmp_path, name, monkeypatch):
    (tmp_path / name).write_bytes(b"x")
    package = {"a.flac": "soundfile", "a.tdms": "nptdms"}[name]
    monkeypatch.setitem(__import__("sys").modules, package, None)
    with pytest.raises(SeppriorError, match=rf"pip install {package} \(or sepprior\["):
        read_measurements(tmp_path / name)


@pytest.mark.parametrize("name", ["time", "timestamp", "__index_level_0__"])
def test_stamps_of_parquet_are_times(tmp_path, name):
    stamps = np.datetime64("2021-03-28T00:59:59") + (1e6 * T).astype("m8[us]")
    for times in (stamps, stamps - stamps[0]):
        pq.write_table(pa.table({"value": X, name: times}), tmp_path / "a.parquet")
        (found,) = read_measurements(tmp_path / "a.parquet")
        assert found.sample_rate == pytest.approx(RATE)
