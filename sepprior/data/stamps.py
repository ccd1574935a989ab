"""Seconds from dates and times of the day that are written as text."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import pandas

_DAY = 86400.0


class Stamps:
    """Seconds since the midnight before the first row, chunk after chunk.

    Times of the day without a date go on after midnight.
    """

    def __init__(self) -> None:
        self._origin: int | None = None  # ns since 1970
        self._days = 0.0
        self._last: float | None = None

    def seconds(
        self, cells: pandas.Series, dates: pandas.Series | None
    ) -> tuple[NDArray[np.float64], int | None]:
        """Convert a chunk of rows.

        Args:
            cells: dates, times of the day, or both in one, shape (M,).
            dates: dates that belong to times of the day.

        Returns:
            Times in s, shape (M,), NaN where missing, and the first row that holds
            something else.
        """
        import pandas as pd

        missing = cells.isna()
        text = cells.fillna("").str.strip()
        text = text.str.replace(r"(\d),(\d+)", r"\1.\2", regex=True)
        text = text.str.replace(r"(:\d{2}:\d{2}):(\d+)$", r"\1.\2", regex=True)
        first = next((cell for cell in text if cell), "")
        dated = dates is not None or _has_date(first)
        if dates is not None:
            text = dates.fillna("").str.strip() + " " + text
        elif not dated:
            # minutes and seconds, as spreadsheets shorten them
            hours = "00:" if first.count(":") == 1 and "." in first else ""
            text = "1970-01-01 " + hours + text
        stamps = _parsed(text)
        ns = stamps.astype("datetime64[ns, UTC]").astype("int64").to_numpy()
        bad = (stamps.isna() | missing).to_numpy()
        if self._origin is None and not bad.all():
            start = pd.Timestamp(int(ns[np.argmin(bad)]))
            self._origin = start.floor("D").value
        times = (ns - (self._origin or 0)) / 1e9
        times[bad] = np.nan
        if not dated:
            times = self._after_midnight(times)
        wrong = np.flatnonzero(bad & ~missing.to_numpy())
        return times, int(wrong[0]) if len(wrong) else None

    def _after_midnight(self, times: NDArray[np.float64]) -> NDArray[np.float64]:
        known = np.isfinite(times)
        values = times[known]
        if not len(values):
            return times
        before = values[0] if self._last is None else self._last
        steps = np.diff(values, prepend=before)
        days = self._days + _DAY * np.cumsum(steps < -_DAY / 2)
        self._last, self._days = float(values[-1]), float(days[-1])
        times[known] = values + days
        return times


def _has_date(cell: str) -> bool:
    return any(mark in cell.split(":")[0] for mark in "-/. ")


def _parsed(text: pandas.Series) -> pandas.Series:
    """Times in UTC, NaT where a cell spells none."""
    import pandas as pd
    from pandas.tseries.api import guess_datetime_format

    def parse(cells: Any, form: str, dayfirst: bool = False) -> Any:
        times = pd.to_datetime(
            cells, format=form, utc=True, errors="coerce", dayfirst=dayfirst
        )
        return times.astype("datetime64[ns, UTC]")

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = parse(text, "ISO8601")
        left = found.isna() & (text.str.strip() != "")
        if left.any():
            first = str(text.iloc[int(np.argmax(left))])
            german = "." in first.split(" ")[0]
            form = guess_datetime_format(first, dayfirst=german)
            if form:
                found[left] = parse(text[left], form)
                left &= found.isna()
            if left.any():
                found[left] = parse(text[left], "mixed", german)
    return found
