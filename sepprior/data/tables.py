"""Tables with named columns: CSV and other delimited text, and Parquet.

Both are read in chunks, and only the columns that are needed.
"""

from __future__ import annotations

import csv
import warnings
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from itertools import zip_longest
from pathlib import Path
from typing import Any, NoReturn

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
from sepprior.data.series import RunBuilder, Series, Spool
from sepprior.errors import SeppriorError

_SNIFFED = 2**16  # characters read to recognise the layout of a text file
_SNIFFED_LINES = 32
_MISSING = {"", "na", "nan", "-nan", "n/a", "null", "none", "<na>", "#n/a"}


@dataclass(frozen=True)
class _Layout:
    """How a text file is written."""

    separator: str
    decimal: str
    names: tuple[str, ...]
    header_lines: int
    numeric: tuple[bool, ...]


@dataclass(frozen=True)
class _Columns:
    """Positions of the columns that are read."""

    values: list[int]
    time: int | None
    segment: int | None
    label: int | None

    @classmethod
    def choose(
        cls,
        names: Sequence[str],
        numeric: Sequence[bool],
        selection: Selection,
        *,
        source: str,
    ) -> _Columns:
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
        return cls(values, time, roles.get("segment"), roles.get("label"))

    @property
    def numbers(self) -> list[int]:
        return [*self.values, *([] if self.time is None else [self.time])]

    @property
    def keys(self) -> list[int]:
        return [key for key in (self.segment, self.label) if key is not None]


def read_text(path: Path, selection: Selection) -> list[Series]:
    """Read delimited text (comma, semicolon, tab or blanks; header optional).

    Lines that start with `#` and blank lines are skipped. With semicolons or tabs the
    decimal mark may be a comma. Columns are numbered from 0.

    Args:
        path: the file.
        selection: what to read of it.

    Raises:
        SeppriorError: no such column, or text where a number belongs.
    """
    layout = _sniff(path)
    chosen = _Columns.choose(layout.names, layout.numeric, selection, source=str(path))
    locate = partial(_line_of_row, path, layout.header_lines)
    chunks = _text_chunks(path, layout, chosen)
    return _collect(path, layout.names, chosen, chunks, locate=locate)


def read_parquet(path: Path, selection: Selection) -> list[Series]:
    """Read a Parquet file, row group by row group; columns as in text files."""
    import pyarrow as pa
    import pyarrow.parquet

    def number(kind: Any) -> bool:
        return pa.types.is_integer(kind) or pa.types.is_floating(kind)

    with pyarrow.parquet.ParquetFile(path) as file:
        schema = file.schema_arrow
        names = tuple(schema.names)
        numeric = [
            number(kind) and not name.startswith("__index_level_")
            for name, kind in zip(names, schema.types, strict=True)
        ]
        chosen = _Columns.choose(names, numeric, selection, source=str(path))
        for position in chosen.numbers:
            if not number(schema.types[position]):
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
                yield {
                    i: batch.column(names[i]).to_numpy(zero_copy_only=False)
                    for i in wanted
                }

        return _collect(path, names, chosen, chunks())


def _collect(
    path: Path,
    names: Sequence[str],
    chosen: _Columns,
    chunks: Iterator[dict[int, NDArray[Any]]],
    *,
    locate: Any = _series.sample_number,
) -> list[Series]:
    """Put the chunks of all columns together."""
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
    time = None
    if chosen.time is not None:
        time = _series.scaled(
            columns[chosen.time], seconds_per_unit(names[chosen.time])
        )
    return [
        Series(
            source=str(path),
            what=f"{path}, column '{names[i]}'" if len(names) > 1 else str(path),
            suffix=names[i] if len(chosen.values) > 1 else "",
            values=columns[i],
            time=time,
            runs=runs,
            locate=locate,
        )
        for i in chosen.values
    ]


