"""Options of `sepprior separate` that its table of many inputs has to itself."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import click

from sepprior.cli.options import path_type
from sepprior.errors import SeppriorError

TABLE = ("table", "engine", "workers", "scheduler", "resume", "keep_going")
"""Names of the parameters, in the order of `--help`."""
SKIPPED = 3
"""Exit status of a run that is complete but for inputs that were left out."""


@dataclass(frozen=True)
class TableOptions:
    """The options that `--table` has to itself.

    Attributes:
        table: folder to write; None to write the files of each measurement.
        engine: where the work is done.
        workers: of a local Dask cluster.
        scheduler: address of a Dask cluster.
        resume: whether to continue the table.
        keep_going: whether to leave out inputs that cannot be used.
    """

    table: Path | None
    engine: Literal["local", "dask"]
    workers: int | None
    scheduler: str | None
    resume: bool
    keep_going: bool

    def check_unused(self) -> None:
        """Refuse options that only a table has, where none was asked for."""
        given = {
            "--engine dask": self.engine == "dask",
            "--workers": self.workers is not None,
            "--scheduler": self.scheduler is not None,
            "--resume": self.resume,
            "--keep-going": self.keep_going,
        }
        for name, used in given.items():
            if used:
                raise SeppriorError(
                    f"{name} belongs to a table: name its folder with --table DIR"
                )


def table_options(command: Callable[..., None]) -> Callable[..., None]:
    """Add the options of `TableOptions` to a command."""
    for option in reversed(
        [
            click.option(
                "--table",
                type=path_type,
                metavar="DIR",
                help="Write one table, a row per window, instead of files for each "
                "measurement: a Parquet dataset in this folder.",
            ),
            click.option(
                "--engine",
                type=click.Choice(["local", "dask"]),
                default="local",
                show_default=True,
                help="With --table: this process, or a Dask cluster.",
            ),
            click.option(
                "--workers",
                type=click.IntRange(min=1),
                metavar="N",
                help="Processes of a local Dask cluster.  [default: one per GPU or "
                "core]",
            ),
            click.option(
                "--scheduler",
                metavar="ADDRESS",
                help="Dask cluster to use instead: tls://HOST:PORT, with the "
                "certificates of Dask's setting distributed.comm.tls. Anybody who "
                "reaches a cluster at tcp:// can run code there.",
            ),
            click.option(
                "--resume", is_flag=True, help="Continue the table of a stopped run."
            ),
            click.option(
                "--keep-going",
                is_flag=True,
                help="Leave out inputs that cannot be used; the exit status is then "
                f"{SKIPPED}.",
            ),
        ]
    ):
        command = option(command)
    return command
