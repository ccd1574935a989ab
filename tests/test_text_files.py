"""Text files as instruments and programs write them, and the options to read them."""

from __future__ import annotations

import bz2
import gzip
import lzma
import sys
import zipfile
from datetime import datetime, timedelta
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner
from scipy.io import savemat

from sepprior.cli import main
from sepprior.cli.separate import BUNDLED_PRIOR
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


def rows(line: str = "{t:.2f},{x:.4f}", cells: list[str] | None = None) -> str:
    """The table's lines; `c` is the cell of a column of its own."""
    return "".join(
        line.format(i=i, t=t, ms=1e3 * t, x=x, c=cells[i] if cells else "") + "\n"
        for i, (t, x) in enumerate(zip(T, X, strict=True))
    )


def clock(start: float, form: str = "{h:02d}:{m:02d}:{s:06.3f}") -> list[str]:
    """Times of the day, from so many seconds after midnight on."""
    return [
        form.format(h=int(s // 3600) % 24, m=int(s // 60) % 60, s=s % 60)
        for s in (start + T).round(3)
    ]


def stamped(cells: list[str], name: str = "Time") -> str:
    """A table with times of these spellings."""
    return f"{name},value\n" + rows("{c},{x:.4f}", cells)


def comma(text: str) -> str:
    """Numbers with a decimal comma."""
    return text.replace(".", ",")


def check(path: Path, rate: float | None = RATE, x=X, **options) -> None:
    """A file holds X at RATE."""
    (found,) = read_measurements(path, **options)
    if rate is None:
        assert found.sample_rate is None
    else:
        assert found.sample_rate == pytest.approx(rate, rel=1e-6)
    np.testing.assert_allclose(found.values, x, rtol=1e-12, atol=1e-9)


def test_time_column_can_be_named_numbered_and_denied(tmp_path):
    path = write(tmp_path, "time,clock,v\n" + rows("{i},{t:.2f},{x:.4f}"))
    check(path, column="v", rate=1.0)
    for name in ("clock", 1, "1"):
        check(path, column="v", time_column=name)
    check(path, column="v", time_column="none", rate=None)
    assert read_recordings(path, column="v", time_column="clock").sample_rate == RATE
    (found,) = open_measurements(path, column="v", time_column="none", sample_rate=7)
    assert found.sample_rate == 7


@pytest.mark.parametrize(
    "command",
    [
        ["separate"],
        ["separate", "--window", "20"],
        ["separate", "--table", "t"],
        ["train-noise"],
        ["inspect", str(BUNDLED_PRIOR)],
        ["benchmark", "--noise"],
    ],
    ids=" ".join,
)
def test_every_command_takes_the_time_column(tmp_path, monkeypatch, command):
    monkeypatch.chdir(tmp_path)
    path = write(tmp_path, "1,2\n3,4\nclock,v\n" + rows())
    how = ["--column", "v", "--time-column", "clok", "--skip-lines", "2"]
    result = CliRunner().invoke(main, [*command, str(path), *how])
    assert result.exit_code == 2
    said = result.stderr.splitlines()[-1]
    assert "no column 'clok'; it has clock, v" in said
    assert "did you mean 'clock'" in said


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


MINUTES = "{m:02d}:{s:05.2f}"
TABS, SEMI = "{t:.2f}\t{x:.4f}", "{t:.2f};{x:.4f}"
INSTRUMENTS = {
    "tektronix beside": "Record Length,60,,0.00,0,\nSample Interval,1e-02,,0.01,1,\n"
    + rows(",,,{t:.2f},{x:.4f},").replace(",,,0.00", "Source,CH1,,0.00"),
    "tektronix above": "Model,MSO\nSample Interval,0.01\nVertical Units,V\n\n"
    "TIME,CH1\n" + rows(),
    "keysight": "x-axis,1\nsecond,Volt\n" + rows("{t:+.6E},{x:+.6E}"),
    "rigol sequence": "X,CH1,Start,Increment,\nSequence,Volt,-5.0e-01,1.0e-02\n"
    + rows("{i},{x:.4e},,"),
    "rigol": "Time(s),CH1(V),t0 = -0.5s, tInc = 0.01,\n" + rows("{t:.6e},{x:.4e},,"),
    "siglent": "Record Length,Analog:60\nSample Rate,100.0\nHorizontal Scale, 0.1\n"
    "Second,Volt\n" + rows("{t:.11f},{x:.4f}"),
    "lecroy": "LECROYWS,1,Waveform\nSegments,1,SegmentSize,60\n"
    "Segment,TrigTime,Time\n#1,01-Jan-2020 00:00:00,0\nTime,Ampl\n" + rows(),
    "labview": "LabVIEW Measurement\t\nSeparator\tTab\n***End_of_Header***\t\n\t\n"
    "Channels\t1\t\nX0\t0.0\t\nDelta_X\t0.01\t\n***End_of_Header***\t\t\n"
    "X_Value\tUntitled\tComment\n" + rows(TABS),
    "labview without times": "LabVIEW Measurement\t\n***End_of_Header***\t\n\t\n"
    "Delta_X\t0.01\t\n***End_of_Header***\t\t\nX_Value\tForce\tComment\n"
    + rows("\t{x:.4f}"),
    "campbell": '"TOA5","S","CR0","1","1.0","P","1","T"\n"TIMESTAMP","RECORD","V_Avg"\n'
    '"TS","RN","V"\n"","","Smp"\n' + rows('"2020-01-01 {c}",{i},{x:.4f}', clock(5)),
    "hobo": '"Plot Title: run"\n"#","Date Time, GMT+01:00","Volt, V (LGR S/N: 1)"\n'
    + rows("{i},01/02/21 {c},{x:.4f}", clock(5)),
    "graphtec": "NO.\tTime\tus\tmV\n"
    + rows("{i}\t0\t{c}\t{x:+.4f}", [f"{1e6 * t:.0f}" for t in T])
    .replace("\t-", "\t- ")
    .replace("\t+", "\t+ "),
    "picoscope": comma("Time;Channel A\n(ms);(V)\n\n" + rows("{ms:.4f};{x:.4f}")),
    "picolog": ",Channel 1 Ave. (mV)\n" + rows("2021-03-04T{c}Z,{x:.4f}", clock(5)),
    "sigrok": "; CSV, by libsigrok\n; Samplerate: 100 Hz\nTime(s), A0\n" + rows(),
    "sigrok without times": "; CSV by libsigrok\n; Samplerate: 0.1 kHz\nA0\n"
    + rows("{x:.4f}"),
    "waveforms": "#Digilent\n#Sample rate: 100Hz\n\nTime (s),Channel 1 (V)\n"
    + rows("{t:.12f},{x:.14f}"),
    "rohde": "in s,C1 in V\n" + rows("{t:.9E},{x:.6E}"),
    "fluke": "Reading,Sample,Start Time\n" + rows("{i},{x:.4f},1/2/2021 {c}", clock(5)),
    "keithley": "Model,DMM6500\nSerial,1\n\nIndex,Reading,Unit,Rel Time\n"
    + rows("{i},{x:.4f},VOLT,{t:.6f}"),
    "serial port": "ets Jun  8 2016\nrst:0x1 boot\nmillis,value\n"
    + rows("{ms:.0f},{x:.4f}"),
    "klipper": "#time,accel\n" + rows("{t:.6f},{x:.4f}"),
    "excel german": comma("Zeit in s;Messwert\r\ns;mV\r\n" + rows(SEMI)),
    "excel french": comma("Temps (s);Mesuré\r\n" + rows(SEMI)).encode("latin-1"),
    "excel german, dated": comma("Datum;Uhrzeit;Wert\n" + rows("{c};{x:.4f}", clock(5)))
    .replace("00:00:", "01.02.2021;00:00:"),
    "micro sign": ("Time (\xb5s),CH1 (V)\n" + rows("{ms:.0f}000,{x:.4f}")).encode(
        "latin-1"
    ),
    "UTF-16": ("time,value\n" + rows()).encode("utf-16"),
    "UTF-16 without mark": ("time,value\n" + rows()).encode("utf-16-le"),
    "mark and sep": "\ufeffsep=;\ntime;value\n" + rows(SEMI),
    "sep of commas": '"sep=,"\ntime,value\n' + rows(),
    "bars": "time|value\n" + rows("{t:.2f}|{x:.4f}"),
    "bare units": "time,value\ns,V\n" + rows(),
    "bare units, ms": "time,value\nms,V\n" + rows("{ms:.1f},{x:.4f}"),
    "whole numbers first": comma("Zeit;Wert\n" + rows("{t:g};{x:.4f}")),
    "decimal comma and blanks": comma("time value\n" + rows("  {t:.2f}   {x:.4f}")),
    "decimal comma and tabs": comma("time\tvalue\n" + rows(TABS)),
    "decimal comma in quotes": "time,value\n"
    + comma(rows('"{t:.2f}";"{x:.4f}"')).replace(";", ","),
    "Fortran": "time,value\n" + rows("{t:.2f},{x:.4E}").replace("E", "D"),
    "blank after the sign": "time,value\n" + rows().replace("-", "- "),
    "true minus": "time,value\n" + rows().replace("-", "\u2212"),
    "no-break spaces": "time;value\n" + rows("{t:.2f};\xa0{x:.4f}"),
    "remarks": "% Model: x\n% time value\n" + rows("{t:.2f}  {x:.4f}"),
    "slashes": "// time value\n" + rows("{t:.2f}  {x:.4f}"),
    "units after blanks": "Time (s)   Force (N)\n" + rows("{t:.2f}  {x:.4f}"),
    "R": '"time" "value"\n' + rows('"{i}" {t:.2f} {x:.4f}'),
    "pandas index": ",time,value\n" + rows("{i},{t:.2f},{x:.4f}"),
    "trailing delimiters": "time;value\n" + rows("{t:.2f};{x:.4f};"),
    "last line cut": "time,value\n" + rows() + "0.6",
    "last lines empty": "time,value\n" + rows() + "nan,nan\n,\n\n",
    "padding": ("time,value\n" + rows() + "0.6,1").encode() + bytes(999),
    "carriage returns": ("time,value\n" + rows()).replace("\n", "\r"),
    "hash in names": '"#","Time (s)","Ch #1"\n' + rows("{i},{t:.2f},{x:.4f}"),
    "settings": "date: 2021-01-01\ngain = 5\nrun 7\n\ntime,value\n" + rows(),
    "ISO": "time,value\n" + rows("2021-03-04T{c}+01:00,{x:.4f}", clock(7199.8)),
    "over midnight": stamped(clock(86399.8)),
    "minutes": stamped(clock(59.8, MINUTES)),
    "AM and PM": stamped([f"3/4/2021 1:{c} PM" for c in clock(0, MINUTES)]),
    "colon before ms": stamped([c.replace(".", ":") for c in clock(9)]),
    "epoch ms": stamped([f"{1.7e12 + 1e3 * t:.0f}" for t in T]),
    "ticks": stamped([str(638 * 10**15 + i * 10**5) for i in range(60)]),
    "Excel days": stamped([f"{44000 + t / 86400:.11f}" for t in T], "Date"),
}  # fmt: skip


@pytest.mark.parametrize("name", INSTRUMENTS)
def test_what_instruments_write_is_read(tmp_path, name):
    text = INSTRUMENTS[name]
    if name == "tektronix beside":  # its first rows are lines of the settings, too
        text = text.split("\n", 2)[2]
        for setting in ("Record Length,60", "Sample Interval,0.01", "Source,CH1"):
            text = text.replace("\n,,,", f"\n{setting},,", 1)
    check(write(tmp_path, text))


@pytest.mark.parametrize(
    ("token", "value"),
    [(t, np.nan) for t in ("NAN", "Nan", '"NAN"', "NONE", "Null", "#N/A", "-1.#IND")]
    + [(t, np.nan) for t in ("1.#QNAN", "-nan(ind)", "nan(0x1)", "missing", "---", " ")]
    + [(t, np.nan) for t in ("####", "\xa0", "N/A ", "#DIV/0!")],
)
def test_what_stands_for_a_missing_sample(tmp_path, token, value):
    expected = X.copy()
    expected[30] = value
    lines = ("time,value\n" + rows()).splitlines()
    lines[31] = f"{T[30]:.2f},{token}"
    check(write(tmp_path, "\n".join(lines)), x=expected)
    lines = ["value", *(f"{x:.4f}" for x in expected)]
    lines[31] = token
    if token.strip() and token != "####":  # a line of # is a remark
        check(write(tmp_path, "\n".join(lines)), x=expected, rate=None)


def test_infinity_is_no_minus_one(tmp_path):
    path = write(tmp_path, "value\n" + rows("{x:.4f}") + "-1.#INF\n0.5\n")
    with pytest.raises(SeppriorError, match="infinite value, the first at line 62"):
        read_measurements(path)


REFUSED = {
    "x,y\n" + rows(): "say --time-column 'x' if it holds times",
    "x,y,z\n" + rows("{x:.4f},{x:.3f},{x:.2f}"): "several columns",
    rows(): "say --time-column '0'",
    "0,1\n" + rows("{t:.6f},{x:.4f}"): "say --time-column '0'",
    "Time(s),A0\n" + rows("0,{i:02d},{x:.4f}"): "has 2 columns in its first line but 3",
    "time,value\n" + rows("{t:.2f},{x:.4f} V"): "V' in 'value'",
    "time,value\n" + rows() + "Mean,1.2\n": "'Mean' at line 62, column 'time'",
    "time,value\n" + rows() + "time,value\n" + rows(): "'time' at line 62",
    "time,value\n" + rows() + "0.6," + "9x" * 9999: "...' at line 62",
    "time,value\n" + rows() + "0.6,odd\n": "'odd' at line 62",
    "Timestamp,X,Y\n" + rows("{t:.2f}"): "no column with numeric samples",
    "<html><table></table></html>": "no table of numbers",
    '{"time": [0, 1, 2], "value": [1, 2, 3]}': "no table of numbers",
    "time,value\n" + rows("{t:.2f},{x:.4f}")[:300] + "\0\0\n" + rows(): "NUL bytes",
    "a\n" + rows("{x:.4f}")[:50] + "BAD\n" + rows("{x:.4f}"): "BAD' at line 8",
    stamped(clock(5)) + "soon,1\n": "a time such as '00:0",
}


@pytest.mark.parametrize("text", REFUSED, ids=range(len(REFUSED)))
def test_what_cannot_be_read_gets_one_line(tmp_path, text):
    path = write(tmp_path, text)
    with pytest.raises(SeppriorError) as caught:
        read_measurements(path)
    message = str(caught.value)
    assert REFUSED[text] in message and str(path) in message
    assert len(message) < 400 + len(str(path)) and "\n" not in message


def test_the_advice_to_name_the_times_works(tmp_path):
    path = write(tmp_path, "x,y\n" + rows())
    check(path, time_column="x")
    check(path, time_column="none", column="y", rate=None)
    check(path, sample_rate=RATE)  # the step of x is that of the rate
    with pytest.raises(SeppriorError, match="--time-column 'x'"):
        read_measurements(path, sample_rate=2 * RATE)
    (path,) = [write(tmp_path, "X,CH1\n" + rows("{i},{x:.4f}"))]
    check(path, rate=None)  # numbers of the rows


def test_lines_above_a_table_can_be_skipped(tmp_path):
    above = "5,6\n7,8\n"
    path = write(tmp_path, above + "time,value\n" + rows())
    with pytest.raises(SeppriorError, match=r"'time,value' at line 3.*--skip-lines 2"):
        read_measurements(path)
    check(path, skip_lines=2)
    assert read_recordings(path, skip_lines=2).sample_rate == RATE
    arguments = ["inspect", "nowhere.safetensors", str(path), "--skip-lines", "-1"]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 2 and "-1 is not in the range" in result.stderr


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("0\n" + rows("{x:.6f}"), X),
        (",0\n" + rows("{i},{x:.6f}"), X),
        ("z\n" + rows("{x:.4f}"), X),
        (comma(rows("{x:.4f}")), X),
        ("v\n" + comma(rows("{x:.4f}")), X),
        ("a;b\n" + rows("{c};w", [f"{1e4 * x:,.3f}" for x in X]), 1e4 * X),
        (
            "a;b\n" + rows("{c};w", [f"{1e7 * x:_.0f}" for x in X]).replace("_", "'"),
            1e7 * X,
        ),
    ],
    ids=["0", ",0", "z", "commas alone", "a column of commas", "1,234.5", "1'234"],
)
def test_numbers_in_other_forms(tmp_path, text, expected):
    check(write(tmp_path, text), x=expected, rate=None)


