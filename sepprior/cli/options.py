"""Options that several commands have, and the types of their values."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

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


device_option = click.option(
    "--device",
    default="auto",
    show_default=True,
    metavar="NAME",
    help="auto (a GPU where there is one), cpu, cuda or cuda:N.",
)
column_option = click.option(
    "--column", metavar="NAME", help="Column, by name, pattern or number."
)
sample_rate_option = click.option(
    "--sample-rate",
    type=click.FloatRange(min=0, min_open=True),
    metavar="HZ",
    help="Sample rate, for files that do not tell.",
)
label_option = click.option(
    "--label",
    metavar="NAME",
    help="Kind of noise, for a prior trained with labels.  [default: inferred]",
)
seed_option = click.option(
    "--seed", type=click.IntRange(min=0), default=0, show_default=True, metavar="N"
)
folder_option = click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Folder for the files that are written.  [default: beside the input]",
)
path_type = click.Path(path_type=Path)
