"""Options that several commands have, and the types of their values."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from sepprior.errors import MOST_SEED

DEFAULT_PRIOR = Path("prior.safetensors")
"""Where a prior is written, and looked for in the working directory."""


class Components(click.ParamType):
    """Number of sinusoids."""

    name = "k|auto"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> int | str:
        """Accept a positive integer or "auto"."""
        if value == "auto" or (isinstance(value, int) and value > 0):
            return value
        if not str(value).isdecimal() or int(value) < 1:
            self.fail(f"{value!r}: expected a positive integer or auto", param, ctx)
        return int(value)


class Command(click.Command):
    """A command whose help has its options in groups, and an example.

    Args:
        groups: names of parameters by the title of their group; what stands in none
            comes last.
        example: commands that work, a line each.
    """

    def __init__(
        self,
        *args: Any,
        groups: Mapping[str, Sequence[str]],
        example: str,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self.groups, self.example = groups, example

    def format_options(
        self, ctx: click.Context, formatter: click.HelpFormatter
    ) -> None:
        """Write the example, then the options by group."""
        with formatter.section("Examples"):
            for line in self.example.strip().splitlines():
                formatter.write(f"{'':{formatter.current_indent}}{line.strip()}\n")
        rows = {
            param.name: record
            for param in self.get_params(ctx)
            if isinstance(param, click.Option)
            and (record := param.get_help_record(ctx)) is not None
        }
        named = {name for names in self.groups.values() for name in names}
        rest = [name for name in rows if name not in named]
        for title, names in (*self.groups.items(), ("Other options", rest)):
            with formatter.section(title):
                formatter.write_dl([rows[name] for name in names])


device_option = click.option(
    "--device",
    default="auto",
    show_default=True,
    metavar="NAME",
    help="auto (a GPU where there is one), cpu, cuda or cuda:N.",
)
READING = ("sample_rate", "column", "time_column", "skip_lines")
_reading = (
    click.option(
        "--sample-rate",
        type=click.FloatRange(min=0, min_open=True),
        metavar="HZ",
        help="Sample rate, for files that do not tell.",
    ),
    click.option(
        "--column", metavar="NAME", help="Column, by name, pattern or number."
    ),
    click.option(
        "--time-column",
        metavar="NAME",
        help="Column of the times, by name or number; none if the file has none.  "
        "[default: by its name]",
    ),
    click.option(
        "--skip-lines",
        type=click.IntRange(min=0),
        default=0,
        metavar="N",
        help="Lines of a text file above its table or header.  [default: found]",
    ),
)


def reading_options(command: Callable[..., None]) -> Callable[..., None]:
    """Add the options that say how files are read.

    The command gets them as its argument `reading`: keyword arguments of
    `sepprior.data.read_recordings` and `open_measurements`.
    """

    @functools.wraps(command)
    def with_reading(*args: Any, **given: Any) -> None:
        command(*args, reading={name: given.pop(name) for name in READING}, **given)

    for option in reversed(_reading):
        with_reading = option(with_reading)
    return with_reading


label_option = click.option(
    "--label",
    metavar="NAME",
    help="Kind of noise, for a prior trained with labels.  [default: inferred]",
)
seed_option = click.option(
    "--seed",
    type=click.IntRange(0, MOST_SEED),
    default=0,
    show_default=True,
    metavar="N",
)


class PathType(click.Path):
    """A path that a file can have."""

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> Any:
        """Refuse the character NUL, which ends a name for the system."""
        if "\0" in str(value):
            self.fail("a path cannot hold the character NUL", param, ctx)
        return super().convert(value, param, ctx)


folder_option = click.option(
    "-o",
    "--output",
    type=PathType(path_type=Path),
    metavar="DIR",
    help="Folder for the files that are written.  [default: beside the input]",
)


path_type = PathType(path_type=Path)
