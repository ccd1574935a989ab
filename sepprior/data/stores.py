"""Stores of named arrays in groups: HDF5 files and Zarr folders.

The paths of the arrays inside the store are its columns. The sample rate is an
attribute `sample_rate`, `fs` or `rate` of the array or of a group above it, or a single
number of that name beside it. An array named `time`, `segment` or `label` beside it, of
the same length, has that role. Arrays are sliced, never read whole when they are long.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sepprior.data.arrays import is_series, rows_of, stated_rate, unit_of_times
from sepprior.data.columns import RATE_NAMES, choose, role_of
from sepprior.data.series import LazySeries, Series
from sepprior.errors import SeppriorError


@dataclass(frozen=True)
class _Store:
    """An open store.

    Attributes:
        path: where it is.
        arrays: the arrays by their paths inside it.
        attributes: of the arrays and the groups by their paths, "" for the root.
        owner: keeps the store open.
    """

    path: Path
    arrays: dict[str, Any]
    attributes: Mapping[str, Mapping[str, Any]]
    owner: Any

    def choose(self, column: str | int | None) -> list[str]:
        """Paths of the arrays that hold the samples."""
        names = list(self.arrays)
        usable = [is_series(item.shape, item.dtype) for item in self.arrays.values()]
        chosen = choose(names, usable, column, source=str(self.path), kind="dataset")
        return [names[i] for i in chosen]

    def sample_rate(self, name: str, beside: Any) -> float | None:
        """Rate in Hz that the store states for an array, if any."""
        above = name
        while True:
            for key, value in self.attributes[above].items():
                if key.lower() in RATE_NAMES and np.size(value) == 1:
                    return stated_rate(value, source=str(self.path))
            if not above:
                break
            above = above.rpartition("/")[0]
        if beside is not None and beside.size == 1 and beside.dtype.kind in "iuf":
            return stated_rate(beside[()], source=str(self.path))
        return None


def read_hdf5(
    path: Path, column: str | int | None, rows: range | None = None
) -> list[Series]:
    """Read datasets of an HDF5 file.

    Args:
        path: the file.
        column: see `sepprior.data.columns.choose`.
        rows: rows of a two-dimensional dataset to read, together; all by default.
    """
    store = _open_hdf5(path)
    try:
        result = _series(store, column, rows)
    except BaseException:
        store.owner.close()
        raise
    if not any(
        isinstance(values, LazySeries)
        for series in result
        for values in (series.values, series.time)
    ):
        store.owner.close()
    return result


def read_zarr(
    path: Path, column: str | int | None, rows: range | None = None
) -> list[Series]:
    """Read arrays of a Zarr store; see `read_hdf5`."""
    return _series(_open_zarr(path), column, rows)


@contextmanager
def _hdf5_to_look_at(path: Path) -> Iterator[_Store]:
    store = _open_hdf5(path)
    with store.owner:
        yield store


def row_shape(
    path: Path, kind: str, column: str | int | None
) -> tuple[int, int] | None:
    """Shape (n, M) of the two-dimensional array that a file is read from, unread.

    Args:
        path: the file.
        kind: its format.
        column: see `sepprior.data.columns.choose`.

    Returns:
        None for another format, a one-dimensional array, or several arrays.
    """
    if kind == "NPY":
        shape = np.load(path, mmap_mode="r").shape
    elif kind == "HDF5":
        with _hdf5_to_look_at(path) as store:
            shape = _only_shape(store, column)
    elif kind == "Zarr":
        shape = _only_shape(_open_zarr(path), column)
    else:
        return None
    return (shape[0], shape[1]) if len(shape) == 2 else None


def _only_shape(store: _Store, column: str | int | None) -> tuple[int, ...]:
    names = store.choose(column)
    return store.arrays[names[0]].shape if len(names) == 1 else ()


def _open_hdf5(path: Path) -> _Store:
    import h5py

    file = h5py.File(path, "r")
    arrays: dict[str, Any] = {}
    attributes: dict[str, Any] = {"": file.attrs}

    def visit(name: str, item: Any) -> None:
        attributes[name] = item.attrs
        if isinstance(item, h5py.Dataset):
            arrays[name] = item

    file.visititems(visit)
    return _Store(path, arrays, attributes, file)


def _open_zarr(path: Path) -> _Store:
    import zarr

    try:
        root = zarr.open(str(path), mode="r")
    except (OSError, KeyError, ValueError) as error:
        raise SeppriorError(
            f"{path}: is not a Zarr store that can be read ({error})"
        ) from error
    if isinstance(root, zarr.Array):
        # An array alone has no path inside the store.
        return _Store(path, {path.stem: root}, {path.stem: root.attrs, "": {}}, root)
    members = dict(sorted(root.members(max_depth=None)))
    return _Store(
        path,
        {name: item for name, item in members.items() if isinstance(item, zarr.Array)},
        {"": root.attrs} | {name: item.attrs for name, item in members.items()},
        root,
    )


def _series(
    store: _Store, column: str | int | None, rows: range | None
) -> list[Series]:
    chosen = store.choose(column)
    source = str(store.path)
    result: list[Series] = []
    for name in chosen:
        data = store.arrays[name]
        group = name.rpartition("/")[0]
        others = {
            other: item
            for other, item in store.arrays.items()
            if other != name and other.rpartition("/")[0] == group
        }
        beside = {role_of(other): item for other, item in reversed(others.items())}
        roles = {
            role: _plain_text(item) if role in ("segment", "label") else item
            for role, item in beside.items()
            if item.shape == data.shape[-1:]
        }
        found = rows_of(
            data,
            source=source,
            what=f"{source}, dataset '{name}'" if len(store.arrays) > 1 else source,
            suffix=name if len(chosen) > 1 else "",
            roles=roles,
            time_unit=unit_of_times(others),
            sample_rate=store.sample_rate(name, beside.get("rate")),
            owner=store.owner,
            rows=rows,
        )
        result.extend(found)
    return result


def _plain_text(item: Any) -> Any:
    """A dataset of HDF5 strings read as text, not as bytes."""
    return item.asstr() if hasattr(item, "asstr") and item.dtype.kind in "OS" else item
