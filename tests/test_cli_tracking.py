"""`sepprior separate --window`: files in, table, waveform and picture out."""

import json

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner

import sepprior
from sepprior.checkpoint import save_prior
from sepprior.cli import main
from sepprior.data.series import IN_MEMORY_SAMPLES
from tests.conftest import SAMPLE_RATE, WINDOW, coloured_noise

BAND = ("--fmin", "5", "--fmax", "30")


def run(*args):
    return CliRunner().invoke(main, ["separate", *map(str, args)])


def refused(*args):
    result = run(*args)
    assert result.exit_code == 2, result.output
    assert "Traceback" not in result.stderr
    *_, line = result.stderr.splitlines()
    return line


@pytest.fixture
def here(tmp_path, monkeypatch, gaussian_prior):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("SEPPRIOR_PRIOR", raising=False)
    save_prior(gaussian_prior, tmp_path / "prior.safetensors")
    write_measurement(tmp_path / "long.csv")
    return tmp_path


def write_measurement(path, *, n=1500, start=50.0, seed=2):
    path.parent.mkdir(parents=True, exist_ok=True)
    time = start + np.arange(n) / SAMPLE_RATE
    x = coloured_noise(n, seed=seed) + 3 * np.sin(2 * np.pi * 12.3 * time)
    pd.DataFrame({"time": time, "value": x}).to_csv(path, index=False)
    return x


def test_track_of_a_file_is_that_of_the_function(here, gaussian_prior):
    result = run("long.csv", "--window", WINDOW, "--hop", 40, *BAND)
    assert result.exit_code == 0, result.output
    assert "written: long.track.csv, long.separated.csv, long.png" in result.stdout
    assert sorted(path.name for path in here.iterdir()) == [
        "long.csv",
        "long.png",
        "long.separated.csv",
        "long.track.csv",
        "prior.safetensors",
    ]
    measured = pd.read_csv("long.csv")
    track = sepprior.track(
        measured["value"], gaussian_prior, hop=40, fmin=5, fmax=30, start=50.0
    )
    assert track.report() in result.stdout
    table = pd.read_csv("long.track.csv")
    assert list(table) == list(track.table)
    numbers = table.select_dtypes("number").drop(columns="noise_change")  # no text
    pd.testing.assert_frame_equal(numbers, track.table[list(numbers)], rtol=1e-9)
    assert list(table["status"]) == list(track.table["status"])
    waves = pd.read_csv("long.separated.csv")
    assert list(waves) == ["time", "measurement", "signal", "noise", "residual"]
    np.testing.assert_allclose(waves["time"], measured["time"])
    np.testing.assert_allclose(waves["measurement"], measured["value"])
    np.testing.assert_allclose(waves["signal"], track.signal, atol=1e-9)
    np.testing.assert_allclose(waves["residual"], track.residual, atol=1e-9)


def test_parquet_by_the_suffix(here):
    assert run("long.csv", "--hop", 32, *BAND).exit_code == 0
    done = run("long.csv", "--hop", 32, *BAND, "-o", "out/line.parquet", "--no-plot")
    assert done.exit_code == 0, done.output
    assert sorted(path.name for path in (here / "out").iterdir()) == [
        "line.parquet",
        "line.separated.parquet",
    ]
    table, text = pd.read_parquet("out/line.parquet"), pd.read_csv("long.track.csv")
    numbers = text.select_dtypes("number").drop(columns="noise_change")  # no text
    pd.testing.assert_frame_equal(table[list(numbers)], numbers, rtol=1e-9)
    assert table["cycle_certain"].dtype == bool
    waves = pd.read_parquet("out/line.separated.parquet")
    np.testing.assert_allclose(waves, pd.read_csv("long.separated.csv"), atol=1e-9)


def test_folders_leave_out_what_was_written_before(here):
    write_measurement(here / "in" / "a.csv")
    write_measurement(here / "in" / "b.csv", seed=5)
    for _ in range(2):
        result = run("in", "--window", WINDOW, *BAND, "--no-plot", "--json")
        assert result.exit_code == 0, result.output
        lines = [json.loads(line) for line in result.stdout.splitlines()]
        assert [line["name"] for line in lines] == ["a", "b"]
        assert lines[0]["median"]["frequency"] == pytest.approx(12.3, abs=0.05)
    assert len(list((here / "in").iterdir())) == 6
    assert "several ('a', 'b', ...)" in refused("in", "--hop", 32, "-o", "one.csv")
    assert not (here / "one.csv").exists()


def test_long_files_are_tracked_in_blocks(here, monkeypatch):
    # longer than what is held in memory; windows as long as a second of the batch
    monkeypatch.setattr("sepprior.tracking.fits.BATCH_SAMPLES", 2**12)
    x = write_measurement(here / "unused.csv", n=6000)
    np.save("long.npy", x.astype(np.float32))
    monkeypatch.setattr("sepprior.data.series.IN_MEMORY_SAMPLES", 1000)
    result = run("long.npy", "--window", WINDOW, *BAND, "--no-plot")
    assert result.exit_code == 0, result.output
    assert "taken to be the prior's" in result.stderr
    waves = pd.read_csv("long.separated.csv")
    assert len(waves) == 6000 < IN_MEMORY_SAMPLES
    np.testing.assert_allclose(waves["measurement"], x, rtol=1e-6)
    np.testing.assert_allclose(waves["signal"] + waves["noise"], x, atol=1e-6)
    assert np.isfinite(waves["signal"]).all()


def test_what_cannot_be_used_leaves_nothing_behind(here):
    before = sorted(here.iterdir())
    for args, message in (
        (("long.csv", "--hop", 65), "samples between the windows would be lost"),
        (("long.csv", "--window", 8), "at least 16"),
        (("long.csv", "--window", 64, "--method", "mcmc"), "leave out --method"),
        (("long.csv", "--window", 64, "--draws", 60), "leave out --method and --draws"),
        (("long.csv", "--hop", 32, "--components", "auto"), "number of sinusoids"),
        (("long.csv", "--hop", 32, "--sample-rate", 7), "the time column gives"),
        (("long.csv", "--hop", 32, "--fmin", 60), "cannot be searched"),
        (("absent.csv", "--hop", 32), "no such file"),
        (("long.csv", "--hop", 32, "--column", "other"), "other"),
    ):
        assert message in refused(*args)
        assert sorted(here.iterdir()) == before
