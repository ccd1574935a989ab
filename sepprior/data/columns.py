"""Which column of a file holds the samples, and which the time, segment and label.

One rule for the columns of a table, the arrays of an NPZ file, the datasets of an HDF5
file and the channels of a WAV file.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from sepprior.errors import SeppriorError

_TIME = re.compile(
    r"(?:time|t|elapsed(?: time)?|seconds|zeit|temps|tiempo)"
    r"(?:(?:[\s_/]+|\s*[(\[]\s*)(?P<unit>s|sec|seconds|ms|us|µs|μs|ns|min)\s*[)\]]?)?"
)
"""Names of the column with the time, in s unless they tell another unit."""
_SECONDS = {"ms": 1e-3, "us": 1e-6, "µs": 1e-6, "μs": 1e-6, "ns": 1e-9, "min": 60.0}
RATE_NAMES = ("sample_rate", "sampling_rate", "samplerate", "fs", "rate")
"""Names of a single number that states the sample rate in Hz."""
PREFERRED_NAMES = ("value", "measurement", "noise", "x")
"""Names taken without asking, in this order, where a file has several columns."""

_INDEX_ROLES = ("time", "segment", "label")  # never samples unless asked for by name
_LISTED = 12  # names shown in an error message


@dataclass(frozen=True)
class Selection:
    """What is read of a file.

    Attributes:
        column: the samples; see `choose`.
        time_column: the times, a name or a number counted from 0; "none" where the
            file has none; None to know it by its name.
        skip_lines: lines of a text file above its table or header.
        sample_rate: rate in Hz that the caller knows, None if unknown.
    """

    column: str | int | None = None
    time_column: str | int | None = None
    skip_lines: int = 0
    sample_rate: float | None = None


def role_of(name: str) -> str | None:
    """Role that a column has by its name: time, segment, label or rate, else None."""
    name = base_name(name).lower()
    if _TIME.fullmatch(name):
        return "time"
    if name in RATE_NAMES:
        return "rate"
    return name if name in ("segment", "label") else None


def seconds_per_unit(name: str) -> float:
    """Seconds in the unit of a time column of this name."""
    found = _TIME.fullmatch(base_name(name).lower())
    return _SECONDS.get(found["unit"] or "s", 1.0) if found else 1.0


def base_name(name: str) -> str:
    """Name without the groups of an HDF5 path, without surrounding blanks."""
    name = name.strip()
    return name if _TIME.fullmatch(name.lower()) else name.rsplit("/", 1)[-1].strip()


def choose(
    names: Sequence[str],
    usable: Sequence[bool],
    column: str | int | None,
    *,
    source: str,
    kind: str,
) -> list[int]:
    """Choose the columns to read.

    Args:
        names: names of all columns.
        usable: whether each holds a numeric series.
        column: what the user asked for: a name, a pattern such as `train_*`, or a
            number counted from 0; None to choose by `PREFERRED_NAMES`, or the only
            usable column that has no other role.
        source: the file, for messages.
        kind: what the columns are called in this format, in the singular.

    Returns:
        Positions of the chosen columns, at least one; several only for a pattern.

    Raises:
        SeppriorError: there is no such column, or no single one to take.
    """
    if column is not None:
        return _named(names, usable, str(column), source=source, kind=kind)
    candidates = [
        position
        for position, name in enumerate(names)
        if usable[position] and name and role_of(name) not in _INDEX_ROLES
    ]
    for preferred in PREFERRED_NAMES:
        for position in candidates:
            if base_name(names[position]).lower() == preferred:
                return [position]
    if len(candidates) == 1:
        return candidates
    if candidates:
        raise SeppriorError(
            f"{source}: several {kind}s could hold the samples: "
            f"{_listing([names[position] for position in candidates])}; choose one "
            "with --column NAME (column= in Python)"
        )
    raise SeppriorError(
        f"{source}: no {kind} with numeric samples among: {_listing(names)}"
        if names
        else f"{source}: is empty; expected a {kind} of samples"
    )


def time_column(names: Sequence[str], given: str | int, *, source: str) -> int | None:
    """Position of the time column that was asked for; None for "none".

    Raises:
        SeppriorError: there is no such column.
    """
    stripped = [name.strip("/ ") for name in names]
    if str(given).strip("/ ") not in stripped and str(given).casefold() == "none":
        return None
    usable = [True] * len(names)
    return _named(names, usable, str(given), source=source, kind="column")[0]


def _named(
    names: Sequence[str],
    usable: Sequence[bool],
    column: str,
    *,
    source: str,
    kind: str,
) -> list[int]:
    """Positions of the columns that a name, a pattern or a number stands for."""
    stripped = [name.strip("/ ") for name in names]
    wanted = column.strip("/ ")
    if wanted in stripped:
        return [stripped.index(wanted)]
    if any(character in wanted for character in "*?["):
        found = [
            position
            for position, name in enumerate(stripped)
            if usable[position]
            and role_of(name) not in _INDEX_ROLES
            and fnmatchcase(name, wanted)
        ]
        if found:
            return found
    elif wanted.isdecimal() and int(wanted) < len(names):
        return [int(wanted)]
    folded = {name.casefold(): name for name in reversed(stripped)}
    close = difflib.get_close_matches(wanted.casefold(), folded, n=1)
    hint = f"; did you mean '{folded[close[0]]}'?" if close else ""
    raise SeppriorError(
        f"{source}: no {kind} {column!r}; it has {_listing(names)}{hint}"
    )


def _listing(names: Sequence[str]) -> str:
    shown = ", ".join(name or "''" for name in names[:_LISTED])
    hidden = len(names) - _LISTED
    return f"{shown} and {hidden} more" if hidden > 0 else shown
