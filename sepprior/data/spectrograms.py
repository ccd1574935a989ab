"""Folders of spectrograms as CSV files, the input of the magnitude SpecGAN.

A file holds the magnitudes ``|X|`` of one spectrogram: no header, a line for each of F
frequencies from zero up (Nyquist left out), F columns for the frames, separated by
commas; 128 x 128 as published, or another power of two from 8 to 1024.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sepprior.data.listing import list_files
from sepprior.errors import SeppriorError

SIZES = tuple(2**k for k in range(3, 11))
"""Numbers of frequencies that a spectrogram may have."""
FEWEST = 2
"""Spectrograms that a training needs."""


@dataclass(frozen=True, eq=False)
class Spectrograms:
    """Spectrograms of one size, parsed once and kept on disk, not in memory.

    Attributes:
        values: magnitudes, shape (n, F, F), float32.
        digest: SHA-256 of them.
        source: the first file.
    """

    values: NDArray[np.float32]
    digest: str
    source: str

    def __len__(self) -> int:
        return len(self.values)

    @property
    def size(self) -> int:
        """F, frequencies and frames."""
        return self.values.shape[1]

    def chunks(self, start: int, stop: int, *, most: int) -> Iterator[NDArray]:
        """Those from `start` to `stop`, at most `most` at a time, (k, F, F)."""
        for first in range(start, stop, most):
            yield np.array(self.values[first : min(first + most, stop)])


def are_spectrograms(paths: Iterable[str | Path]) -> bool:
    """Whether the first file is a CSV without header and of eight columns or more.

    A recording has a header where it has several columns, or fewer of them.

    Raises:
        SeppriorError: there is no such file.
    """
    first = next(list_files(paths), None)
    if first is None or first.suffix.lower() != ".csv":
        return False
    with first.open(encoding="utf-8", errors="replace") as file:
        fields = file.readline().split(",")
    try:
        [float(field) for field in fields]
    except ValueError:
        return False
    return len(fields) >= SIZES[0]


def read_spectrograms(paths: Iterable[str | Path]) -> Spectrograms:
    """Read all spectrograms of files and folders.

    Args:
        paths: files, folders, patterns.

    Raises:
        SeppriorError: a file is no spectrogram, or of another size than the first, or
            there are fewer than two.
    """
    digest = hashlib.sha256()
    first: Path | None = None
    size = count = 0
    with tempfile.TemporaryFile() as store:
        for path in list_files(paths):
            values = read_spectrogram(path)
            if first is None:
                first, size = path, len(values)
            elif len(values) != size:
                raise SeppriorError(
                    f"{path}: is {len(values)} x {len(values)}, '{first}' is {size} x "
                    f"{size}; give spectrograms of one size"
                )
            raw = values.tobytes()
            digest.update(raw)
            store.write(raw)
            count += 1
        if count < FEWEST:
            raise SeppriorError(
                f"{count} spectrogram was given; expected at least {FEWEST} to learn "
                "from"
            )
        store.flush()
        # The map keeps the file alive after it is closed.
        shape = (count, size, size)
        kept = np.memmap(store, np.float32, mode="r", shape=shape)
    return Spectrograms(kept, digest.hexdigest(), str(first))


def read_spectrogram(path: str | Path) -> NDArray[np.float32]:
    """Magnitudes (F, F) of one file.

    Raises:
        SeppriorError: it is no spectrogram as the module's text describes it.
    """
    try:
        values = np.loadtxt(path, delimiter=",", ndmin=2)
    except (OSError, UnicodeDecodeError, ValueError) as error:
        reason = str(error).split(";")[0].rstrip(".")
        raise SeppriorError(
            f"{path}: is no spectrogram ({reason}); give numbers alone, a line per "
            "frequency, separated by commas"
        ) from error
    rows, columns = values.shape
    if rows != columns or rows not in SIZES:
        raise SeppriorError(
            f"{path}: is {rows} x {columns}; expected as many frequencies as frames, a "
            f"power of two from {SIZES[0]} to {SIZES[-1]}, such as 128 x 128"
        )
    for wrong, what in (
        (~np.isfinite(values), "is not a finite number"),
        (values < 0, "is negative; give magnitudes, not their logarithms"),
    ):
        if wrong.any():
            row, column = np.argwhere(wrong)[0] + 1
            raise SeppriorError(f"{path}: line {row}, column {column} {what}")
    return values.astype(np.float32)


def write_spectrogram(path: Path, values: NDArray[np.floating]) -> None:
    """Write magnitudes (F, F) as `read_spectrogram` reads them."""
    np.savetxt(path, values, delimiter=",", fmt="%.9g")
