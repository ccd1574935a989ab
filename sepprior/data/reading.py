"""From paths to recordings and measurements, with checks that name the file."""

from __future__ import annotations

import csv
import lzma
import re
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sepprior.data.arrays import read_sound, read_wav
from sepprior.data.clock import Clock, Piece, fit_clock
from sepprior.data.columns import Selection
from sepprior.data.delimited import read_text
from sepprior.data.gaps import fill_gaps
from sepprior.data.listing import format_of, list_files, need, plain_name
from sepprior.data.recording import Recording, Segment, check_rate
from sepprior.data.screening import screened
from sepprior.data.series import (
    BLOCK,
    Run,
    Series,
    Values,
    check_not_empty,
    check_values,
    part_of,
)
from sepprior.data.stores import (
    read_hdf5,
    read_mat,
    read_npy,
    read_npz,
    read_tdms,
    read_zarr,
    row_shape,
)
from sepprior.data.tables import read_parquet
from sepprior.errors import SeppriorError
from sepprior.rates import RATE_TOLERANCE

_Reader = Callable[[Path, Any], list[Series]]

_FORMATS: dict[str, tuple[_Reader, str]] = {
    "text": (read_text, "pandas"),
    "workbook": (read_text, "openpyxl"),
    "NPY": (read_npy, ""),
    "NPZ": (read_npz, ""),
    "WAV": (read_wav, "scipy"),
    "sound": (read_sound, "soundfile"),
    "MAT": (read_mat, "scipy"),
    "TDMS": (read_tdms, "nptdms"),
    "HDF5": (read_hdf5, "h5py"),
    "Zarr": (read_zarr, "zarr"),
    "Parquet": (read_parquet, "pyarrow"),
}
_ROW_READERS = {"NPY": read_npy, "HDF5": read_hdf5, "Zarr": read_zarr}


@dataclass(frozen=True, eq=False)
class MeasurementStream:
    """One series with a signal in it, read slice by slice.

    Attributes:
        name: see `Measurement`.
        source: the file.
        start: time of the first sample in s; without a sample rate, its number.
        values: samples in the file's units, NaN where missing, shape (N,): a float64
            array, or a series whose slices are float64 arrays.
        sample_rate: in Hz; None if neither the file nor the caller told it.
        notes: what was left out of the samples, and why.
    """

    name: str
    source: str
    start: float
    values: Values
    sample_rate: float | None
    notes: tuple[str, ...] = ()

    def load(self) -> Measurement:
        """The whole measurement in memory."""
        return Measurement(
            name=self.name,
            source=self.source,
            start=self.start,
            values=np.array(self.values[0 : len(self.values)]),
            sample_rate=self.sample_rate,
            notes=self.notes,
        )


@dataclass(frozen=True, eq=False)
class Measurement:
    """One series with a signal in it.

    Attributes:
        name: stem of the file, followed by the column and the segment where the file
            has several; no two measurements read together share a name.
        source: the file.
        start: time of the first sample in s; without a sample rate, its number.
        values: samples in the file's units, shape (N,), NaN where missing.
        sample_rate: in Hz; None if neither the file nor the caller told it.
        notes: what was left out of the samples, and why.
    """

    name: str
    source: str
    start: float
    values: NDArray[np.float64]
    sample_rate: float | None
    notes: tuple[str, ...] = ()

    @property
    def time(self) -> NDArray[np.float64]:
        """Times of the samples in s, shape (N,), uniform; made when asked for.

        The first time in the file plus whole numbers of samples. Without a sample rate,
        the numbers of the samples.
        """
        return self.time_of(slice(0, len(self.values)))

    def time_of(self, part: slice) -> NDArray[np.float64]:
        """Times of some of the samples in s."""
        numbers = np.arange(*part.indices(len(self.values)))
        return self.start + numbers / (self.sample_rate or 1.0)


