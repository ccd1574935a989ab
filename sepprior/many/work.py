"""One job: its windows read, fitted, and put in a table.

Dimensions: B windows in a job, N samples in a window.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from sepprior.checkpoint import load_prior
from sepprior.data import MeasurementStream, open_measurements
from sepprior.errors import SeppriorError
from sepprior.many.plan import Cut, Job, Piece, opened
from sepprior.priors import Prior, with_label
from sepprior.rates import check_sample_rate
from sepprior.tracking import (
    FitOptions,
    WindowBatch,
    count_windows,
    fit_windows,
    iterate_windows,
)
from sepprior.tracking.fits import windows_per_batch

if TYPE_CHECKING:
    import pandas
    import pyarrow


@dataclass(frozen=True)
class Task:
    """What all jobs of a run have in common; plain, so that it can be sent to workers.

    Attributes:
        prior: file of the noise prior.
        digest: SHA-256 of that file.
        device: where to compute: "auto", "cpu", "cuda", ...
        cut: how inputs are read and cut.
        options: how windows are fitted; a function as the signal is sent with it.
        label: kind of noise, for a prior trained with labels; None to infer it.
        keep_going: whether inputs that cannot be used are left out, not errors.
    """

    prior: str
    digest: str
    device: str
    cut: Cut
    options: FitOptions
    label: str | None
    keep_going: bool

    def load_prior(self) -> Prior:
        """The prior, with its label fixed if one was given."""
        return prior_of(self.prior, self.device, self.digest, self.label)


@dataclass(frozen=True)
class Skipped:
    """An input that could not be used.

    Attributes:
        path: the file.
        reason: the error's line.
    """

    path: str
    reason: str

    def __post_init__(self) -> None:
        shown = self.path.encode("utf-8", "backslashreplace").decode()
        object.__setattr__(self, "path", shown)


@dataclass(frozen=True, eq=False)
class Part:
    """A finished job.

    Attributes:
        table: one row per window.
        skipped: what was left out.
    """

    table: pyarrow.Table
    skipped: tuple[Skipped, ...] = ()


@dataclass(eq=False)
class Loaded:
    """The windows of a job, in memory, by their sample rate in Hz.

    Attributes:
        rates: samples and places of the windows.
        skipped: what was left out.
    """

    rates: dict[float, _Rows] = field(default_factory=dict)
    skipped: list[Skipped] = field(default_factory=list)


@dataclass(eq=False)
class _Rows:
    """Windows of one sample rate: see `WindowBatch`; and what they were cut from."""

    x: list[np.ndarray] = field(default_factory=list)
    number: list[np.ndarray] = field(default_factory=list)
    first: list[np.ndarray] = field(default_factory=list)
    start: list[np.ndarray] = field(default_factory=list)
    source: list[str] = field(default_factory=list)
    measurement: list[str] = field(default_factory=list)


def file_digest(path: str | Path) -> str:
    """SHA-256 of a file."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@lru_cache(maxsize=1)
def prior_of(path: str, device: str, digest: str, label: str | None = None) -> Prior:
    """The prior, loaded once per process.

    Raises:
        SeppriorError: it cannot be read, is another one than `digest` says, or does
            not know the label.
    """
    if file_digest(path) != digest:
        raise SeppriorError(
            f"{path}: is not the prior that the run began with; all workers need the "
            "same file under this path"
        )
    prior = load_prior(path, device=device)
    return prior if label is None else with_label(prior, label)


def do(job: Job, task: Task) -> Part:
    """Do one job from beginning to end.

    Raises:
        SeppriorError: an input or an option cannot be used.
    """
    prior = task.load_prior()
    return fit(load(job, task, prior), task, prior)


def load(job: Job, task: Task, prior: Prior) -> Loaded:
    """Read the windows of a job.

    Raises:
        SeppriorError: an input cannot be used, unless `task.keep_going`.
    """
    loaded = Loaded()
    for piece in job.pieces:
        for found in _whole_or_apart(piece, task, prior, loaded.skipped):
            for rate, rows in found.items():
                held = loaded.rates.setdefault(rate, _Rows())
                for name, values in vars(rows).items():
                    getattr(held, name).extend(values)
    return loaded


