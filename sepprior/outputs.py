"""Files that a command writes: checked before the work, whole or absent after it.

Every file is written under a temporary name in its own folder and takes its final name
only when it is complete, so that an error or an interruption leaves the old file or
none, never a half-written one. An output is never an input, and no two are the same.
"""

from __future__ import annotations

import contextlib
import csv
import errno
import json
import math
import os
import re
import secrets
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import numpy as np
from numpy.typing import NDArray

from sepprior.errors import SeppriorError

if TYPE_CHECKING:
    from types import TracebackType

    from sepprior.data import Measurement
    from sepprior.result import Separation

NAME_LENGTH = 40
"""Characters of a file's name that its temporary name repeats."""
ROWS_AT_ONCE = 2**16
"""Rows of a table that are made text together; bounds memory."""


def check_output_folder(folder: Path) -> None:
    """Refuse a folder that cannot be written to, before any work is done for it.

    A folder that does not exist yet counts as writable if it can be created. Nothing is
    left behind.

    Args:
        folder: Where files are to be written.

    Raises:
        SeppriorError: The path is not a folder, or writing to it is not permitted.
    """
    try:
        str(folder).encode("utf-8")
    except UnicodeEncodeError as error:
        raise SeppriorError(
            f"output folder {str(folder)!a}: its name is not UTF-8: name another "
            "one with -o"
        ) from error
    nearest = folder
    while not nearest.exists() and nearest != nearest.parent:
        nearest = nearest.parent
    try:
        with tempfile.TemporaryFile(dir=nearest):
            pass
    except OSError as error:
        raise SeppriorError(
            f"output folder '{folder}' is not writable ({error.strerror}): "
            "name another one with -o"
        ) from error


def check_output_file(path: Path, *, suffixes: Sequence[str]) -> None:
    """Refuse a file that cannot be written, before any work is done for it.

    Args:
        path: The file to be written.
        suffixes: Endings the file may have, ".csv" for instance.

    Raises:
        SeppriorError: The path is a folder, has another ending, or lies in a folder
            that cannot be written to.
    """
    if path.is_dir():
        raise SeppriorError(
            f"output '{path}' is a folder: name a file in it, such as "
            f"'{path / ('output' + suffixes[0])}'"
        )
    if path.suffix.lower() not in suffixes:
        raise SeppriorError(
            f"output '{path}' does not end in {' or '.join(suffixes)}: "
            f"use '{path.with_suffix(suffixes[0])}'"
        )
    check_output_folder(path.parent)


def check_distinct(outputs: Iterable[Path], inputs: Iterable[Path]) -> None:
    """Refuse outputs that would replace an input, or each other.

    Links and, for a file system that does not tell them apart, capitals count as the
    same name.

    Args:
        outputs: Files to be written.
        inputs: Files that are read.

    Raises:
        SeppriorError: One of the outputs is an input, or is named twice.
    """
    read = {_identity(path): path for path in inputs}
    written: dict[object, Path] = {}
    for path in outputs:
        own = _identity(path)
        if own in read:
            raise SeppriorError(
                f"'{path}' would be written, but '{read[own]}' is an input: leave that "
                "out, or name another output with -o"
            )
        if own in written:
            raise SeppriorError(
                f"two inputs would both write '{path}': separate them one at a time "
                "with another -o each, or rename one"
            )
        written[own] = path


def check_same_source(fit: Path, source: str) -> None:
    """Refuse to replace the result of another measurement.

    Args:
        fit: A `.fit.json` that is to be written.
        source: File of the measurement that it is of.

    Raises:
        SeppriorError: A file of that name holds the result of another one.
    """
    try:
        before = json.loads(fit.read_text(encoding="utf-8"))["measurement"]["source"]
        earlier, now = Path(before), Path(source)
        same = earlier.name == now.name
        if same and earlier.exists() and now.exists():
            same = earlier.samefile(now)
    except (OSError, ValueError, KeyError, TypeError):
        return
    if not same:
        raise SeppriorError(
            f"'{fit}' holds the result of '{before}': name another folder for that of "
            f"'{source}' with -o, or remove it"
        )


