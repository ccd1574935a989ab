"""The program around the commands: how it ends when something is wrong."""

from __future__ import annotations

import errno
import warnings
from typing import Any, TextIO

import click

from sepprior.errors import SeppriorError, SeppriorWarning

LONGEST = 480
"""Characters of a message, at most."""


class InputError(click.ClickException):
    """Input that cannot be used, printed as one line."""

    exit_code = 2

    def __init__(self, message: str) -> None:
        line = " ".join(message.split())
        super().__init__(line if len(line) <= LONGEST else f"{line[:LONGEST]}...")


class Program(click.Group):
    """Turn expected errors into one line on stderr and an exit status."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Commands in the order in which they are used."""
        return list(self.commands)

    def invoke(self, ctx: click.Context) -> Any:
        """Run a command: status 2 for input that cannot be used, 130 on Ctrl-C."""
        with warnings.catch_warnings():
            warnings.showwarning = _show_warning
            warnings.simplefilter("always", SeppriorWarning)
            try:
                return super().invoke(ctx)
            except SeppriorError as error:
                raise InputError(str(error)) from error
            except OSError as error:
                if error.errno == errno.EPIPE:
                    raise  # click ends quietly when the reader of a pipe has gone
                where = f"'{error.filename}': " if error.filename else ""
                raise InputError(f"{where}{error.strerror or error}") from error
            except UnicodeEncodeError as error:
                raise InputError(
                    f"{error.object[:100]!a}: a name that is not UTF-8: rename it"
                ) from error
            except KeyboardInterrupt:
                click.echo("Interrupted.", err=True)
                ctx.exit(130)


def _show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    click.echo(f"Warning: {' '.join(str(message).split())}", err=True)