def read_recordings(
    paths: str | Path | Iterable[str | Path],
    *,
    sample_rate: float | None = None,
    column: str | int | None = None,
    time_column: str | int | None = None,
    skip_lines: int = 0,
    label: str | None = None,
) -> Recording:
    """Read noise-only recordings; long ones stay on disk.

    Delimited text (.csv, .txt, .tsv, .dat), NPY, NPZ, WAV, HDF5, Zarr and Parquet. A
    gap in the time column, a change in the `segment` or `label` column, a new row of a
    two-dimensional array, column or file starts a new segment.

    Args:
        paths: files, folders and patterns; see `list_files`.
        sample_rate: rate in Hz, for files that do not tell it.
        column: name or number of the column (array, dataset, channel) that holds the
            samples, or a pattern such as `train_*` for several; by default the one
            named `value`, `measurement`, `noise` or `x`, or the only one.
        time_column: name or number of the column with the times, "none" where a file
            has none; by default known by its name, such as `time (ms)`.
        skip_lines: lines of a text file above its table or header; by default found.
        label: label of the segments that have none in their file.

    Raises:
        SeppriorError: a file cannot be read or used, the sample rate is unknown, or
            files disagree about it.
    """
    segments: list[Segment] = []
    rate = source = None
    selection = Selection(column, time_column, skip_lines, sample_rate)
    for series in _read(paths, selection):
        check_values(series.values, what=series.what, where=series.locate)
        series_rate, clock = _resolve_rate(series, sample_rate)
        if series_rate is None:
            raise SeppriorError(
                f"{series.what}: does not tell its sample rate; pass --sample-rate HZ "
                "(sample_rate= in Python) or add a column `time` in seconds"
            )
        if rate is None:
            rate, source = series_rate, series.source
        elif abs(series_rate - rate) > RATE_TOLERANCE * rate:
            raise SeppriorError(
                f"{series.source}: has a sample rate of {series_rate:.6g} Hz, but "
                f"{source} has {rate:.6g} Hz; read files of one rate together"
            )
        for piece in _pieces(series.runs, clock, series_rate):
            segments.append(
                Segment(
                    values=part_of(series.values, piece.start, piece.stop),
                    label=series.runs[piece.run].label or label,
                    start=piece.time,
                    source=series.source,
                )
            )
    if rate is None:
        raise SeppriorError("no files were given; expected at least one recording")
    return Recording(segments=tuple(segments), sample_rate=rate)


def read_measurements(
    paths: str | Path | Iterable[str | Path],
    *,
    sample_rate: float | None = None,
    column: str | int | None = None,
    time_column: str | int | None = None,
    skip_lines: int = 0,
) -> list[Measurement]:
    """Read measurements into memory.

    See `open_measurements` for what a measurement is.

    Raises:
        SeppriorError: a file cannot be read or used, or none was given.
    """
    measurements = [
        stream.load()
        for stream in open_measurements(
            paths,
            sample_rate=sample_rate,
            column=column,
            time_column=time_column,
            skip_lines=skip_lines,
        )
    ]
    if not measurements:
        raise SeppriorError("no files were given; expected at least one measurement")
    return measurements


def open_measurements(
    paths: str | Path | Iterable[str | Path],
    *,
    sample_rate: float | None = None,
    column: str | int | None = None,
    time_column: str | int | None = None,
    skip_lines: int = 0,
    rows: range | None = None,
) -> Iterator[MeasurementStream]:
    """Open measurements one after the other; long ones stay on disk.

    A gap in the time column is filled with NaN. Each value of a `segment` column, each
    row of a two-dimensional array and each column is a measurement; a `label` column
    is not used.

    Args:
        paths: files, folders and patterns; see `list_files`.
        sample_rate: rate in Hz. Without it, and if the file does not tell it, the
            measurement has `sample_rate=None` and counts its time in samples.
        column: see `read_recordings`.
        time_column: see `read_recordings`.
        skip_lines: see `read_recordings`.
        rows: rows of a two-dimensional NPY, HDF5 or Zarr array to read, all at once;
            by default every row, one after the other.

    Raises:
        SeppriorError: a file cannot be read or used.
    """
    names: set[str] = set()
    selection = Selection(column, time_column, skip_lines, sample_rate)
    for series in _read(paths, selection, rows):
        # a label may change within a measurement
        series = replace(series, runs=_same_segment(series.runs))
        rate, clock = _resolve_rate(series, sample_rate)
        pieces: dict[int, list[Piece]] = {}
        for piece in _pieces(series.runs, clock, rate or 1.0):
            pieces.setdefault(piece.run, []).append(piece)
        for number, run in enumerate(series.runs):
            part = series.what
            if len(series.runs) > 1:
                part += f", segment {run.segment or number}"
            check_values(
                part_of(series.values, run.start, run.stop),
                what=part,
                where=lambda row, run=run, series=series: series.locate(
                    run.start + row
                ),
            )
            name = _free_name(_name(series, number), names)
            names.add(name)
            yield MeasurementStream(
                name=name,
                source=series.source,
                start=pieces[number][0].time,
                values=fill_gaps(
                    series.values,
                    pieces[number],
                    clock,
                    what=part,
                    locate=series.locate,
                ),
                sample_rate=rate,
                notes=series.notes,
            )


def _read(
    paths: str | Path | Iterable[str | Path],
    selection: Selection,
    rows: range | None = None,
) -> Iterable[Series]:
    """All series of all files, in order."""
    for path in list_files(paths):
        yield from _read_file(path, selection, rows)


def _read_file(path: Path, selection: Selection, rows: range | None) -> list[Series]:
    """Read one file with the reader of its suffix."""
    with _readable(path) as known:
        if rows is not None:
            result = _ROW_READERS[known](path, selection, rows)
        else:
            sound = known in ("WAV", "sound")
            result = _FORMATS[known][0](path, selection.column if sound else selection)
    return [_screened(series) for series in result]


