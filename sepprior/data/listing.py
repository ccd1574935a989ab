"""Which files a path stands for: a file, a folder, a pattern, a Parquet dataset."""

from __future__ import annotations

import glob
import importlib
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from sepprior.errors import SeppriorError

SUFFIXES = {
    "text": (".csv", ".txt", ".tsv", ".dat", ".asc", ".prn", ".tab", ".lvm"),
    "workbook": (".xlsx", ".xlsm"),
    "NPY": (".npy",),
    "NPZ": (".npz",),
    "WAV": (".wav", ".wave"),
    "sound": (".flac", ".ogg", ".aiff", ".aif", ".au", ".caf", ".w64"),
    "MAT": (".mat",),
    "TDMS": (".tdms",),
    "HDF5": (".h5", ".hdf5", ".hdf", ".nc"),
    "Zarr": (".zarr",),
    "Parquet": (".parquet", ".pq"),
}
"""Endings of the names of each format's files; a Zarr store is a folder."""
NAME_SHOWN = 100
"""Characters shown of a name that cannot be opened."""
_PACKED = ("gz", "bz2", "xz", "zip")
RESULT_ENDINGS = tuple(
    f".{kind}{suffix}"
    for kind in ("separated", "track")
    for suffix in (".csv", ".parquet")
)
"""Endings of tables that `sepprior separate` writes; read only if named themselves."""
_KNOWN = {suffix: name for name, suffixes in SUFFIXES.items() for suffix in suffixes}


def plain_name(name: str) -> str:
    """The name of a file without the suffix of a compressed text file."""
    stem, dot, packed = name.rpartition(".")
    text = Path(stem).suffix.lower() in SUFFIXES["text"]
    return stem if dot and text and packed.lower() in _PACKED else name


def format_of(path: Path) -> str:
    """Format of a file by its suffix, in text files before that of a compression.

    Raises:
        SeppriorError: the suffix is none of `SUFFIXES`.
    """
    check_name(path)
    known = _KNOWN.get(Path(plain_name(path.name)).suffix.lower())
    if known is None:
        given = f"suffix '{path.suffix}'" if path.suffix else "no suffix"
        raise SeppriorError(f"{path}: has {given}; expected {', '.join(_KNOWN)}")
    return known


def check_name(path: Path) -> None:
    """Refuse a file that no output could name.

    Raises:
        SeppriorError: its path is not UTF-8, or has a NUL.
    """
    try:
        usable = b"\0" not in str(path).encode("utf-8")
    except UnicodeEncodeError:
        usable = False
    if not usable:
        shown = ascii(str(path))[1:-1]
        raise SeppriorError(
            f"{shown}: the name of the file or of a folder is not UTF-8: rename it"
        )


def need(package: str, path: Path, reading: str) -> None:
    """Refuse a file whose reader is not installed.

    Raises:
        SeppriorError: it is not; the message has the command that installs it.
    """
    try:
        importlib.import_module(package)
    except (ImportError, OSError) as error:  # or without its shared library
        raise SeppriorError(
            f"{path}: reading {reading} needs {package}; pip install {package} (or "
            "sepprior[io])"
        ) from error


def list_files(paths: str | Path | Iterable[str | Path]) -> Iterator[Path]:
    """All files that paths stand for, in order.

    Args:
        paths: files; folders, of which all files of a known format are taken, sorted by
            name, but no results (`RESULT_ENDINGS`); patterns such as
            ``'runs/**/*.csv'``, where no file has that name; Parquet datasets,
            partitioned into folders or not; Zarr stores.

    Raises:
        SeppriorError: nothing there, or nothing of a known format.
    """
    for given in [paths] if isinstance(paths, str | Path) else paths:
        yield from _files(Path(given))


def _files(path: Path) -> Iterator[Path]:
    """The files of one path; only their names are held, a `Path` takes far more."""
    try:
        exists = path.exists()
    except OSError as error:
        shown = str(path)[:NAME_SHOWN]
        raise SeppriorError(
            f"{shown}...: cannot be opened ({error.strerror})"
        ) from error
    if not exists:
        check_name(path)
        if glob.has_magic(str(path)):
            yield from _matching(path)
            return
        raise SeppriorError(f"{path}: no such file or folder")
    if not path.is_dir() or _is_store(path.name):
        yield path
        return
    names: list[str] = []
    divided = results = False
    try:
        with os.scandir(path) as scanned:
            for entry in scanned:
                is_dir = entry.is_dir()
                if _is_input(entry.name, is_dir):
                    names.append(entry.name)
                divided |= is_dir and "=" in entry.name
                results |= entry.name.endswith(RESULT_ENDINGS)
    except OSError as error:
        raise SeppriorError(
            f"{path}: the folder cannot be read ({error.strerror})"
        ) from error
    if names:
        names.sort()
        yield from (path / name for name in names)
        return
    found = _partitions(path) if divided else []
    if not found and results:
        raise SeppriorError(
            f"'{path}' holds nothing but results (*{', *'.join(RESULT_ENDINGS)}): "
            "name the folder of the measurements"
        )
    if not found:
        raise SeppriorError(
            f"{path}: the folder has no file of a known format; expected "
            f"{', '.join(_KNOWN)}"
        )
    yield from found


def _is_store(name: str) -> bool:
    return Path(name).suffix.lower() in SUFFIXES["Zarr"]


def _is_input(name: str, is_dir: bool) -> bool:
    """Whether an entry of a folder is to be read: of a known format, not hidden."""
    suffix = Path(plain_name(name)).suffix.lower()
    known = suffix in _KNOWN and not name.endswith(RESULT_ENDINGS)
    return known and is_dir == _is_store(name) and not name.startswith(".")


def _matching(pattern: Path) -> Iterator[Path]:
    """Files and stores that match a pattern, sorted by the names of folders and file.

    The separator sorts before every character, so that a folder's files stay together.
    """
    found = [
        name
        for name in glob.iglob(str(pattern), recursive=True)
        if _is_input(os.path.basename(name), os.path.isdir(name))
    ]
    if not found:
        raise SeppriorError(
            f"{pattern}: no file of a known format matches the pattern; expected "
            f"{', '.join(_KNOWN)}"
        )
    found.sort(key=lambda name: name.replace(os.sep, "\0"))
    yield from map(Path, found)


def _partitions(path: Path) -> list[Path]:
    """Files of a Parquet dataset whose folders are named ``key=value``."""
    try:
        import pyarrow.dataset
    except ImportError as error:
        raise SeppriorError(
            f"{path}: reading a Parquet dataset needs pyarrow; pip install pyarrow"
        ) from error
    dataset = pyarrow.dataset.dataset(path, format="parquet", partitioning="hive")
    return sorted(map(Path, dataset.files))