# --- clocks


def times(step: list[int], digits: int = 3) -> str:
    """Rows of T at 1 kHz with steps of so many ms, in turn."""
    stamps = np.cumsum([0, *(step * 60)])[: len(X)] / 1000
    return stamped([f"{t:.{digits}f}" for t in stamps])


@pytest.mark.parametrize("step", [[1, 2], [1, 1, 2], [1, 1, 1, 1, 1, 1, 1, 1, 2]])
def test_rows_missing_in_the_rhythm_of_rounding_are_asked_about(tmp_path, step):
    path = write(tmp_path, times(step))
    slower = 1000 * len(step) / sum(step)
    with pytest.raises(SeppriorError, match=r"fits .* Hz as well as 1000 Hz"):
        read_recordings(path)
    check(path, sample_rate=slower, rate=slower)
    (found,) = read_measurements(path, sample_rate=1000)
    assert len(found.values) > len(X) and np.isnan(found.values).any()


def test_pairs_of_rows_are_no_rounding(tmp_path):
    (found,) = read_measurements(write(tmp_path, times([1, 3])))
    assert found.sample_rate == 1000
    np.testing.assert_array_equal(np.isnan(found.values[:8]), [0, 0, 1, 1] * 2)


def test_rows_written_twice_are_refused(tmp_path):
    text = "time,value\n" + rows("{t:.2f},{x:.4f}\n{t:.2f},{x:.4f}")
    with pytest.raises(SeppriorError, match=r"written more than once.* at line 3"):
        read_measurements(write(tmp_path, text))


