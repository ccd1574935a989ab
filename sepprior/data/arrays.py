"""Files of arrays: NPY, NPZ and WAV.

NPY and WAV are mapped, never read whole when they are long; the arrays of an NPZ file
are compressed and have to fit in memory.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from sepprior.data.columns import RATE_NAMES, choose, role_of, seconds_per_unit
from sepprior.data.series import (
    MIN_SAMPLES,
    Run,
    RunBuilder,
    Series,
    Values,
    as_values,
    check_dtype,
    scaled,
)
from sepprior.errors import SeppriorError


def read_npy(
    path: Path, column: str | int | None, rows: range | None = None
) -> list[Series]:
    """Read one array: a series, or several in the rows of a two-dimensional array."""
    if column is not None:
        raise SeppriorError(
            f"{path}: an NPY file has no columns to choose {str(column)!r} from; leave "
            "the column out, or save named arrays with numpy.savez"
        )
    try:
        data = np.load(path, mmap_mode="r")
    except ValueError:  # an array without samples cannot be mapped
        data = np.load(path)
    return rows_of(data, source=str(path), what=str(path), rows=rows)


def read_npz(path: Path, column: str | int | None) -> list[Series]:
    """Read arrays of an NPZ file; their names are the columns.

    An array named `time`, `segment` or `label` of the same length has that role, and a
    single number named `sample_rate`, `fs` or `rate` is the sample rate in Hz.
    """
    # np.load leaves a damaged file open that it opened itself
    with path.open("rb") as stream, np.load(stream) as file:
        headers = {name: _npz_header(file, name) for name in file.files}
        usable = [is_series(shape, dtype) for shape, dtype in headers.values()]
        names = list(headers)
        rate = next(
            (
                stated_rate(file[name], source=str(path))
                for name, (shape, dtype) in headers.items()
                if name.lower() in RATE_NAMES
                and shape in ((), (1,))
                and dtype.kind in "iuf"
            ),
            None,
        )
        chosen = choose(names, usable, column, source=str(path), kind="array")
        result: list[Series] = []
        for i in chosen:
            beside = [
                name
                for name, (shape, _) in headers.items()
                if name != names[i]
                and role_of(name)
                and shape == headers[names[i]][0][-1:]
            ]
            found = rows_of(
                file[names[i]],
                source=str(path),
                what=f"{path}, array '{names[i]}'" if len(names) > 1 else str(path),
                suffix=names[i] if len(chosen) > 1 else "",
                roles={role_of(name): file[name] for name in reversed(beside)},
                time_unit=unit_of_times(beside),
                sample_rate=rate,
            )
            result.extend(found)
    return result


def read_wav(path: Path, column: str | int | None) -> list[Series]:
    """Read channels of a WAV file; integer samples stay counts of the converter.

    The channels are the columns, numbered from 0. Samples of 24 bits, which SciPy
    shifts to 32 bits, are shifted back.
    """
    from scipy.io import wavfile

    with warnings.catch_warnings():
        # chunks with remarks; and a file cut short is an error, as when it is mapped
        warnings.filterwarnings("ignore", "Chunk .* not understood")
        warnings.filterwarnings("error", "Reached EOF prematurely")
        try:
            rate, data = wavfile.read(path, mmap=True)
        except wavfile.WavFileWarning as error:
            raise ValueError(str(error)) from error
        except ValueError as error:
            if "3-byte" not in str(error):
                raise
            rate, data = wavfile.read(path)
            data = data >> 8
    channels = (data[:, None] if data.ndim == 1 else data).T
    names = [str(number) for number in range(len(channels))]
    chosen = choose(
        names, [True] * len(names), column, source=str(path), kind="channel"
    )
    result: list[Series] = []
    for i in chosen:
        what = f"{path}, channel {i}" if len(names) > 1 else str(path)
        suffix = names[i] if len(chosen) > 1 else ""
        result.extend(
            rows_of(
                channels[i],
                source=str(path),
                what=what,
                suffix=suffix,
                sample_rate=float(rate),
            )
        )
    return result


def unit_of_times(names: Iterable[str]) -> float:
    """Seconds in the unit of the first name of a time column, 1 without one."""
    units = (seconds_per_unit(name) for name in names if role_of(name) == "time")
    return next(units, 1.0)


def rows_of(
    data: Any,
    *,
    source: str,
    what: str,
    suffix: str = "",
    roles: Mapping[str | None, Any] | None = None,
    time_unit: float = 1.0,
    sample_rate: float | None = None,
    owner: object = None,
    rows: range | None = None,
) -> list[Series]:
    """Series in an array: the array itself, or its rows.

    Args:
        data: array-like, shape (M,) or (n, M).
        source: the file.
        what: begins error messages.
        suffix: name of the array where several are read.
        roles: arrays of shape (M,) by their role: "time", "segment", "label".
        time_unit: of the times, s.
        sample_rate: rate in Hz, if the file states it.
        owner: kept alive with series that are read lazily.
        rows: rows of a two-dimensional array to read, together; all by default.

    Raises:
        SeppriorError: another number of dimensions, or no real numbers.
    """
    check_dtype(data.dtype, what=what)
    if data.ndim not in (1, 2):
        raise SeppriorError(
            f"{what}: has {data.ndim} dimensions; expected one, or two with a "
            "recording in each row"
        )
    if data.ndim == 2 and data.shape[1] < MIN_SAMPLES <= data.shape[0]:
        raise SeppriorError(
            f"{what}: has {data.shape[0]} rows of {data.shape[1]} samples; expected a "
            f"recording of at least {MIN_SAMPLES} samples in each row: transpose it"
        )
    roles = roles or {}
    time: Values | None = None
    if "time" in roles:
        time = as_values(roles["time"], what=f"{source}, time", owner=owner)
        time = scaled(time, time_unit)
    runs = _runs(data.shape[-1], roles.get("segment"), roles.get("label"))
    single = data.ndim == 1 or data.shape[0] == 1
    wanted: list[int | None] = [None]
    first = 0
    if data.ndim == 2:
        wanted = list(range(data.shape[0]) if rows is None else rows)
        if rows is not None:
            first, data, owner = rows.start, data[rows.start : rows.stop], None
    return [
        Series(
            source=source,
            what=what if single else f"{what}, row {row}",
            suffix=suffix if single else f"{suffix}-{row}".removeprefix("-"),
            values=as_values(
                data, what=what, row=None if row is None else row - first, owner=owner
            ),
            time=time,
            runs=runs,
            sample_rate=sample_rate,
        )
        for row in wanted
    ]


def _runs(rows: int, segment: Any, label: Any) -> tuple[Run, ...]:
    builder = RunBuilder()
    builder.append(
        rows,
        None if segment is None else np.asarray(segment[:]),
        None if label is None else np.asarray(label[:]),
    )
    return builder.finish()


def is_series(shape: tuple[int, ...], dtype: np.dtype[Any]) -> bool:
    """Whether an array may hold samples."""
    return dtype.kind in "iuf" and len(shape) in (1, 2) and shape[-1] >= MIN_SAMPLES


def _npz_header(file: Any, name: str) -> tuple[tuple[int, ...], np.dtype[Any]]:
    """Shape and dtype of an array of an NPZ file, without reading its samples."""
    member = name if name in file.zip.namelist() else f"{name}.npy"
    with file.zip.open(member) as stream:
        if np.lib.format.read_magic(stream) == (1, 0):
            shape, _, dtype = np.lib.format.read_array_header_1_0(stream)
        else:
            shape, _, dtype = np.lib.format.read_array_header_2_0(stream)
    return shape, dtype


def stated_rate(value: Any, *, source: str) -> float:
    """A stated sample rate as a positive number."""
    rate = float(np.asarray(value).reshape(-1)[0])
    if not (np.isfinite(rate) and rate > 0):
        raise SeppriorError(
            f"{source}: states a sample rate of {rate:g} Hz; expected a positive number"
        )
    return rate