def _screened(series: Series) -> Series:
    """The series without numbers that are no readings."""
    check_not_empty(series.values, what=series.what)
    values, notes = screened(series.values, what=series.what, where=series.locate)
    return replace(series, values=values, notes=notes)


def shape_of_rows(path: Path, *, column: str | int | None) -> tuple[int, int] | None:
    """Shape (n, M) of a two-dimensional array, without reading it.

    Returns:
        None where the file does not hold one such array, or its format does not tell.

    Raises:
        SeppriorError: the file cannot be read.
    """
    with _readable(path) as known:
        return row_shape(path, known, column) if known in _ROW_READERS else None


@contextmanager
def _readable(path: Path) -> Iterator[str]:
    """The format of a file; errors of its reader become lines that name the file."""
    known = format_of(path)
    package = _FORMATS[known][1]
    if package:
        need(package, path, known)
    try:
        if path.stat().st_size == 0:
            raise SeppriorError(f"{path}: is empty; expected a series of numbers")
        yield known
    except SeppriorError:
        raise
    except (
        OSError,
        ValueError,
        EOFError,
        csv.Error,
        struct.error,
        zipfile.BadZipFile,
        zlib.error,
        lzma.LZMAError,
    ) as error:
        detail = " ".join(str(error).split())[:200] or type(error).__name__
        raise SeppriorError(
            f"{path}: cannot be read as {known} ({detail}); the file may be damaged, "
            "protected, or of another format than its suffix says"
        ) from error


def _resolve_rate(
    series: Series, given: float | None
) -> tuple[float | None, Clock | None]:
    """Sample rate in Hz and what the time column says.

    A rate that was given goes before one that the file states, which goes before that
    of the time column; they have to agree.
    """
    if given is not None:
        check_rate(given)
    clock = None
    if series.time is not None:
        _check_rows_differ(series)
        clock = fit_clock(
            series.time,
            series.runs,
            what=series.source,
            where=series.locate,
            rate=series.sample_rate if given is None else given,
        )
    rates = {
        "sample_rate (--sample-rate)": given,
        "the rate stated in the file": series.sample_rate,
        "the time column": clock.sample_rate if clock else None,
    }
    known = [(name, float(rate)) for name, rate in rates.items() if rate is not None]
    for (name, rate), (other, other_rate) in pairwise(known):
        if abs(rate - other_rate) > RATE_TOLERANCE * rate:
            raise SeppriorError(
                f"{series.source}: {name} is {rate:.6g} Hz but {other} gives "
                f"{other_rate:.6g} Hz; correct one of them (time is in seconds)"
            )
    return (known[0][1] if known else None), clock


def _check_rows_differ(series: Series) -> None:
    """Refuse rows that are written more than once, times and samples alike."""
    assert series.time is not None
    times, values = series.time[:BLOCK], series.values[:BLOCK]
    repeats, equal = times[1:] == times[:-1], values[1:] == values[:-1]
    often = repeats.mean() > 0.2 if len(repeats) else False
    if often and equal[repeats].mean() > 0.95 and equal[~repeats].mean() < 0.5:
        where = series.locate(1 + int(np.argmax(repeats)))
        raise SeppriorError(
            f"{series.source}: rows are written more than once, the first again at "
            f"{where}; remove repeated rows"
        )


def _pieces(
    runs: Sequence[Run], clock: Clock | None, sample_rate: float
) -> tuple[Piece, ...]:
    """Stretches without a gap in the time column; without one, the runs."""
    if clock is not None:
        return clock.pieces
    starts = [run.start / sample_rate for run in runs]
    return tuple(
        Piece(number, run.start, run.stop, time=start, fitted=start)
        for number, (run, start) in enumerate(zip(runs, starts, strict=True))
    )


def _same_segment(runs: Sequence[Run]) -> tuple[Run, ...]:
    """Runs joined across changes of the label."""
    joined: list[Run] = []
    for run in runs:
        if joined and joined[-1].segment == run.segment:
            joined[-1] = replace(joined[-1], stop=run.stop)
        else:
            joined.append(run)
    return tuple(joined)


def _name(series: Series, number: int) -> str:
    """Name of the measurement in run `number`, fit for a file name."""
    parts = [Path(plain_name(Path(series.source).name)).stem, series.suffix]
    if len(series.runs) > 1:
        segments = [run.segment for run in series.runs]
        told = None not in segments and len(set(segments)) == len(segments)
        parts.append(str(segments[number]) if told else str(number))
    stem, *rest = [part for part in parts if part]
    return "-".join([stem, *(re.sub(r"[^\w.+-]+", "_", part) for part in rest)])


def _free_name(name: str, taken: set[str]) -> str:
    """The name, with a number added if it is taken."""
    number, candidate = 1, name
    while candidate in taken:
        number += 1
        candidate = f"{name}-{number}"
    return candidate