def test_jitter_is_no_uniform_sampling(tmp_path):
    shaken = T + np.random.default_rng(1).uniform(-0.33, 0.33, 60) / RATE
    path = write(tmp_path, stamped([f"{t + 1:.7f}" for t in shaken]))
    with pytest.raises(SeppriorError, match=r"not uniform.*--time-column none"):
        read_measurements(path)
    check(path, time_column="none", sample_rate=RATE)
    little = T + np.random.default_rng(1).uniform(-0.1, 0.1, 60) / RATE
    path = write(tmp_path, stamped([f"{t + 1:.7f}" for t in little]))
    (found,) = read_measurements(path)
    assert found.sample_rate == pytest.approx(RATE, rel=1e-2)


def test_six_significant_digits_need_a_rate_where_they_round_too_much(tmp_path):
    path = write(tmp_path, stamped([f"{999.98 + t / 10:.6g}" for t in T]))
    with pytest.raises(SeppriorError, match=r"rounded too coarsely.*--sample-rate HZ"):
        read_measurements(path)
    check(path, sample_rate=10 * RATE, rate=10 * RATE)


def test_absurd_ratios_are_no_advice(tmp_path):
    path = write(tmp_path, stamped([str(100000 * i) for i in range(60)]))
    result = CliRunner().invoke(main, ["separate", str(path), "--no-plot"])
    assert result.exit_code == 2
    assert "resample_poly" not in result.stderr and "unit" in result.stderr