def _identity(path: Path) -> object:
    """What tells a file from others: its place on disk, or else its name."""
    try:
        found = path.stat()
    except (OSError, ValueError) as error:
        if isinstance(error, OSError) and error.errno == errno.ENAMETOOLONG:
            raise SeppriorError(
                f"output '{path.name[:NAME_LENGTH]}...': the name is too long "
                f"({len(os.fsencode(path.name))} bytes): rename the input"
            ) from error
        return os.path.realpath(path).casefold()
    if os.path.isdir(path):
        return os.path.realpath(path)
    return found.st_dev, found.st_ino


@contextlib.contextmanager
def whole_files(*paths: Path) -> Iterator[tuple[Path, ...]]:
    """Write one or several files such that all of them appear complete, or none.

    Args:
        *paths: Final names. Missing folders are created.

    Yields:
        A temporary name for each, with the same folder and ending, to be written in the
        `with` block. On leaving it they take their final names; on an exception they
        are removed.
    """
    temporary: list[Path] = []
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        _remove_abandoned(path)
    try:
        for path in paths:
            temporary.append(_new_file(path))
        yield tuple(temporary)
        for written, path in zip(temporary, paths, strict=True):
            os.replace(written, path)
    finally:
        for path in temporary:
            path.unlink(missing_ok=True)


