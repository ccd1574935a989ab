"""Which column of a file holds the samples, and which the time, segment and label.

One rule for the columns of a table, the arrays of an NPZ file, the datasets of an HDF5
file and the channels of a WAV file.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from fnmatch import fnmatchcase

from sepprior.errors import SeppriorError

TIME_NAMES = ("time", "t", "time_s", "time (s)", "time [s]")
"""Names of the column with the time in seconds; case does not matter."""
RATE_NAMES = ("sample_rate", "sampling_rate", "samplerate", "fs", "rate")
"""Names of a single number that states the sample rate in Hz."""
PREFERRED_NAMES = ("value", "measurement", "noise", "x")
"""Names taken without asking, in this order, where a file has several columns."""

_INDEX_ROLES = ("time", "segment", "label")  # never samples unless asked for by name
_LISTED = 12  # names shown in an error message


def role_of(name: str) -> str | None:
    """Role that a column has by its name: time, segment, label or rate, else None."""
    name = base_name(name).lower()
    if name in TIME_NAMES:
        return "time"
    if name in RATE_NAMES:
        return "rate"
    return name if name in ("segment", "label") else None


def base_name(name: str) -> str:
    """Name without the groups of an HDF5 path, without surrounding blanks."""
    return name.rsplit("/", 1)[-1].strip()


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
