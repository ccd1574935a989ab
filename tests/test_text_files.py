"""Text files as instruments and programs write them, and the options to read them."""

from __future__ import annotations

import bz2
import gzip
import lzma
import zipfile
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from sepprior.cli import main
from sepprior.data import (
    list_files,
    open_measurements,
    read_measurements,
    read_recordings,
)
from sepprior.errors import SeppriorError

RATE = 100.0
T = np.arange(60) / RATE
X = np.random.default_rng(3).normal(size=60).round(4)


def write(folder: Path, text: str | bytes, name: str = "a.csv") -> Path:
    path = folder / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def rows(line: str = "{t:.2f},{x:.4f}", t=T, x=X) -> str:
    """The table's lines, each ended by a line feed."""
    return "".join(
        line.format(i=i, t=a, x=b) + "\n"
        for i, (a, b) in enumerate(zip(t, x, strict=True))
    )


def check(path: Path, rate: float | None = RATE, x=X, **options) -> None:
    """A file holds X at RATE."""
    (found,) = read_measurements(path, **options)
    if rate is None:
        assert found.sample_rate is None
    else:
        assert found.sample_rate == pytest.approx(rate, rel=1e-6)
    np.testing.assert_allclose(found.values, x, rtol=0, atol=1e-9)


def test_time_column_can_be_named_numbered_and_denied(tmp_path):
    path = write(tmp_path, "time,clock,v\n" + rows("{i},{t:.2f},{x:.4f}"))
    check(path, column="v", rate=1.0)
    for name in ("clock", 1, "1"):
        check(path, column="v", time_column=name)
    check(path, column="v", time_column="none", rate=None)
    assert read_recordings(path, column="v", time_column="clock").sample_rate == RATE
    (found,) = open_measurements(path, column="v", time_column="none", sample_rate=7)
    assert found.sample_rate == 7
    result = CliRunner().invoke(
        main, ["separate", str(path), "--column", "v", "--time-column", "clok"]
    )
    assert result.exit_code == 2
    assert (
        "no column 'clok'" in result.stderr and "did you mean 'clock'" in result.stderr
    )


@pytest.mark.parametrize("packer", ["gz", "bz2", "xz", "zip"])
def test_compressed_text_is_read_by_its_content(tmp_path, packer):
    text = ("time,value\n" + rows()).encode()
    if packer == "zip":
        path = tmp_path / "run.CSV.zip"
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("run.csv", text)
    else:
        pack = {"gz": gzip, "bz2": bz2, "xz": lzma}[packer]
        path = write(tmp_path, pack.compress(text), f"run.csv.{packer}")
        check(write(tmp_path, pack.compress(text), "b.csv"))
    check(path)
    assert [item.name for item in read_measurements(path)] == ["run"]
    assert list(list_files(path.parent))[-1] == path
    path.write_bytes(path.read_bytes()[:60])
    with pytest.raises(SeppriorError, match="cannot be read as text"):
        read_measurements(path)