@pytest.mark.parametrize("suffix", [".npz", ".h5", ".mat", ".parquet"])
def test_the_time_column_of_other_formats(tmp_path, suffix):
    path, arrays = tmp_path / f"a{suffix}", {"time": 2 * T, "ticks": T, "v": X}
    if suffix == ".npz":
        np.savez(path, **arrays)
    elif suffix == ".mat":
        savemat(path, arrays)
    elif suffix == ".parquet":
        pd.DataFrame(arrays).to_parquet(path)
    else:
        with h5py.File(path, "w") as file:
            for name, values in arrays.items():
                file[name] = values
    check(path, column="v", rate=RATE / 2)
    check(path, column="v", time_column="ticks")
    check(path, column="v", time_column="none", rate=None)
    with pytest.raises(SeppriorError, match="did you mean 'ticks'"):
        read_measurements(path, column="v", time_column="tick")


def workbook(path, rows, *, first=()):
    openpyxl = pytest.importorskip("openpyxl")
    book = openpyxl.Workbook()
    for row in first:
        book.active.append(row)
    sheet = book.create_sheet("run")
    for row in rows:
        sheet.append(row)
    book.save(path)
    return path


def test_a_workbook_is_read_as_its_sheet_of_numbers(tmp_path):
    x = np.random.default_rng(0).standard_normal(40)
    rows = [["Logger 7"], [], ["Time (ms)", "U (V)"]]
    rows += [[10 * i, None if i == 3 else float(v)] for i, v in enumerate(x)]
    path = workbook(tmp_path / "run.xlsx", rows, first=[["notes"], ["two", 2]])
    (found,) = read_measurements([path])
    assert found.sample_rate == pytest.approx(100.0)
    expected = x.copy()
    expected[3] = np.nan
    np.testing.assert_allclose(found.values, expected)
    # The same by another name, and by dates.
    renamed = path.rename(tmp_path / "run.csv")
    (again,) = read_measurements([renamed])
    np.testing.assert_array_equal(again.values, found.values)
    begin = datetime(2024, 5, 17, 10)
    rows = [["Timestamp", "V"]]
    rows += [[begin + timedelta(seconds=i), float(v)] for i, v in enumerate(x)]
    (dated,) = read_measurements([workbook(tmp_path / "dated.xlsx", rows)])
    assert dated.sample_rate == pytest.approx(1.0)
    np.testing.assert_allclose(dated.values, x)


