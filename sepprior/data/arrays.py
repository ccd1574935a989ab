"""Arrays of one or two dimensions as series, and the files that hold one: NPY, sound.

NPY and WAV are mapped, never read whole when they are long.
"""

from __future__ import annotations

import io
import math
import struct
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from sepprior.data.columns import choose
from sepprior.data.given import time_row
from sepprior.data.listing import need
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

_OPEN_ENDED = 0x7FFFF000  # bytes that a stream states before it knows its length


def npy_header(
    stream: BinaryIO, size: int, *, what: str = ""
) -> tuple[tuple[int, ...], np.dtype[Any]]:
    """Shape and dtype of an NPY stream of `size` bytes, without reading its samples.

    Raises:
        ValueError: it holds less than it declares; `what` begins the message.
    """
    if np.lib.format.read_magic(stream) == (1, 0):
        shape, _, dtype = np.lib.format.read_array_header_1_0(stream)
    else:
        shape, _, dtype = np.lib.format.read_array_header_2_0(stream)
    held = size - stream.tell()
    if not dtype.hasobject and (
        min(shape, default=0) < 0 or math.prod(shape) * dtype.itemsize > held
    ):
        raise ValueError(
            f"{what}declares an array of shape {str(shape)[:60]}, more than the "
            f"{held} bytes it holds"
        )
    return shape, dtype


def check_no_objects(dtype: np.dtype[Any], *, what: str) -> None:
    """Refuse pickled objects: reading them would run code."""
    if dtype.hasobject:
        raise SeppriorError(
            f"{what}: holds pickled Python objects, which are not read since they can "
            "run code; save numbers: numpy.save(FILE, x.astype(float))"
        )


def open_npy(path: Path) -> Any:
    """The array of an NPY file, mapped."""
    with path.open("rb") as stream:
        _, dtype = npy_header(stream, path.stat().st_size)
    check_no_objects(dtype, what=str(path))
    try:
        return np.load(path, mmap_mode="r")
    except ValueError:  # an array without samples cannot be mapped
        return np.load(path)


def read_wav(path: Path, column: str | int | None) -> list[Series]:
    """Read channels of a WAV file; integer samples stay counts of the converter.

    The channels are the columns, numbered from 0. Samples of 24 bits, which SciPy
    shifts to 32 bits, are shifted back. A stream whose length was never filled in is
    read to its end.
    """
    from scipy.io import wavfile

    source = _closed_stream(path)
    with warnings.catch_warnings():
        # chunks with remarks; and a file cut short is an error, as when it is mapped
        warnings.filterwarnings("ignore", "Chunk .* not understood")
        warnings.filterwarnings("error", "Reached EOF prematurely")
        try:
            rate, data = wavfile.read(source, mmap=source is path)
        except wavfile.WavFileWarning as error:
            raise ValueError(str(error)) from error
        except ValueError as error:
            if "Unknown wave file format" in str(error):
                return read_sound(path, column)
            if "3-byte" not in str(error):
                raise
            rate, data = wavfile.read(path)
            data = data >> 8
    return _channels(path, data, float(rate), column)


def _closed_stream(path: Path) -> Path | io.BytesIO:
    """The file; a copy with its lengths filled in, where they were left open."""
    size = path.stat().st_size
    with path.open("rb") as file:
        riff, stated, form = struct.unpack("<4sI4s", file.read(12))
        if riff != b"RIFF" or form != b"WAVE":
            return path
        place, name, length = 12, b"", 0
        while place + 8 <= size:
            file.seek(place)
            name, length = struct.unpack("<4sI", file.read(8))
            if name == b"data":
                break
            place += 8 + length + length % 2
    held = size - place - 8
    if name != b"data" or held <= 0:
        return path
    if length > held and length < _OPEN_ENDED:
        raise ValueError(
            f"it was cut short: states {length} bytes of samples, holds {held}"
        )
    if 0 < length <= held and stated + 8 >= place + 8 + length:
        return path
    whole = bytearray(path.read_bytes())
    whole[4:8] = struct.pack("<I", min(size - 8, 0xFFFFFFFF))
    if not 0 < length <= held:
        whole[place + 4 : place + 8] = struct.pack("<I", min(held, 0xFFFFFFFF))
    return io.BytesIO(whole)


def read_sound(path: Path, column: str | int | None) -> list[Series]:
    """Read channels of FLAC, AIFF and others; integer samples stay counts."""
    need("soundfile", path, "this kind of sound")
    import soundfile

    try:
        with soundfile.SoundFile(path) as file:
            kind, rate = file.subtype, float(file.samplerate)
            whole = kind in ("PCM_16", "PCM_24", "PCM_32")
            data = np.asarray(file.read(dtype="int32" if whole else "float64"))
    except soundfile.SoundFileError as error:
        raise ValueError(str(error)) from error
    if whole:  # they fill the upper bits
        data = np.right_shift(data, 32 - int(kind[-2:]))
    return _channels(path, data, rate, column)


def _channels(
    path: Path, data: Any, rate: float, column: str | int | None
) -> list[Series]:
    """Chosen channels of samples (M,) or (M, c)."""
    channels = (data[:, None] if data.ndim == 1 else data).T
    names = [str(number) for number in range(len(channels))]
    chosen = choose(
        names, [True] * len(names), column, source=str(path), kind="channel"
    )
    result: list[Series] = []
    for i in chosen:
        result += rows_of(
            channels[i],
            source=str(path),
            what=f"{path}, channel {i}" if len(names) > 1 else str(path),
            suffix=names[i] if len(chosen) > 1 else "",
            sample_rate=rate,
        )
    return result


class Flat:
    """The samples of an array whose other dimensions are 1, read slice by slice."""

    def __init__(self, source: Any) -> None:
        self._source = source
        self.shape, self.dtype, self.ndim = flat_shape(source.shape), source.dtype, 1
        self._long = source.shape.index(self.shape[0])

    def __getitem__(self, key: Any) -> Any:
        place: list[Any] = [0] * len(self._source.shape)
        place[self._long] = key
        return self._source[tuple(place)]


def flat_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    """A shape without dimensions of 1, where one other is left."""
    size = math.prod(shape)
    return (size,) if len(shape) > 1 and size == max(shape) > 1 else shape


def flat(source: Any) -> Any:
    """An array (1, M), (M, 1), ... as (M,), unread; others as they are."""
    return source if flat_shape(source.shape) == source.shape else Flat(source)


def laid_out(data: Any) -> tuple[Any, Values | None]:
    """An array with recordings in its rows, and times that it holds itself.

    Of an array (M, k) or (k, M), k below 16, whose first column or row rises in equal
    steps while others do not, that one is the time in s; where it counts samples it is
    left out.
    """
    data = flat(data)
    if data.ndim != 2 or data.dtype.kind not in "iuf":
        return data, None
    turned = data
    if 2 <= data.shape[1] < MIN_SAMPLES <= data.shape[0]:
        turned = np.asarray(data[:]).T
    if time_row(turned) is None:
        return data, None
    time = np.asarray(turned[0], dtype=np.float64)
    counts = bool((np.diff(time) == 1).all())
    return flat(turned[1:]), None if counts else time


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
        data: array-like, shape (M,) or (n, M); see `laid_out` for others.
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
    data, time = laid_out(data)
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
    shape = flat_shape(shape)
    return (
        dtype.kind in "iuf" and len(shape) in (1, 2) and max(shape[-2:]) >= MIN_SAMPLES
    )
