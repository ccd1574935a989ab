"""Series of samples that may be larger than memory, and the checks all of them pass.

Up to `IN_MEMORY_SAMPLES` samples are a float64 array. A longer series stays where it
is (a mapped file, a dataset inside an HDF5 file) and becomes float64 slice by slice.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO, Protocol

import numpy as np
from numpy.typing import NDArray

from sepprior.errors import SeppriorError

MIN_SAMPLES = 16
"""Fewest samples, gaps not counted, that a recording or a measurement may have."""
IN_MEMORY_SAMPLES = 2**22
"""Longest series that is held in memory as float64 (32 MiB)."""
BLOCK = 2**18
"""Samples processed at a time wherever a whole series is passed over."""


class Values(Protocol):
    """One-dimensional samples: a float64 array, or anything that slices into one."""

    def __len__(self) -> int: ...

    def __getitem__(self, key: slice, /) -> NDArray[np.float64]: ...


class LazySeries:
    """Part of a larger source, read and converted to float64 when it is sliced.

    Args:
        source: numeric array-like of shape (M,), or (n, M) with `row`; for instance a
            `numpy.memmap` or an `h5py.Dataset`.
        row: the row of a two-dimensional source.
        start: first sample of the part.
        stop: one past its last sample; the end of the source by default.
        owner: an object to keep alive as long as the series, such as an open file.
        factor: by which every sample is multiplied.
    """

    def __init__(
        self,
        source: Any,
        *,
        row: int | None = None,
        start: int = 0,
        stop: int | None = None,
        owner: object = None,
        factor: float = 1.0,
    ) -> None:
        self._source, self._row, self._owner = source, row, owner
        self._start, self._factor = start, factor
        self._stop = source.shape[-1] if stop is None else stop

    def __len__(self) -> int:
        return self._stop - self._start

    def __getitem__(self, key: slice) -> NDArray[np.float64]:
        first, last, step = key.indices(len(self))
        if step != 1:
            raise IndexError("a lazy series is sliced with step 1 only")
        part = slice(self._start + first, self._start + max(first, last))
        taken = (
            self._source[part] if self._row is None else self._source[self._row, part]
        )
        values = np.array(taken, dtype=np.float64)
        return values if self._factor == 1.0 else values * self._factor

    def __array__(
        self, dtype: Any = None, copy: bool | None = None
    ) -> NDArray[np.float64]:
        return np.asarray(self[:], dtype=dtype)

    def part(self, start: int, stop: int) -> LazySeries:
        """Samples `start` to `stop` as a series of their own, still unread."""
        return LazySeries(
            self._source,
            row=self._row,
            start=self._start + start,
            stop=self._start + stop,
            owner=self._owner,
            factor=self._factor,
        )


def part_of(values: Values, start: int, stop: int) -> Values:
    """Samples `start` to `stop` of a series, without reading or copying them."""
    part = getattr(values, "part", None)
    if part is not None:
        return part(start, stop)
    return values[start:stop]


def scaled(values: Values, factor: float) -> Values:
    """A series times a factor, without reading what is not in memory."""
    if factor == 1.0:
        return values
    if isinstance(values, np.ndarray) and len(values) <= IN_MEMORY_SAMPLES:
        return values * factor
    return LazySeries(values, stop=len(values), factor=factor)


def blocks_of(values: Values, *, block: int = 0) -> Iterator[NDArray[np.float64]]:
    """Consecutive blocks (`block` samples each, the last may be shorter)."""
    block = block or BLOCK
    for start in range(0, len(values), block):
        yield values[start : start + block]


def as_values(
    source: Any, *, what: str, row: int | None = None, owner: object = None
) -> Values:
    """A series of real numbers, in memory if it is short and lazy if it is long.

    Args:
        source: array-like of shape (M,), or (n, M) with `row`.
        what: file and column, to begin an error message with.
        row: the row of a two-dimensional source.
        owner: an object to keep alive with a lazy series.

    Raises:
        SeppriorError: the numbers are complex, or no numbers.
    """
    check_dtype(source.dtype, what=what)
    series = LazySeries(source, row=row, owner=owner)
    return series[:] if len(series) <= IN_MEMORY_SAMPLES else series


def in_place(array: NDArray[Any], *, what: str) -> Values:
    """A long float64 array as it is, without a copy; others as `as_values` has them."""
    if array.dtype == np.float64 and len(array) > IN_MEMORY_SAMPLES:
        return array
    return as_values(array, what=what)


def check_dtype(dtype: np.dtype[Any], *, what: str) -> None:
    """Refuse anything but integers and real floating-point numbers."""
    if dtype.kind == "c":
        raise SeppriorError(
            f"{what}: holds complex numbers; expected real ones: save the real part, "
            "the imaginary part or the magnitude as a series of its own"
        )
    if dtype.kind not in "iuf":
        raise SeppriorError(
            f"{what}: holds {dtype}; expected integers or floating-point numbers"
        )


def sample_number(row: int) -> str:
    """Place of a sample in an array, for error messages; counted from 0."""
    return f"sample {row}"


@dataclass(frozen=True, eq=False)
class Run:
    """Consecutive rows of one file that belong together: same segment, same label.

    Attributes:
        start: first row.
        stop: one past the last row.
        segment: value of the `segment` column, None without one.
        label: value of the `label` column, None without one.
    """

    start: int
    stop: int
    segment: str | None = None
    label: str | None = None


@dataclass(frozen=True, eq=False)
class Series:
    """One column of samples of one file, with all that the file says about it.

    Attributes:
        source: the file, as the user named it.
        what: file and, where it matters, column; begins every error message.
        suffix: the column's name where several columns are read, else empty.
        values: samples in the file's units, NaN where missing.
        time: times of the samples in s, None if the file has none.
        runs: the rows in parts that must not be joined.
        sample_rate: rate in Hz that the file states as a number, None if it does not.
        locate: names the place of a row in the file, for error messages.
        notes: what was left out of the samples, and why.
    """

    source: str
    what: str
    suffix: str
    values: Values
    time: Values | None = None
    runs: tuple[Run, ...] = ()
    sample_rate: float | None = None
    locate: Callable[[int], str] = sample_number
    notes: tuple[str, ...] = ()


class RunBuilder:
    """Collects runs of equal segment and label from rows that arrive in chunks."""

    def __init__(self) -> None:
        self._starts: list[tuple[int, Any, Any]] = []
        self._rows = 0

    def append(
        self, rows: int, segment: NDArray[Any] | None, label: NDArray[Any] | None
    ) -> None:
        """Add `rows` rows with their segment and label columns, each (rows,)."""
        segment, label = _without_nan(segment), _without_nan(label)
        changed = np.zeros(rows, dtype=bool)
        for column in (segment, label):
            if column is not None:
                changed[1:] |= column[1:] != column[:-1]
        changed[:1] = True
        for row in np.flatnonzero(changed):
            keys = (
                None if segment is None else segment[row],
                None if label is None else label[row],
            )
            if not self._starts or self._starts[-1][1:] != keys:
                self._starts.append((self._rows + int(row), *keys))
        self._rows += rows

    def finish(self) -> tuple[Run, ...]:
        """All runs, in order; a single empty one if there were no rows."""
        if not self._starts:
            return (Run(0, 0),)
        stops = [start for start, _, _ in self._starts[1:]] + [self._rows]
        return tuple(
            Run(start, stop, _text(segment), _text(label))
            for (start, segment, label), stop in zip(self._starts, stops, strict=True)
        )


def _without_nan(column: NDArray[Any] | None) -> NDArray[Any] | None:
    """The column with None for nan, which would differ from itself."""
    if column is None or column.dtype.kind != "f":
        return column
    filled = column.astype(object)
    filled[np.isnan(column)] = None
    return filled


def _text(key: Any) -> str | None:
    if key is None or key == "":
        return None
    return f"{key:g}" if isinstance(key, float) else str(key)


class Spool:
    """Collects a series of unknown length; a long one goes to a temporary file.

    The file has no name in the file system and vanishes with the last reference to it.
    A context manager: what `finish` returned outlives the context.
    """

    def __init__(self) -> None:
        self._chunks: list[NDArray[np.float64]] = []
        self._file: BinaryIO | None = None
        self._rows = 0

    def __enter__(self) -> Spool:
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            self._file.close()

    def append(self, chunk: NDArray[np.float64]) -> None:
        """Add samples, shape (rows,)."""
        self._rows += len(chunk)
        self._chunks.append(np.ascontiguousarray(chunk, dtype=np.float64))
        if self._rows > IN_MEMORY_SAMPLES:
            if self._file is None:
                self._file = tempfile.TemporaryFile()  # noqa: SIM115 (outlives this)
            for collected in self._chunks:
                self._file.write(collected.tobytes())
            self._chunks = []

    def finish(self) -> Values:
        """The whole series."""
        if self._file is None:
            return np.concatenate([np.empty(0), *self._chunks])
        self._file.flush()
        # the mapping holds its own handle on the file
        mapped = np.memmap(self._file, dtype=np.float64, mode="r", shape=(self._rows,))
        return LazySeries(mapped)


def check_not_empty(values: Values, *, what: str) -> None:
    """Refuse a series without samples."""
    if not len(values):
        raise SeppriorError(f"{what}: is empty; expected a series of numbers")


def check_values(values: Values, *, what: str, where: Callable[[int], str]) -> None:
    """Refuse series from which nothing can be learned.

    Args:
        values: samples, shape (M,), NaN where missing.
        what: file and column, to begin the message with.
        where: names the place of a sample.

    Raises:
        SeppriorError: infinite values, nothing but NaN, fewer than `MIN_SAMPLES`
            samples, or a constant.
    """
    check_not_empty(values, what=what)
    n_finite = n_infinite = first_infinite = offset = 0
    low, high = np.inf, -np.inf
    for block in blocks_of(values):
        infinite = np.isinf(block)
        if infinite.any():
            if not n_infinite:
                first_infinite = offset + int(np.argmax(infinite))
            n_infinite += int(np.count_nonzero(infinite))
        finite = block[np.isfinite(block)]
        if len(finite):
            n_finite += len(finite)
            low, high = min(low, finite.min()), max(high, finite.max())
        offset += len(block)
    if n_infinite:
        count = (
            "1 infinite value" if n_infinite == 1 else f"{n_infinite} infinite values"
        )
        raise SeppriorError(
            f"{what}: holds {count}, the first at {where(first_infinite)}; write nan "
            "where a sample is missing or out of range"
        )
    if not n_finite:
        raise SeppriorError(f"{what}: every value is missing (nan); expected numbers")
    if n_finite < MIN_SAMPLES:
        raise SeppriorError(
            f"{what}: samples that are not missing: {n_finite}; expected at least "
            f"{MIN_SAMPLES}"
        )
    if low == high:
        raise SeppriorError(
            f"{what}: is constant, every value is {low:g}; expected a varying series: "
            "check the sensor and the choice of the column"
        )
