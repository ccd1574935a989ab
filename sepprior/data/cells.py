"""Cells of text: numbers, missing values, dates and times of the day."""

from __future__ import annotations

import csv
import re
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

BLANKS = r"\s+"
_SHOWN = 40  # characters of a cell in a message
_MISSING_WORDS = (
    "na nan -nan +nan n/a #n/a null none <na> missing nil #na #nan #div/0! #value! "
    "-1.#ind 1.#ind -1.#qnan 1.#qnan 1.#nan - -- --- ---- ----- -nan(ind) nan(ind) "
    "nan(snan) #### ##### ###### "
    # What meters write instead of a reading beyond their range.
    "ol .ol o.l 0.l 0l +ol -ol ovld +ovld -ovld over +over -over overload overflow "
    "ovf ovflw ovrng overrange"
)
MISSING = frozenset(["", *_MISSING_WORDS.split()])
"""What stands for a missing sample, in small letters."""
NAN = re.compile(r"[-+]?nan\(.*\)")
_INFINITE = re.compile(r"[-+]?(?:1\.#inf|inf|infinity)")
_GROUPED = r"[1-9]\d{{0,2}}(?:{0}\d{{3}})+(?!\d)"
_CLOCK = r"\d{1,2}:\d{2}(?::\d{2}(?:[.,:]\d+)?|\.\d+)?(?:\s?[ap]m)?"
_DATE = (
    r"(?:\d{4}[-/.]\d{1,2}[-/.]\d{1,2}|\d{1,2}[-/.]\d{1,2}[-/.](?:\d{4}|\d{2})"
    r"|\d{1,2}[-/. ][a-z]{3,9}[-/. ]\d{2,4}|\d{8}(?=t))"
)
QUANTITY = re.compile(r"[-+]?\d[\d.,]*(?:e[-+]?\d+)?\s*[a-zµμω°%]{1,4}")
"""A number with its unit, in small letters."""
HEXADECIMAL = re.compile(r"0x[\da-f]+|[\da-f]+h")
STAMP = re.compile(
    rf"(?=.*\d)(?P<date>{_DATE})?[t ]*(?P<clock>{_CLOCK}|(?<=t)\d{{6}}(?:\.\d+)?)?"
    r"\s*(?:z|utc|[+-]\d{2}:?\d{2})?"
)
"""A date, a time of the day, or both, in small letters."""


@dataclass(frozen=True)
class Marks:
    """What stands between cells, and within numbers.

    Attributes:
        separator: between cells; `BLANKS` for any number of blanks.
        decimal: the decimal mark.
        thousands: mark between groups of three digits, None without one.
    """

    separator: str
    decimal: str
    thousands: str | None = None

    def split(self, line: str) -> list[str]:
        """The cells of a line, without blanks around them."""
        if self.separator == BLANKS:
            return line.split()
        cells = next(
            csv.reader([line], delimiter=self.separator, skipinitialspace=True)
        )
        return [cell.strip() for cell in cells]

    def kind(self, cell: str) -> str:
        """What a cell holds: "number", "missing", "stamp" or "text"."""
        cell = cell.strip().casefold()
        if cell in MISSING or NAN.fullmatch(cell):
            return "missing"
        if number_pattern(self.decimal, self.thousands).fullmatch(cell):
            return "number"
        return "stamp" if STAMP.fullmatch(cell) else "text"

    def number(self, cell: str) -> float:
        """The number in a cell, NaN without one."""
        return plain_number(cell, self.decimal, self.thousands)


@lru_cache
def number_pattern(decimal: str, thousands: str | None) -> re.Pattern[str]:
    """What a number looks like, in small letters."""
    mark = re.escape(decimal)
    whole = r"\d+"
    if thousands:
        whole = rf"(?:{_GROUPED.format(re.escape(thousands))}|\d+)"
    return re.compile(
        rf"[-+]?\s?(?:{whole}(?:{mark}\d*)?|{mark}\d+)(?:[ed][-+]?\d+)?"
        rf"|{_INFINITE.pattern}"
    )


def plain_number(cell: str, decimal: str, thousands: str | None) -> float:
    """The number that a cell spells, NaN where it spells none."""
    cell = cell.strip().casefold()
    if not number_pattern(decimal, thousands).fullmatch(cell):
        return np.nan
    if "inf" in cell:
        return -np.inf if cell.startswith("-") else np.inf
    if thousands:
        cell = cell.replace(thousands, "")
    return float(cell.replace(decimal, ".").replace("d", "e").replace(" ", ""))


def shortened(cell: str) -> str:
    """A cell in quotes, cut where it is long."""
    return repr(cell if len(cell) <= _SHOWN else f"{cell[: _SHOWN - 3]}...")
