"""Stores of named arrays: HDF5 and NetCDF, Zarr, NPZ, MAT and TDMS.

The paths of the arrays inside the store are its columns; so are the fields of arrays of
records. The sample rate is an attribute such as `sample_rate`, `fs` or `dt` of the
array or of a group above it, or a single number of that name beside it. An array named
`time`, `segment` or `label` beside it, of the same length, has that role. Fill values,
scales and offsets are applied (`sepprior.data.conventions`). Arrays of HDF5, Zarr and
TDMS are sliced, never read whole when they are long.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sepprior.data.arrays import (
    check_no_objects,
    flat,
    flat_shape,
    is_series,
    laid_out,
    npy_header,
    open_npy,
    rows_of,
)
from sepprior.data.columns import (
    Selection,
    choose,
    role_of,
    seconds_per_unit,
    time_column,
)
from sepprior.data.conventions import decoded, rate_in, rate_name
from sepprior.data.listing import need
from sepprior.data.series import LazySeries, Series
from sepprior.errors import SeppriorError

_KINDS = "iufSUO"  # of single values that may state a sample rate
_SHOWN = 6  # arrays described in an error message


@dataclass(frozen=True)
class _Store:
    """An open store.

    Attributes:
        path: where it is.
        kind: what its arrays are called.
        arrays: the arrays by their paths inside it.
        attributes: of the arrays and the groups by their paths, "" for the root.
        owner: keeps the store open.
    """

    path: Path
    kind: str
    arrays: Mapping[str, Any]
    attributes: Mapping[str, Mapping[str, Any]]
    owner: Any = None

    def choose(self, column: str | int | None) -> list[str]:
        """Paths of the arrays that hold the samples."""
        arrays = list(self.arrays.items())
        usable = [is_series(item.shape, item.dtype) for _, item in arrays]
        if arrays and not any(usable):
            if self.kind == "array":
                for name, item in arrays:
                    check_no_objects(item.dtype, what=f"{self.path}, array '{name}'")
            shown = [f"{n} ({i.dtype}, {i.shape})" for n, i in arrays[:_SHOWN]]
            more = f" and {len(arrays) - _SHOWN} more" if len(arrays) > _SHOWN else ""
            raise SeppriorError(
                f"{self.path}: no {self.kind} with numeric samples among: "
                f"{', '.join(shown)}{more}; expected a series, or one in each row"
            )
        names = [name for name, _ in arrays]
        source = str(self.path)
        chosen = choose(names, usable, column, source=source, kind=self.kind)
        return [names[i] for i in chosen]

    def array(self, name: str) -> Any:
        """An array as its attributes say it is to be read."""
        item = self.arrays[name]
        if isinstance(item, _Member):
            item = item[()]
        if item.dtype.kind not in "iuf":
            return item
        return decoded(item, _with_fill(item, self.attributes.get(name, {})))

    def beside(self, name: str) -> dict[str, Any]:
        """The other arrays of the same group."""
        group = name.rpartition("/")[0]
        return {
            other: item
            for other, item in self.arrays.items()
            if other != name and other.rpartition("/")[0] == group
        }

    def sample_rate(self, name: str) -> float | None:
        """Rate in Hz that the store states for an array, if any."""
        above = name
        while True:
            rate = rate_in(self.attributes.get(above, {}), source=str(self.path))
            if rate is not None:
                return rate
            single = {
                other: item[()]
                for other, item in self.beside(above).items()
                if rate_name(other)
                and item.dtype.kind in _KINDS
                and np.prod(item.shape, dtype=int) == 1
            }
            rate = rate_in(single, source=str(self.path)) if above else None
            if rate is not None or not above:
                return rate
            above = above.rpartition("/")[0]

    def seconds(self, name: str) -> float:
        """Seconds in the unit of an array of times."""
        units = self.attributes.get(name, {}).get("units", "")
        units = units.decode() if isinstance(units, bytes) else str(units)
        named = seconds_per_unit(name)
        word = units.split()[0] if units.split() else ""
        days = {"min": 60.0, "minutes": 60.0, "h": 3600.0, "hours": 3600.0}
        days |= {"days": 86400.0, "milliseconds": 1e-3, "microseconds": 1e-6}
        days |= {"nanoseconds": 1e-9}
        return named if named != 1.0 else days.get(word, seconds_per_unit(f"t {word}"))


class _Field:
    """One field of an array of records, read slice by slice."""

    def __init__(self, source: Any, name: str) -> None:
        self._source, self._name = source, name
        self.shape, self.dtype = source.shape, source.dtype[name]
        self.ndim = len(self.shape)

    def __getitem__(self, key: Any) -> Any:
        return self._source[key][self._name]


class _Member:
    """An array of an NPZ file, read when it is first needed."""

    def __init__(self, file: Any, name: str, shape: Any, dtype: Any) -> None:
        self._file, self._name, self._held = file, name, None
        self.shape, self.dtype, self.ndim = shape, dtype, len(shape)

    def __getitem__(self, key: Any) -> Any:
        if self._held is None:
            self._held = self._file[self._name]
        return self._held[key]


class _Channel:
    """A channel of a TDMS file, read and scaled slice by slice."""

    def __init__(self, channel: Any) -> None:
        self._channel, self.shape, self.ndim = channel, (len(channel),), 1
        probe = channel[:1] if len(channel) else np.empty(0)
        self.dtype = np.asarray(probe).dtype

    def __getitem__(self, key: Any) -> Any:
        return np.asarray(self._channel[slice(None) if key == () else key])


def _with_fields(arrays: Mapping[str, Any]) -> dict[str, Any]:
    """Arrays, those of records replaced by their fields."""
    result: dict[str, Any] = {}
    for name, item in arrays.items():
        fields = item.dtype.names
        if fields:
            result |= {f"{name}/{field}": _Field(item, field) for field in fields}
        else:
            result[name] = item
    return result


def _with_fill(item: Any, attributes: Mapping[str, Any]) -> Mapping[str, Any]:
    """Attributes, with the fill value that the store itself keeps for an array."""
    fill = getattr(item, "fillvalue", getattr(item, "fill_value", None))
    if fill is None or not np.isscalar(fill) or fill == 0 or fill != fill:
        return attributes
    return {"FillValue": fill, **attributes}


def read_hdf5(
    path: Path, selection: Selection, rows: range | None = None
) -> list[Series]:
    """Read datasets of an HDF5 file.

    Args:
        path: the file.
        selection: what to read of it.
        rows: rows of a two-dimensional dataset to read, together; all by default.
    """
    return _read_and_close(_open_hdf5(path), selection, rows)


def read_zarr(
    path: Path, selection: Selection, rows: range | None = None
) -> list[Series]:
    """Read arrays of a Zarr store; see `read_hdf5`."""
    return _series(_open_zarr(path), selection, rows)


def read_npy(
    path: Path, selection: Selection, rows: range | None = None
) -> list[Series]:
    """Read an NPY file: an array, the rows of one, or fields of records."""
    data = open_npy(path)
    if data.dtype.names:
        arrays = {name: _Field(data, name) for name in data.dtype.names}
        return _series(_Store(path, "field", arrays, {}), selection, rows)
    column = selection.column
    if column is not None:
        raise SeppriorError(
            f"{path}: an NPY file has no columns to choose {str(column)!r} from; leave "
            "the column out, or save named arrays with numpy.savez"
        )
    return rows_of(data, source=str(path), what=str(path), rows=rows)


def read_npz(path: Path, selection: Selection) -> list[Series]:
    """Read arrays of an NPZ file; they are compressed and have to fit in memory."""
    # np.load leaves a damaged file open that it opened itself
    with path.open("rb") as stream, np.load(stream) as file:
        arrays: dict[str, Any] = {}
        for name in file.files:
            member = name if name in file.zip.namelist() else f"{name}.npy"
            size = file.zip.getinfo(member).file_size
            with file.zip.open(member) as held:
                shape, dtype = npy_header(held, size, what=f"array '{name}' ")
            member = _Member(file, name, shape, dtype)
            arrays[name] = member[()] if dtype.names else member
        return _series(_Store(path, "array", _with_fields(arrays), {}), selection, None)


def read_mat(path: Path, selection: Selection) -> list[Series]:
    """Read variables of a MATLAB file of any version; those of a struct as a group."""
    from scipy.io import loadmat
    from scipy.io.matlab import MatReadError

    with path.open("rb") as stream:
        since_7_3 = b"\x89HDF" in stream.read(520)  # behind a text of 512 bytes
    if since_7_3:
        need("h5py", path, "MATLAB files of version 7.3")
        return read_hdf5(path, selection)
    try:
        variables = loadmat(path)
    except (MatReadError, NotImplementedError, TypeError) as error:
        raise ValueError(str(error)) from error
    arrays: dict[str, Any] = {}

    def collect(name: str, value: Any) -> None:
        if not isinstance(value, np.ndarray):
            return
        if value.dtype.names and value.size == 1:
            for field in value.dtype.names:
                collect(f"{name}/{field}", value.ravel()[0][field])
        elif not value.dtype.hasobject:
            arrays[name] = value

    for name, value in variables.items():
        if not name.startswith("__"):
            collect(name, value)
    return _series(_Store(path, "variable", arrays, {}), selection, None)


def read_tdms(path: Path, selection: Selection) -> list[Series]:
    """Read channels of a TDMS file of LabVIEW, scaled."""
    from nptdms import TdmsFile

    stream = path.open("rb")
    try:
        file = TdmsFile.open(stream)
    except BaseException as error:
        stream.close()
        if isinstance(error, Exception):
            raise ValueError(str(error)) from error
        raise
    arrays: dict[str, Any] = {}
    attributes: dict[str, Any] = {"": file.properties}
    for group in file.groups():
        attributes[group.name] = group.properties
        for channel in group.channels():
            name = f"{group.name}/{channel.name}"
            arrays[name] = _Channel(channel)
            attributes[name] = channel.properties
    return _read_and_close(
        _Store(path, "channel", arrays, attributes, stream), selection
    )


def _read_and_close(
    store: _Store, selection: Selection, rows: range | None = None
) -> list[Series]:
    """Series of a file, which is closed unless some are still to be read."""
    try:
        result = _series(store, selection, rows)
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
        shape = laid_out(open_npy(path))[0].shape
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
    return laid_out(store.array(names[0]))[0].shape if len(names) == 1 else ()


def _open_hdf5(path: Path) -> _Store:
    import h5py

    file = h5py.File(path, "r")
    arrays: dict[str, Any] = {}
    attributes: dict[str, Any] = {"": file.attrs}

    def visit(name: str, item: Any) -> None:
        attributes[name] = item.attrs
        if isinstance(item, h5py.Dataset) and not name.startswith("#"):
            arrays[name] = item

    file.visititems(visit)
    return _Store(path, "dataset", _with_fields(arrays), attributes, file)


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
        attributes = {path.stem: root.attrs}
        return _Store(path, "dataset", {path.stem: root}, attributes, root)
    members = dict(sorted(root.members(max_depth=None)))
    arrays = {name: item for name, item in members.items() if hasattr(item, "dtype")}
    return _Store(
        path,
        "dataset",
        _with_fields(arrays),
        {"": root.attrs} | {name: item.attrs for name, item in members.items()},
        root,
    )


def _series(store: _Store, selection: Selection, rows: range | None) -> list[Series]:
    chosen = store.choose(selection.column)
    source = str(store.path)
    given = selection.time_column
    names = list(store.arrays)
    position = None if given is None else time_column(names, given, source=source)
    result: list[Series] = []
    for name in chosen:
        data = store.array(name)
        check_no_objects(data.dtype, what=f"{source}, {store.kind} '{name}'")
        length = laid_out(data)[0].shape[-1:]
        roles: dict[str | None, Any] = {}
        time_unit = 1.0
        for other, item in reversed(store.beside(name).items()):
            role = role_of(other)
            if position is not None and other == names[position]:
                role = "time"
            elif given is not None and role == "time":
                role = None
            if role is None or flat_shape(item.shape) != length:
                continue
            roles[role] = flat(item)
            if role == "time":
                time_unit = store.seconds(other)
                roles[role] = flat(store.array(other))
            elif hasattr(item, "asstr") and item.dtype.kind in "OS":
                roles[role] = item.asstr()  # strings of HDF5 as text, not as bytes
        if position is not None and "time" not in roles:
            raise SeppriorError(
                f"{source}: {store.kind} '{names[position]}' has not one time for each "
                f"of the {length[0]} samples of '{name}'; name another --time-column, "
                "or none"
            )
        found = rows_of(
            data,
            source=source,
            what=f"{source}, {store.kind} '{name}'"
            if len(store.arrays) > 1
            else source,
            suffix=name if len(chosen) > 1 else "",
            roles=roles,
            time_unit=time_unit,
            sample_rate=store.sample_rate(name),
            owner=store.owner,
            rows=rows,
        )
        result.extend(found)
    return result
