"""Text files as lines of plain characters: compression, encoding, remarks, padding."""

from __future__ import annotations

import bz2
import codecs
import csv
import gzip
import io
import lzma
import re
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from sepprior.data.listing import need
from sepprior.errors import SeppriorError

HEAD = 2**16  # characters read to recognise the layout of a file
_BOMS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
_PLAIN = str.maketrans(
    {
        "\u2212": "-",  # minus sign
        "\u00a0": " ",
        "\u2007": " ",
        "\u2009": " ",
        "\u202f": " ",
        "\u221e": "inf",
        "\ufeff": None,
    }
)
_REMARK = re.compile(r"^[ \t]*#(?!N/?A\b|[A-Z]+[/\d]*[!?]).*\n?", re.MULTILINE)


@dataclass(frozen=True)
class Text:
    """A text file.

    Attributes:
        path: the file; it may be compressed (gzip, bzip2, xz, or zip with one member).
        encoding: of its characters.
        mark: bytes of the byte order mark.
    """

    path: Path
    encoding: str
    mark: int

    @classmethod
    def of(cls, path: Path) -> Text:
        """Find the encoding: by the byte order mark, else UTF-8, else Latin-1.

        Raises:
            SeppriorError: the file holds no text.
        """
        with _binary(path) as stream:
            head = stream.read(HEAD)
        for mark, encoding in _BOMS:
            if head.startswith(mark):
                return cls(path, encoding, len(mark))
        # text in UTF-16 without a mark: every second byte is 0
        for first, encoding in ((1, "utf-16-le"), (0, "utf-16-be")):
            zero, other = head[first::2].count(0), head[1 - first :: 2].count(0)
            if zero > 0.4 * len(head) > 4 and other < 0.05 * len(head):
                return cls(path, encoding, 0)
        control = sum(head.count(code) for code in (*range(1, 9), *range(14, 32)))
        if control > 0.01 * len(head) or head[:1] == b"\0":
            raise SeppriorError(
                f"{path}: is not plain text; save it as CSV in UTF-8, or give it the "
                "suffix of its format"
            )
        try:
            codecs.getincrementaldecoder("utf-8")().decode(head)
        except UnicodeDecodeError:
            return cls(path, "latin-1", 0)
        return cls(path, "utf-8", 0)

    def head(self) -> list[str]:
        """The first lines, with their remarks, without padding."""
        with self._characters() as file:
            text = file.read(HEAD)
            if file.read(1) and "\n" in text:
                text = text[: text.rindex("\n")]
        if "\0" in text:
            text = text[: text.rfind("\n", 0, text.index("\0")) + 1]
        return text.translate(_PLAIN).rstrip("\n").split("\n")

    @contextmanager
    def _characters(self) -> Iterator[IO[str]]:
        """The text with line feeds, whatever ends the lines in the file."""
        with _binary(self.path) as stream:
            stream.read(self.mark)
            file = io.TextIOWrapper(stream, self.encoding, errors="replace")
            yield file
            file.detach()

    @contextmanager
    def lines(self, skip: int, header: str, mark: str) -> Iterator[Lines]:
        """Open the text, with a header in the place of its first `skip` lines."""
        with self._characters() as file:
            for _ in range(skip):
                file.readline()
            yield Lines(file, self.path, header, mark)

    def line_of_row(self, skip: int, row: int) -> str:
        """Line of the file, counted from 1, that a row of the table stands in.

        Args:
            skip: lines above the first row.
            row: of the table, counted from 0.
        """
        with self._characters() as file:
            for number, line in enumerate(file, start=1):
                if number > skip and line.strip() and not is_remark(line):
                    if row == 0:
                        return f"line {number}"
                    row -= 1
        return f"row {row}"


def is_remark(line: str) -> bool:
    """Whether a line begins with `#`."""
    return _REMARK.match(line) is not None


