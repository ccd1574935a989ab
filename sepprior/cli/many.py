"""`sepprior separate --table`: any number of inputs in, one table out."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from sepprior.cli.separate import say_prior
from sepprior.cli.table_options import SKIPPED, TableOptions
from sepprior.errors import SeppriorError

if TYPE_CHECKING:
    from sepprior.many import Progress
    from sepprior.many.work import Skipped
    from sepprior.tracking import FitOptions

LISTED = 20
"""Inputs left out that are listed at the end."""


def write_table(
    inputs: Sequence[Path],
    prior: Path,
    reason: str,
    options: FitOptions,
    into: TableOptions,
    *,
    window: int | None,
    hop: int | None,
    reading: dict[str, Any],
    label: str | None,
    output: Path | None,
    device: str,
    as_json: bool,
) -> None:
    """Separate inputs into a table, with a progress bar.

    Ends the program with status `SKIPPED` where inputs were left out.

    Raises:
        SeppriorError: an input or an option cannot be used.
    """
    if output is not None:
        raise SeppriorError(
            "-o names the folder of the files of each measurement, and --table DIR "
            "writes none: give one of the two"
        )
    from sepprior.many import separate_many
    from sepprior.many.work import file_digest, prior_of
    from sepprior.outputs import to_json

    assert into.table is not None
    loaded = prior_of(str(prior), device, file_digest(prior), label)
    say_prior(prior, reason, loaded)
    progress = separate_many(
        inputs,
        prior,
        table=into.table,
        window=window,
        hop=hop,
        **reading,
        options=options,
        label=label,
        device=device,
        engine=into.engine,
        workers=into.workers,
        scheduler=into.scheduler,
        resume=into.resume,
        keep_going=into.keep_going,
    )
    try:
        windows, skipped = _follow(progress)
    except KeyboardInterrupt:
        click.echo(
            f"The finished part of the table is kept in '{into.table}': the same "
            "command with --resume goes on.",
            err=True,
        )
        raise
    if as_json:
        left_out = [{"path": item.path, "reason": item.reason} for item in skipped]
        click.echo(
            to_json({"table": str(into.table), "rows": windows, "skipped": left_out})
        )
    else:
        click.echo(f"table: {into.table}, {windows} rows")
    _list_skipped(skipped)
    if skipped:
        sys.exit(SKIPPED)


def _follow(progress: Iterator[Progress]) -> tuple[int, list[Skipped]]:
    """Draw a progress bar; return the number of rows and what was left out."""
    from tqdm import tqdm

    windows = 0
    skipped: list[Skipped] = []
    with tqdm(unit="window", dynamic_ncols=True) as bar:
        try:
            for now in progress:
                new, windows = now.windows - windows, now.windows
                skipped.extend(now.skipped)
                for item in now.skipped:
                    bar.write(f"skipped: {item.reason}", file=sys.stderr)
                # How many there will be follows from the share of the input done.
                bar.total = round(now.windows * now.total / max(now.done, 1.0))
                if now.resumed:
                    # What an earlier run did must not count in the time that is left.
                    bar.initial += new
                    bar.n += new
                    bar.last_print_n = bar.n
                else:
                    bar.update(new)
        except SeppriorError as error:
            kept = " (finished parts of the table are kept: --resume continues it)"
            raise SeppriorError(f"{error}{kept if windows else ''}") from error
    return windows, skipped


def _list_skipped(skipped: Sequence[Skipped]) -> None:
    """Say at the end what was left out."""
    if not skipped:
        return
    click.echo(f"left out, {len(skipped)} in all:", err=True)
    for item in skipped[:LISTED]:
        click.echo(f"  {item.path}: {_without(item.reason, item.path)}", err=True)
    if len(skipped) > LISTED:
        click.echo(f"  and {len(skipped) - LISTED} more", err=True)


def _without(reason: str, path: str) -> str:
    """The reason, without the name of the file where it begins with that."""
    rest = reason.removeprefix(path)
    return rest[1:].strip() if rest[:1] in (":", ",") else reason