@pytest.mark.parametrize(
    ("rows", "part"),
    [
        ([["only", "words"]], "no sheet of the workbook holds numbers"),
        ([["time", "v"], [0.0, "1.5 V"], [0.1, "1.6 V"]], "without their units"),
    ],
)
def test_a_workbook_that_cannot_be_used(rows, part, tmp_path):
    with pytest.raises(SeppriorError, match=part) as caught:
        list(read_measurements([workbook(tmp_path / "bad.xlsx", rows)]))
    assert "\n" not in str(caught.value)


def test_a_workbook_without_its_reader(tmp_path, monkeypatch):
    path = workbook(tmp_path / "run.xlsx", [[1.0, 2.0]] * 20)
    monkeypatch.setitem(sys.modules, "openpyxl", None)
    with pytest.raises(SeppriorError, match="needs openpyxl; pip install openpyxl"):
        list(read_measurements([path]))


def test_words_for_a_reading_beyond_the_range_are_missing(tmp_path):
    cells = ["OL", "0.5", "OVLD", "-OL", "over"] + ["1.25"] * 20
    path = tmp_path / "meter.csv"
    path.write_text("V\n" + "".join(f"{cell}\n" for cell in cells))
    (found,) = read_measurements([path])
    expected = [np.nan, 0.5, np.nan, np.nan, np.nan] + [1.25] * 20
    np.testing.assert_array_equal(found.values, expected)