def _whole_or_apart(
    piece: Piece, task: Task, prior: Prior, skipped: list[Skipped]
) -> Iterator[dict[float, _Rows]]:
    """A piece, or those of its rows that can be used."""
    try:
        yield _read(piece, task, prior)
    except SeppriorError as error:
        if not task.keep_going:
            raise
        if piece.rows is None or len(piece.rows) == 1:
            skipped.append(Skipped(piece.path, " ".join(str(error).split())))
            return
        for row in piece.rows:
            alone = Piece(piece.path, 0.0, rows=range(row, row + 1))
            yield from _whole_or_apart(alone, task, prior, skipped)


def _read(piece: Piece, task: Task, prior: Prior) -> dict[float, _Rows]:
    cut = task.cut
    found: dict[float, _Rows] = {}
    for item, begin, end in _stretches(piece, cut):
        rate, start = prior.sample_rate, item.start
        if item.sample_rate is None:
            start /= rate  # without a rate, time is counted in samples
        else:
            check_sample_rate(item.sample_rate, rate, subject=f"'{item.source}'")
            # Nine digits: rates found from time columns differ in the last bits.
            rate = float(f"{item.sample_rate:.9g}")
        rows = found.setdefault(rate, _Rows())
        windows = iterate_windows(
            item.values,
            window=cut.window,
            hop=cut.hop,
            batch=end - begin,
            begin=begin,
        )
        batch = next(windows)
        rows.x.append(batch.x)
        rows.number.append(batch.number)
        rows.first.append(batch.first)
        rows.start.append(np.full(len(batch), start))
        rows.source.extend([item.source] * len(batch))
        rows.measurement.extend([item.name] * len(batch))
    return found


def _stretches(piece: Piece, cut: Cut) -> Iterator[tuple[MeasurementStream, int, int]]:
    """Measurements of a piece, each with its first window and one past its last."""
    if piece.windows is None:
        for item in open_measurements(Path(piece.path), rows=piece.rows, **cut.reading):
            count = count_windows(len(item.values), window=cut.window, hop=cut.hop)
            yield item, 0, count
        return
    file = opened(piece.path, cut)
    begins = np.concatenate([[0], file.ends[:-1]])
    for item, begin, end in zip(file.measurements, begins, file.ends, strict=True):
        first = max(piece.windows.start, begin)
        last = min(piece.windows.stop, end)
        if first < last:
            yield item, int(first - begin), int(last - begin)


def fit(loaded: Loaded, task: Task, prior: Prior) -> Part:
    """Fit the windows of a job.

    Raises:
        SeppriorError: the band or an option cannot be used.
    """
    frames = [_fit_rate(rate, rows, task, prior) for rate, rows in loaded.rates.items()]
    if not frames:
        return Part(no_rows(task, prior), tuple(loaded.skipped))
    return Part(_table(frames), tuple(loaded.skipped))


def _fit_rate(rate: float, rows: _Rows, task: Task, prior: Prior) -> pandas.DataFrame:
    """Fits of windows of one sample rate, in batches across files."""
    import pandas as pd

    x, number, first = (np.concatenate(v) for v in (rows.x, rows.number, rows.first))
    batch = windows_per_batch(task.cut.window, prior)
    frames = []
    for begin in range(0, len(x), batch):
        part = slice(begin, begin + batch)
        windows = WindowBatch(x[part], number[part], first[part])
        fits = fit_windows(windows, prior, sample_rate=rate, options=task.options)
        frames.append(fits.table)
    table = pd.concat(frames, ignore_index=True)
    start = np.concatenate(rows.start)
    table["start"] += start
    table["centre"] += start
    table.insert(0, "source", rows.source)
    table.insert(1, "measurement", rows.measurement)
    return table


def no_rows(task: Task, prior: Prior) -> pyarrow.Table:
    """The table without a row, with all its columns.

    Raises:
        SeppriorError: the band or an option cannot be used.
    """
    empty = np.full((1, task.cut.window), np.nan)
    nowhere = np.zeros(1, dtype=np.int64)
    rows = _Rows([empty], [nowhere], [nowhere], [np.zeros(1)], [""], [""])
    return _table([_fit_rate(prior.sample_rate, rows, task, prior)]).slice(0, 0)


def _table(frames: Iterable[pandas.DataFrame]) -> pyarrow.Table:
    """Data frames as one Parquet table, text as text whatever pandas calls it."""
    import pandas as pd
    import pyarrow as pa

    joined = pd.concat(frames, ignore_index=True)
    return pa.table(
        {
            name: pa.array(
                column.to_numpy(), pa.string() if column.dtype.kind in "OU" else None
            )
            for name, column in joined.items()
        }
    )
