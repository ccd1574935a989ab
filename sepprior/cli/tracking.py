"""`sepprior separate --window`: long recordings in; tables, waveforms, pictures out."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from sepprior.cli.separate import say_rate_is_assumed
from sepprior.errors import SeppriorError
from sepprior.outputs import (
    check_distinct,
    check_output_folder,
    to_json,
    whole_files,
)
from sepprior.table_files import SUFFIXES, open_columns, write_table

if TYPE_CHECKING:
    from collections.abc import Generator

    from sepprior.data import MeasurementStream
    from sepprior.priors.base import Prior
    from sepprior.table_files import ColumnWriter
    from sepprior.tracking import FitOptions, Grid, TrackSummary, Waveform


@dataclass(frozen=True)
class TrackOutput:
    """Where the results of tracks go.

    Attributes:
        path: a folder, or the name of the table of a single recording; None for
            folders of the inputs.
        plot: whether to draw pictures.
        as_json: whether to print JSON.

    Raises:
        SeppriorError: the table cannot be written.
    """

    path: Path | None
    plot: bool
    as_json: bool

    def __post_init__(self) -> None:
        if self.table is None:
            return
        if self.table.suffix.lower() == ".parquet":
            try:
                importlib.import_module("pyarrow")
            except ImportError as error:
                raise SeppriorError(
                    f"writing '{self.table}' needs pyarrow; pip install pyarrow"
                ) from error
        check_output_folder(self.table.parent)

    @property
    def table(self) -> Path | None:
        """The table that was named, if one was."""
        path = self.path
        if path is None or path.is_dir() or path.suffix.lower() not in SUFFIXES:
            return None
        return path

    def files_of(self, stream: MeasurementStream) -> tuple[Path, ...]:
        """Table, waveform and, if wanted, picture of a recording."""
        if self.table is not None:
            stem, suffix = self.table.stem.removesuffix(".track"), self.table.suffix
            folder, table = self.table.parent, self.table
        else:
            stem, suffix = stream.name, ".csv"
            folder = Path(stream.source).parent if self.path is None else self.path
            table = folder / f"{stem}.track{suffix}"
        files = [table, folder / f"{stem}.separated{suffix}"]
        return (*files, *([folder / f"{stem}.png"] if self.plot else []))


def track_files(
    paths: Sequence[Path],
    prior: Prior,
    options: FitOptions,
    output: TrackOutput,
    *,
    window: int | None,
    hop: int | None,
    reading: dict[str, Any],
) -> None:
    """Track every recording and write what was found, one after the other.

    Args:
        paths: files, folders and patterns.
        prior: the noise prior.
        options: how windows are fitted.
        output: where to write.
        window: samples in a window; None for the prior's.
        hop: samples from window to window; None for half a window.
        reading: how files are read; see `sepprior.cli.options.reading_options`.

    Raises:
        SeppriorError: an input or an option cannot be used.
    """
    from sepprior.data import open_measurements
    from sepprior.data.listing import list_files
    from sepprior.tracking import grid_for

    grid_for(prior, window=window, hop=hop)  # before anything is read
    streams = open_measurements(paths, **reading)
    first = next(streams, None)
    if first is None:
        raise SeppriorError("no files were given; expected at least one measurement")
    second = next(streams, None) if output.table is not None else None
    if second is not None:
        raise SeppriorError(
            f"-o '{output.table}' names the table of one recording, but there are "
            f"several ('{first.name}', '{second.name}', ...): name a folder"
        )
    inputs, written = list(list_files(paths)), []
    for stream in chain([first], streams):
        written += output.files_of(stream)
        check_distinct(written, inputs)
        _track_file(stream, prior, options, output, window=window, hop=hop)


def _track_file(
    stream: MeasurementStream,
    prior: Prior,
    options: FitOptions,
    output: TrackOutput,
    *,
    window: int | None,
    hop: int | None,
) -> None:
    from sepprior.tracking import grid_for, track_blocks, windows_in

    stream = _with_rate(stream, prior)
    grid = grid_for(
        prior,
        window=window,
        hop=hop,
        sample_rate=stream.sample_rate,
        start=stream.start,
        subject=f"measurement '{stream.source}'",
    )
    files = output.files_of(stream)
    check_output_folder(files[0].parent)
    with whole_files(*files) as (table, waveform, *picture):
        blocks = track_blocks(stream.values, prior, grid, options=options)
        total = windows_in(stream.values, grid)
        with open_columns(waveform) as write:
            track = _follow(blocks, write, total=total, name=stream.name, grid=grid)
        write_table(table, track.table)
        for path in picture:
            track.plot(path)
    if output.as_json:
        where = {"name": stream.name, "source": stream.source}
        click.echo(to_json({**where, **track.summary()}))
        return
    click.echo(f"{stream.name}\n\n{track.report()}")
    click.echo(f"\nwritten: {', '.join(map(str, files))}\n")


def _with_rate(stream: MeasurementStream, prior: Prior) -> MeasurementStream:
    """The recording with a sample rate: the prior's, where its file tells none."""
    if stream.sample_rate is not None:
        return stream
    say_rate_is_assumed(stream.name, prior)
    # Without a rate the time of a measurement is counted in samples.
    rate = prior.sample_rate
    return replace(stream, sample_rate=rate, start=stream.start / rate)


def _follow(
    blocks: Generator[Waveform, None, TrackSummary],
    write: ColumnWriter,
    *,
    total: int,
    name: str,
    grid: Grid,
) -> TrackSummary:
    """Write the waveform as it comes, and draw a progress bar."""
    import numpy as np
    from tqdm import tqdm

    # On a terminal only: a log has no use for it.
    with tqdm(
        total=total, desc=name, unit="window", dynamic_ncols=True, disable=None
    ) as bar:
        while True:
            try:
                block = next(blocks)
            except StopIteration as end:
                return end.value
            places = block.first + np.arange(len(block.signal))
            write(
                {
                    "time": grid.start + places / grid.sample_rate,
                    "measurement": block.measurement,
                    "signal": block.signal,
                    "noise": block.noise,
                    "residual": block.residual,
                }
            )
            bar.update(block.windows - bar.n)
