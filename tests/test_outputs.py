import json

import numpy as np
import pytest

from sepprior.errors import SeppriorError
from sepprior.outputs import (
    StepLog,
    check_output_file,
    check_output_folder,
    to_json,
    whole_files,
    write_csv,
)


def write_columns(path, columns):
    with path.open("w", newline="", encoding="utf-8") as file:
        write_csv(file, columns)


def test_folder_that_can_be_created(tmp_path):
    check_output_folder(tmp_path / "new" / "newer")
    assert list(tmp_path.iterdir()) == []


def test_folder_that_is_a_file(tmp_path):
    file = tmp_path / "file"
    file.write_text("kept")
    for folder in (file, file / "below"):
        with pytest.raises(SeppriorError, match="not writable"):
            check_output_folder(folder)
    assert file.read_text() == "kept"


def test_folder_without_permission(tmp_path, monkeypatch):
    def refuse(**options):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("tempfile.TemporaryFile", refuse)
    with pytest.raises(SeppriorError, match=r"not writable \(Permission denied\)"):
        check_output_folder(tmp_path)


def test_file_names(tmp_path):
    check_output_file(tmp_path / "prior.safetensors", suffixes=[".safetensors"])
    with pytest.raises(SeppriorError, match="is a folder"):
        check_output_file(tmp_path, suffixes=[".csv"])
    with pytest.raises(SeppriorError, match=r"use '.*prior\.safetensors'"):
        check_output_file(tmp_path / "prior.pt", suffixes=[".safetensors"])


def test_files_appear_together(tmp_path):
    first, second = tmp_path / "new" / "a.csv", tmp_path / "new" / "b.json"
    with whole_files(first, second) as (one, other):
        assert one.parent == first.parent and one.suffix == ".csv"
        one.write_text("1")
        other.write_text("2")
        assert not first.exists() and not second.exists()
    assert first.read_text() == "1" and second.read_text() == "2"
    assert len(list(first.parent.iterdir())) == 2


def test_failure_leaves_the_old_files(tmp_path):
    old, new = tmp_path / "a.csv", tmp_path / "b.csv"
    old.write_text("old")
    with pytest.raises(RuntimeError), whole_files(old, new) as (one, _):
        one.write_text("half")
        raise RuntimeError
    assert old.read_text() == "old"
    assert list(tmp_path.iterdir()) == [old]


def test_columns(tmp_path):
    path = tmp_path / "table.csv"
    columns = {"time": np.array([0.1, 0.1 + 0.2]), "x": np.array([np.nan, -1e-20])}
    write_columns(path, columns)
    assert path.read_text() == "time,x\n0.1,\n0.3,-1e-20\n"


def test_columns_are_written_some_rows_at_a_time(tmp_path, monkeypatch):
    values = np.arange(7.0) / 3.0
    columns = {"time": values, "signal": np.where(values > 1.0, np.nan, -values)}
    write_columns(tmp_path / "whole.csv", columns)
    monkeypatch.setattr("sepprior.outputs.ROWS_AT_ONCE", 3)
    write_columns(tmp_path / "parts.csv", columns)
    whole = (tmp_path / "whole.csv").read_text()
    assert whole.count("\n") == 8
    assert (tmp_path / "parts.csv").read_text() == whole
    with pytest.raises(ValueError, match=r"longer|shorter"):
        write_columns(tmp_path / "x.csv", columns | {"noise": values[:6]})


def test_json_is_standard():
    value = {"a": np.float64("nan"), "b": np.arange(2), "c": (np.bool_(True), np.inf)}
    assert to_json(value) == '{"a": null, "b": [0, 1], "c": [true, null]}'


def steps_in(path):
    return [json.loads(line)["step"] for line in path.read_text().splitlines()]


def test_log_is_readable_at_once_and_starts_anew(tmp_path):
    path = tmp_path / "log.jsonl"
    path.write_text("of an earlier training\n")
    with StepLog(path, resume=False) as log:
        assert path.exists()
        log.write({"step": 1, "loss": float("nan")})
        assert path.read_text() == '{"step": 1, "loss": null}\n'
        log.write({"step": 2})
        assert steps_in(path) == [1, 2]


def test_log_without_records_leaves_the_old_one(tmp_path):
    path = tmp_path / "log.jsonl"
    path.write_text("old")
    with StepLog(path, resume=False):
        pass
    assert path.read_text() == "old"


def test_resumed_log_has_every_step_once(tmp_path):
    path = tmp_path / "log.jsonl"
    path.write_text('{"step": 10}\n{"step": 20}\n{"step": 30}\n{"ste')
    with StepLog(path, resume=True) as log:
        log.write({"step": 20})
        log.write({"step": 30})
    assert steps_in(path) == [10, 20, 30]


def test_resumed_log_without_an_old_one(tmp_path):
    with StepLog(tmp_path / "log.jsonl", resume=True) as log:
        log.write({"step": 20})
    assert steps_in(tmp_path / "log.jsonl") == [20]