def _new_file(path: Path) -> Path:
    """A new empty file beside another, with a name that nobody can foresee.

    It is made here, not found, so that no link is followed; its mode is the usual one.
    """
    while True:
        token = f"{os.getpid()}-{secrets.token_hex(4)}"
        name = path.with_name(f".{path.stem[:NAME_LENGTH]}.{token}.tmp{path.suffix}")
        try:
            os.close(os.open(name, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
        except FileExistsError:
            continue
        return name


def _remove_abandoned(path: Path) -> None:
    """Remove temporary files for a path whose process was killed."""
    start = f".{path.stem[:NAME_LENGTH]}."
    with os.scandir(path.parent) as entries:
        names = [e.name for e in entries if e.name.startswith(start)]
    for name in names:
        found = re.fullmatch(r"(\d+)(-[0-9a-f]+)?\.tmp(\.\w+)?", name[len(start) :])
        if found and not _runs(int(found[1])):
            path.with_name(name).unlink(missing_ok=True)


def _runs(process: int) -> bool:
    """Whether a process of this number is running here."""
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return True


def write_csv(
    file: TextIO, columns: Mapping[str, NDArray[np.floating]], *, header: bool = True
) -> None:
    """Write equally long columns as CSV to an open file; NaN is an empty field.

    Args:
        file: Open text file.
        columns: Name and values, each of shape `(n_rows,)`.
        header: Whether a line with the names comes first.
    """
    rows = csv.writer(file, lineterminator="\n")
    if header:
        rows.writerow(columns)
    n_rows = max(map(len, columns.values()), default=0)
    for begin in range(0, n_rows, ROWS_AT_ONCE):
        part = slice(begin, begin + ROWS_AT_ONCE)
        lists = (values[part].tolist() for values in columns.values())
        for row in zip(*lists, strict=True):
            # 15 digits hold every decimal that a user may have typed in the time
            # column.
            rows.writerow("" if math.isnan(v) else f"{v:.15g}" for v in row)


def to_json(value: object, *, indent: int | None = None) -> str:
    """Format a result as standard JSON.

    Args:
        value: Nested mappings, sequences, numbers, numpy arrays and scalars.
        indent: Spaces per level, or None for one line.

    Returns:
        JSON text. NaN and infinity, which JSON has no word for, become null.
    """
    return json.dumps(_plain(value), indent=indent, allow_nan=False, ensure_ascii=False)


def _plain(value: object) -> Any:
    if isinstance(value, (np.ndarray, np.generic)):
        value = value.tolist()
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def separation_files(folder: Path, name: str, *, plot: bool) -> tuple[Path, ...]:
    """Name the files that the separation of one measurement is written to.

    Args:
        folder: Output folder.
        name: Name of the measurement.
        plot: Whether there is a picture.

    Returns:
        `<name>.separated.csv`, `<name>.fit.json` and, with `plot`, `<name>.png`.
    """
    endings = (".separated.csv", ".fit.json", *([".png"] if plot else []))
    return tuple(folder / f"{name}{ending}" for ending in endings)


def write_separation(
    paths: Sequence[Path], measurement: Measurement, result: Separation
) -> None:
    """Write the table, the fit and the picture of one separated measurement.

    Args:
        paths: The files, as `separation_files` names them.
        measurement: What was separated.
        result: Its separation, of a single measurement.
    """
    with whole_files(*paths) as (table, fit, *picture):
        with table.open("w", newline="", encoding="utf-8") as file:
            for begin in range(0, len(measurement.values), ROWS_AT_ONCE):
                part = slice(begin, begin + ROWS_AT_ONCE)
                noise = result.measurement[part] - result.signal[part]
                columns = {
                    "time": measurement.time_of(part),
                    "measurement": result.measurement[part],
                    "signal": result.signal[part],
                    "noise": noise,
                    "residual": noise - result.coherent[part],
                }
                write_csv(file, columns, header=not begin)
        text = to_json(fit_summary(measurement, result), indent=2)
        fit.write_text(text + "\n", encoding="utf-8")
        for path in picture:
            result.plot(path, truth=known_truth(Path(measurement.source)))


def known_truth(source: Path) -> dict[str, float]:
    """True parameters of a simulated measurement, by name.

    Of ``run.csv`` those in ``run.truth.json`` beside it; none where it is not there, or
    holds anything but numbers by name.
    """
    try:
        found = json.loads(source.with_suffix(".truth.json").read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    if not isinstance(found, dict):
        return {}
    return {k: float(v) for k, v in found.items() if isinstance(v, (int, float))}


def fit_summary(measurement: Measurement, result: Separation) -> dict[str, Any]:
    """Collect what `<name>.fit.json` holds.

    Args:
        measurement: What was separated.
        result: Its separation, of a single measurement.

    Returns:
        The result's own dictionary (status, parameters, baselines, diagnostics, prior,
        version) and where the measurement came from. Phases refer to the first sample,
        at `measurement.start` on the measurement's own time axis, in seconds.
    """
    return {
        **result.to_dict(),
        "measurement": {
            "name": measurement.name,
            "source": measurement.source,
            "samples": len(measurement.values),
            "missing": int(np.isnan(measurement.values).sum()),
            "notes": list(measurement.notes),
            "start": measurement.start,
        },
    }


class StepLog:
    """Training records as JSON Lines, one per tick, readable while training runs.

    The file is created with the first record. Where training resumes, the records it is
    about to repeat are dropped from the old file first, so that every step stands in it
    once.

    Args:
        path: The `.jsonl` file.
        resume: Whether to continue an existing file.
    """

    def __init__(self, path: Path, *, resume: bool) -> None:
        self._path = path
        self._resume = resume
        self._file: TextIO | None = None

    def __enter__(self) -> StepLog:
        """Return itself; the file is opened by the first record."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()

    def write(self, record: Mapping[str, Any]) -> None:
        """Append one record and flush it.

        Args:
            record: Statistics of one tick; "step" counts the steps done.
        """
        if self._file is None:
            kept = self._earlier(int(record["step"])) if self._resume else []
            with whole_files(self._path) as (temporary,):
                temporary.write_text("".join(kept), encoding="utf-8")
            self._file = self._path.open("a", encoding="utf-8")
        self._file.write(to_json(record) + "\n")
        self._file.flush()

    def _earlier(self, step: int) -> list[str]:
        if not self._path.exists():
            return []
        lines = self._path.read_text(encoding="utf-8").splitlines(keepends=True)
        return [line for line in lines if _step_of(line) < step]


def _step_of(line: str) -> float:
    """Step of a line of the log; infinite for one that was cut off."""
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return math.inf