def _sniff(path: Path) -> _Layout:
    """Recognise separator, header and numeric columns from the beginning of a file."""
    with path.open(encoding="utf-8-sig", errors="replace", newline="") as file:
        text = file.read(_SNIFFED)
        if file.read(1) and "\n" in text:
            text = text[: text.rindex("\n")]
    if "\x00" in text:
        raise SeppriorError(
            f"{path}: is not plain text; save it as CSV in UTF-8, or give it the "
            "suffix of its format"
        )
    lines = [line.strip(" \r") for line in text.splitlines()]
    remarks = [line.lstrip("# ") for line in lines if line.startswith("#")]
    lines = [line.split("#")[0].rstrip(" \r") for line in lines]
    lines = [line for line in lines if line.strip()][:_SNIFFED_LINES]
    if not lines:
        raise SeppriorError(f"{path}: is empty; expected a table of numbers")
    below = (line for line in lines[1:] if any(map(str.isdigit, line)))
    probe = next(below, lines[-1])
    separator = next((mark for mark in ";\t," if mark in probe), r"\s+")
    if len(probe.split()) == 1 and separator == r"\s+":
        separator = ","  # a single column: blanks in its header mean nothing
    rows = [_split(line, separator) for line in lines]
    comma = separator in (";", "\t") and "," in probe and "." not in probe
    decimal = "," if comma else "."

    for line, row in zip(lines[1:], rows[1:], strict=True):
        if any(row[len(rows[0]) :]):
            raise SeppriorError(
                f"{path}: has {len(rows[0])} columns in its first line but "
                f"{len(row)} in {line[:60]!r}; expected the same number in every line "
                "(with a decimal comma, separate columns by semicolons)"
            )

    kinds = [[_kind(cell, decimal) for cell in row] for row in rows]
    below = kinds[1] if len(rows) > 1 else []
    # a header has text, and either no number at all or text above a number
    has_header = "text" in kinds[0] and (
        "number" not in kinds[0]
        or any(
            first == "text" and second != "text"
            for first, second in zip(kinds[0], below, strict=False)
        )
    )
    names = rows[0] if has_header else [str(number) for number in range(len(rows[0]))]
    header_lines = int(has_header)
    if has_header and len(rows) > 1 and _are_units(rows[1]):
        header_lines = 2
        names = [
            f"{name} {unit}" if role_of(name) == "time" else name
            for name, unit in zip_longest(names, rows[1], fillvalue="")
        ]
    if not has_header and remarks:  # numpy.savetxt writes its header as a remark
        remark = _split(remarks[-1], separator)
        if len(remark) == len(names) and {"time"} & {role_of(name) for name in remark}:
            names = remark
    numeric: list[bool] = []
    for i, name in enumerate(names):
        seen = {row[i] for row in kinds[header_lines:] if i < len(row)}
        numeric.append("number" in seen or (seen == {"missing"} and name != ""))
    return _Layout(separator, decimal, _unique(names), header_lines, tuple(numeric))


def _are_units(row: Sequence[str]) -> bool:
    """Whether a line holds nothing but units in brackets, as oscilloscopes write."""
    bracketed = [cell[:1] in ("(", "[") and cell[-1:] in (")", "]") for cell in row]
    return any(bracketed) and all(
        found or not cell for found, cell in zip(bracketed, row, strict=True)
    )


def _split(line: str, separator: str) -> list[str]:
    if separator == r"\s+":
        return line.split()
    cells = next(csv.reader([line], delimiter=separator, skipinitialspace=True))
    return [cell.strip() for cell in cells]


def _kind(cell: str, decimal: str) -> str:
    """What a cell holds: "number", "missing" or "text"."""
    if cell.lower() in _MISSING:
        return "missing"
    try:
        float(cell.replace(decimal, "."))
    except ValueError:
        return "text"
    return "number"


def _unique(names: Sequence[str]) -> tuple[str, ...]:
    """Names with a number added to those that occurred before; pandas needs it."""
    result: list[str] = []
    for name in names:
        number, candidate = 0, name
        while candidate in result:
            number += 1
            candidate = f"{name}.{number}"
        result.append(candidate)
    return tuple(result)


