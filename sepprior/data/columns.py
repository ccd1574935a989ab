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
from functools import lru_cache

from sepprior.errors import SeppriorError

_SECONDS = {
    **dict.fromkeys(("h", "hr", "hrs", "hour", "hours", "std", "stunden"), 3600.0),
    **dict.fromkeys(("min", "mins", "minute", "minutes", "minuten"), 60.0),
    **dict.fromkeys(("s", "sec", "secs", "second", "seconds", "sek", "sekunden"), 1.0),
    **dict.fromkeys(("ms", "msec", "msecs", "millis", "millisecond"), 1e-3),
    **dict.fromkeys(("us", "µs", "μs", "usec", "usecs", "micros", "microsecond"), 1e-6),
    **dict.fromkeys(("ns", "nsec", "nanos", "nanosecond"), 1e-9),
    **dict.fromkeys(("ps", "psec", "picosecond"), 1e-12),
    **dict.fromkeys(("d", "day", "days", "tage"), 86400.0),
    **{"с": 1.0, "сек": 1.0, "мс": 1e-3, "мкс": 1e-6},  # noqa: RUF001
    "secondes": 1.0,
    "segundos": 1.0,
    "secondi": 1.0,
    "milliseconds": 1e-3,
    "millisekunden": 1e-3,
    "microseconds": 1e-6,
    "nanoseconds": 1e-9,
    "picoseconds": 1e-12,
}
_TIME_WORDS = (
    "time times t epoch unixtime timestamp timestamps datetime elapsed date clock "
    "seconds secs millis "
    "micros milliseconds microseconds zeit uhrzeit zeitstempel messzeit datum sekunden "
    "temps heure horodatage tiempo hora fecha tempo ora tijd tid czas aika čas vreme "
    "время 时间 時間 時刻"
)
"""Words of which one stands in the name of a time column."""
_BESIDE_WORDS = (
    "since start started relative rel sample sampling of the from begin beginning "
    "local gps unix epoch posix system sys host device recording axis x value val log "
    "logger stamp rtc measurement absolute abs in utc gmt test run point daq scan seit "
    "beginn der de desde inicio relativ relative hh mm ss sss fff hms iso day mcu "
    "und and"
)
"""Words that may stand beside those."""
_TIMES, _BESIDE = frozenset(_TIME_WORDS.split()), frozenset(_BESIDE_WORDS.split())
RATE_NAMES = ("sample_rate", "sampling_rate", "samplerate", "fs", "rate")
"""Names of a single number that states the sample rate in Hz."""
PREFERRED_NAMES = ("value", "measurement", "noise", "x")
"""Names taken without asking, in this order, where a file has several columns; `x` not
beside `y`."""

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


@dataclass(frozen=True)
class TimeName:
    """What the name of a column says about times.

    Attributes:
        sure: whether it names a time; otherwise only its unit is one of time.
        seconds: in the unit that it tells, None without one.
    """

    sure: bool
    seconds: float | None


@lru_cache(maxsize=1024)
def time_name(name: str) -> TimeName | None:
    """Read a name such as `Time (ms)`, `elapsed_s`, `Zeit in s` or `timeUs`."""
    spelled = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name.strip()).casefold()
    spelled = re.sub(r"\b(utc|gmt)\s*[+-]?[\d:]*", " ", spelled)
    spelled = spelled.replace("\u03bc", "µ")
    if re.search(r"[\d°%²]", spelled):
        return None
    words = re.findall(r"[^\W_]+", spelled)
    seconds = None
    if words and words[-1] in _SECONDS and words[-1] not in ("d", "day"):
        seconds = _SECONDS[words[-1]]
        if words[-1] not in _TIMES:
            words = words[:-1]
    sure = any(word in _TIMES for word in words) and all(
        word in _TIMES or word in _BESIDE for word in words
    )
    if not sure and re.search(r"[/.*]\s*\w+[\])]?\s*$", spelled):
        return None  # a rate, such as m/s
    return TimeName(sure, seconds) if sure or seconds is not None else None


def role_of(name: str) -> str | None:
    """Role that a column has by its name: time, segment, label or rate, else None."""
    name = base_name(name)
    known = time_name(name)
    if known is not None and known.sure:
        return "time"
    name = name.lower()
    if name in RATE_NAMES:
        return "rate"
    return name if name in ("segment", "label") else None


def seconds_per_unit(name: str) -> float:
    """Seconds in the unit of a time column of this name."""
    found = time_name(base_name(name))
    return 1.0 if found is None or found.seconds is None else found.seconds


def base_name(name: str) -> str:
    """Name without the groups of an HDF5 path, without surrounding blanks."""
    name, known = name.strip(), time_name(name)
    return name if known and known.sure else name.rsplit("/", 1)[-1].strip()


def choose(
    names: Sequence[str],
    usable: Sequence[bool],
    column: str | int | None,
    *,
    source: str,
    kind: str,
    hint: str = "",
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
        hint: what is told where none holds numbers.

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
    plain = [base_name(names[position]).lower() for position in candidates]
    for preferred in PREFERRED_NAMES:
        # beside a y, x may be the abscissa as well as the first axis of a sensor
        if preferred in plain and not (preferred == "x" and "y" in plain):
            return [candidates[plain.index(preferred)]]
    if len(candidates) == 1:
        return candidates
    if candidates:
        raise SeppriorError(
            f"{source}: several {kind}s could hold the samples: "
            f"{_listing([names[position] for position in candidates])}; choose one "
            "with --column NAME (column= in Python)"
        )
    raise SeppriorError(
        f"{source}: no {kind} with numeric samples among: {_listing(names)}{hint}"
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
