"""Tables as CSV or Parquet, by the suffix; also piece by piece.

Long tables are appended to, so that they need not fit in memory.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

from sepprior.outputs import write_csv

if TYPE_CHECKING:
    import pandas

SUFFIXES = (".csv", ".parquet")
"""Endings of the names of tables."""


class ColumnWriter(Protocol):
    """Appends rows to a table."""

    def __call__(self, columns: Mapping[str, NDArray[np.float64]]) -> None:
        """Append equally long columns, the same ones every time."""
        ...


def write_table(path: Path, table: pandas.DataFrame) -> None:
    """Write a whole table; missing numbers are empty fields in CSV."""
    if path.suffix.lower() == ".parquet":
        # A file that is open: a path with a colon would be taken for an address.
        with path.open("wb") as file:
            table.to_parquet(file, index=False)
    else:
        table.to_csv(path, index=False, lineterminator="\n")


@contextlib.contextmanager
def open_columns(path: Path) -> Iterator[ColumnWriter]:
    """Open a table of numbers for writing piece by piece.

    Args:
        path: the file; CSV, or Parquet by its suffix. NaN is an empty field in CSV.
    """
    if path.suffix.lower() == ".parquet":
        with _open_parquet(path) as write:
            yield write
        return
    with path.open("w", newline="", encoding="utf-8") as file:
        header = True

        def write(columns: Mapping[str, NDArray[np.float64]]) -> None:
            nonlocal header
            write_csv(file, columns, header=header)
            header = False

        yield write


@contextlib.contextmanager
def _open_parquet(path: Path) -> Iterator[ColumnWriter]:
    import pyarrow as pa
    import pyarrow.parquet

    with contextlib.ExitStack() as stack:
        writer: pyarrow.parquet.ParquetWriter | None = None

        def write(columns: Mapping[str, NDArray[np.float64]]) -> None:
            nonlocal writer
            table = pa.table(dict(columns))
            if writer is None:
                writer = stack.enter_context(
                    pyarrow.parquet.ParquetWriter(path.resolve(), table.schema)
                )
            writer.write_table(table)

        yield write
