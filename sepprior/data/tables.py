"""Tables with named columns, in chunks of rows: what text and Parquet files share."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sepprior.data import series as _series
from sepprior.data.columns import (
    Selection,
    choose,
    role_of,
    seconds_per_unit,
    time_column,
)
from sepprior.data.series import RunBuilder, Series, Spool, Values, part_of
from sepprior.errors import SeppriorError

_EPOCHS = ((9e11, 5e12, 1e-3), (9e14, 5e15, 1e-6), (9e17, 5e18, 1e-9))
_EPOCHS += ((6.2e17, 6.8e17, 1e-7),)


@dataclass(frozen=True)
class Columns:
    """Positions of the columns that are read.

    Attributes:
        values: of the samples.
        time: of the times, None without one.
        segment: of the segments, None without one.
        label: of the labels, None without one.
        seconds: in the unit of the times; None to tell it by their size.
    """

    values: list[int]
    time: int | None
    segment: int | None
    label: int | None
    seconds: float | None = 1.0

    @classmethod
    def choose(
        cls,
        names: Sequence[str],
        numeric: Sequence[bool],
        selection: Selection,
        *,
        source: str,
    ) -> Columns:
        """Choose by the names alone; see `sepprior.data.columns.choose`."""
        column = selection.column
        values = choose(names, numeric, column, source=source, kind="column")
        roles = {
            role_of(name): position
            for position, name in reversed(list(enumerate(names)))
            if position not in values
        }
        time = roles.get("time")
        if selection.time_column is not None:
            time = time_column(names, selection.time_column, source=source)
        unit = 1.0 if time is None else seconds_per_unit(names[time])
        return cls(values, time, roles.get("segment"), roles.get("label"), unit)

    @property
    def numbers(self) -> list[int]:
        """Columns that hold numbers."""
        return [*self.values, *([] if self.time is None else [self.time])]

    @property
    def keys(self) -> list[int]:
        """Columns that hold names."""
        return [key for key in (self.segment, self.label) if key is not None]


def read_parquet(path: Path, selection: Selection) -> list[Series]:
    """Read a Parquet file, row group by row group; columns as in text files."""
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet

    def number(kind: Any) -> bool:
        of = pa.types
        return of.is_integer(kind) or of.is_floating(kind) or of.is_decimal(kind)

    def clock(kind: Any) -> bool:
        return pa.types.is_timestamp(kind) or pa.types.is_duration(kind)

    first: dict[int, int] = {}

    def plain(i: int, column: Any) -> NDArray[Any]:
        """Numbers; stamps in s after the first one."""
        if clock(column.type):
            unit = {"s": 1.0, "ms": 1e-3, "us": 1e-6, "ns": 1e-9}[column.type.unit]
            counts = column.cast(pa.int64())
            if column.null_count < len(column):
                begin = first.setdefault(i, counts.drop_null()[0].as_py())
                counts = pc.subtract(counts, begin)  # pyright: ignore
            return unit * counts.to_numpy(zero_copy_only=False)
        if pa.types.is_decimal(column.type):
            column = column.cast(pa.float64())
        return column.to_numpy(zero_copy_only=False)

    with pyarrow.parquet.ParquetFile(path.resolve()) as file:
        schema = file.schema_arrow
        names = tuple(schema.names)
        numeric = [
            number(kind) and not name.startswith("__index_level_")
            for name, kind in zip(names, schema.types, strict=True)
        ]
        chosen = Columns.choose(names, numeric, selection, source=str(path))
        index = "__index_level_0__"  # that pandas wrote
        if chosen.time is None and index in names and clock(schema.field(index).type):
            chosen = replace(chosen, time=names.index(index))
        for position in chosen.numbers:
            kind = schema.types[position]
            if not (number(kind) or (position == chosen.time and clock(kind))):
                raise SeppriorError(
                    f"{path}: column '{names[position]}' holds "
                    f"{schema.types[position]}; expected real numbers"
                    + (" (times)" if position == chosen.time else "")
                )
        wanted = {*chosen.numbers, *chosen.keys}

        def chunks() -> Iterator[dict[int, NDArray[Any]]]:
            for batch in file.iter_batches(
                batch_size=_series.BLOCK, columns=[names[i] for i in sorted(wanted)]
            ):
                # int64 with missing values becomes float64 with nan
                yield {i: plain(i, batch.column(names[i])) for i in wanted}

        return collect(path, names, chosen, chunks())


def collect(
    path: Path,
    names: Sequence[str],
    chosen: Columns,
    chunks: Iterator[dict[int, NDArray[Any]]],
    *,
    sample_rate: float | None = None,
    locate: Any = _series.sample_number,
) -> list[Series]:
    """Put the chunks of all columns together.

    Rows at the end that hold no sample are left out.

    Args:
        path: the file.
        names: of all columns.
        chosen: those that are read.
        chunks: the columns by their positions, row by row.
        sample_rate: rate in Hz that the file states.
        locate: names the place of a row.
    """
    builder = RunBuilder()
    with ExitStack() as stack:
        spools = {i: stack.enter_context(Spool()) for i in chosen.numbers}
        for chunk in chunks:
            for i, spool in spools.items():
                spool.append(chunk[i])
            segment = None if chosen.segment is None else chunk[chosen.segment]
            label = None if chosen.label is None else chunk[chosen.label]
            builder.append(len(chunk[chosen.values[0]]), segment, label)
        columns = {i: spool.finish() for i, spool in spools.items()}
    runs = builder.finish()
    rows = _filled_rows([columns[i] for i in chosen.values])
    if rows < runs[-1].stop:
        columns = {i: part_of(values, 0, rows) for i, values in columns.items()}
        runs = tuple(
            replace(run, stop=min(run.stop, rows)) for run in runs if run.start < rows
        )
    time = None
    if chosen.time is not None:
        times = columns[chosen.time]
        unit = chosen.seconds
        unit = unit_by_size(names[chosen.time], times) if unit is None else unit
        time = _series.scaled(times, unit)
    return [
        Series(
            source=str(path),
            what=f"{path}, column '{names[i]}'" if len(names) > 1 else str(path),
            suffix=names[i] if len(chosen.values) > 1 else "",
            values=columns[i],
            time=time,
            runs=runs,
            sample_rate=sample_rate,
            locate=locate,
        )
        for i in chosen.values
    ]


def _filled_rows(values: Sequence[Values]) -> int:
    """Rows without those at the end that hold no sample."""
    rows = len(values[0])
    start = max(0, rows - _series.BLOCK)
    last = np.stack([column[start:rows] for column in values])
    empty = np.asarray(np.isnan(last).all(0))
    if empty.all():  # said by others
        return rows
    return start + len(empty) - int(np.argmin(empty[::-1]))


def unit_by_size(name: str, times: Values) -> float:
    """Seconds in the unit of times whose name tells none, by their size.

    Milliseconds, microseconds and nanoseconds since 1970, steps of 100 ns since the
    year 1 and, in a column of dates, days are told from seconds, which all others are.
    """
    first = abs(float(times[0:1][0])) if len(times) else 0.0
    for low, high, unit in _EPOCHS:
        if low <= first <= high:
            return unit
    if "date" in name.casefold() and (2e4 < first < 8e4 or 6.9e5 < first < 7.8e5):
        return 86400.0
    return 1.0
