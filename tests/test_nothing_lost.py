"""Nothing is lost, nothing is overwritten."""

import errno
import importlib
import os
import shutil
import stat
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner

import sepprior
from sepprior.checkpoint import files
from sepprior.cli import main
from sepprior.cli.separate import BUNDLED_PRIOR
from sepprior.errors import SeppriorError, SeppriorWarning
from sepprior.outputs import check_distinct, whole_files
from tests.conftest import SAMPLE_RATE, coloured_noise

train = importlib.import_module("sepprior.training.train")


def run(*words):
    return CliRunner().invoke(main, [str(word) for word in words])


@pytest.fixture
def here(tmp_path, monkeypatch, gaussian_prior):
    """A folder with recordings of the prior's noise, and the prior."""
    monkeypatch.chdir(tmp_path)
    x = coloured_noise(400, seed=3) + 5 * np.sin(0.7 * np.arange(400))
    rows = "\n".join(f"{i / SAMPLE_RATE:.4f},{v:.6f}" for i, v in enumerate(x))
    for name in ("w.csv", "w.separated.csv", "dup.csv", "year.csv"):
        Path(name).write_text(f"time,v\n{rows}\n")
    np.save("dup.npy", x)
    sepprior.save_prior(gaussian_prior, "prior.safetensors")
    return tmp_path


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("w.csv w.separated.csv", "'w.separated.csv' is an input"),
        ("year.csv --window 64 -o year.csv", "'year.csv' is an input"),
        ("w.csv --window 64 -o w.parquet w.separated.csv", "several"),
        ("link.csv --window 64 -o year.csv", "'link.csv' is an input"),
    ],
)
def test_outputs_are_neither_inputs_nor_each_other(here, words, told):
    Path("link.csv").symlink_to("year.csv")
    before = {path: path.read_bytes() for path in here.glob("*.*")}
    done = run("separate", *words.split(), "--no-plot")
    assert done.exit_code == 2 and told in done.stderr
    assert len(done.stderr.strip().splitlines()) <= 2  # the prior's line is the other
    assert all(path.read_bytes() == content for path, content in before.items())


def test_results_of_one_measurement_are_not_replaced_by_those_of_another(here):
    done = run("separate", "dup.csv", "dup.npy", "--no-plot")
    assert done.exit_code == 0
    assert {"dup.fit.json", "dup-2.fit.json"} <= {path.name for path in here.iterdir()}
    assert run("separate", "dup.csv", "--no-plot").exit_code == 0  # again
    before = Path("dup.fit.json").read_bytes()
    done = run("separate", "dup.npy", "--no-plot")
    assert done.exit_code == 2 and "holds the result of 'dup.csv'" in done.stderr
    assert Path("dup.fit.json").read_bytes() == before
    assert run("separate", "dup.npy", "--no-plot", "-o", "other").exit_code == 0


def test_distinct_files_pass(tmp_path):
    check_distinct([tmp_path / "a.csv", tmp_path / "b.csv"], [tmp_path / "c.csv"])
    with pytest.raises(sepprior.SeppriorError, match="both write"):
        check_distinct([tmp_path / "a.csv", tmp_path / "A.csv"], [])


def test_other_commands_keep_their_inputs(here):
    assert run("sample", "prior.safetensors", "-o", "s.csv").exit_code == 0
    Path("prior.inspect.json").write_text("[]")
    told = run("inspect", "prior.safetensors", "prior.inspect.json").stderr
    assert "is an input" in told
    Path("n.jsonl").write_text("1\n")
    told = run("train-noise", "n.jsonl", "-o", "n.safetensors").stderr
    assert "is an input" in told


def test_temporary_files_are_private_and_do_not_stay(tmp_path, monkeypatch):
    old = os.umask(0o027)
    try:
        with whole_files(tmp_path / "a.csv") as (one,):
            first = one.name
            one.write_text("x")
        with whole_files(tmp_path / "a.csv") as (one,):
            assert one.name != first
    finally:
        os.umask(old)
    assert stat.S_IMODE((tmp_path / "a.csv").stat().st_mode) == 0o640
    with pytest.raises(RuntimeError), whole_files(tmp_path / "a.csv") as (one,):
        one.write_text("y")
        raise RuntimeError
    assert (tmp_path / "a.csv").read_text() == ""
    assert [path.name for path in tmp_path.iterdir()] == ["a.csv"]


def test_links_are_replaced_and_not_followed(tmp_path):
    (tmp_path / "precious").write_text("kept")
    (tmp_path / "a.csv").symlink_to(tmp_path / "precious")
    with whole_files(tmp_path / "a.csv") as (one,):
        one.write_text("new")
    assert (tmp_path / "precious").read_text() == "kept"
    assert (tmp_path / "a.csv").read_text() == "new"