@pytest.mark.parametrize(
    ("cell", "way_out"),
    [("1.63 V", "without their units"), ("0x1F", "write decimal numbers")],
)
def test_cells_that_are_nearly_numbers(cell, way_out, tmp_path):
    path = tmp_path / "run.csv"
    path.write_text("time,value\n" + "".join(f"{i},{cell}\n" for i in range(30)))
    with pytest.raises(SeppriorError, match=way_out):
        list(read_measurements([path]))


@pytest.mark.parametrize(
    ("head", "first", "rate"),
    [
        ("epoch,value", lambda i: 1_714_564_800 + i, 1.0),
        ("epoch,value", lambda i: 1_714_564_800_000 + 2 * i, 500.0),
        ("seq,unixtime,value", lambda i: f"{i},{0.002 * i:.3f}", 500.0),
    ],
)
def test_times_since_1970_are_no_numbers_of_rows(head, first, rate, tmp_path):
    path = tmp_path / "run.csv"
    lines = "".join(f"{first(i)},{0.5 * (i % 7)}\n" for i in range(60))
    path.write_text(f"{head}\n{lines}")
    (found,) = read_measurements(path)
    assert found.sample_rate == pytest.approx(rate)
    np.testing.assert_array_equal(found.values, [0.5 * (i % 7) for i in range(60)])


def test_a_column_without_a_name_may_hold_the_times(tmp_path):
    """It is asked about, unless it numbers the rows as an index does."""
    path = tmp_path / "run.txt"
    path.write_text("setup done\n" + "".join(f"{2 * i}\t{i % 7}\n" for i in range(60)))
    with pytest.raises(SeppriorError, match="column '0' rises steadily"):
        read_measurements(path)
    (found,) = read_measurements(path, time_column="0")
    assert found.sample_rate == pytest.approx(0.5)
    path.write_text(",value\n" + "".join(f"{i},{i % 7}\n" for i in range(60)))
    (index,) = read_measurements(path)
    assert index.sample_rate is None
