"""The one exception users meet, the one warning, and checks of single values."""

from __future__ import annotations

import difflib
import errno
import math
import operator
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


class SeppriorError(ValueError):
    """Input that cannot be used.

    The message is one line: what was given, what was expected and what to do. The
    command line prints it and exits with status 2. Bytes of a file's name that are no
    text stand in it as escapes.
    """

    def __str__(self) -> str:
        text = super().__str__().replace("\0", "\\0")
        return text.encode("utf-8", "backslashreplace").decode()


class SeppriorWarning(UserWarning):
    """Input that is used, but not as it stands: what was left out, and how much."""


MOST_SEED = 2**63 - 1
"""Largest seed of a random number generator."""


def shown(value: object) -> str:
    """A value as it stands in a message: one line, not long."""
    try:
        text = " ".join(repr(value).split())
    except Exception:  # of an object of somebody else
        text = f"<{type(value).__name__}>"
    return text if len(text) <= 60 else f"{text[:57]}..."


def whole_number(
    name: str, value: object, *, least: int = 1, most: int = MOST_SEED
) -> int:
    """A whole number between two, or an error that names it."""
    try:
        if isinstance(value, bool):
            raise TypeError
        number = operator.index(value)  # pyright: ignore[reportArgumentType]
    except (TypeError, ValueError, RuntimeError):
        number = None
    if number is None or not least <= number <= most:
        upper = "" if most == MOST_SEED else f" to {most}"
        raise SeppriorError(
            f"{name}={shown(value)}: give a whole number from {least}{upper}"
        )
    return number


def real_number(name: str, value: object) -> float:
    """A finite number, or an error that names it."""
    number = math.nan
    if not isinstance(value, (str, bytes, bool)):
        try:
            number = float(value)  # pyright: ignore[reportArgumentType]
        except (TypeError, ValueError, RuntimeError, OverflowError):
            number = math.nan
    if not math.isfinite(number):
        raise SeppriorError(f"{name}={shown(value)}: give a finite number")
    return number


def one_of(name: str, value: object, choices: Sequence[str]) -> str:
    """One of some words, or an error that suggests the nearest."""
    if isinstance(value, str):
        if value in choices:
            return value
        close = difflib.get_close_matches(value.lower(), choices, 1)
        if close:
            raise SeppriorError(f"{name}={value!r}: did you mean {close[0]!r}?")
    listed = ", ".join(map(repr, choices[:-1]))
    raise SeppriorError(f"{name}={shown(value)}: give {listed} or {choices[-1]!r}")


def mapping(name: str, value: object) -> Mapping[str, Any]:
    """Values by name, none for None, or an error that names them."""
    if value is None:
        return {}
    if not isinstance(value, Mapping) or not all(isinstance(k, str) for k in value):
        raise SeppriorError(
            f"{name}={shown(value)}: give values by the name of the parameter, as in "
            "{'frequency': ...}"
        )
    return value


def file_path(name: str, value: object) -> Path:
    """A path, or an error that names what was given for it."""
    if not isinstance(value, (str, os.PathLike)) or not str(value):
        raise SeppriorError(f"{name}={shown(value)}: give the path of a file")
    if "\0" in str(value):
        raise SeppriorError(
            f"{name}={shown(value)}: a path cannot hold the character NUL"
        )
    try:
        os.lstat(value)
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            raise SeppriorError(
                f"{name}={shown(str(value))}: is too long for the name of a file"
            ) from error
    return Path(value)