class Lines:
    """Text in pieces of whole lines, without remarks and padding.

    Lines that begin with `#` are left out, and a last line without a line feed that has
    too few cells; typographic minus signs and blanks become
    plain ones, and NUL bytes up to the end of the file, which a logger had reserved,
    end the text.

    Args:
        file: text with line feeds.
        path: the file, for messages.
        header: a line to begin with.
        mark: between cells.
    """

    def __init__(self, file: IO[str], path: Path, header: str, mark: str) -> None:
        self._file, self._path = file, path
        self._header, self._mark = header, mark
        self._ended = False

    def read(self, size: int = -1) -> str:
        """About `size` characters, ended by a line feed; "" at the end."""
        if self._header:
            piece, self._header = self._header, ""
            return piece
        while not self._ended:
            piece = self._file.read(size)
            if not piece:
                break
            if piece[-1] != "\n":
                piece += self._file.readline()
            if piece[-1] != "\n":
                piece = self._without_cut_line(piece)
            if "\0" in piece:
                piece = self._before_padding(piece)
            if not piece.isascii():
                piece = piece.translate(_PLAIN)
            if "#" in piece:
                piece = _REMARK.sub("", piece)
            if piece:
                return piece
        return ""

    def __iter__(self) -> Iterator[str]:
        while piece := self.read(HEAD):
            yield from piece.splitlines(keepends=True)

    def _without_cut_line(self, piece: str) -> str:
        """The last lines of a file without one that ends early, in a cell or before."""
        *_, before, last = ["", "", *piece.split("\n")]
        cut = last.count(self._mark) < before.count(self._mark)
        return piece[: -len(last)] if cut and self._mark != " " else piece

    def _before_padding(self, piece: str) -> str:
        """The whole lines before NUL bytes."""
        before, _, after = piece.partition("\0")
        while after:
            if after.strip("\0 \n"):
                raise SeppriorError(
                    f"{self._path}: holds NUL bytes between its lines, as after a "
                    "power failure; remove them, or read the part before them alone"
                )
            after = self._file.read(HEAD)
        self._ended = True
        return before[: before.rfind("\n") + 1]


@contextmanager
def _binary(path: Path) -> Iterator[Any]:
    """The bytes of a file, decompressed."""
    with ExitStack() as stack:
        stream: Any = stack.enter_context(path.open("rb"))
        start = stream.read(6)
        stream.seek(0)
        if start.startswith(b"\x1f\x8b"):
            stream = stack.enter_context(gzip.open(stream))
        elif start.startswith(b"BZh"):
            stream = stack.enter_context(bz2.open(stream))
        elif start == b"\xfd7zXZ\0":
            stream = stack.enter_context(lzma.open(stream))
        elif start.startswith(b"PK\x03\x04"):
            stream = stack.enter_context(_only_member(path, stream, stack))
        yield stream


def _only_member(path: Path, stream: IO[bytes], stack: ExitStack) -> IO[bytes]:
    archive = stack.enter_context(zipfile.ZipFile(stream))
    names = [
        item.filename
        for item in archive.infolist()
        if not item.is_dir() and not item.filename.startswith("__MACOSX")
    ]
    if "[Content_Types].xml" in names:
        return _sheet(path)
    if len(names) != 1:
        raise SeppriorError(
            f"{path}: is an archive of {len(names)} files; expected one table: unpack "
            "it and name the files"
        )
    return archive.open(names[0])


def _sheet(path: Path) -> IO[bytes]:
    """The sheet of an Excel workbook with the most numbers, as CSV.

    Raises:
        SeppriorError: there is no such sheet, or the reader is not installed.
    """
    need("openpyxl", path, "Excel workbooks")
    import openpyxl

    with path.open("rb") as file:
        book = openpyxl.load_workbook(file, read_only=True, data_only=True)
        sheets = [list(sheet.iter_rows(values_only=True)) for sheet in book.worksheets]
    sheet = max(sheets, key=_numbers_in, default=[])
    if not _numbers_in(sheet):
        raise SeppriorError(f"{path}: no sheet of the workbook holds numbers")
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    for row in sheet:
        writer.writerow("" if cell is None else str(cell) for cell in row)
    return io.BytesIO(text.getvalue().encode("utf-8"))


def _numbers_in(sheet: Sequence[Sequence[object]]) -> int:
    """How many cells of a sheet hold numbers."""
    return sum(
        isinstance(cell, int | float) and not isinstance(cell, bool)
        for row in sheet
        for cell in row
    )
