"""Inputs of more than one file: patterns, Parquet datasets, Zarr, rows of arrays."""

from pathlib import Path

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zarr

from sepprior.data import (
    list_files,
    open_measurements,
    read_measurements,
    read_recordings,
    shape_of_rows,
)
from sepprior.errors import SeppriorError

RATE = 50.0
ROWS = np.random.default_rng(0).standard_normal((6, 40))


def write_zarr(path: Path, **arrays):
    group = zarr.open_group(str(path), mode="w")
    for name, data in arrays.items():
        data = np.asarray(data)
        group.create_array(name, shape=data.shape, dtype=data.dtype, chunks=data.shape)
        group[name][...] = data
    return group


def names(paths):
    return [path.name for path in list_files(paths)]


def test_patterns_are_expanded_in_order(tmp_path):
    for name in ("b.csv", "a.npy", "sub/c.csv", "notes.md", ".d.csv"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert names([str(tmp_path / "*")]) == ["a.npy", "b.csv"]
    assert names([str(tmp_path / "**/*.csv")]) == ["b.csv", "c.csv"]
    with pytest.raises(SeppriorError, match="matches the pattern"):
        names([str(tmp_path / "*.wav")])
    # A file whose name looks like a pattern is that file.
    (tmp_path / "a[1].csv").touch()
    assert names([str(tmp_path / "a[1].csv")]) == ["a[1].csv"]


def test_parquet_datasets_are_walked(tmp_path):
    for sensor, part in (("2", "x"), ("1", "y"), ("1", "x")):
        folder = tmp_path / "data" / f"sensor={sensor}"
        folder.mkdir(parents=True, exist_ok=True)
        table = pa.table({"time": np.arange(40) / RATE, "value": ROWS[int(sensor)]})
        pq.write_table(table, folder / f"{part}.parquet")
        (folder / "_metadata").touch()
    found = read_measurements(tmp_path / "data")
    assert [Path(item.source).parent.name for item in found] == [
        "sensor=1",
        "sensor=1",
        "sensor=2",
    ]
    np.testing.assert_array_equal(found[2].values, ROWS[2])
    assert found[2].sample_rate == RATE
    (tmp_path / "empty=1").mkdir()
    (tmp_path / "only").mkdir()
    (tmp_path / "only" / "a=1").mkdir()
    with pytest.raises(SeppriorError, match="no file of a known format"):
        names(tmp_path / "only")


def test_zarr_stores_are_read_like_hdf5(tmp_path):
    path = tmp_path / "a.zarr"
    group = write_zarr(path, **{"run/x": ROWS, "run/segment": [0] * 20 + [1] * 20})
    group["run"].attrs["fs"] = RATE
    found = read_measurements(path, column="run/x")
    assert [item.name for item in found][:3] == ["a-0-0", "a-0-1", "a-1-0"]
    np.testing.assert_array_equal(found[3].values, ROWS[1, 20:])
    assert {item.sample_rate for item in found} == {RATE}
    assert read_recordings(tmp_path).n_samples == ROWS.size  # found in a folder
    with pytest.raises(SeppriorError, match="no dataset 'y'"):
        read_measurements(path, column="y")


def test_a_zarr_array_alone(tmp_path):
    zarr.save_array(str(tmp_path / "one.zarr"), ROWS[0])
    zarr.open(str(tmp_path / "one.zarr")).attrs["sample_rate"] = RATE
    (item,) = read_measurements(tmp_path / "one.zarr")
    np.testing.assert_array_equal(item.values, ROWS[0])
    assert (item.name, item.sample_rate) == ("one", RATE)
    (tmp_path / "none.zarr").mkdir()
    with pytest.raises(SeppriorError, match=r"none\.zarr: "):
        read_measurements(tmp_path / "none.zarr")


def test_rows_of_large_arrays_are_read_in_blocks(tmp_path):
    np.save(tmp_path / "a.npy", ROWS)
    with h5py.File(tmp_path / "b.h5", "w") as file:
        file["x"], file["rate"] = ROWS, RATE
    write_zarr(tmp_path / "c.zarr", x=ROWS)
    for path in list_files(tmp_path):
        assert shape_of_rows(path, column=None) == ROWS.shape
        block = list(open_measurements(path, rows=range(2, 5)))
        assert [item.name for item in block] == [f"{path.stem}-{r}" for r in (2, 3, 4)]
        for item, row in zip(block, ROWS[2:5], strict=True):
            np.testing.assert_array_equal(item.values[:], row)
    np.save(tmp_path / "flat.npy", ROWS[0])
    (tmp_path / "text.csv").write_text("x\n1\n")
    for name in ("flat.npy", "text.csv"):
        assert shape_of_rows(tmp_path / name, column=None) is None
    (tmp_path / "bad.npy").write_bytes(b"\x93NUMPY damaged")
    with pytest.raises(SeppriorError, match="cannot be read as NPY"):
        shape_of_rows(tmp_path / "bad.npy", column=None)