def _text_chunks(
    path: Path, layout: _Layout, chosen: _Columns
) -> Iterator[dict[int, NDArray[Any]]]:
    """Columns of a text file, in chunks of rows."""
    import pandas as pd

    try:
        kinds = dict.fromkeys(chosen.numbers, "float64")
        for frame in _frames(path, layout, kinds | dict.fromkeys(chosen.keys, "str")):
            chunk = {i: frame.iloc[:, k] for k, i in enumerate(_order(chosen))}
            yield {
                i: column.to_numpy(dtype=float)
                if i in kinds
                else column.fillna("").to_numpy(dtype=object)
                for i, column in chunk.items()
            }
    except pd.errors.ParserError as error:
        detail = str(error).split("C error:")[-1]
        raise SeppriorError(
            f"{path}: is not a regular table ({' '.join(detail.split())}); expected "
            "the same number of columns in every line"
        ) from error
    except ValueError as error:
        _raise_for_text(path, layout, chosen, error)


def _order(chosen: _Columns) -> list[int]:
    return sorted({*chosen.numbers, *chosen.keys})


def _frames(path: Path, layout: _Layout, kinds: dict[int, str]) -> Iterator[Any]:
    """Data frames of at most `BLOCK` rows with the columns in `kinds`, by position."""
    import pandas as pd

    with warnings.catch_warnings():
        # separators at the ends of lines make an additional, empty column
        warnings.simplefilter("ignore", pd.errors.ParserWarning)
        with pd.read_csv(
            path,
            sep=layout.separator,
            decimal=layout.decimal,
            header=layout.header_lines - 1 if layout.header_lines else None,
            names=list(layout.names),
            usecols=sorted(kinds),
            dtype={layout.names[i]: kind for i, kind in kinds.items()},
            index_col=False,
            comment="#",
            skipinitialspace=True,
            encoding="utf-8-sig",
            encoding_errors="replace",
            chunksize=_series.BLOCK,
        ) as reader:
            yield from reader


def _raise_for_text(
    path: Path, layout: _Layout, chosen: _Columns, error: ValueError
) -> NoReturn:
    """Find the cell with text where a number belongs, and raise an error about it."""
    import pandas as pd

    row = 0
    for frame in _frames(path, layout, dict.fromkeys(chosen.numbers, "str")):
        found: list[tuple[int, str]] = []
        for position, name in enumerate(frame.columns):
            cells = frame.iloc[:, position]
            plain = cells.str.replace(layout.decimal, ".", regex=False)
            numbers = pd.Series(pd.to_numeric(plain, errors="coerce"))
            text = (numbers.isna() & cells.notna()).to_numpy()
            # what reads as a number on its own, such as nan, is not what stopped pandas
            found += [
                (int(offset), name)
                for offset in np.flatnonzero(text)
                if _kind(str(cells.iloc[offset]).strip(), layout.decimal) == "text"
            ][:1]
        if found:
            offset, name = min(found)
            line = _line_of_row(path, layout.header_lines, row + offset)
            in_seconds = role_of(name) == "time" and seconds_per_unit(name) == 1.0
            unit = "seconds" if in_seconds else "a number"
            raise SeppriorError(
                f"{path}: {frame[name].iloc[offset]!r} at {line}, column '{name}'; "
                f"expected {unit} (an empty cell or nan where a value is missing)"
            ) from error
        row += len(frame)
    raise error


def _line_of_row(path: Path, header_lines: int, row: int) -> str:
    """Line in a text file, counted from 1, that a row of its table stands in."""
    remaining = row + header_lines
    with path.open(encoding="utf-8-sig", errors="replace") as file:
        for number, line in enumerate(file, start=1):
            if line.split("#")[0].strip():
                if remaining == 0:
                    return f"line {number}"
                remaining -= 1
    return f"row {row}"
