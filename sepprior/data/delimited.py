"""Delimited text: CSV, tables of instruments, loggers and spreadsheets.

The layout is recognised from the beginning (`sepprior.data.layout`); pandas reads the
rows in chunks, and only the columns that are needed. Cells that it does not take for
numbers are looked at one by one.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from sepprior.data import series as _series
from sepprior.data.cells import (
    BLANKS,
    HEXADECIMAL,
    MISSING,
    NAN,
    QUANTITY,
    STAMP,
    number_pattern,
    shortened,
)
from sepprior.data.columns import (
    Selection,
    choose,
    role_of,
    time_column,
    time_name,
)
from sepprior.data.layout import Layout, recognise
from sepprior.data.series import Series
from sepprior.data.stamps import Stamps
from sepprior.data.tables import Columns, collect
from sepprior.data.textfile import Text
from sepprior.errors import SeppriorError

if TYPE_CHECKING:
    import pandas

_AGREEING = 5e-3  # relative difference of a step from that of a known rate
_NO_NUMBER = [spell(word) for word in MISSING for spell in (str.upper, str.title)]


def read_text(path: Path, selection: Selection) -> list[Series]:
    """Read delimited text (comma, semicolon, tab, bar or blanks; header optional).

    Lines that start with `#` and blank lines are skipped, and so is what instruments
    write above their tables. The decimal mark may be a comma. Times may be numbers, or
    dates and times of the day, which then count from midnight. Columns are numbered
    from 0.

    Args:
        path: the file, also compressed.
        selection: what to read of it.

    Raises:
        SeppriorError: no such column, text where a number belongs, or a column that
            rises steadily, as times do, and is not known to hold times.
    """
    text = Text.of(path)
    layout = recognise(text, selection.skip_lines)
    chosen, date = _columns(layout, selection, source=str(path))
    rate = layout.rate
    if chosen.time is not None and rate is not None:
        # the times go before a rate that may be that of another setting
        step = layout.steps[chosen.time] * (chosen.seconds or 1.0)
        rate = rate if abs(step * rate - 1) < _AGREEING / 10 else None
    return collect(
        path,
        layout.names,
        chosen,
        _Table(text, layout, chosen, date).chunks(),
        sample_rate=rate,
        locate=partial(text.line_of_row, layout.first),
    )


def _columns(
    layout: Layout, selection: Selection, *, source: str
) -> tuple[Columns, int | None]:
    """The columns to read, and that of the dates beside the times of the day."""
    names = layout.names
    labels = list(map(_label, names, layout.units))
    numeric = [kind in ("number", "missing") for kind in layout.kinds]
    asked: list[int] = []
    if selection.column is not None:
        asked = choose(names, numeric, selection.column, source=source, kind="column")
    if selection.time_column is None:
        time = _time_of(layout, labels, asked, selection, source=source)
    else:
        time = time_column(names, selection.time_column, source=source)
    time, date = _with_date(layout, time, asked)
    values = asked or _values(layout, labels, numeric, (time, date), source=source)
    roles = {
        role_of(name): position
        for position, name in reversed(list(enumerate(names)))
        if position not in values
    }
    known = None if time is None else time_name(labels[time])
    unit = known.seconds if known else None
    if time is not None and layout.kinds[time] == "stamp":
        unit = 1.0
    return Columns(values, time, roles.get("segment"), roles.get("label"), unit), date


def _label(name: str, unit: str) -> str:
    """A name with its unit, where that is one of time and the name has none."""
    known, of_time = time_name(name), time_name(unit)
    told = known is not None and known.seconds is not None
    return f"{name} ({unit})" if of_time and of_time.seconds and not told else name


def _time_of(
    layout: Layout,
    labels: Sequence[str],
    asked: Sequence[int],
    selection: Selection,
    *,
    source: str,
) -> int | None:
    """The column of the times: by its name, its unit or its content.

    Raises:
        SeppriorError: a column looks like times, but nothing tells that it holds them.
    """
    kinds, steps, names = layout.kinds, layout.steps, layout.names
    free = [i for i, k in enumerate(kinds) if i not in asked and k != "missing"]
    named = [i for i in free if role_of(labels[i]) == "time"]
    units = [i for i in free if (it := time_name(labels[i])) and it.seconds]
    for group, fits in (
        (named, lambda i: steps[i] > 0),
        (named, lambda i: kinds[i] == "stamp"),
        (units, lambda i: steps[i] > 0),
        (named, lambda i: kinds[i] == "number"),
        (named, lambda i: True),
        (free, lambda i: kinds[i] == "stamp"),
    ):
        found = [i for i in group if fits(i)]
        if found:
            return found[0]
    rising = [i for i in free if steps[i] and not layout.counters[i]]
    rate = selection.sample_rate or layout.rate
    for i in rising:
        if rate is not None and abs(steps[i] * rate - 1) < _AGREEING:
            return i
    others = [
        i
        for i, kind in enumerate(kinds)
        if kind == "number" and i not in rising and not layout.counters[i]
    ]
    if rising and others:
        name = names[rising[0]] or str(rising[0])
        raise SeppriorError(
            f"{source}: column '{name}' rises steadily, as times do; say --time-column "
            f"'{name}' if it holds times in seconds, and --time-column none if not "
            "(time_column= in Python)"
        )
    return None


def _with_date(
    layout: Layout, time: int | None, asked: Sequence[int]
) -> tuple[int | None, int | None]:
    """The column of times of the day, and that of the dates beside it."""
    if time is None or layout.kinds[time] != "stamp":
        return time, None
    parts = {
        i: STAMP.fullmatch(layout.examples[i].casefold())
        for i, kind in enumerate(layout.kinds)
        if kind == "stamp" and i not in asked
    }
    dates = [i for i, found in parts.items() if found and not found["clock"]]
    clocks = [i for i, found in parts.items() if found and not found["date"]]
    if time in clocks and dates:
        return time, dates[0]
    if time in dates and clocks:
        return clocks[0], time
    return time, None


def _values(
    layout: Layout,
    labels: Sequence[str],
    numeric: Sequence[bool],
    times: Sequence[int | None],
    *,
    source: str,
) -> list[int]:
    """The column of the samples, where none was asked for."""
    free = [
        usable and i not in times and role_of(label) != "time"
        for i, (usable, label) in enumerate(zip(numeric, labels, strict=True))
    ]
    plain = [
        usable and not counter and kind == "number"
        for usable, counter, kind in zip(
            free, layout.counters, layout.kinds, strict=True
        )
    ]
    several = sum(free) > 1 or "text" in layout.kinds
    if several:  # a number of the row is no sample
        free = [
            ok and not counter
            for ok, counter in zip(free, layout.counters, strict=True)
        ]
    text = [
        f", such as {shortened(cell)} in '{name}'{_way_out(cell)}"
        for cell, kind, name in zip(
            layout.examples, layout.kinds, layout.names, strict=True
        )
        if kind == "text" and cell
    ]
    return choose(
        layout.names,
        plain if any(plain) else free,
        None,
        source=source,
        kind="column",
        hint=text[0] if text else "",
    )


@dataclass(frozen=True)
class _Table:
    """The rows of a text file."""

    text: Text
    layout: Layout
    chosen: Columns
    date: int | None

    @property
    def stamps(self) -> list[int]:
        """Columns of dates and times of the day."""
        time = self.chosen.time
        if time is None or self.layout.kinds[time] != "stamp":
            return []
        return [time, *([] if self.date is None else [self.date])]

    def chunks(self) -> Iterator[dict[int, NDArray[Any]]]:
        """The columns that are read, in chunks of rows."""
        import pandas as pd

        try:
            yield from self._chunks()
        except pd.errors.ParserError as error:
            detail = str(error).split("C error:")[-1]
            raise SeppriorError(
                f"{self.text.path}: is not a regular table "
                f"({' '.join(detail.split())}); expected the same number of columns in "
                "every line"
            ) from error

    def _chunks(self) -> Iterator[dict[int, NDArray[Any]]]:
        import pandas as pd

        clock, done = Stamps(), 0
        try:
            if self.layout.thousands is None:
                for frame in self._frames("float64"):
                    yield self._converted(frame, done, clock)
                    done += len(frame)
                return
        except (pd.errors.ParserError, SeppriorError):
            raise
        except ValueError:  # a cell that pandas does not take for a number
            pass
        row = 0
        for frame in self._frames("str"):
            if row >= done:
                yield self._converted(frame, row, clock)
            row += len(frame)

    def _frames(self, kind: str) -> Iterator[pandas.DataFrame]:
        """Data frames of at most `BLOCK` rows with the columns that are read."""
        import pandas as pd

        layout, stamps = self.layout, self.stamps
        kinds = {i: "str" if i in stamps else kind for i in self.chosen.numbers}
        kinds |= dict.fromkeys([*self.chosen.keys, *stamps], "str")
        # rows may lack their last cells: a header of all columns makes them missing
        mark = " " if layout.separator == BLANKS else layout.separator
        header = mark.join(map(str, range(len(layout.names)))) + "\n"
        with (
            warnings.catch_warnings(),
            self.text.lines(layout.first, header, mark) as lines,
        ):
            # separators at the ends of lines make an additional, empty column
            warnings.simplefilter("ignore", pd.errors.ParserWarning)
            source: Any = lines
            with pd.read_csv(
                source,
                sep=layout.separator,
                decimal=layout.decimal,
                header=0,
                names=list(layout.names),
                usecols=sorted(kinds),
                dtype={layout.names[i]: kind for i, kind in kinds.items()},
                na_values={layout.names[i]: _NO_NUMBER for i in self.chosen.numbers},
                index_col=False,
                skipinitialspace=True,
                chunksize=_series.BLOCK,
            ) as reader:
                yield from reader

    def _converted(
        self, frame: pandas.DataFrame, row: int, clock: Stamps
    ) -> dict[int, NDArray[Any]]:
        """The columns of a data frame that begins with a row."""
        order = sorted({*self.chosen.numbers, *self.chosen.keys, *self.stamps})
        found = {i: frame.iloc[:, k] for k, i in enumerate(order)}
        chunk: dict[int, NDArray[Any]] = {}
        refused: list[tuple[int, int]] = []
        for i in self.chosen.numbers:
            if i in self.stamps:
                dates = None if self.date is None else found[self.date]
                chunk[i], bad = clock.seconds(found[i], dates)
            elif found[i].dtype.kind == "f":
                chunk[i] = found[i].to_numpy(dtype=float)
                continue
            else:
                chunk[i], bad = _numbers(found[i], self.layout)
            refused += [] if bad is None else [(bad, i)]
        if refused:
            bad, i = min(refused)
            self._refuse(i, str(found[i].iloc[bad]), row + bad)
        for i in self.chosen.keys:
            chunk[i] = found[i].fillna("").to_numpy(dtype=object)
        return chunk

    def _refuse(self, i: int, cell: str, row: int) -> NoReturn:
        """Raise an error about a cell."""
        time = i == self.chosen.time
        unit = "seconds" if time and self.chosen.seconds in (1.0, None) else "a number"
        if i in self.stamps:
            unit = f"a time such as {shortened(self.layout.examples[i])}"
        raise SeppriorError(
            f"{self.text.path}: {shortened(cell)} at "
            f"{self.text.line_of_row(self.layout.first, row)}, column "
            f"'{self.layout.names[i]}'; expected {unit} (an empty cell or nan where a "
            "value is missing; lines of text below a table are to be removed)"
        )


def _way_out(cell: str) -> str:
    """What to do about a cell that is nearly a number."""
    cell = cell.strip().casefold()
    if HEXADECIMAL.fullmatch(cell):
        return "; write decimal numbers"
    if QUANTITY.fullmatch(cell):
        return "; write the numbers without their units"
    return ""


def _numbers(
    cells: pandas.Series, layout: Layout
) -> tuple[NDArray[np.float64], int | None]:
    """Numbers in cells of text, shape (M,), NaN where missing; the first without."""
    text = cells.fillna("").astype(str).str.strip().str.casefold()
    missing = text.isin(MISSING) | text.str.fullmatch(NAN.pattern)
    pattern = number_pattern(layout.decimal, layout.thousands).pattern
    number = text.str.fullmatch(pattern)
    bad = np.flatnonzero(~(missing | number).to_numpy(dtype=bool))
    values = np.full(len(text), np.nan)
    plain = text[number]
    if layout.thousands is not None:
        plain = plain.str.replace(layout.thousands, "", regex=False)
    plain = plain.str.replace(layout.decimal, ".", regex=False)
    for old, new in (("1.#inf", "inf"), ("d", "e"), (" ", "")):
        plain = plain.str.replace(old, new, regex=False)
    values[number.to_numpy(dtype=bool)] = plain.astype(float)
    return values, int(bad[0]) if len(bad) else None
