"""How a text file is written: where its table begins, its marks, names and units.

Instruments write what they like above a table: settings, units, names, nothing. The
table is the longest run of lines with as many cells and with numbers in them, for the
separator and the decimal mark that leave the least text in it.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise, product

import numpy as np

from sepprior.data.cells import BLANKS, MISSING, Marks, number_pattern, shortened
from sepprior.data.columns import role_of, time_name
from sepprior.data.conventions import rate_in, rate_name
from sepprior.data.textfile import Text, is_remark
from sepprior.errors import SeppriorError

_LINES = 300  # of a table, and as many above it, that are looked at
_UNIT_WORDS = (
    "v volt volts mv uv µv kv a amp amps ma ua µa w mw hz khz g mg m/s m/s² m/s2 m/s^2 "
    "mm/s um/s µm/s °c ℃ degc c °f k kelvin pa hpa kpa mpa bar mbar psi n kn nm rad "
    "deg ° °/s deg/s dps rad/s % db dbm dbv ohm ω kω mt ut µt nt gauss sequence "
    "ts rn lsb count counts m mm um µm cm kg l/min lux rpm f pf nf ppm µe"
)
_UNITS = frozenset(_UNIT_WORDS.split())
_VALUE = r"[-+]?[\d.]+(?:[eE][-+]?\d+)?(?:\s?[a-zA-Zµ]+)?"
_PREAMBLE = re.compile(
    r"scale|length|\brate\b|interval|offset|record|points|probe|model|firmware|units"
    r"|version|serial|trigger|coupling|atten|source",
    re.IGNORECASE,
)

SINCE_1970 = 1e8
"""Seconds since 1970 that no row has as its number."""


@dataclass(frozen=True)
class Layout:
    """How a text file is written.

    Attributes:
        separator: between cells; `BLANKS` for any number of blanks.
        decimal: the decimal mark.
        thousands: mark between groups of three digits, None without one.
        first: lines above the first row of the table.
        names: of the columns, all different; their numbers where the file has none.
        units: their units, "" where unknown.
        kinds: what each holds: "number", "stamp" (a date or a time of day), "missing"
            or "text".
        steps: usual step of columns that rise steadily at the beginning, else 0.
        counters: which columns number the rows.
        rate: sample rate in Hz that is stated above the table, None without one.
        examples: a cell of each that is not missing, "" without one.
    """

    separator: str
    decimal: str
    thousands: str | None
    first: int
    names: tuple[str, ...]
    units: tuple[str, ...]
    kinds: tuple[str, ...]
    steps: tuple[float, ...]
    counters: tuple[bool, ...]
    rate: float | None
    examples: tuple[str, ...]


@dataclass(frozen=True)
class _Block:
    """The rows of a table: their lines, counted from 0, and their cells."""

    marks: Marks
    lines: list[int]
    cells: list[list[str]]
    kinds: list[list[str]]

    @property
    def width(self) -> int:
        return max(map(len, self.cells))

    @property
    def used(self) -> int:
        """One past the last column with anything in it."""
        return max(
            (i + 1 for row in self.cells for i, cell in enumerate(row) if cell),
            default=0,
        )

    @property
    def share_of_text(self) -> float:
        kinds = [kind for row in self.kinds for kind in row]
        return kinds.count("text") / len(kinds)

    def without_first(self) -> _Block:
        return replace(
            self, lines=self.lines[1:], cells=self.cells[1:], kinds=self.kinds[1:]
        )

    def column(self, i: int) -> list[str]:
        """Kinds of the cells of a column."""
        return [row[i] if i < len(row) else "absent" for row in self.kinds]


def recognise(text: Text, skip: int) -> Layout:
    """Recognise the layout of a text file from its beginning.

    Args:
        text: the file.
        skip: lines at its beginning that are no part of the table, nor its header.

    Raises:
        SeppriorError: there is no table of numbers, or its lines differ in length.
    """
    lines = text.head()[: skip + 2 * _LINES]
    above, lines = lines[:skip], [""] * min(skip, len(lines)) + lines[skip:]
    if not any(line.strip() and not is_remark(line) for line in lines):
        raise SeppriorError(f"{text.path}: is empty; expected a table of numbers")
    separators = [";", "\t", ",", "|", BLANKS]
    told = next((k for k, line in enumerate(lines) if line.strip()), 0)
    found = re.fullmatch(r'"?sep=(.)"?[;,\t]*', lines[told].rstrip(), re.IGNORECASE)
    if found:
        separators, lines[told] = [found[1]], ""
    block = _find_table(text, lines, separators)
    if block is None or (len(block.lines) == 1 and block.share_of_text):
        first, *rest = (line.strip() for line in lines if line.strip())
        if rest and all(line.casefold() in MISSING for line in rest):
            raise SeppriorError(
                f"{text.path}: every value is missing (nan); expected numbers"
            )
        raise SeppriorError(
            f"{text.path}: has no table of numbers that can be recognised (it begins "
            f"with {shortened(first)}); expected columns of numbers, with --skip-lines "
            "N (skip_lines= in Python) from below the text above them"
        )
    names, units, block = _header(text, lines, block)
    width = max(len(names), block.width)
    names += [str(i) for i in range(len(names), width)] if not any(names) else []
    names += [""] * (width - len(names))
    units += [""] * (width - len(units))
    top = [*above, *lines[: block.lines[0]]]
    return Layout(
        separator=block.marks.separator,
        decimal=block.marks.decimal,
        thousands=block.marks.thousands,
        first=block.lines[0],
        names=_unique(names),
        units=tuple(units),
        kinds=tuple(
            _kind_of(block.column(i), named=bool(names[i])) for i in range(width)
        ),
        **_rising(block, width),
        rate=_stated_rate(top, block),
        examples=tuple(_example(block, i) for i in range(width)),
    )


def _find_table(
    text: Text, lines: Sequence[str], separators: Sequence[str]
) -> _Block | None:
    """The table for the marks that explain it best."""
    joined = "\n".join(lines)
    decimals = [mark for mark in ".," if mark == "." or mark in joined]
    known = [mark for mark in separators if mark == BLANKS or mark in joined]
    choices = [Marks(*pair) for pair in product(known, decimals)]
    block = _best(lines, choices)
    if block is None or block.share_of_text > 0:
        groups = [mark for mark in (",", ".", "'", "\u2019", " ") if mark in joined]
        choices += [
            Marks(separator, decimal, mark)
            for separator, decimal, mark in product(known, decimals, groups)
            if mark != decimal and (mark, separator) != (" ", BLANKS)
        ]
        block = _best(lines, choices)
    if block is None:
        return None
    if block.marks == Marks(",", ".") and _are_decimals(lines, block):
        block = _longest_run(lines, Marks(BLANKS, ",")) or block
    return _from_its_first_row(text, lines, block)


def _from_its_first_row(text: Text, lines: Sequence[str], block: _Block) -> _Block:
    """The table with rows above that a short line sets apart from the rest.

    Raises:
        SeppriorError: a line of text does.
    """
    first, width = block.lines[0], len(block.cells[0])
    columns = [block.column(i)[0] for i in range(width)]
    start = first
    for k in range(first - 1, -1, -1):
        if not lines[k].strip() or is_remark(lines[k]):
            continue
        cells = _cells_of(lines[k], block.marks)
        kinds = [block.marks.kind(cell) for cell in cells]
        alike = len(cells) == width and all(
            kind in (other, "missing")
            for kind, other in zip(kinds, columns, strict=True)
        )
        if ("text" not in kinds and any(cells) and start == k + 1) or (
            alike and "number" in kinds
        ):
            start = k
    added = [
        k for k in range(start, first) if lines[k].strip() and not is_remark(lines[k])
    ]
    cells = [_cells_of(lines[k], block.marks) for k in added]
    for k, row in zip(added, cells, strict=True):
        if all(block.marks.kind(cell) == "text" for cell in row):
            raise SeppriorError(
                f"{text.path}: {shortened(lines[k].strip())} at line {k + 1} is text "
                f"below rows of numbers; correct it, or say --skip-lines {k} "
                "(skip_lines= in Python) if the table begins there"
            )
    return replace(
        block,
        lines=added + block.lines,
        cells=cells + block.cells,
        kinds=[list(map(block.marks.kind, row)) for row in cells] + block.kinds,
    )


def _cells_of(line: str, marks: Marks) -> list[str]:
    try:
        return marks.split(line)
    except csv.Error:
        return [line]


def _best(lines: Sequence[str], choices: Sequence[Marks]) -> _Block | None:
    """The first of the tables with the least text, if not much shorter than others."""
    blocks = [
        block
        for marks in choices
        if (block := _longest_run(lines, marks))
        and (marks.thousands is None or _groups_are_sure(block))
    ]
    most = max((len(block.lines) for block in blocks), default=0)
    long = [block for block in blocks if len(block.lines) >= 0.9 * most]
    return min(long, key=lambda block: round(block.share_of_text, 2), default=None)


def _groups_are_sure(block: _Block) -> bool:
    """Whether some cell can only be read with a mark between groups of digits."""
    marks = block.marks
    plain = number_pattern(marks.decimal, None)
    for row, kinds in zip(block.cells, block.kinds, strict=True):
        for cell, kind in zip(row, kinds, strict=True):
            if kind != "number" or plain.fullmatch(cell.casefold()):
                continue
            if marks.thousands in ("'", "\u2019", " ") or marks.decimal in cell:
                return True
            if cell.count(marks.thousands or "") > 1:
                return True
    return False


def _are_decimals(lines: Sequence[str], block: _Block) -> bool:
    """Whether two columns of whole numbers are the halves of one, as in 1,083."""
    rows = [row for row in block.cells if len(row) == 2]
    if len(rows) < len(block.cells) or block.width != 2:
        return False
    halves = re.compile(r"[-+]?\d+"), re.compile(r"\d+(?:[eE][-+]?\d+)?")
    if not all(half.fullmatch(row[i]) for row in rows for i, half in enumerate(halves)):
        return False
    above = next((x for x in reversed(lines[: block.lines[0]]) if x.strip()), "")
    if above and not is_remark(above):
        return "," not in above
    fractions = [row[1] for row in rows]
    leading = any(len(part) > 1 and part[0] == "0" for part in fractions)
    return leading or any(row[0].startswith("-0") for row in rows)


def _longest_run(lines: Sequence[str], marks: Marks) -> _Block | None:
    """The longest run of lines with as many cells, and numbers in each."""
    runs: list[_Block] = []
    width = -1
    for number, line in enumerate(lines):
        if not line.strip() or is_remark(line):
            continue
        cells = _cells_of(line, marks)
        kinds = [marks.kind(cell) for cell in cells]
        size = len(cells)
        while size > 1 and not cells[size - 1]:
            size -= 1
        if "number" not in kinds and (width < 0 or "text" in kinds):
            width = -1
            continue
        if width < 0 or (size != width and len(cells) != len(runs[-1].cells[0])):
            runs.append(_Block(marks, [], [], []))
            width = size
        run = runs[-1]
        run.lines.append(number)
        run.cells.append(cells)
        run.kinds.append(kinds)
        if len(run.lines) == _LINES:
            break
    return max(runs, key=lambda run: len(run.lines), default=None)


def _header(
    text: Text, lines: Sequence[str], block: _Block
) -> tuple[list[str], list[str], _Block]:
    """Names and units of the columns, and the rows below them."""
    marks = block.marks
    # a header with numbers in it looks like a row
    while len(block.lines) > 2 and _is_header(block):
        block = block.without_first()
    top = [k for k in range(block.lines[0]) if lines[k].strip()]
    if not top and _is_numbered_header(block):
        return block.cells[0], [], block.without_first()
    remarks = [k for k in top if _unmarked(lines[k]) is not None]
    plain = [k for k in top if not is_remark(lines[k])]
    if plain and not (plain[-1] in remarks and _unmarked(lines[plain[-1]])):
        names, units = _names_above(text, lines, plain, block)
        if names:
            return names, units, block
    for k in reversed(remarks):  # numpy.savetxt writes its header as a remark
        names = marks.split(_unmarked(lines[k]) or "")
        if len(names) == block.width and any(map(role_of, names)):
            return names, [], block
    return [], [], block


def _names_above(
    text: Text, lines: Sequence[str], plain: Sequence[int], block: _Block
) -> tuple[list[str], list[str]]:
    """Names and units in the lines right above the table; none where it has none."""
    marks = block.marks
    row = _matching(lines[plain[-1]], block)
    kinds = [marks.kind(cell) for cell in row]
    if "text" not in kinds and not any(map(role_of, row)):
        return [], []
    named_rows = marks.separator in (BLANKS, "\t") and len(row) == block.width - 1
    if named_rows and all(len(cells) == block.width for cells in block.cells):
        row = ["", *row]  # R leaves out the name of the row names
    elif len(row) == 1 < block.used or (
        marks.separator == BLANKS and len(row) > block.width
    ):
        return [], []  # a title
    elif len(row) < block.used:
        k = next(k for k, cells in enumerate(block.cells) if any(cells[len(row) :]))
        raise SeppriorError(
            f"{text.path}: has {len(row)} columns in its first line but "
            f"{len(block.cells[k])} in {shortened(lines[block.lines[k]].strip())}; "
            f"expected the same number in every "
            "line (with a decimal comma, separate columns by semicolons)"
        )
    if "number" in kinds and _PREAMBLE.search(row[0]):
        return [], []
    # units stand below the names, and above a line of remarks in some formats
    for k in plain[-1:-3:-1]:
        if plain[-1] - k > 1 or k - 1 not in plain:
            break
        units = _matching(lines[k], block)
        names = _matching(lines[k - 1], block)
        if _are_units(units, marks) and _can_be_names(names, units, marks):
            return names, [cell.strip("()[] ") for cell in units]
    return row, []


def _matching(line: str, block: _Block) -> list[str]:
    """Cells of a header, brought to the width of the table where it had blanks."""
    cells = block.marks.split(line)
    if block.marks.separator == BLANKS and len(cells) != block.width:
        for pattern in (r"\t+", r"\s{2,}"):
            wider = re.split(pattern, line.strip())
            if len(wider) == block.width:
                return wider
        joined = re.findall(r"[^\s(\[]+(?:\s*[(\[][^)\]]*[)\]])?", line)
        if len(joined) == block.width:
            return joined
        if block.width == 1:
            return [line.strip()]
    while len(cells) > block.width and not cells[-1]:
        cells.pop()
    return cells


def _is_header(block: _Block) -> bool:
    """Whether the first row of a table is its header."""
    below = block.without_first()
    for i, kind in enumerate(block.kinds[0]):
        others = set(below.column(i)) - {"missing", "absent"}
        if kind == "text" and others and others <= {"number", "stamp"}:
            return True
    return False


def _is_numbered_header(block: _Block) -> bool:
    """Whether the first row has the numbers that pandas gives to unnamed columns."""
    cells, below = block.cells[0], block.without_first()
    plain = cells[1:] if cells and not cells[0] else cells
    if plain != [str(i) for i in range(len(plain))] or len(block.lines) < 3:
        return False
    if len(plain) < len(cells):
        return all(row and row[0] for row in below.cells)
    return any(
        all(re.search(r"[.,eE]", row[i]) for row in below.cells if i < len(row))
        for i in range(len(plain))
    )


def _unmarked(line: str) -> str | None:
    """A remark without the mark that it begins with; None for another line."""
    found = re.match(r"\s*(?:#+|%+|//+|;(?=\s)|!+)\s*", line)
    return line[found.end() :] if found else None


def _are_units(row: Sequence[str], marks: Marks) -> bool:
    """Whether a line holds nothing but units, as oscilloscopes write below names."""
    known = 0
    for cell in row:
        plain = cell.strip("()[] ").casefold()
        bracketed = cell[:1] in ("(", "[") and cell[-1:] in (")", "]")
        name = time_name(plain)
        of_time = name is not None and name.seconds is not None
        if bracketed or plain in _UNITS or (of_time and len(plain.split()) == 1):
            known += 1
        elif known and marks.kind(cell) == "number":
            continue
        elif plain not in ("", "-"):
            return False
    return known > 0


def _can_be_names(names: Sequence[str], units: Sequence[str], marks: Marks) -> bool:
    """Whether the line above units has the names, not a setting."""
    if len(names) < len([unit for unit in units if unit]):
        return False
    if any(marks.kind(name) == "number" and not name.isdecimal() for name in names):
        return False
    return not _PREAMBLE.search(names[0]) and any(names)


def _kind_of(kinds: Sequence[str], *, named: bool) -> str:
    """What a column holds, by its cells at the beginning."""
    counts = {kind: kinds.count(kind) for kind in ("number", "stamp", "text")}
    kind = max(counts, key=lambda key: counts[key])
    if not counts[kind]:
        return "missing" if named and "missing" in kinds else "text"
    others = counts["text"] + counts["stamp"]
    filled = counts["number"] + others > 0.9 * len(kinds)
    if kind == "number" and others > (1.0 if filled else 0.1) * counts["number"]:
        return "text"
    return kind


def _rising(block: _Block, width: int) -> dict[str, tuple]:
    """Which columns rise in steady steps, and which number the rows."""
    steps, counters = [0.0] * width, [False] * width
    for i in range(width):
        numbers = np.array(
            [
                block.marks.number(row[i]) if i < len(row) else np.nan
                for row in block.cells
            ]
        )
        numbers = numbers[np.isfinite(numbers)]
        if len(numbers) < 8 or len(numbers) < 0.9 * len(block.cells):
            continue
        found = np.diff(numbers)
        median = float(np.median(found))
        steady = np.abs(found - median) <= 0.5 * abs(median)
        if (found > 0).all() and steady.mean() >= 0.9:
            steps[i] = median
            whole = (numbers == np.round(numbers)).all()
            counters[i] = bool(
                whole
                and median == 1
                and (found == 1).mean() > 0.95
                and numbers[0] < SINCE_1970
            )
    return {"steps": tuple(steps), "counters": tuple(counters)}


def _stated_rate(top: Sequence[str], block: _Block) -> float | None:
    """Sample rate in Hz that settings above or beside a table state."""
    lines = [*top, *(",".join(row) for row in block.cells[:32])]
    number = number_pattern(block.marks.decimal, None)
    pairs = [
        (upper, lower.strip().replace(block.marks.decimal, "."))
        for upper, lower in pairwise(lines)
        if number.fullmatch(lower.strip().casefold())
    ]
    rows = [re.split(r"[,;\t]", line) for line in lines]
    for upper, lower in pairwise(rows):
        pairs += list(zip(upper, lower, strict=False))
    for line, cells in zip(lines, rows, strict=True):
        pairs += pairwise(cells)
        pairs += re.findall(rf"([A-Za-z_ ]+?)\s*[:=]\s*({_VALUE})", line)
    for name, value in pairs:
        name, value = name.strip(' "#%;:'), value.strip(' "')
        if not rate_name(name) or not re.match(r"[-+]?\.?\d", value):
            continue
        try:
            found = rate_in({name: value}, source="")
        except SeppriorError:
            continue
        if found is not None:
            return found
    return None


def _example(block: _Block, i: int) -> str:
    """A cell of a column that is not missing, of the kind that most are of."""
    kinds = block.column(i)
    kind = _kind_of(kinds, named=False)
    where = kinds.index(kind) if kind in kinds else -1
    return block.cells[where][i] if where >= 0 else ""


def _unique(names: Sequence[str]) -> tuple[str, ...]:
    """Names with a number added to those that occurred before; pandas needs it."""
    result: list[str] = []
    for name in names:
        number, candidate = 0, name
        while candidate in result:
            number += 1
            candidate = f"{name}.{number}"
        result.append(candidate)
    return tuple(result)