def test_files_of_a_killed_run_are_removed_by_the_next(tmp_path):
    dead = 2**22 + 1  # above the largest process number
    left = [
        tmp_path / f".a.{dead}-0123abcd.tmp.csv",
        tmp_path / f".a.{dead}.tmp.csv",
    ]
    others = [
        tmp_path / f".a.{os.getpid()}-0123abcd.tmp.csv",
        tmp_path / f".ab.{dead}-0123abcd.tmp.csv",
        tmp_path / ".a.notes.csv",
    ]
    for path in (*left, *others):
        path.write_text("half")
    with whole_files(tmp_path / "a.csv"):
        pass
    assert not any(path.exists() for path in left)
    assert all(path.exists() for path in others)


def full(*_, **__):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def trained(**options):
    noise = coloured_noise(3000, seed=4)
    return sepprior.train_noise(
        noise, sample_rate=SAMPLE_RATE, model="gaussian", window=64, **options
    )


def test_a_full_disk_does_not_lose_the_prior(tmp_path, monkeypatch):
    real = train.save_prior

    def save(prior, path):
        return full() if Path(path).parent == tmp_path / "full" else real(prior, path)

    (tmp_path / "full").mkdir()
    monkeypatch.setattr(train, "save_prior", save)
    monkeypatch.setattr(train.tempfile, "mkdtemp", lambda prefix: str(tmp_path))
    with pytest.warns(SeppriorWarning, match=r"No space left.*it is kept as"):
        prior = trained(output=tmp_path / "full" / "p.safetensors")
    assert prior.window == 64
    assert sepprior.load_prior(tmp_path / "p.safetensors").window == 64
    monkeypatch.setattr(train, "save_prior", full)
    with pytest.warns(SeppriorWarning, match="it is lost"):
        assert trained(output=tmp_path / "full" / "p.safetensors").window == 64


def test_the_writer_of_tensors_tells_a_full_disk(tmp_path, monkeypatch):
    from safetensors import SafetensorError
    from safetensors import torch as writer

    def fail(*_, **__):
        raise SafetensorError("I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(writer, "save_file", fail)
    with pytest.raises(OSError, match="No space left"):
        files.save_tensors({}, {}, tmp_path / "p.safetensors")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["folder", "p.csv", "absent.txt/p.safetensors"])
def test_the_path_is_checked_before_the_training(tmp_path, monkeypatch, name):
    (tmp_path / "folder").mkdir()
    (tmp_path / "absent.txt").write_text("a file")
    monkeypatch.setattr(train, "split_recording", full)
    with pytest.raises(sepprior.SeppriorError, match="output"):
        trained(output=tmp_path / name)


def test_an_unfinished_prior_says_so(gaussian_prior):
    x = coloured_noise(64, seed=8) + 9 * np.sin(0.7 * np.arange(64))
    assert "unfinished" not in sepprior.separate(x, gaussian_prior).status
    unfinished = gaussian_prior.to("cpu")
    unfinished.metadata["unfinished"] = True
    told = sepprior.separate(x, unfinished).status
    assert told.startswith("the prior is unfinished")


def test_names_that_no_text_can_hold(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = Path("in")
    folder.mkdir()
    np.savetxt(folder / "a.csv", np.random.default_rng(0).normal(size=300))
    bad = folder / os.fsdecode(b"caf\xe9.csv")
    try:
        shutil.copy(folder / "a.csv", bad)
    except OSError:
        pytest.skip("the file system takes no such name")
    call = ["separate", str(folder), "--table", "t"]
    done = CliRunner().invoke(main, [*call, "--keep-going"])
    assert done.exit_code == 3 and r"caf\udce9.csv: the name" in done.output
    (source,) = pd.read_parquet("t")["source"].unique()
    assert source == str(folder / "a.csv")
    for arguments in (["separate", str(bad)], ["inspect", BUNDLED_PRIOR, str(bad)]):
        done = CliRunner().invoke(main, [*map(str, arguments)])
        assert done.exit_code == 2 and "is not UTF-8: rename it" in done.output
        assert "Traceback" not in done.output
    assert sorted(os.listdir(folder)) == sorted(["a.csv", bad.name])


@pytest.mark.parametrize("name", ["a\0b.csv", 300 * "q" + ".csv", "\udce9.csv"])
def test_names_that_cannot_be_opened(name):
    for call in (sepprior.load_prior, sepprior.read_recordings):
        with pytest.raises(SeppriorError) as error:
            call(name)
        assert len(str(error.value)) < 250 and str(error.value).isprintable()


def test_a_name_that_an_ending_makes_too_long_is_refused_before_the_work(tmp_path):
    path = tmp_path / (245 * "b" + ".csv")
    np.savetxt(path, np.random.default_rng(0).normal(size=300))
    done = CliRunner().invoke(main, ["separate", str(path), "--no-plot"])
    assert done.exit_code == 2 and "the name is too long (259 bytes)" in done.output
    assert os.listdir(tmp_path) == [path.name]


def test_temporary_names_are_short_enough_in_any_script(tmp_path):
    path = tmp_path / (80 * "\N{HIRAGANA LETTER A}" + ".csv")  # 244 bytes
    with whole_files(path) as (temporary,):
        temporary.write_text("1")
    assert path.read_text() == "1"
