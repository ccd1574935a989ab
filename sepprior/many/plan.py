"""Inputs divided into jobs, the same for the same inputs whoever does them.

Small files are put together, large ones are divided: a job is about `JOB_WINDOWS`
windows. Only large files are opened for the plan, and only when their turn comes.
"""

from __future__ import annotations

import hashlib
import os
from array import array
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from sepprior.data import MeasurementStream, open_measurements, shape_of_rows
from sepprior.errors import SeppriorError
from sepprior.tracking import count_windows

JOB_WINDOWS = 512
"""Windows in a job, about; a killed run loses the jobs it was at."""
SMALLEST_GROUP = 32
"""Files in a job, at least, where there are that many small ones."""
SPREAD = 16
"""Jobs to make of small files before they are as large as they may be."""
SAMPLE_BYTES = 8
OPEN_FILES = 2
"""Large files that a process keeps open."""


@dataclass(frozen=True)
class Cut:
    """How inputs are read and cut.

    Attributes:
        window: samples in a window.
        hop: samples from window to window.
        sample_rate: Hz, for files that do not tell.
        column: of the samples in each file.
        time_column: of the times in each file.
        skip_lines: of text files, above the table.
    """

    window: int
    hop: int
    sample_rate: float | None = None
    column: str | None = None
    time_column: str | None = None
    skip_lines: int = 0

    @property
    def reading(self) -> dict[str, Any]:
        """Keyword arguments of `sepprior.data.open_measurements`."""
        names = ("sample_rate", "column", "time_column", "skip_lines")
        return {name: getattr(self, name) for name in names}


@dataclass(frozen=True)
class Piece:
    """What a job takes from one file.

    Attributes:
        path: the file.
        size: bytes, of this piece alone; for the progress.
        rows: of a two-dimensional array; None for the whole file.
        windows: counted through all measurements of the file; None for all.
    """

    path: str
    size: float
    rows: range | None = None
    windows: range | None = None


@dataclass(frozen=True)
class Job:
    """Work that is done, and kept, as a whole.

    Attributes:
        name: of the part of the table it makes.
        pieces: what to fit.
    """

    name: str
    pieces: tuple[Piece, ...]

    @property
    def size(self) -> float:
        """Bytes of input."""
        return sum(piece.size for piece in self.pieces)


@dataclass(frozen=True, eq=False)
class Inputs:
    """Files to work through, in order.

    Attributes:
        paths: the files.
        sizes: in bytes.
        digest: SHA-256 of paths, sizes and times of change.
    """

    paths: list[str]
    sizes: array[int]
    digest: str

    @classmethod
    def survey(cls, files: Iterable[Path]) -> Inputs:
        """Look at each file without opening it.

        Raises:
            SeppriorError: there is none, or one appears twice.
        """
        paths: list[str] = []
        sizes = array("q")
        digest = hashlib.sha256()
        for path in files:
            size, changed = _size_and_change(path)
            paths.append(str(path))
            sizes.append(size)
            digest.update(
                f"{path}\0{size}\0{changed}\n".encode("utf-8", "surrogateescape")
            )
        if not paths:
            raise SeppriorError("no files were given; expected at least one")
        twice = next((a for a, b in pairwise(sorted(paths)) if a == b), None)
        if twice is not None:
            raise SeppriorError(f"{twice}: is given twice; give each file once")
        return cls(paths, sizes, digest.hexdigest())


def _size_and_change(path: Path) -> tuple[int, int]:
    """Bytes and time of the last change, ns, of a file or of all files in a folder."""
    stat = path.stat()
    if not path.is_dir():
        return stat.st_size, stat.st_mtime_ns
    size, changed = 0, stat.st_mtime_ns
    for folder, _, names in os.walk(path):
        for name in names:
            stat = os.stat(os.path.join(folder, name))
            size, changed = size + stat.st_size, max(changed, stat.st_mtime_ns)
    return size, changed


@dataclass(frozen=True)
class Extent:
    """How much a large file holds: what a plan needs to know of it.

    Attributes:
        unit: "rows" of a two-dimensional array, or "windows".
        count: how many of them.
        per_job: how many a job takes.
    """

    unit: str
    count: int
    per_job: int


@dataclass
class Plan:
    """The jobs of a set of inputs.

    Attributes:
        inputs: the files.
        cut: how they are cut.
        extents: what is known of large files by their number, from earlier runs.
        learned: called with each extent that is new.
    """

    inputs: Inputs
    cut: Cut
    extents: dict[int, Extent] = field(default_factory=dict)
    learned: Callable[[int, Extent], None] = lambda number, extent: None

    def jobs(self) -> Iterator[Job]:
        """All jobs, in order of the files."""
        limit = JOB_WINDOWS * self.cut.hop * SAMPLE_BYTES
        files = len(self.inputs.paths)
        most = min(JOB_WINDOWS, max(SMALLEST_GROUP, files // SPREAD))
        group: list[Piece] = []
        first = 0
        for number, (path, size) in enumerate(
            zip(self.inputs.paths, self.inputs.sizes, strict=True)
        ):
            large = size > limit
            full = sum(piece.size for piece in group) + size > limit
            if group and (large or full or len(group) == most):
                yield Job(_name(first), tuple(group))
                group = []
            if large:
                yield from self._parts(number, path, size)
                continue
            if not group:
                first = number
            group.append(Piece(path, size))
        if group:
            yield Job(_name(first), tuple(group))

    def _parts(self, number: int, path: str, size: int) -> Iterator[Job]:
        """Jobs of a large file."""
        extent = self.extents.get(number)
        if extent is None:
            try:
                extent = measure(path, self.cut)
            except SeppriorError:
                # The job meets the same error, where it is reported.
                yield Job(_name(number), (Piece(path, size),))
                return
            self.learned(number, extent)
        for part, start in enumerate(range(0, extent.count, extent.per_job)):
            taken = range(start, min(start + extent.per_job, extent.count))
            share = size * len(taken) / extent.count
            piece = Piece(path, share, **{extent.unit: taken})
            yield Job(_name(number, part), (piece,))


def _name(file: int, part: int = 0) -> str:
    return f"part-{file:07d}-{part:06d}"


def measure(path: str, cut: Cut) -> Extent:
    """Find out how much a large file holds.

    Raises:
        SeppriorError: the file cannot be read or used.
    """
    shape = shape_of_rows(Path(path), column=cut.column)
    if shape is not None:
        per_row = count_windows(shape[1], window=cut.window, hop=cut.hop)
        if per_row <= JOB_WINDOWS:
            return Extent("rows", shape[0], JOB_WINDOWS // per_row)
    return Extent("windows", int(opened(path, cut).ends[-1]), JOB_WINDOWS)


@dataclass(frozen=True, eq=False)
class Opened:
    """A large file, open.

    Attributes:
        measurements: in it.
        ends: cumulative number of their windows.
    """

    measurements: list[MeasurementStream]
    ends: np.ndarray


def opened(path: str, cut: Cut) -> Opened:
    """Open a large file, once for all jobs of this process that follow each other.

    Raises:
        SeppriorError: the file cannot be read or used.
    """
    return _opened(path, cut, os.stat(path).st_mtime_ns)


@lru_cache(maxsize=OPEN_FILES)
def _opened(path: str, cut: Cut, changed: int) -> Opened:
    found = list(open_measurements(path, **cut.reading))
    counts = [
        count_windows(len(item.values), window=cut.window, hop=cut.hop)
        for item in found
    ]
    return Opened(found, np.cumsum(counts))
